"""Captions and questions in a csv, tsv, jsonl, json or Parquet file that names a source's pictures.

A question is a row of image, question and answer, or a whole conversation in the layout of
ShareGPT and LLaVA: image and conversations, a list of {from: human | gpt, value}.
"""

import functools
import itertools
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tarkit.artifacts.tables import AGAIN, FileRow
from tarkit.curate.sources.annotation_rows import OTHER_FORMS, annotation_rows, usual_form
from tarkit.curate.sources.items import (
    ABOUT_COLUMNS,
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    SourceItem,
    in_any_case,
    lowered,
    shown,
    with_captions,
)
from tarkit.curate.sources.text import CONVERSATIONS, OTHER_MEDIA, ROLES, conversation
from tarkit.errors import UserError
from tarkit.terminal import print_note
from tarkit.vocab import IMAGE_MARK

IMAGES = "images"
ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def add_captions(
    items: Sequence[SourceItem], path: Path, *, below: str = ""
) -> tuple[SourceItem, ...]:
    """`items` with the captions of a csv, tsv, jsonl, json or Parquet file.

    Its names are relative to the folder `below` of the source.

    A row that cannot be read, and a name that is not in the source or is that of several pictures,
    becomes an item with an error. Raises UserError where every row does.
    """
    change = functools.partial(with_captions, source=shown(path.name))
    return _add(items, path, CAPTION_COLUMNS, change, below)


def add_questions(items: Sequence[SourceItem], path: Path) -> tuple[SourceItem, ...]:
    """As `add_captions`, with the question-answer pairs or conversations of a file.

    A pair without a question or an answer is left out, and a note counts them: the picture and its
    other pairs are sound.
    """
    left_out: list[str] = []
    change = functools.partial(_with_questions, left_out)
    changed = _add(items, path, ("question", "answer", CONVERSATIONS), change)
    if left_out:
        print_note(f"{path}: {len(left_out)} questions are left out; the first: {left_out[0]}")
    return changed


def _add(
    items: Sequence[SourceItem],
    path: Path,
    columns: Sequence[str],
    change: Callable[[SourceItem, Mapping[str, Any], str], SourceItem],
    below: str = "",
) -> tuple[SourceItem, ...]:
    """`items` changed by every row of the table in `path`; a row without a picture adds one."""
    changed = list(items)
    places: dict[str, list[int]] = {}
    similar: dict[str, set[int]] = {}
    for place, item in enumerate(changed):
        for name in {item.name, *item.aliases}:
            places.setdefault(name, []).append(place)
            similar.setdefault(_portable(name), set()).add(place)
    known = (*IMAGE_COLUMNS, *CAPTION_COLUMNS, *ABOUT_COLUMNS)
    if path.suffix not in ENDINGS:
        raise UserError(f"{path} has none of the endings {', '.join(ENDINGS)}")
    bad: list[UserError] = []
    num_without = num_rows = 0
    more = ("question", "answer", CONVERSATIONS, IMAGES, *OTHER_MEDIA, *OTHER_FORMS)

    def change_by(file_row: FileRow) -> None:
        nonlocal num_without
        where = f"{path.name} {file_row.place}"
        values = file_row.require()
        row = usual_form(values)
        if problem := _single_picture(row):
            failed = shown(f"{path.name}#{file_row.number}")
            changed.append(SourceItem(failed, error=f"{where}: {problem}"))
            return
        if CONVERSATIONS in row and not any(row.get(c) for c in IMAGE_COLUMNS if c != "id"):
            num_without += 1
            return
        name = os.path.normpath(os.path.join(below, _image_name(row, where)))
        # A column without a value, as pandas writes nan, is one: the picture has no caption.
        if not (row.keys() | lowered(values).keys()) & {*columns, *ABOUT_COLUMNS}:
            wanted = ", ".join(columns)
            raise UserError(
                f"{where} has none of the columns {wanted}; it has {', '.join(row)}", hint=AGAIN
            )
        at = places.get(name) or sorted(similar.get(_portable(name), ()))
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
            similar[_portable(name)] = set(at)
            changed.append(SourceItem(shown(name), error=f"named in {where}, but it {why}"))
        changed[at[0]] = change(changed[at[0]], row, where)

    for file_row in annotation_rows(path, in_any_case((*known, *more))):
        num_rows += 1
        try:
            change_by(file_row)
        except UserError as error:
            bad.append(error)
            changed.append(SourceItem(shown(f"{path.name}#{file_row.number}"), error=error.message))
    if bad and len(bad) == num_rows:  # not a bad row or two, but another kind of file
        raise bad[0]
    if num_without:
        print_note(
            f"{path}: {num_without} conversations show no picture; curate chats --text takes them"
        )
    if len(changed) > len(items):
        changed.sort(key=lambda item: item.name)
    return tuple(changed)


def _single_picture(row: dict[str, Any]) -> str | None:
    """Make a list of one picture the row's `image`; why it is not about one picture, or None."""
    if media := [column for column in OTHER_MEDIA if row.get(column)]:
        return f"it has a {media[0]}, and a question is about a picture"
    for column in ("image", IMAGES):
        names = row.get(column)
        if not isinstance(names, list):
            names = [names] if column == IMAGES and names else []
        names = [name.get("path") if isinstance(name, Mapping) else name for name in names]
        if len(names) > 1:
            return f"it shows {len(names)} pictures, and a question is about one"
        if names and not isinstance(names[0], str):
            return "its picture has no name"
        if names:
            row["image"] = names[0]
        elif isinstance(row.get("image"), list):
            del row["image"]
    return None


def _portable(name: str) -> str:
    """The form that a name has in common with the same one written on another system."""
    return os.path.normpath(unicodedata.normalize("NFC", name.replace("\\", "/")))


def _with_questions(
    left_out: list[str], item: SourceItem, row: Mapping[str, Any], where: str
) -> SourceItem:
    """`item` with the sound pairs of a row; reasons for the others are added to `left_out`."""
    pairs: list[tuple[Any, Any]] = [(row.get("question"), row.get("answer"))]
    if CONVERSATIONS in row:
        try:
            turns = list(conversation(row[CONVERSATIONS], may_be_empty=True))
        except ValueError as error:
            left_out.append(f"{where}: {error}")
            return item
        if turns[0][0] == "system":
            del turns[0]
        if [role for role, _ in turns] != [ROLES[1 + place % 2] for place in range(len(turns))]:
            left_out.append(f"{where}: its turns are not question and answer in turn")
            return item
        # A chat of tarkit has the picture before the question, wherever the file marks it.
        questions = [text.replace(IMAGE_MARK, "") for _, text in turns[::2]]
        pairs = list(itertools.zip_longest(questions, [text for _, text in turns[1::2]]))
    for pair in pairs:
        question, answer = (shown(part.strip()) if isinstance(part, str) else "" for part in pair)
        if question and answer:
            item = replace(item, qa=(*item.qa, (question, answer)))
        else:
            missing = "an answer" if question else "a question"
            left_out.append(f"{where} has a pair without {missing}")
    return item


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
