"""Lists of URLs: .txt (one per line), .csv, .jsonl or .parquet, with captions and licences."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import numbered_lines
from tarkit.artifacts.tables import AGAIN, read_rows
from tarkit.curate.sources.items import CAPTION_COLUMNS, captions_of, shown
from tarkit.errors import UserError

# Where a table has both, as Wikipedia's has, `url` is the page that shows the picture.
URL_COLUMNS = ("image_url", "IMAGE_URL", "url", "URL")
TEXT_COLUMNS = (*CAPTION_COLUMNS, *(name.upper() for name in CAPTION_COLUMNS))
ENDINGS = (".txt", ".csv", ".jsonl", ".parquet")
LICENCE_COLUMNS = ("licence", "license", "LICENCE", "LICENSE")


@dataclass(frozen=True)
class Link:
    """One row of a list; `error` is the reason, known before fetching, why it cannot be used."""

    url: str
    captions: tuple[str, ...] = ()
    licence: str | None = None
    error: str | None = None


FileState = tuple[int, int, int]


@dataclass(frozen=True)
class ListSummary:
    """A list in numbers; `sha256` changes with any row of it, and with their order."""

    num_links: int
    num_with_captions: int
    num_unusable: int
    sha256: str
    state: FileState
    """The state of the file when its reading began."""


def summarise_urls(path: Path, *, limit: int | None = None) -> ListSummary:
    """The numbers of a list or, with `limit`, of its first rows; holds one row at a time.

    Raises what `read_urls` raises.
    """
    links = read_urls(path, limit=limit)
    state = file_state(path)
    digest = hashlib.sha256()
    num_links = num_with_captions = num_unusable = 0
    for link in links:
        facts = [link.url, link.captions, link.licence, link.error]
        digest.update(json.dumps(facts).encode() + b"\n")
        num_links += 1
        num_with_captions += bool(link.captions)
        num_unusable += link.error is not None
    return ListSummary(num_links, num_with_captions, num_unusable, digest.hexdigest(), state)


def file_state(path: Path) -> FileState:
    """(inode, size, modification time): another one after a file was written to or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_urls(path: Path, *, limit: int | None = None) -> Iterator[Link]:
    """The rows of a list of URLs in order, one at a time; a row without a URL has an error.

    Raises UserError for a file that does not exist, cannot be read or has no URL.
    """
    if not path.is_file():
        why = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"the list of URLs {path} {why}")
    if path.suffix not in ENDINGS:
        raise UserError(f"the list of URLs {path} ends in none of {', '.join(ENDINGS)}")
    return itertools.islice(_links(path), limit)


def _links(path: Path) -> Iterator[Link]:
    is_empty = True
    for link in _txt(path) if path.suffix == ".txt" else _table(path):
        is_empty = False
        yield link
    if is_empty:
        raise UserError(
            f"{path} holds no URL: expected one per line of a .txt, or a column "
            f"{' or '.join(URL_COLUMNS)}"
        )


def _txt(path: Path) -> Iterator[Link]:
    for number, line, error in numbered_lines(path, newline=None):
        if error:
            raise UserError(f"{path} line {number} {error}", hint=AGAIN)
        if line.strip():
            yield Link(line.strip())


def _table(path: Path) -> Iterator[Link]:
    for row in read_rows(path, columns=(*URL_COLUMNS, *TEXT_COLUMNS, *LICENCE_COLUMNS)):
        values = row.require()
        if not any(column in values for column in URL_COLUMNS):
            columns = ", ".join(values) or "no column of use"
            raise UserError(
                f"{path} {row.place} has no {' or '.join(URL_COLUMNS)}; it has {columns}",
                hint=AGAIN,
            )
        yield _link(values)


def _link(row: Mapping[str, Any]) -> Link:
    url = _first(row, URL_COLUMNS)
    licence = _first(row, LICENCE_COLUMNS)
    kept = licence if isinstance(licence, str) else None
    if not isinstance(url, str) or not url.strip():
        return Link("", licence=kept, error="the row has no URL")
    url = shown(url.strip())
    try:
        return Link(url, captions_of(row, TEXT_COLUMNS), kept)
    except ValueError as error:
        return Link(url, licence=kept, error=str(error))


def _first(row: Mapping[str, Any], columns: tuple[str, ...]) -> Any:
    """The first of these columns that is not empty."""
    return next((row[column] for column in columns if row.get(column)), None)
