"""WebDataset tars: members of one key are a sample. Nothing is ever unpacked."""

import functools
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tarkit.curate.sources.items import (
    CAPTION_COLUMNS,
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    SourceItem,
    caption_of,
    captions_of,
    json_of,
    reason_of,
    shown,
    text_of,
)
from tarkit.images import PICTURE_SUFFIXES

# webdataset's rule: the key ends at the first dot of the base name.
MEMBER_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)


def tar_items(path: Path, label: str) -> Iterator[SourceItem]:
    """An item for every picture, and for every sample or member that gives none."""
    sample: list[tuple[str, tarfile.TarInfo]] = []
    key: str | None = None
    num_bytes = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                name = f"{label}/{shown(member.name)}"
                error = _member_error(member, num_bytes)
                match = MEMBER_NAME.fullmatch(member.name)
                if error is None and match is None:
                    error = "its name has no key and suffix as in KEY.jpg"
                if error is not None or match is None:
                    yield SourceItem(name, error=error)
                    continue
                if match[1] != key:
                    yield from _sample_items(path, label, key, sample)
                    key, sample = match[1], []
                sample.append((match[2].lower(), member))
            end = tar.offset
        # tarfile ends in silence at a torn or damaged header, as if it were the end of the archive.
        if _tar_bytes(path, end, min(tarfile.BLOCKSIZE, num_bytes - end)) != tarfile.NUL * 512:
            raise OSError("there is no end mark and no sound header")
    except (tarfile.TarError, OSError, ValueError) as error:
        yield from _sample_items(path, label, key, sample)
        yield SourceItem(label, error=f"the tar is damaged from here on: {reason_of(error)}")
        return
    yield from _sample_items(path, label, key, sample)


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
    path: Path, label: str, key: str | None, sample: Sequence[tuple[str, tarfile.TarInfo]]
) -> Iterator[SourceItem]:
    if key is None:
        return
    captions: list[str] = []
    error = None
    pictures = []
    for suffix, member in sample:
        last = suffix.rpartition(".")[2]
        if last in PICTURE_SUFFIXES:
            pictures.append(member)
        elif last in ("txt", "caption", "text", "json"):
            try:
                captions += _member_captions(path, member, is_json=last == "json")
            except (OSError, ValueError) as problem:
                error = f"its {shown(member.name)}: {reason_of(problem)}"
    unique = tuple(dict.fromkeys(captions))
    if not pictures:
        suffixes = ", ".join(suffix for suffix, _ in sample)
        error = f"the sample has no picture, only {suffixes}"
        yield SourceItem(f"{label}/{shown(key)}", captions=unique, error=error)
    for member in pictures:
        yield SourceItem(
            f"{label}/{shown(member.name)}",
            fingerprint=f"{member.offset_data}+{member.size}",
            aliases=tuple(os.path.normpath(shown(alias)) for alias in (member.name, key)),
            captions=unique,
            error=error,
            read=functools.partial(_tar_bytes, path, member.offset_data, member.size),
        )


def _member_captions(path: Path, member: tarfile.TarInfo, *, is_json: bool) -> Iterable[str]:
    if member.size > MAX_TEXT_BYTES:
        raise ValueError(f"{member.size} bytes of text, more than {MAX_TEXT_BYTES}")
    blob = _tar_bytes(path, member.offset_data, member.size)
    if not is_json:
        return caption_of(blob, member.name)
    row = json_of(text_of(blob, member.name))
    return captions_of(row, CAPTION_COLUMNS) if isinstance(row, Mapping) else ()


def _tar_bytes(path: Path, offset: int, size: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        blob = os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)
    if len(blob) != size:
        raise OSError(f"truncated: {len(blob)} of {size} bytes are there")
    return blob
