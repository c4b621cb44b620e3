"""A user's own pictures: a folder, Parquet with image bytes, WebDataset tars here or at URLs.

A source is listed whole before any picture is decoded, in an order that does not depend on the
file system, and read one picture at a time. Its content is not trusted: tars are never unpacked,
links out of the folder are not followed, sizes are bounded, and only URLs of public addresses are
read. What cannot be used stays in the list as an item with its reason.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path

from tarkit.artifacts.files import is_system_file, read_lines, require_file
from tarkit.artifacts.manifest import MANIFEST, read_manifest
from tarkit.artifacts.remote import (
    clean_url,
    listed_names,
    listed_path,
    local_path,
    with_next_fetched,
)
from tarkit.artifacts.samples import SAMPLE_RECORDS, SAMPLE_SHEET, is_samples
from tarkit.curate.sources.annotations import add_captions, add_questions
from tarkit.curate.sources.folder import is_made, list_folder, list_pictures
from tarkit.curate.sources.items import (
    SYSTEM_MEMBER,
    SYSTEM_NOTE,
    Listing,
    SourceItem,
    shown,
)
from tarkit.curate.sources.parquet import parquet_items
from tarkit.curate.sources.shard_names import (
    FORMS,
    SHARD_MARKS,
    ending_of,
    expand_shard_names,
    form_of,
    is_stored_at_url,
    is_url,
    read_shard_names,
)
from tarkit.curate.sources.stored_items import StoredItems
from tarkit.curate.sources.tars import gzip_tar_items, remote_tar_items, tar_items
from tarkit.curate.sources.urls import Link, read_urls
from tarkit.errors import UserError
from tarkit.images import PICTURE_SUFFIXES
from tarkit.progress import Progress

__all__ = [
    "SourceItem",
    "Link",
    "Listing",
    "add_captions",
    "add_questions",
    "list_source",
    "read_urls",
]

LISTS_NOTE = (
    "{} .parquet files are lists of the URLs of the tars next to them; those that gave no picture "
    "are in no tar, and become no rows"
)
READERS: dict[str, Callable[[Path, str], Iterable[SourceItem]]] = {
    ".tar": tar_items,
    ".tar.gz": gzip_tar_items,
    ".parquet": parquet_items,
}


def list_source(
    source: str | Path, *, exclude: Sequence[Path] = (), allow_private: bool = False
) -> Listing:
    """The items of a folder of pictures, a Parquet file or a tar, or a folder of either.

    A .txt may name pictures in its folder, one per line.
    A source may also name many shards: `data-{00..99}.tar`, or a .txt with one shard per line. Tars
    named so may be http and https URLs, whose hosts must be public unless `allow_private`.
    `exclude` are files in a folder that hold captions or questions. A NNNNN.parquet next to
    NNNNN.tar is img2dataset's list of its URLs, and is not read. Raises UserError for a source that
    does not exist, holds no pictures or more than one kind, or has a link that leaves it.
    """
    if is_stored_at_url(source):
        folder, shards = _shards_at_url(str(source))
        if shards:
            return _list_files(shards, form_of([path.name for path in shards]), folder)
        source = local_path(source)
    pattern, source = str(source), Path(source)
    if not os.path.exists(pattern):  # unlike Path.exists, takes a name of any length
        if is_url(pattern) or any(mark in pattern for mark in SHARD_MARKS):
            return _list_shards(expand_shard_names(pattern), allow_private)
        raise UserError(
            f"the source {pattern} does not exist",
            hint="give a folder, .parquet, .tar, .tar.gz or .txt",
        )
    if not source.is_dir():
        require_file(source)
    if source.is_file() and source.suffix == ".txt" and _names_pictures(source):
        return Listing("folder", StoredItems(list_pictures(source)))
    if source.is_file() and source.suffix == ".txt":
        return _list_shards(read_shard_names(source), allow_private)
    if source.is_file():
        return _list_files([source], ending_of(source.name), source.parent)
    if (source / MANIFEST).exists():
        return _generated(source)
    excluded = {path.resolve() for path in exclude}
    listing = list_folder(source, excluded)
    containers = {suffix: _containers(source, suffix, excluded) for suffix in READERS}
    tars = set(containers[".tar"])
    lists = [path for path in containers[".parquet"] if path.with_suffix(".tar") in tars]
    if listing.items:
        lists += listing.tables
    containers[".parquet"] = [path for path in containers[".parquet"] if path not in lists]
    forms = [suffix for suffix, files in containers.items() if files]
    if listing.items and not forms:
        return _with_tables(listing, source)
    if len(forms) == 1 and not listing.items:
        listed = _list_files(containers[forms[0]], forms[0], source)
        notes = (*listed.notes, LISTS_NOTE.format(len(lists)))
        return replace(listed, notes=notes) if lists else listed
    if forms:
        kinds = ", ".join(["pictures"] * bool(listing.items) + forms)
        raise UserError(
            f"{source} holds several kinds: {kinds}",
            hint=f"name one kind, for example: tarkit curate ingest {source}/FILE{forms[0]} ...",
        )
    raise UserError(
        f"{source} holds no pictures: no file ends in {', '.join(sorted(PICTURE_SUFFIXES))}"
        + "".join(f"; {note}" for note in listing.notes)
    )


def _generated(source: Path) -> Listing:
    """The pictures of `tarkit generate --prompts`, with their prompts as captions."""
    if not is_samples(source):
        raise UserError(
            f"{source} was made by tarkit already: it holds {read_manifest(source)['kind']}",
            hint=f"tarkit inspect {source}",
        )
    own = {(source / name).resolve() for name in (MANIFEST, SAMPLE_RECORDS)}
    listing = list_folder(source, own)
    items = tuple(item for item in listing.items if item.name != SAMPLE_SHEET)
    return replace(listing, items=add_captions(items, source / SAMPLE_RECORDS))


def _shards_at_url(pattern: str) -> tuple[Path, list[Path]]:
    """The folder and the tars or Parquet files of a source at a URL, none of which is fetched.

    Without such files the list is empty. Raises UserError for a shard that is not there, and for
    a folder with several kinds.
    """
    urls = expand_shard_names(pattern) if SHARD_MARKS[0] in pattern else [pattern]
    urls = [clean_url(url) for url in urls]
    if len(urls) > 1:
        parents = {url.rpartition("/")[0] for url in urls}
        if len(parents) > 1:
            raise UserError(
                f"{pattern} names shards of {len(parents)} folders",
                hint="name those of one folder, and the others in another command",
            )
        folder = listed_path(parents.pop())
        there = set(listed_names(folder) or ())
        missing = [url for url in urls if url.rpartition("/")[2] not in there]
        if missing:
            raise UserError(
                f"the shard {missing[0]} does not exist ({len(missing)} of {len(urls)} do not)"
            )
        return folder, [folder / url.rpartition("/")[2] for url in urls]
    folder = listed_path(urls[0])
    if not folder.is_dir():
        return folder.parent, [folder] if ending_of(folder.name) in FORMS else []
    names = [name for name in listed_names(folder) or () if not is_system_file(name)]
    tars = {name for name in names if ending_of(name) == ".tar"}
    shards = [
        name
        for name in names
        if ending_of(name) in FORMS
        and not (name.endswith(".parquet") and name.removesuffix(".parquet") + ".tar" in tars)
    ]
    pictures = [n for n in names if ending_of(n).lower().removeprefix(".") in PICTURE_SUFFIXES]
    kinds = ["pictures"] * bool(pictures) + sorted({ending_of(name) for name in shards})
    if len(kinds) > 1 and shards:
        raise UserError(
            f"{urls[0]} holds several kinds: {', '.join(kinds)}",
            hint=f"name one kind, for example: tarkit curate ingest {urls[0]}/{shards[0]} ...",
        )
    return folder, [folder / name for name in shards]


def _names_pictures(path: Path) -> bool:
    """Whether the first line of a list names a picture here, and not a shard."""
    first = next((line.strip() for _, line in read_lines(path)), "")
    return ending_of(first).lower().removeprefix(".") in PICTURE_SUFFIXES and not is_url(first)


def _with_tables(listing: Listing, root: Path) -> Listing:
    """A folder's pictures with the captions of its metadata files."""
    items, notes = listing.items, list(listing.notes)
    for table in listing.tables:
        name = table.relative_to(root)
        try:
            items = add_captions(items, table, below=name.parent.as_posix())
            notes.append(f"{name} is taken for the captions of its folder")
        except UserError as error:
            notes.append(f"{name} gives no captions: {error.message}")
    return replace(listing, items=items, notes=tuple(notes))


def _containers(root: Path, suffix: str, excluded: Set[Path]) -> list[Path]:
    paths = [
        folder / name
        for folder, names in _folders(root)
        for name in names
        if ending_of(name) == suffix
        and (folder / name).resolve() not in excluded
        and not is_system_file((folder / name).relative_to(root))
    ]
    for path in paths:
        if not path.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{path} is a link that leaves {root}; it is not followed")
    return sorted(paths, key=lambda path: path.as_posix())


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files) of `root` and below, without folders that tarkit made."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not is_made(Path(folder, name))]
        yield Path(folder), names


def _list_shards(names: Sequence[str], allow_private: bool) -> Listing:
    form = form_of(names)
    paths = [Path(name) for name in names if not is_url(name)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"the shard {missing[0]} does not exist ({len(missing)} of {len(names)} do not)"
        )
    root = os.path.commonpath([path.parent.absolute() for path in paths]) if paths else ""
    with Progress("list", total=len(names), unit="shards") as progress:

        def items() -> Iterator[SourceItem]:
            for name in names:
                if is_url(name):
                    yield from remote_tar_items(name, allow_private=allow_private)
                else:
                    label = shown(Path(name).absolute().relative_to(root).as_posix())
                    yield from READERS[form](Path(name), label)
                progress.advance(1)

        return _listing(form, items())


def _list_files(paths: Sequence[Path], suffix: str, root: Path) -> Listing:
    if suffix not in READERS:
        raise UserError(
            f"{paths[0]} is neither a folder, a .parquet, a .tar nor a .tar.gz"
            + (" (unpack the compression first)" if ".tar." in paths[0].name else "")
        )
    items = (
        item
        for path in with_next_fetched(paths, lambda path: [path])
        for item in READERS[suffix](path, shown(path.relative_to(root).as_posix()))
    )
    return _listing(suffix, items)


def _listing(suffix: str, items: Iterable[SourceItem]) -> Listing:
    """The items that are stored, without those of the system, which a note counts."""
    num_system = 0

    def kept() -> Iterator[SourceItem]:
        nonlocal num_system
        for item in items:
            if item.error == SYSTEM_MEMBER:
                num_system += 1
            else:
                yield item

    stored = StoredItems(kept())
    return Listing(suffix[1:], stored, (SYSTEM_NOTE.format(num_system),) if num_system else ())
