"""The Parquet file of a shard: how its bytes are laid out, and the error for a damaged one.

No changed byte is read as another row. Parquet's own checksums guard the pages, which hold the
rows. It has none for the footer, which says where the pages are and what they mean: the sha256 of
the footer stands right before it, where other readers of Parquet never look.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.artifacts.remote import made_again, opened_ranges
from tarkit.errors import UserError

FOOTER_DIGEST = b"tarkit footer sha256"  # before the digest, to tell it from the bytes of a page
FOOTER_END = b"PAR1"


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
        write_page_checksum=True,
    )
    _add_footer_digest(path)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows, all columns or those named; UserError for a damaged file or an unknown column."""
    with _opened(path) as file:
        names = file.schema_arrow.names
        unknown = [column for column in columns or () if column not in names]
        if unknown:
            raise UserError(f"{path} has no column {unknown[0]!r}; it has {', '.join(names)}")
        # A small shard costs a thread less than several.
        threads = file.num_row_groups > 1
        return file.read(columns=list(columns) if columns else None, use_threads=threads)


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """The rows of small columns; of a file at a URL only their bytes are fetched.

    Raises UserError for a damaged file or an unknown column.
    """
    with opened_ranges(path) as file:
        if isinstance(file, Path):
            return read_parquet(file, columns)
        with (
            _explained_damage(path),
            pq.ParquetFile(file, page_checksum_verification=True) as parquet,
        ):
            return parquet.read(columns=list(columns), use_threads=False)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts kept in the file's schema; UserError for a damaged file."""
    with _opened(path) as file:
        metadata = file.schema_arrow.metadata or {}
        return {key.decode(): value.decode() for key, value in metadata.items()}


def read_num_rows(path: Path) -> int:
    """The number of rows; UserError for a damaged file. Of one at a URL the footer is fetched."""
    with opened_ranges(path) as file:
        if isinstance(file, Path):
            with _opened(file) as parquet:
                return int(parquet.metadata.num_rows)
        with _explained_damage(path), pq.ParquetFile(file) as parquet:
            return int(parquet.metadata.num_rows)


def read_bounds(path: Path, columns: Sequence[str]) -> tuple[tuple[Any, Any] | None, ...]:
    """The least and the largest value of each column, by the footer: no row is read.

    None where the footer does not say it for every group of rows, as of a column without values.
    UserError for a damaged file.
    """
    with _opened(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    found: dict[str, list[Any]] = {column: [] for column in columns}
    for group in groups:
        for chunk in (group.column(i) for i in range(group.num_columns)):
            if chunk.path_in_schema in found:
                found[chunk.path_in_schema].append(chunk.statistics)
    return tuple(
        (min(s.min for s in each), max(s.max for s in each))
        if each and all(s is not None and s.has_min_max for s in each)
        else None
        for each in found.values()
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The file, whose footer is as it was written; UserError for a damaged file."""
    with _explained_damage(path):
        _check_footer(path)
        # ParquetFile and not read_table, which reads folder names like `a=1` as partitions.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file


@contextlib.contextmanager
def _explained_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is damaged: {reason}",
            hint=made_again(path),
        ) from None


def _add_footer_digest(path: Path) -> None:
    """Put the footer's sha256 before it; readers find the footer from the end of the file."""
    with path.open("r+b") as file:
        start, footer = _footer(file.fileno())
        file.seek(start)
        file.write(FOOTER_DIGEST + hashlib.sha256(footer).digest() + footer)


def _check_footer(path: Path) -> None:
    """Raises ValueError for a changed footer. A file that has no digest passes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        start, footer = _footer(descriptor)
        digest = hashlib.sha256(footer).digest()
        length = len(FOOTER_DIGEST) + len(digest)
        before = os.pread(descriptor, length, start - length) if start >= length else b""
    finally:
        os.close(descriptor)
    if before.startswith(FOOTER_DIGEST) and before != FOOTER_DIGEST + digest:
        raise ValueError("its footer is not the one that was written")


def _footer(descriptor: int) -> tuple[int, bytes]:
    """Where the footer begins, and its bytes with its length and the file's last four bytes."""
    size = os.fstat(descriptor).st_size
    end = os.pread(descriptor, 8, max(0, size - 8))
    start = size - 8 - int.from_bytes(end[:4], "little")
    if len(end) < 8 or end[4:] != FOOTER_END or start < 0:
        raise ValueError(f"no Parquet file ends as its {size} bytes do")
    return start, os.pread(descriptor, size - start, start)


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
