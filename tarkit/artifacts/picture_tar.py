"""The tar of an images shard: `KEY.png` (or jpg, webp) and `KEY.json` of every ok row, in order.

Samples are grouped as in WebDataset. Members have mtime 0 and no owner, so that the same pictures
give the same bytes.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from tarkit.artifacts.remote import fetched
from tarkit.artifacts.schema import KEY, Row, check_row
from tarkit.errors import UserError

EXTENSION = re.compile(r"[a-z0-9]{1,5}")
MAX_MEMBER_BYTES = 256 << 20
BLOCK = 512
REGULAR = (b"0", b"\0")

Blob = tuple[str, bytes]  # (extension, encoded picture)


class Member(NamedTuple):
    """A picture in a tar, with its offset and size in bytes."""

    key: str
    offset: int
    size: int


class PicturePlace(NamedTuple):
    """Where an encoded picture stands: small enough to be sent to a process that reads it."""

    tar: str
    offset: int
    size: int

    def read(self, tar: FileIO | None = None) -> bytes:
        """The encoded picture, from the opened tar where it is given.

        Raises UserError where the tar has become shorter.
        """
        if tar is None:
            with fetched(Path(self.tar)).open("rb", buffering=0) as opened:
                return self.read(opened)
        blob = os.pread(tar.fileno(), self.size, self.offset)
        if len(blob) != self.size:
            raise UserError(
                f"{self.tar} has become shorter: it ends within the picture at byte {self.offset}",
                hint="run the command that made it again, and then this one",
            )
        return blob


def write_tar(
    path: Path, pictures: Iterable[tuple[Row, Blob | None]], schema: pa.Schema
) -> list[Row]:
    """Write a tar from (row, picture) pairs, held in memory one at a time; returns the rows.

    A failed row has None for a picture and adds no member. Raises ValueError when a row has wrong
    keys or does not fit its picture, or a picture is larger than MAX_MEMBER_BYTES.
    """
    rows: list[Row] = []
    with tarfile.open(path, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, blob in pictures:
            check_row(row, schema, len(rows))
            _add_picture(tar, row, blob)
            rows.append(row)
    return rows


def picture_members(path: Path) -> list[Member]:
    """The pictures of a tar in order.

    Raises ValueError with the reason for a damaged tar, and for links, folders, names and sizes
    that `write_tar` never writes.
    """
    # Only the headers are read: the tarfile module takes four times as long, and a training that
    # starts reads the headers of eight tars before its first step.
    members = []
    try:
        with path.open("rb", buffering=0) as tar:
            size = os.fstat(tar.fileno()).st_size
            offset = 0
            while header := _header(os.pread(tar.fileno(), BLOCK, offset)):
                key, _, extension = header.name.partition(".")
                if header.type not in REGULAR or not KEY.fullmatch(key):
                    raise ValueError(f"it has a member {header.name!r}")
                if header.size > MAX_MEMBER_BYTES:
                    raise ValueError(f"{header.name} has {header.size} bytes")
                if extension != "json":
                    members.append(Member(key, offset + BLOCK, header.size))
                offset += BLOCK + -(-header.size // BLOCK) * BLOCK
                if offset > size:
                    raise ValueError("it ends early")
    except OSError as error:
        raise ValueError(str(error)) from None
    return members


class _Header(NamedTuple):
    name: str
    size: int
    type: bytes


def _header(block: bytes) -> _Header | None:
    """A member's header; None for the block of zeros at the end. ValueError for another block."""
    if block == bytes(BLOCK):
        return None
    # POSIX ustar: name, checksum, size and type stand at fixed places, numbers in octal.
    if len(block) < BLOCK or block[257:262] != b"ustar" or block[345] != 0:
        raise ValueError("it ends early, or has a block that is no header")
    checksum = int(block[148:156].rstrip(b" \0") or b"0", 8)
    if sum(block) - sum(block[148:156]) + 8 * 32 != checksum:  # counted as if it were blanks
        raise ValueError("the checksum of a header is wrong")
    name = block[:100].rstrip(b"\0").decode("ascii", "replace")
    return _Header(name, int(block[124:136].rstrip(b" \0") or b"0", 8), block[156:157])


def stored_pictures(path: Path) -> Iterator[tuple[Row, bytes]]:
    """The ok rows and pictures of a tar in order, from the tar alone: for one without an index.

    Raises ValueError with the reason for a tar that `write_tar` has not written.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = iter(tar)
            for picture in members:
                text = next(members, None)
                key = picture.name.partition(".")[0]
                if text is None or text.name != f"{key}.json":
                    raise ValueError(f"{picture.name} has no {key}.json after it")
                row = json.loads(_content(tar, text))
                if not isinstance(row, dict) or row.get("key") != key:
                    raise ValueError(f"{text.name} is not the row of {picture.name}")
                yield row, _content(tar, picture)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(str(error)) from None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg() or member.size > MAX_MEMBER_BYTES:
        raise ValueError(f"it has a member {member.name!r} of {member.size} bytes")
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _add_picture(tar: tarfile.TarFile, row: Row, blob: Blob | None) -> None:
    if (blob is None) != (row["status"] == "failed"):
        raise ValueError(f"{row['key']} is {row['status']}: an ok row has a picture")
    if blob is None:
        return
    extension, data = blob
    if not EXTENSION.fullmatch(extension) or extension == "json":
        raise ValueError(f"{row['key']}: {extension!r} is no extension of a picture")
    if len(data) > MAX_MEMBER_BYTES:
        raise ValueError(f"{row['key']}: {len(data)} bytes, more than {MAX_MEMBER_BYTES}")
    text = json.dumps(row, sort_keys=True, ensure_ascii=False).encode()
    for name, content in ((extension, data), ("json", text)):
        member = tarfile.TarInfo(f"{row['key']}.{name}")
        member.size, member.mode = len(content), 0o644
        tar.addfile(member, io.BytesIO(content))
