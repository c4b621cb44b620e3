"""A folder of pictures, with captions in .txt files of the same names."""

import errno
import functools
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Set
from pathlib import Path

from tarkit.artifacts.files import is_system_file
from tarkit.curate.sources.items import (
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    SYSTEM_NOTE,
    Listing,
    SourceItem,
    caption_of,
    reason_of,
    shown,
)
from tarkit.images import PICTURE_SUFFIXES


def list_folder(root: Path, excluded: Set[Path]) -> Listing:
    """The pictures below `root`, sorted by path; a note counts other files but `excluded` ones."""
    items: list[SourceItem] = []
    others: Counter[str] = Counter()
    num_system = 0

    def unreadable(error: OSError) -> None:
        name = shown(os.path.relpath(error.filename, root))
        items.append(SourceItem(name, error=f"the folder cannot be read: {error.strerror}"))

    real_root = root.resolve()
    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        here = Path(folder)
        for name in subfolders:
            if (here / name).is_symlink():
                link = shown(os.path.relpath(here / name, root))
                items.append(SourceItem(link, error="a link to a folder is not followed"))
        system = {name for name in names if is_system_file(here.relative_to(root) / name)}
        num_system += len(system)
        names = [name for name in names if name not in system]
        texts = {unicodedata.normalize("NFC", name): name for name in names}
        used = set()
        for name in names:
            stem, _, suffix = name.rpartition(".")
            if stem and suffix.lower() in PICTURE_SUFFIXES:
                text = texts.get(unicodedata.normalize("NFC", f"{stem}.txt"))
                used |= {name, text}
                items.append(_file_item(here / name, root, real_root, text))
        for name in set(names) - used:
            if (here / name).resolve() not in excluded:
                others[shown(Path(name).suffix) or "without suffix"] += 1
    items.sort(key=lambda item: item.name)
    suffixes = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    notes = [f"{sum(others.values())} files are not pictures: {suffixes}"] if others else []
    if num_system:
        notes.append(SYSTEM_NOTE.format(num_system))
    return Listing("folder", tuple(items), tuple(notes))


def _file_item(path: Path, root: Path, real_root: Path, text_name: str | None) -> SourceItem:
    name = shown(path.relative_to(root).as_posix())
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(real_root):
            return SourceItem(name, error="a link that leaves the folder is not followed")
        size = real.stat().st_size
        captions: tuple[str, ...] = ()
        if text_name:
            text = (path.parent / text_name).resolve(strict=True)
            if not text.is_relative_to(real_root):
                return SourceItem(
                    name, error=f"its caption {text_name} is a link that leaves the folder"
                )
            captions = caption_of(_read_file(text, MAX_TEXT_BYTES), text_name)
    except (OSError, ValueError, RuntimeError) as error:
        # A loop of links is a RuntimeError up to Python 3.12, an OSError from 3.13 on.
        if isinstance(error, RuntimeError) or getattr(error, "errno", None) == errno.ELOOP:
            return SourceItem(name, error="a loop of links")
        return SourceItem(name, error=reason_of(error))
    return SourceItem(
        name,
        fingerprint=str(size),
        captions=captions,
        read=functools.partial(_read_file, real, MAX_FILE_BYTES),
    )


def _read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file; OSError for a pipe, which could block, or a larger file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path.name} is not a regular file")
        if status.st_size > max_bytes:
            raise OSError(f"{path.name} has {status.st_size} bytes, more than {max_bytes}")
        return file.read(max_bytes)
