"""Parquet with image bytes: a binary column, or Hugging Face's struct of bytes and path."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.curate.sources.items import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    MAX_FILE_BYTES,
    SourceItem,
    reason_of,
    with_captions,
)
from tarkit.errors import UserError


def parquet_items(path: Path, label: str) -> Iterator[SourceItem]:
    """An item for every row in order, with its captions; damage gives a last item with an error."""
    number = 0
    try:
        num_bytes = path.stat().st_size
        with pq.ParquetFile(path) as file:
            column, is_struct = _image_column(path, file.schema_arrow)
            names, paths, texts = _other_columns(file.schema_arrow, column, is_struct)
            for group in range(file.num_row_groups):
                # Without the image bytes, which are read later, one group at a time.
                table = file.read_row_group(group, columns=[*names, *paths, *texts])
                num_rows = file.metadata.row_group(group).num_rows
                rows = table.to_pylist() if table.num_columns else [{}] * num_rows
                for place, row in enumerate(rows):
                    aliases = [row[name] for name in names]
                    if paths:
                        aliases.append((row[column] or {}).get("path"))
                    yield with_captions(
                        SourceItem(
                            f"{label}#{number}",
                            fingerprint=str(num_bytes),
                            aliases=tuple(alias for alias in aliases if alias),
                            read=functools.partial(
                                _parquet_bytes, path, column, is_struct, group, place
                            ),
                        ),
                        row,
                        "its row",
                    )
                    number += 1
    except (OSError, pa.ArrowException) as error:
        yield SourceItem(
            f"{label}#{number}", error=f"the Parquet file is damaged: {reason_of(error)}"
        )


def _image_column(path: Path, schema: pa.Schema) -> tuple[str, bool]:
    """(name, whether it is the Hugging Face struct of bytes and path)."""

    def has_bytes(kind: pa.DataType) -> bool:
        return (
            pa.types.is_struct(kind)
            and kind.get_field_index("bytes") >= 0
            and _is_bytes(kind.field("bytes").type)
        )

    columns = [field for field in schema if _is_bytes(field.type) or has_bytes(field.type)]
    named = [field for field in columns if field.name in ("image", "jpg", "png", "webp", "bytes")]
    chosen = named if len(columns) > 1 else columns
    if len(chosen) != 1:
        names = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            f"{path} has {len(columns)} columns of image bytes, expected one, or one named image "
            f"among several; its columns: {names}"
        )
    return chosen[0].name, has_bytes(chosen[0].type)


def _is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def _other_columns(
    schema: pa.Schema, column: str, is_struct: bool
) -> tuple[list[str], list[str], list[str]]:
    """Columns with names of the picture, with the path in its struct, and with captions."""
    others = {field.name: field.type for field in schema if field.name != column}
    names = [name for name in IMAGE_COLUMNS if name in others and _is_text(others[name])]
    struct = schema.field(column).type
    has_path = is_struct and struct.get_field_index("path") >= 0
    paths = [f"{column}.path"] if has_path and _is_text(struct.field("path").type) else []
    return names, paths, [name for name in CAPTION_COLUMNS if name in others]


def _parquet_bytes(path: Path, column: str, is_struct: bool, group: int, place: int) -> bytes:
    value = _row_group(path, column, group)[place].as_py()
    blob = value.get("bytes") if is_struct and value is not None else value
    if blob is None:
        raise OSError("the row has no image bytes")
    if len(blob) > MAX_FILE_BYTES:
        raise OSError(f"the picture has {len(blob)} bytes, more than {MAX_FILE_BYTES}")
    return bytes(blob)


@functools.lru_cache(maxsize=1)  # pictures are read in order: one group serves all its rows
def _row_group(path: Path, column: str, group: int) -> pa.ChunkedArray:
    try:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[column])[column]
    except pa.ArrowException as error:
        raise OSError(f"row group {group} is damaged: {reason_of(error)}") from None
