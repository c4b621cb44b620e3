"""The Parquet file of a shard: how its bytes are laid out, and the error for a damaged one."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.errors import UserError


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a table with zstd.

    Codes and latents are near-uniform numbers in 32-bit columns, so their bytes are split into
    streams.
    """
    names = table.schema.names
    codes = [name for name in names if name.startswith("codes_") or name in ("vq_codes", "latents")]
    pq.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=2048,
        use_dictionary=_leaf_paths(table.schema, skip=codes),
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in codes},
    )


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows, all columns or those named; UserError for a damaged file or an unknown column."""
    # ParquetFile and not read_table, which reads folder names like `a=1` as partitions.
    with _damage_named(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        unknown = [column for column in columns or () if column not in names]
        if unknown:
            raise UserError(f"{path} has no column {unknown[0]!r}; it has {', '.join(names)}")
        return file.read(columns=list(columns) if columns else None)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts kept in the file's schema; UserError for a damaged file."""
    with _damage_named(path):
        metadata = pq.read_schema(path).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def _leaf_paths(schema: pa.Schema, *, skip: Sequence[str]) -> list[str]:
    """Parquet's names of the string leaves, the only ones that a dictionary makes smaller."""
    paths: list[str] = []

    def walk(kind: pa.DataType, path: str) -> None:
        if pa.types.is_struct(kind):
            for number in range(kind.num_fields):
                walk(kind.field(number).type, f"{path}.{kind.field(number).name}")
        elif pa.types.is_list(kind):
            walk(kind.value_type, f"{path}.list.element")
        elif pa.types.is_string(kind):
            paths.append(path)

    for column in schema:
        if column.name not in skip:
            walk(column.type, column.name)
    return paths


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turns Arrow's error about a damaged file into one that names the next step."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is damaged: {reason}",
            hint=f"rm {path} and run the command that made it again",
        ) from None
