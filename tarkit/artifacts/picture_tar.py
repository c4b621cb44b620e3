"""The tar of an images shard: `KEY.png` (or jpg, webp) and `KEY.json` of every ok row, in order.

Samples are grouped as in WebDataset. Members have mtime 0 and no owner, so that the same pictures
give the same bytes.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from tarkit.artifacts.schema import KEY, Row, check_row

EXTENSION = re.compile(r"[a-z0-9]{1,5}")
MAX_MEMBER_BYTES = 256 << 20

Blob = tuple[str, bytes]  # (extension, encoded picture)


class Member(NamedTuple):
    """A picture in a tar, with its offset and size in bytes."""

    key: str
    offset: int
    size: int


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
    members = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if not member.isreg() or not KEY.fullmatch(key):
                    raise ValueError(f"it has a member {member.name!r}")
                if member.size > MAX_MEMBER_BYTES:
                    raise ValueError(f"{member.name} has {member.size} bytes")
                if extension != "json":
                    members.append(Member(key, member.offset_data, member.size))
    except (OSError, tarfile.TarError) as error:
        raise ValueError(str(error)) from None
    return members


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
