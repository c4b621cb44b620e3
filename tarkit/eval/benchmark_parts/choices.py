"""Multiple choice: lettered options as MMBench, SEED-Bench and MMMU publish them.

No answer is guessed here: where a published program draws a choice at random, the reading is None,
which is wrong.
"""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.question_files import (
    LETTER_SUFFIX,
    SHORT_SUFFIX,
    first_value,
    picture_fields,
    question_rows,
    require_columns,
    require_texts,
)
from tarkit.eval.benchmarks.base import ItemRow
from tarkit.eval.run import BenchmarkItem

LETTERS = "ABCDEFGHIJ"


def read_choices(path: Path, images: Path | None) -> list[ItemRow]:
    """Rows of MMBench's .tsv, and of SEED-Bench's and MMMU's files, by the names of their columns.

    `truth` is JSON, because MMMU's answer to an open question may be a list of texts.
    """
    rows = []
    for place, row in question_rows(path):
        options = _options(row, place)
        require_columns(row, ("answer",), place)
        require_texts(row, ("question",), place)
        question = str(row["question"]).replace("<image 1>", "").strip()
        hint = row.get("hint")
        stem = question if _is_absent(hint) else f"{hint}\n{question}"
        suffix = LETTER_SUFFIX if options else SHORT_SUFFIX
        item = {
            "id": str(first_value(row, ("id", "index", "question_id"), default=place)),
            "tag": str(
                first_value(row, ("category", "subfield", "question_type_id"), default="all")
            ),
            "prompt": stem + listed(options) + suffix,
            "truth": json.dumps(_truth(row["answer"], options, place)),
            "meta": {"options": options},
        }
        rows.append(item | picture_fields(row, images, place))
    return rows


def listed(options: Mapping[str, str]) -> str:
    """The options of a prompt, one a line: `A. a fox`."""
    return "".join(f"\n{letter}. {text}" for letter, text in options.items())


def _options(row: Mapping[str, Any], place: str) -> dict[str, str]:
    """The options by letter; one that is absent takes no letter of another.

    Tables write an absent option as null, as an empty text, or as pandas' nan. 0 is an option.
    """
    texts = row.get("options")
    if isinstance(texts, str) and not _is_absent(texts):
        try:
            texts = ast.literal_eval(texts)  # MMMU writes a list as Python would
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UserError(f"{place}: options {texts!r} are not a list") from None
    if _is_absent(texts):
        columns = {name: name for name in LETTERS} | {f"choice_{a.lower()}": a for a in LETTERS}
        texts = {letter: row[name] for name, letter in columns.items() if row.get(name) is not None}
    elif isinstance(texts, list | tuple):
        if len(texts) > len(LETTERS):
            raise UserError(f"{place} has {len(texts)} options, more than {len(LETTERS)} letters")
        texts = dict(zip(LETTERS, texts, strict=False))
    if not isinstance(texts, Mapping) or not set(texts) <= set(LETTERS):
        raise UserError(f"{place}: options {texts!r:.200} are not a list")
    return {letter: str(text) for letter, text in texts.items() if not _is_absent(text)}


def _is_absent(value: Any) -> bool:
    return value is None or str(value).strip().lower() in ("", "nan")


def _truth(answer: Any, options: Mapping[str, str], place: str) -> Any:
    """The answer of a row; with options their letter, which may have brackets or a full stop.

    Without options it may be a list of texts, which MMMU's tables write as Python would.
    """
    if not options:
        if isinstance(answer, str) and answer.startswith("["):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return [str(each) for each in ast.literal_eval(answer)]
        return answer
    letter = str(answer).strip(" ().").upper()
    if letter not in options:
        raise UserError(f"{place}: the answer {answer!r} is none of {', '.join(options)}")
    return letter


def first_letter(answer: str, letters: Sequence[str]) -> str | None:
    """SEED-Bench's and MMBench's reading: the answer's first character, where it is an option."""
    first = answer.strip()[:1].upper()
    return first if first in letters else None


def first_letter_correct(item: BenchmarkItem, answer: str) -> bool:
    """Whether the answer begins with the letter of the true option."""
    truth: str = json.loads(str(item.truth))
    return first_letter(answer, list(item.options)) == truth
