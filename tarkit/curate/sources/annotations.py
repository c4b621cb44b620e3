"""Captions and questions in a csv, jsonl, json or Parquet file that names a source's pictures.

A question is a row of image, question and answer, or a whole conversation in the layout of
ShareGPT and LLaVA: image and conversations, a list of {from: human | gpt, value}.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tarkit.artifacts.tables import AGAIN, read_rows
from tarkit.curate.sources.items import (
    ABOUT_COLUMNS,
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SourceItem,
    shown,
    with_captions,
)
from tarkit.curate.sources.text import CONVERSATIONS, conversation
from tarkit.errors import UserError
from tarkit.terminal import print_note
from tarkit.vocab import IMAGE_MARK

ENDINGS = (".csv", ".jsonl", ".json", ".parquet")


def add_captions(items: Sequence[SourceItem], path: Path) -> tuple[SourceItem, ...]:
    """`items` with the captions of a csv, jsonl, json or Parquet file.

    A name that is not in the source becomes an item with an error. Raises UserError with the place
    of a row that cannot be read, or names no picture or several.
    """
    return _add(items, path, CAPTION_COLUMNS, with_captions)


def add_questions(items: Sequence[SourceItem], path: Path) -> tuple[SourceItem, ...]:
    """As `add_captions`, with the question-answer pairs or conversations of a file."""
    return _add(items, path, ("question", "answer", CONVERSATIONS), _with_questions)


def _add(
    items: Sequence[SourceItem],
    path: Path,
    columns: Sequence[str],
    change: Callable[[SourceItem, Mapping[str, Any], str], SourceItem],
) -> tuple[SourceItem, ...]:
    """`items` changed by every row of the table in `path`; a row without a picture adds one."""
    changed = list(items)
    places: dict[str, list[int]] = {}
    for place, item in enumerate(changed):
        for name in {item.name, *item.aliases}:
            places.setdefault(name, []).append(place)
    known = (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *ABOUT_COLUMNS)
    if path.suffix not in ENDINGS:
        raise UserError(f"{path} has none of the endings {', '.join(ENDINGS)}")
    num_without = 0
    for file_row in read_rows(path, columns=(*known, "question", "answer", CONVERSATIONS)):
        row, where = file_row.require(), f"{path.name} {file_row.place}"
        if CONVERSATIONS in row and not any(row.get(c) for c in IMAGE_COLUMNS if c != "id"):
            num_without += 1
            continue
        name = _image_name(row, where)
        if not any(column in row for column in (*columns, *ABOUT_COLUMNS)):
            wanted = ", ".join(columns)
            raise UserError(
                f"{where} has none of the columns {wanted}; it has {', '.join(row)}", hint=AGAIN
            )
        at = places.get(name, [])
        if len(at) > 1:
            raise UserError(
                f"{where} names {name!r}, the name of {len(at)} pictures: "
                f"{changed[at[0]].name}, {changed[at[1]].name}",
                hint="use their longer names",
            )
        if not at:
            outside = os.path.isabs(name) or name.split("/")[0] == ".."
            why = "leaves the source" if outside else "is not in the source"
            at = [len(changed)]
            places[name] = at
            changed.append(SourceItem(shown(name), error=f"named in {where}, but it {why}"))
        changed[at[0]] = change(changed[at[0]], row, where)
    if num_without:
        print_note(
            f"{path}: {num_without} conversations show no picture; curate chats --text takes them"
        )
    if len(changed) > len(items):
        changed.sort(key=lambda item: item.name)
    return tuple(changed)


def _with_questions(item: SourceItem, row: Mapping[str, Any], where: str) -> SourceItem:
    if row.get(CONVERSATIONS) is None:
        return _with_question(item, row, where)
    try:
        turns = conversation(row[CONVERSATIONS])
    except ValueError as error:
        return replace(item, error=f"{where}: {error}")
    turns = turns[1:] if turns[0][0] == "system" else turns
    roles = [role for role, _ in turns]
    if len(turns) % 2 or roles != ["user", "assistant"] * (len(turns) // 2):
        return replace(item, error=f"{where}: its turns are not question and answer in turn")
    for (_, question), (_, answer) in zip(turns[::2], turns[1::2], strict=True):
        # A chat of tarkit has the picture before the question, wherever the file marks it.
        bare = question.replace(IMAGE_MARK, "").strip()
        item = _with_question(item, {"question": bare, "answer": answer}, where)
    return item


def _with_question(item: SourceItem, row: Mapping[str, Any], where: str) -> SourceItem:
    pair = [row.get("question"), row.get("answer")]
    if not all(isinstance(part, str) and part.strip() for part in pair):
        return replace(item, error=f"{where}: a question needs a question and an answer")
    question, answer = (shown(str(part).strip()) for part in pair)
    return replace(item, qa=(*item.qa, (question, answer)))


def _image_name(row: Mapping[str, Any], where: str) -> str:
    for column in IMAGE_COLUMNS:
        value = row.get(column)
        if isinstance(value, str) and value:
            return value if os.path.isabs(value) else os.path.normpath(value)
    raise UserError(
        f"{where} names no picture: expected one of the columns {', '.join(IMAGE_COLUMNS)}; it has "
        f"{', '.join(map(str, row)) or 'none'}",
        hint=AGAIN,
    )
