"""Where a user's own pictures lie: a folder, Parquet with image bytes, WebDataset tars, URLs.

A source is listed whole before any picture is decoded, in an order that does not depend on the
file system, and read one picture at a time. Everything in it is a stranger's: tars are never
unpacked, links out of the folder are not followed, sizes are bounded, and what cannot be used
stays in the list as an item with its reason.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path

from tarkit.curate.sources.annotations import add_captions, add_questions
from tarkit.curate.sources.folder import list_folder
from tarkit.curate.sources.items import Listing, SourceItem, shown
from tarkit.curate.sources.parquet import parquet_items
from tarkit.curate.sources.tars import tar_items
from tarkit.curate.sources.urls import Link, list_urls
from tarkit.errors import UserError
from tarkit.images import PICTURE_SUFFIXES

__all__ = [
    "SourceItem",
    "Link",
    "Listing",
    "add_captions",
    "add_questions",
    "list_source",
    "list_urls",
]


def list_source(source: Path, *, besides: Sequence[Path] = ()) -> Listing:
    """Everything in a folder of pictures, a Parquet file or a tar, or a folder of either.

    `besides` are files in the folder that are no part of it: those with captions and questions.
    """
    if not source.exists():
        raise UserError(f"the source {source} does not exist")
    if source.is_file():
        return _list_files([source], source.suffix, source.parent)
    if (source / "manifest.json").exists():
        raise UserError(
            f"{source} is an artifact of tarkit already", hint=f"tarkit inspect {source}"
        )
    apart = {path.resolve() for path in besides}
    listing = list_folder(source, apart)
    containers = {suffix: _containers(source, suffix, apart) for suffix in (".tar", ".parquet")}
    forms = [suffix for suffix, files in containers.items() if files]
    if listing.items and not forms:
        return listing
    if len(forms) == 1 and not listing.items:
        return _list_files(containers[forms[0]], forms[0], source)
    if forms:
        found = ", ".join(["pictures"] * bool(listing.items) + forms)
        raise UserError(
            f"{source} holds {found}: which are meant?",
            hint=f"name one kind, for example: tarkit curate ingest {source}/FILE{forms[0]} ...",
        )
    raise UserError(
        f"{source} holds no pictures: no file ends in {', '.join(sorted(PICTURE_SUFFIXES))}"
        + "".join(f"; {note}" for note in listing.notes)
    )


def _containers(root: Path, suffix: str, apart: Set[Path]) -> list[Path]:
    found = [path for path in root.rglob(f"*{suffix}") if path.resolve() not in apart]
    for path in found:
        if not path.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{path} is a link that leaves {root}; it is not followed")
    return sorted(found, key=lambda path: path.as_posix())


def _list_files(paths: Sequence[Path], suffix: str, root: Path) -> Listing:
    ways: dict[str, Callable[[Path, str], Iterable[SourceItem]]] = {
        ".tar": tar_items,
        ".parquet": parquet_items,
    }
    if suffix not in ways:
        raise UserError(
            f"{paths[0]} is neither a folder, a .parquet nor a .tar"
            + (" (unpack the compression first)" if ".tar." in paths[0].name else "")
        )
    items = [
        item
        for path in paths
        for item in ways[suffix](path, shown(path.relative_to(root).as_posix()))
    ]
    return Listing(suffix[1:], tuple(items))
