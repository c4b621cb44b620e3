"""WebDataset shards: tars, local or at a URL, in which the members with one key are a sample.

What a sample is follows WebDataset: its function `base_plus_ext` splits a name into key and suffix,
the suffix is in lower case, members of a sample are adjacent, and no two have the same suffix. The
bytes are read by the standard library. WebDataset's reader, `tar_file_iterator`, skips links,
devices and names without a key silently, reads a member of any announced size into memory, and
stops silently at a damaged header; here each of these is an item with its reason. Nothing is ever
unpacked, and only captions are decoded, as UTF-8 text and JSON: no pickles.
"""

import functools
import gzip
import os
import re
import sys
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tarkit.artifacts.files import is_system_file
from tarkit.artifacts.remote import fetched
from tarkit.curate.sources.items import (
    CAPTION_COLUMNS,
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    SYSTEM_MEMBER,
    SourceItem,
    caption_of,
    captions_of,
    json_of,
    lowered,
    origin_of,
    reason_of,
    shown,
    text_of,
)
from tarkit.curate.sources.remote import RemoteReader, remote_bytes, shown_url
from tarkit.images import PICTURE_SUFFIXES

TEXT_SUFFIXES = ("txt", "caption", "text", "json")
ReadBytes = Callable[[int, int], bytes]  # (offset, size) in a tar; it must be picklable


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def seek(self, position: int, /) -> int: ...

    def tell(self) -> int: ...


def tar_items(path: Path, label: str) -> Iterator[SourceItem]:
    """An item for every picture, and for every sample or member that gives none."""
    num_bytes = fetched(path).stat().st_size
    with path.open("rb") as file:
        yield from _shard_items(file, num_bytes, label, functools.partial(_tar_bytes, path))


def gzip_tar_items(path: Path, label: str) -> Iterator[SourceItem]:
    """As `tar_items`, for a .tar.gz, which is never unpacked to disk."""
    file = _Gzip(path)
    yield from _shard_items(file, sys.maxsize, label, functools.partial(_gzip_bytes, path))


class _Gzip:
    """The unpacked bytes of a .gz; going back starts it again. Raises OSError for damage."""

    def __init__(self, path: Path) -> None:
        self._file = gzip.open(fetched(path))
        self.tell = self._file.tell

    def read(self, size: int, /) -> bytes:
        try:
            return self._file.read(size)
        except (EOFError, zlib.error) as error:
            raise OSError(f"the compression is damaged: {error}") from None

    def seek(self, position: int, /) -> int:
        try:
            return self._file.seek(position)
        except (EOFError, zlib.error) as error:
            raise OSError(f"the compression is damaged: {error}") from None


_gzip = functools.lru_cache(maxsize=1)(_Gzip)
"""Pictures are read in order: one reader goes through a file once."""


def _gzip_bytes(path: Path, offset: int, size: int) -> bytes:
    file = _gzip(path)
    file.seek(offset)
    blob = file.read(size)
    if len(blob) != size:
        raise OSError(f"truncated: {len(blob)} of {size} bytes are there")
    return blob


def remote_tar_items(url: str, *, allow_private: bool) -> Iterator[SourceItem]:
    """As `tar_items`, for a shard at a URL, which is streamed once; raises SourceLost.

    The pictures are not kept in memory: the `read` of an item reads its part of the shard again.
    """
    reader = RemoteReader(url, allow_private=allow_private)
    try:
        file = reader.file
        read = functools.partial(remote_bytes, file)
        yield from _shard_items(reader, file.num_bytes, shown_url(url), read)
    finally:
        reader.close()


class _TarReader:
    """A file for tarfile that refuses large reads, and remembers the last bytes that were read.

    tarfile reads an extended header (a long name, pax) whole, whatever size it announces.
    """

    def __init__(self, file: _Bytes) -> None:
        self._file = file
        self.last = b""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_FILE_BYTES:
            raise OSError(f"a header announces {size} bytes, more than {MAX_FILE_BYTES}")
        self.last = self._file.read(size)
        return self.last


class _TarSample:
    """The members of one key, added in their order."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.suffixes: list[str] = []
        self.pictures: list[tarfile.TarInfo] = []
        self.captions: list[str] = []
        self.captions_from: list[str] = []
        self.left_aside: list[str] = []
        self.origin: dict[str, Any] = {}
        self.error: str | None = None

    def add(self, suffix: str, member: tarfile.TarInfo, file: _Bytes) -> None:
        if suffix in self.suffixes:
            self.error = f"its sample has two members with the suffix {shown(suffix)}"
        self.suffixes.append(suffix)
        last = suffix.rpartition(".")[2]
        if last in PICTURE_SUFFIXES:
            self.pictures.append(member)
        elif last in TEXT_SUFFIXES:
            num_captions = len(self.captions)
            try:
                text = _member_text(file, member)
                if last == "json":
                    self._add_json(json_of(text_of(text, member.name)))
                else:
                    self.captions += caption_of(text, member.name)
                self.captions_from += [f".{last}"] if len(self.captions) > num_captions else []
            except ValueError as error:
                self.error = f"its {shown(member.name)}: {reason_of(error)}"
        else:
            self.left_aside.append(last)

    def _add_json(self, row: Any) -> None:
        if isinstance(row, Mapping):
            row = lowered(row)
            self.origin |= origin_of(row)
            self.captions += captions_of(row, CAPTION_COLUMNS)


def _shard_items(file: _Bytes, num_bytes: int, label: str, read: ReadBytes) -> Iterator[SourceItem]:
    from webdataset.tariterators import base_plus_ext

    sample: _TarSample | None = None
    keys: set[str] = set()
    reader = _TarReader(file)
    try:
        with tarfile.open(fileobj=reader, mode="r:") as tar:  # type: ignore[call-overload]
            for member in tar:
                if member.isdir():
                    continue
                if is_system_file(member.name) or _is_about_the_shard(member.name):
                    yield SourceItem(f"{label}/{shown(member.name)}", error=SYSTEM_MEMBER)
                    continue
                error = _member_error(member, num_bytes)
                key, suffix = base_plus_ext(member.name)
                # `base_plus_ext` gives a/.b the key "a/", which would gather all hidden files.
                if error is None and (not key or key.endswith("/") or not suffix):
                    error = "its name has no key and suffix as in KEY.jpg"
                if error is not None:
                    yield SourceItem(f"{label}/{shown(member.name)}", error=error)
                    continue
                # macOS writes a letter and its accent as two characters where others write one.
                key = unicodedata.normalize("NFC", key)
                if sample is None or key != sample.key:
                    yield from _sample_items(label, sample, keys, read)
                    sample = _TarSample(key)
                sample.add(suffix.lower(), member, file)
                tar.members = []  # tarfile keeps every header it has read
        # tarfile ends in silence at a torn or damaged header, as if it were the end of the archive.
        if reader.last != tarfile.NUL * tarfile.BLOCKSIZE:
            raise OSError("there is no end mark and no sound header")
    except (tarfile.TarError, OSError, ValueError) as error:
        yield from _sample_items(label, sample, keys, read)
        yield SourceItem(label, error=f"the tar is damaged from here on: {reason_of(error)}")
        return
    yield from _sample_items(label, sample, keys, read)


def _is_about_the_shard(name: str) -> bool:
    """Whether a member is of WebDataset's own: `__info__.json`, and not a picture."""
    is_picture = name.rpartition(".")[2].lower() in PICTURE_SUFFIXES
    return re.match(r"__[^/]*__(\.|/|$)", name) is not None and not is_picture


def _member_error(member: tarfile.TarInfo, num_bytes: int) -> str | None:
    if member.issym() or member.islnk():
        return f"a link in a tar is not followed (to {shown(member.linkname)})"
    if not member.isreg() or member.issparse():
        return "a device, pipe or sparse file in a tar is not read"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leaves the tar"
    if not 0 <= member.size <= MAX_FILE_BYTES:
        return f"it has {member.size} bytes, more than {MAX_FILE_BYTES}"
    if member.offset_data + member.size > num_bytes:
        return f"truncated: {member.size} bytes are announced, the tar ends before"
    return None


def _sample_items(
    label: str, sample: _TarSample | None, keys: set[str], read: ReadBytes
) -> Iterator[SourceItem]:
    """An item for every picture of a sample; `keys` are those of the samples before it."""
    if sample is None:
        return
    captions = tuple(dict.fromkeys(sample.captions))
    if not sample.pictures:
        error = f"the sample has no picture, only {', '.join(sample.suffixes)}"
        if sample.key in keys:
            error += ": other members of its key stand elsewhere in the tar, and not next to it"
        yield SourceItem(f"{label}/{shown(sample.key)}", captions=captions, error=error)
    keys.add(sample.key)
    for member in sample.pictures:
        yield SourceItem(
            f"{label}/{shown(member.name)}",
            fingerprint=f"{member.offset_data}+{member.size}",
            aliases=tuple(os.path.normpath(shown(alias)) for alias in (member.name, sample.key)),
            captions=captions,
            captions_from=tuple(dict.fromkeys(sample.captions_from)),
            left_aside=tuple(f".{shown(suffix)}" for suffix in sample.left_aside)
            if member is sample.pictures[0]
            else (),
            origin=sample.origin,
            error=sample.error,
            read=functools.partial(read, member.offset_data, member.size),
        )


def _member_text(file: _Bytes, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_TEXT_BYTES:
        raise ValueError(f"{member.size} bytes of text, more than {MAX_TEXT_BYTES}")
    file.seek(member.offset_data)
    return file.read(member.size)


def _tar_bytes(path: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(fetched(path), os.O_RDONLY)
    try:
        blob = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(blob) != size:
        raise OSError(f"truncated: {len(blob)} of {size} bytes are there")
    return blob
