"""A folder of pictures, with captions in files of the same names and in ImageFolder's metadata.

A caption's file is a .txt or .caption (kohya), or a .json with a caption (img2dataset). A
metadata.csv, .jsonl or .parquet (Hugging Face's ImageFolder) holds those of its folder.
"""

import errno
import functools
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import is_system_file, read_lines
from tarkit.artifacts.manifest import MANIFEST
from tarkit.curate.sources.items import (
    CAPTION_COLUMNS,
    MAX_FILE_BYTES,
    MAX_TEXT_BYTES,
    SYSTEM_NOTE,
    Listing,
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
from tarkit.curate.sources.stored_items import StoredItems
from tarkit.images import PICTURE_SUFFIXES

SIDE_SUFFIXES = (".txt", ".caption", ".json")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def list_folder(root: Path, excluded: Set[Path]) -> Listing:
    """The pictures below `root`, sorted by path; a note counts other files but `excluded` ones.

    Folders that tarkit made, such as the --out of an earlier command, are left out, with a note.
    Memory holds the names of one folder, and those of the folders above it.
    """
    walk = _Walk(root, excluded)
    items = StoredItems(walk.items())
    return Listing("folder", items, tuple(walk.notes()), tuple(sorted(walk.tables)))


class _Walk:
    """One pass over a folder: its pictures in the order of their paths, and what else is there."""

    def __init__(self, root: Path, excluded: Set[Path]) -> None:
        self.root, self.real_root, self.excluded = root, root.resolve(), excluded
        self.tables: list[Path] = []
        self.made: list[str] = []
        self.others: Counter[str] = Counter()
        self.num_system = 0

    def items(self) -> Iterator[SourceItem]:
        """Every picture, and every link or folder that gives none, with its reason."""
        folders = [self._folder(self.root)]
        while folders:
            found = next(folders[-1], None)
            if found is None:
                folders.pop()
            elif isinstance(found, Path):
                folders.append(self._folder(found))
            else:
                yield found

    def _folder(self, here: Path) -> Iterator[SourceItem | Path]:
        """The items of a folder, and its subfolders to walk, sorted as their paths are."""
        try:
            with os.scandir(here) as scan:
                kinds = {e.name: (_is_folder(e), e.is_symlink()) for e in scan}
        except OSError as error:
            yield SourceItem(self._shown(here), error=f"it cannot be read: {error.strerror}")
            return
        files = {name for name, (is_folder, _) in kinds.items() if not is_folder}
        system = {name for name in files if is_system_file(here.relative_to(self.root) / name)}
        self.num_system += len(system)
        files -= system
        texts = {unicodedata.normalize("NFC", name): name for name in files if _is_side(name)}
        unused = set(files)
        # A slash sorts after a dot: the folder "a" comes after the file "a.png".
        for name in sorted(
            kinds.keys() - system,
            key=lambda name: shown(name + "/" if kinds[name] == (True, False) else name),
        ):
            is_folder, is_link = kinds[name]
            if is_folder and is_link:
                yield SourceItem(
                    self._shown(here / name), error="a link to a folder is not followed"
                )
            elif is_folder and is_made(here / name):
                self.made.append(self._shown(here / name))
            elif is_folder:
                yield here / name
            elif _is_picture(name):
                stem = name.rpartition(".")[0]
                sides = [unicodedata.normalize("NFC", stem + suffix) for suffix in SIDE_SUFFIXES]
                beside = [texts[side] for side in sides if side in texts]
                item, read = _file_item(here / name, self.root, self.real_root, beside)
                unused -= {name, *read}
                yield item
        for name in unused:
            path = here / name
            if name in METADATA and path.resolve() not in self.excluded:
                self.tables.append(path)
            elif path.resolve() not in self.excluded:
                self.others[shown(path.suffix) or "without suffix"] += 1

    def _shown(self, path: Path) -> str:
        return shown(os.path.relpath(path, self.root))

    def notes(self) -> Iterator[str]:
        """What was left out, for people."""
        if self.others:
            suffixes = ", ".join(f"{n} {suffix}" for suffix, n in sorted(self.others.items()))
            yield f"{sum(self.others.values())} files are not pictures: {suffixes}"
        if self.made:
            names = sorted(self.made)
            yield f"{len(names)} folders that tarkit made are left out: {_some(names)}"
        if self.num_system:
            yield SYSTEM_NOTE.format(self.num_system)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _is_picture(name: str) -> bool:
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and suffix.lower() in PICTURE_SUFFIXES


def _is_side(name: str) -> bool:
    return name.endswith(SIDE_SUFFIXES)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def is_made(folder: Path) -> bool:
    """Whether a command of tarkit made the folder: an --out inside the user's own folder."""
    return (folder / MANIFEST).is_file()


def list_pictures(path: Path) -> Iterator[SourceItem]:
    """The pictures that a .txt names, one a line, in its folder; their names are as written.

    Raises UserError for a list that cannot be read as UTF-8.
    """
    root = path.parent
    for _, line in read_lines(path, hint="write one picture per line, as UTF-8"):
        place = Path(os.path.normpath(root / line.strip()))
        if not place.is_relative_to(os.path.normpath(root)):
            yield SourceItem(shown(line.strip()), error="it leaves the folder of the list")
            continue
        beside = [place.with_suffix(suffix).name for suffix in SIDE_SUFFIXES]
        beside = [name for name in beside if (place.parent / name).exists() and name != path.name]
        item, _ = _file_item(place, root, root.resolve(), beside)
        yield item


def _file_item(
    path: Path, root: Path, real_root: Path, beside: Sequence[str]
) -> tuple[SourceItem, list[str]]:
    """The picture of a file, and those of the files `beside` it that gave it something."""
    name = shown(Path(os.path.relpath(path, root)).as_posix())
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(real_root):
            return SourceItem(name, error="a link that leaves the folder is not followed"), []
        size = real.stat().st_size
        texts = _SideTexts()
        for text_name in beside:
            text = (path.parent / text_name).resolve(strict=True)
            if not text.is_relative_to(real_root):
                error = f"its caption {text_name} is a link that leaves the folder"
                return SourceItem(name, error=error), list(beside)
            texts.add(_read_file(text, MAX_TEXT_BYTES), text_name)
    except (OSError, ValueError, RuntimeError) as error:
        # A loop of links is a RuntimeError up to Python 3.12, an OSError from 3.13 on.
        if isinstance(error, RuntimeError) or getattr(error, "errno", None) == errno.ELOOP:
            return SourceItem(name, error="a loop of links"), list(beside)
        return SourceItem(name, error=reason_of(error)), list(beside)
    item = SourceItem(
        name,
        fingerprint=str(size),
        captions=tuple(dict.fromkeys(texts.captions)),
        captions_from=tuple(Path(file).suffix for file in texts.names),
        origin=texts.origin,
        read=functools.partial(_read_file, real, MAX_FILE_BYTES),
    )
    return item, texts.names


class _SideTexts:
    """What the files beside a picture say of it; a .json without a caption says nothing."""

    def __init__(self) -> None:
        self.captions: list[str] = []
        self.origin: dict[str, Any] = {}
        self.names: list[str] = []

    def add(self, blob: bytes, name: str) -> None:
        """Raises ValueError for a text that is not UTF-8, or a caption that is not text."""
        if not name.endswith(".json"):
            self.captions += caption_of(blob, name)
            self.names.append(name)
            return
        row = json_of(text_of(blob, name))
        captions = captions_of(lowered(row), CAPTION_COLUMNS) if isinstance(row, Mapping) else ()
        if captions:
            self.captions += captions
            self.origin |= origin_of(lowered(row))
            self.names.append(name)


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
