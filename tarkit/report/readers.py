"""Reads the files of a run's folder: JSON tables, a training's log, judged samples.

The folder may come from elsewhere: sizes and depths are limited, and types are checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.artifacts.files import is_deep, read_object
from tarkit.errors import UserError

MAX_TEXT_BYTES = 256 << 20
MAX_SCORE_BYTES = 1 << 30
"""Of the columns read, unpacked: a few million judged samples."""

# The columns of an evaluation's scores.parquet that are read; one that is absent is null.
SCORE_COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("suite", "task", "column", "item")),
        ("seed", pa.int64()),
        *((name, pa.string()) for name in ("prompt", "file", "answer", "label")),
        ("correct", pa.bool_()),
        ("clauses", pa.list_(pa.bool_())),
        *((name, pa.string()) for name in ("reason", "error")),
    ]
)


class ScoreRow(TypedDict):
    """A judged sample: a drawn picture, which has a `file`, or an answer."""

    suite: str
    task: str
    column: str
    item: str
    seed: int | None
    prompt: str
    file: str | None
    answer: str | None
    label: str | None
    correct: bool | None
    clauses: list[bool] | None
    reason: str | None
    error: str | None


@dataclass(frozen=True)
class TrainingLog:
    """The rows of a metrics.jsonl that have a step, and the number of lines that are no such row.

    A line may be incomplete: a training may be writing at this moment.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    num_damaged_lines: int = 0


def read_table(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file, empty where there is none; raises UserError as `read_object`."""
    return read_object(path) if path.is_file() else {}


def read_log(path: Path) -> TrainingLog:
    """The log in a metrics.jsonl or bad_rows.jsonl, empty where there is no file."""
    rows: list[Mapping[str, Any]] = []
    num_damaged_lines = 0
    for line in _read_text(path).splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and is_finite(row.get("step")) and not is_deep(row):
            rows.append(row)
        else:
            num_damaged_lines += 1
    return TrainingLog(rows, num_damaged_lines)


def read_scores(path: Path) -> list[ScoreRow]:
    """The rows of a scores.parquet, empty where there is no file.

    Raises UserError where it is too large, damaged, or has a column of another type.
    """
    if not path.is_file():
        return []
    try:
        file = pq.ParquetFile(path)
        present = [name for name in SCORE_COLUMNS.names if name in file.schema_arrow.names]
        size = sum(
            file.metadata.row_group(group).total_byte_size
            for group in range(file.metadata.num_row_groups)
        )
        if size > MAX_SCORE_BYTES:
            raise UserError(f"{path} unpacks to {size} bytes, more than {MAX_SCORE_BYTES}")
        table = file.read(columns=present)
        arrays = [
            table[name].cast(kind) if name in present else pa.nulls(table.num_rows, kind)
            for name, kind in zip(SCORE_COLUMNS.names, SCORE_COLUMNS.types, strict=True)
        ]
        rows = pa.Table.from_arrays(arrays, schema=SCORE_COLUMNS).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as judged samples: {error}") from None
    texts = ("suite", "task", "column", "item", "prompt")
    return [cast(ScoreRow, {**row, **{name: row[name] or "" for name in texts}}) for row in rows]


def as_table(value: Any) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether the value is a number that can be drawn; an integer beyond the floats cannot."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise UserError(f"{path} has {size} bytes, more than {MAX_TEXT_BYTES}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
