"""Parquet with image bytes: a binary column, Hugging Face's struct of bytes and path, or lists.

Memory holds one picture at a time and the page of the file that it is in: row groups may be larger
than the memory, and some writers make a single one.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.artifacts.remote import fetched
from tarkit.artifacts.tables import BUFFER_BYTES, batch_rows
from tarkit.curate.sources.items import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    MAX_FILE_BYTES,
    ORIGIN_COLUMNS,
    SourceItem,
    lowered,
    origin_of,
    reason_of,
    shown,
    with_captions,
)
from tarkit.errors import UserError

LISTED_ROWS = 32
"""Rows whose texts are decoded at a time."""
MAX_ROWS_PER_BYTE = 1000
"""More rows than this for a byte of the file are a false claim."""


class _ImageColumn(NamedTuple):
    """The column of pictures: whether it holds structs of bytes and path, and lists of either."""

    name: str
    is_struct: bool
    is_list: bool


def parquet_items(path: Path, label: str) -> Iterator[SourceItem]:
    """The pictures of every row in order, with captions; damage gives a last item with an error.

    A list of several pictures is a group: an item for each of them.
    """
    number = 0
    try:
        num_bytes = fetched(path).stat().st_size
        with _opened(path) as file:
            column = _image_column(path, file.schema_arrow)
            columns, paths = _other_columns(file.schema_arrow, column)
            unused = tuple(
                f"column {shown(name)}"
                for name in file.schema_arrow.names
                if name not in (*columns, column.name)
            )
            if file.metadata.num_rows > MAX_ROWS_PER_BYTE * num_bytes:
                raise OSError(f"{file.metadata.num_rows} rows are announced in {num_bytes} bytes")
            for group in range(file.num_row_groups):
                num_listed = 1 if column.name in paths else LISTED_ROWS
                texts = _texts(file, group, [*columns, *paths], num_listed)
                for place, (row, problem) in enumerate(texts):
                    if problem:
                        yield SourceItem(f"{label}#{number}", error=f"its row {problem}")
                        number += 1
                        continue
                    for item in _row_items(path, f"{label}#{number}", column, group, place, row):
                        facts = replace(
                            item,
                            fingerprint=str(num_bytes),
                            origin=origin_of(row),
                            left_aside=unused,
                        )
                        yield with_captions(facts, row, "its row")
                    number += 1
    except (OSError, pa.ArrowException) as error:
        yield SourceItem(
            f"{label}#{number}", error=f"the Parquet file is damaged: {reason_of(error)}"
        )


def _opened(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(fetched(path), pre_buffer=False, buffer_size=BUFFER_BYTES)


def _texts(
    file: pq.ParquetFile, group: int, columns: list[str], num_rows: int
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The columns but the pictures of every row, under names in lower case, or why not."""
    if not columns:
        yield from itertools.repeat(({}, None), file.metadata.row_group(group).num_rows)
        return
    for batch in file.iter_batches(num_rows, row_groups=[group], columns=columns):
        yield from ((lowered(row), problem) for row, problem in batch_rows(batch))


def _row_items(
    path: Path,
    name: str,
    column: _ImageColumn,
    group: int,
    place: int,
    row: Mapping[str, Any],
) -> Iterator[SourceItem]:
    names = [row[n] for n in IMAGE_COLUMNS if isinstance(row.get(n), str)]
    value = row.get(column.name.lower())
    if not column.is_list:
        values = [value]
    else:
        values = value if isinstance(value, list) else []
        if not values:
            yield SourceItem(name, error="the row has an empty list of pictures")
    for index, each in enumerate(values):
        aliases = list(names) if len(values) == 1 else []
        if isinstance(each, Mapping) and isinstance(each.get("path"), str):
            aliases.append(each["path"])
        read = functools.partial(_picture_bytes, path, column, group, place, index)
        several = len(values) > 1
        yield SourceItem(
            f"{name}.{index}" if several else name,
            aliases=tuple(alias for alias in aliases if alias),
            about={"group": shown(name)} if several else {},
            read=read,
        )


def _image_column(path: Path, schema: pa.Schema) -> _ImageColumn:
    def described(field: pa.Field) -> _ImageColumn | None:
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        kind = field.type.value_type if is_list else field.type
        if _is_bytes(kind):
            return _ImageColumn(field.name, False, is_list)
        is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if is_struct and _is_bytes(kind.field("bytes").type):
            return _ImageColumn(field.name, True, is_list)
        return None

    columns = [column for column in map(described, schema) if column]
    usual = ("image", "images", "jpg", "png", "webp", "bytes")
    named = [column for column in columns if column.name.lower() in usual]
    chosen = named if len(columns) > 1 else columns
    if len(chosen) != 1:
        names = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            f"{path} has {len(columns)} columns of image bytes, expected one, or one named image "
            f"among several; its columns: {names}"
        )
    return chosen[0]


def _is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _other_columns(schema: pa.Schema, image: _ImageColumn) -> tuple[list[str], list[str]]:
    """Columns with names, captions and origins; and what tells a list's length and its paths."""
    others = [field.name for field in schema if field.name != image.name]
    about = (*CAPTION_COLUMNS, *ORIGIN_COLUMNS)
    columns = [
        name
        for name in others
        if name.lower() in about
        or (name.lower() in IMAGE_COLUMNS and _is_text(schema.field(name).type))
    ]
    kind = schema.field(image.name).type
    inner = kind.value_type if image.is_list else kind
    has_path = image.is_struct and inner.get_field_index("path") >= 0
    if not (has_path and _is_text(inner.field("path").type)):
        return columns, [image.name] if image.is_list else []
    item = f".list.{kind.value_field.name}" if image.is_list else ""
    return columns, [f"{image.name}{item}.path"]


def _picture_bytes(path: Path, column: _ImageColumn, group: int, place: int, index: int) -> bytes:
    try:
        value = _cursor(path, column.name).value(group, place).as_py()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise OSError(f"row group {group} is damaged: {reason_of(error)}") from None
    if column.is_list:
        value = value[index]
    blob = value.get("bytes") if column.is_struct and value is not None else value
    if blob is None:
        raise OSError("the row has no image bytes")
    if len(blob) > MAX_FILE_BYTES:
        raise OSError(f"the picture has {len(blob)} bytes, more than {MAX_FILE_BYTES}")
    return bytes(blob)


class _Cursor:
    """Reads the values of one column forwards, row by row; going back starts a row group again."""

    def __init__(self, path: Path, column: str) -> None:
        self._file, self._column = _opened(path), column
        self._at = (-1, -1)
        self._rows: Iterator[Any] = iter(())
        self._value: Any = None

    def value(self, group: int, place: int) -> Any:
        """The pyarrow scalar of a row; raises OSError for a row group that ends before it."""
        if group != self._at[0] or place < self._at[1]:
            self._check_size(group)
            self._at = (group, -1)
            batches = self._file.iter_batches(1, row_groups=[group], columns=[self._column])
            self._rows = (batch.column(0)[0] for batch in batches)
        while self._at[1] < place:
            self._value = None  # so that two rows are never in memory
            self._value = next(self._rows, None)
            if self._value is None:
                raise OSError(f"row group {group} ends before its row {place}")
            self._at = (group, self._at[1] + 1)
        return self._value

    def _check_size(self, group: int) -> None:
        """Raise OSError where no row of a group can be read within `MAX_FILE_BYTES`."""
        facts = self._file.metadata.row_group(group)
        for number in range(facts.num_columns):
            chunk = facts.column(number)
            average = math.ceil(chunk.total_uncompressed_size / max(1, chunk.num_values))
            if chunk.path_in_schema.split(".")[0] == self._column and average > MAX_FILE_BYTES:
                raise OSError(
                    f"its row group unpacks to {average} bytes a picture, more than "
                    f"{MAX_FILE_BYTES}"
                )


_cursor = functools.lru_cache(maxsize=1)(_Cursor)
"""Pictures are read in order: one reader serves all rows of a file."""
