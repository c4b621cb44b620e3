"""Reads the rows of .csv, .tsv, .jsonl, .json and .parquet files, one at a time.

A row that cannot be read has an `error`. The caller decides whether it ends the command or becomes
a failed row, and which columns a row needs. UserError is raised here only when the rest of the file
cannot be read either: a damaged Parquet file, a CSV quote that never ends.

Memory is bounded: lines are streamed and Parquet is decoded `BATCH_ROWS` rows at a time. A .json
file is one value and is held whole.

The delimiter of a CSV is the one that its header shows. CSV is read by the standard library and not
by `pyarrow.csv` (26.0.1), which cannot read a cell longer than its block, reads a quote that never
ends as text, and reports row numbers instead of line numbers.
"""

from __future__ import annotations

import csv
import itertools
import json
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tarkit.artifacts.files import MAX_LINE_CHARS, UTF8, numbered_lines, read_text, require_file
from tarkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256
"""Rows of Parquet that are decoded at a time: 256 pictures of 500 kB are 128 MB."""

BUFFER_BYTES = 1 << 20
"""Of a Parquet column; pyarrow's default holds a whole row group: 43 MB instead of 6 MB."""

DELIMITERS = ",;\t|"

AGAIN = "correct it, and run the same command again"


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row: its values by column, or `error`, the reason why it cannot be read.

    `number` is a line from 1, for a row of several lines the last of them; in JSON lists and
    Parquet it is a row from 0.
    """

    path: Path
    unit: Literal["line", "row"]
    number: int
    values: dict[str, Any]
    error: str | None = None

    @property
    def place(self) -> str:
        """`line 3` or `row 2`."""
        return f"{self.unit} {self.number}"

    def require(self) -> dict[str, Any]:
        """The values; raises UserError with file, line and reason where there are none."""
        if self.error is not None:
            raise UserError(
                f"{self.path} {self.place} {self.error}", hint=_hint(self.path, self.place)
            )
        return self.values


def read_rows(
    path: Path, *, columns: Collection[str] | None = None, encoding: str = UTF8
) -> Iterator[FileRow]:
    """The rows of a file in order; the file's ending says its format.

    With `columns`, a .csv, .tsv or .parquet file must have at least one of them, and of a .parquet
    file only these columns are read. Raises UserError with the file and, if there is one, the line.
    """
    readers: dict[str, Callable[[], Iterator[FileRow]]] = {
        ".csv": lambda: _csv_rows(path, ",", columns, encoding),
        ".tsv": lambda: _csv_rows(path, "\t", columns, encoding),
        ".jsonl": lambda: read_json_lines(path, encoding=encoding),
        ".json": lambda: _json_rows(path, encoding=encoding),
        ".parquet": lambda: _parquet_rows(path, columns),
    }
    require_file(path)
    ending = path.suffix.lower()
    if ending not in readers:
        raise UserError(
            f"{path}: the ending is {ending or 'missing'}, expected one of {', '.join(readers)}"
        )
    return readers[ending]()


def read_json_lines(path: Path, *, encoding: str = UTF8) -> Iterator[FileRow]:
    """A row for every line that is not blank; one that is not a JSON object has an error."""
    for number, line, problem in numbered_lines(path, encoding=encoding):
        if not line.strip():
            continue
        values, error = ({}, problem) if problem else _json_object(line)
        yield FileRow(path, "line", number, values, error)


def read_json_records(path: Path, *, encoding: str = UTF8) -> Iterator[FileRow]:
    """The rows of JSON lines, or of one list in JSON, as the first character says."""
    start = next((line.lstrip() for _, line, _ in numbered_lines(path, encoding=encoding)), "")
    reader = _json_rows if start.startswith("[") else read_json_lines
    return reader(path, encoding=encoding)


def read_json(path: Path, *, encoding: str = UTF8) -> Any:
    """The one value of a .json file; raises UserError."""
    try:
        return json.loads(read_text(path, encoding=encoding, hint=AGAIN))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}"
        raise UserError(
            f"{path} {place} is not JSON: {error.msg}", hint=_hint(path, place)
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {_reason(error)}", hint=AGAIN) from None


# ---- formats ------------------------------------------------------------------------------------


def _json_rows(path: Path, *, encoding: str) -> Iterator[FileRow]:
    rows = read_json(path, encoding=encoding)
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a list of rows, but {type(rows).__name__}", hint=AGAIN)
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            yield FileRow(path, "row", number, row)
        else:
            yield FileRow(path, "row", number, {}, "is not a JSON object")


def _json_object(line: str) -> tuple[dict[str, Any], str | None]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, f"is not JSON: {_reason(error)}"
    return (value, None) if isinstance(value, dict) else ({}, "is not a JSON object")


def _csv_rows(
    path: Path, delimiter: str, columns: Collection[str] | None, encoding: str
) -> Iterator[FileRow]:
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number  # reader.line_num does not count the faulty line
        for number, line, error in numbered_lines(path, newline="", encoding=encoding):  # noqa: B007
            if error:
                raise UserError(
                    f"{path} line {number} {error}",
                    hint=f"if a spreadsheet wrote it in another encoding: "
                    f"iconv -f CP1252 -t UTF-8 {shlex.quote(str(path))} > NEW",
                )
            yield line

    # The default of 131,072 is less than a picture in base64; without any limit, a quote that never
    # ends would take the rest of the file into memory.
    csv.field_size_limit(MAX_LINE_CHARS)
    remaining = lines()
    first = next(remaining, "")
    reader = csv.DictReader(
        itertools.chain([first], remaining),
        delimiter=_delimiter(first, delimiter, columns),
        strict=True,
    )
    try:
        if reader.fieldnames:
            reader.fieldnames = [name.strip() for name in reader.fieldnames]
            if repeated := [
                n for n, count in Counter(reader.fieldnames).items() if count > 1 and n
            ]:
                raise UserError(
                    f"{path} has two columns {repeated[0]!r}", hint="rename one of them in the file"
                )
            _require_column(path, reader.fieldnames, columns)
        for row in reader:
            error = None
            if (
                None in row or None in row.values()
            ):  # DictReader's marks of too many or too few cells
                error = f"has not the {len(reader.fieldnames or ())} columns of the first line"
            yield FileRow(path, "line", number, row, error)
    except csv.Error as error:
        place = f"line {number}"
        raise UserError(f"{path} {place} is not CSV: {error}", hint=_hint(path, place)) from None


def _parquet_rows(path: Path, columns: Collection[str] | None) -> Iterator[FileRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            names = file.schema_arrow.names
            _require_column(path, names, columns)
            read = None if columns is None else [name for name in names if name in columns]
            number = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=read):
                for values, error in batch_rows(batch):
                    yield FileRow(path, "row", number, values, error)
                    number += 1
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read as Parquet: {_reason(error)}",
            hint=f"write or fetch {path.name} again, and run the same command",
        ) from None


def batch_rows(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The values of each row, and the reason where Python cannot have them."""
    try:
        yield from ((values, None) for values in batch.to_pylist())
    except ValueError:  # a text that is not UTF-8, a date out of Python's range
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0], None
            except ValueError as error:
                yield {}, f"cannot be read: {_reason(error)}"


# ---- parts --------------------------------------------------------------------------------------


def _delimiter(header: str, usual: str, columns: Collection[str] | None) -> str:
    """The delimiter that finds most of the columns in a header; of equals, the usual one.

    Spreadsheets of countries with a decimal comma write semicolons.
    """
    if columns is None:
        return usual

    def num_found(delimiter: str) -> int:
        return sum(name.strip(' "') in columns for name in header.strip().split(delimiter))

    others = [mark for mark in DELIMITERS if mark != usual]
    return max([usual, *others], key=num_found)


def _require_column(path: Path, names: Sequence[str], columns: Collection[str] | None) -> None:
    if columns is None or any(name in columns for name in names):
        return
    *others, last = dict.fromkeys(name.lower() for name in columns)
    wanted = f"{', '.join(others)} or {last}" if others else last
    raise UserError(
        f"{path} has no column {wanted}; it has {', '.join(names) or 'none'}",
        hint="rename the column that is meant, and run the same command again",
    )


def _hint(path: Path, place: str) -> str:
    unit, number = place.split()
    show = f"sed -n {number}p {shlex.quote(str(path))} shows the line; " if unit == "line" else ""
    return show + AGAIN


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__
