"""Names of shards: `data-{000000..000099}.tar`, `a.tar::b.tar`, or a .txt with one per line.

Braces and `::` are WebDataset's notation, and its function expands them, but only on the command
line: a file may be untrusted. A name is a local path or an http or https URL. No other scheme is
opened, in particular not `pipe:`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tarkit.artifacts.files import read_lines
from tarkit.artifacts.remote import clean_url
from tarkit.artifacts.remote import is_url as is_any_url
from tarkit.errors import UserError

MAX_SHARDS = 100_000
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")
SHARD_MARKS = ("{", "::")
FORMS = (".tar", ".parquet", ".tar.gz")
_CHECK = "as in 'data-{000000..000099}.tar', in quotes"


def is_url(name: str) -> bool:
    """Whether a name is a URL of the web, which may be read; UserError for other schemes."""
    scheme = SCHEME.match(name)
    if scheme is None:
        return False
    if scheme[1].lower() not in ("http", "https"):
        raise UserError(
            f"{name}: only files and http and https URLs are read, not {scheme[1]}:",
            hint="fetch the shards, and name the folder that they are in",
        )
    return True


def is_stored_at_url(pattern: str | Path) -> bool:
    """Whether a source is at a URL of fsspec, and not at one of the web."""
    return is_any_url(pattern) and not str(pattern).lower().startswith(("http:", "https:"))


def shown_source(pattern: str | Path) -> str:
    """A pattern of shard names for a manifest: without queries, which may hold passwords."""
    if is_stored_at_url(pattern):
        return clean_url(pattern)
    parts = str(pattern).split("::")
    return "::".join(re.sub(r"[?#].*", "", part) if is_url(part) else part for part in parts)


def expand_shard_names(pattern: str) -> list[str]:
    """The names that a pattern stands for, in order; UserError for a bad or too large pattern."""
    # Counted first, so that a typing error does not fill the memory.
    num_names = sum(
        math.prod(abs(int(last) - int(first)) + 1 for first, last in RANGE.findall(part))
        for part in pattern.split("::")
    )
    if num_names > 10 * MAX_SHARDS:
        raise UserError(f"{pattern} stands for {num_names} shards", hint=_CHECK)
    from webdataset.shardlists import expand_urls

    try:
        names: list[str] = expand_urls(pattern)
    except (AssertionError, ValueError) as error:  # a variable that is not set, an open brace
        raise UserError(
            f"{pattern} is not a pattern of shard names: {error}", hint=_CHECK
        ) from None
    if len(names) > MAX_SHARDS:
        raise UserError(f"{pattern} stands for {len(names)} shards", hint=_CHECK)
    return names


def read_shard_names(path: Path) -> list[str]:
    """The shards of a list, one per line: URLs, and paths inside the folder of the list."""
    names = []
    for number, line in read_lines(path, hint="write one shard per line, as UTF-8"):
        name = line.strip()
        if "\0" in name:
            raise UserError(f"{path}:{number} names {name!r}, which no file can have", hint=_CHECK)
        if not is_url(name):
            file = path.parent / name
            if not file.resolve().is_relative_to(path.parent.resolve()):
                raise UserError(
                    f"{path}:{number} names {name}, which is outside the folder of the list",
                    hint="put the list into the folder of its shards",
                )
            name = str(file)
        names.append(name)
        if len(names) > MAX_SHARDS:
            raise UserError(f"{path} names more than {MAX_SHARDS} shards", hint="split the list")
    return names


def ending_of(name: str) -> str:
    """The ending of a file's name; that of a compressed tar is `.tar.gz`."""
    if name.endswith((".tar.gz", ".tgz")):
        return ".tar.gz"
    return os.path.splitext(name)[1]


def form_of(names: Sequence[str]) -> str:
    """The one ending of all names, `.tar`, `.tar.gz` or `.parquet`; raises UserError."""
    endings = {ending_of(urlsplit(n).path if is_url(n) else n): n for n in names}
    for ending, name in endings.items():
        allowed = FORMS[:1] if is_url(name) else FORMS
        if ending not in allowed:
            raise UserError(
                f"{name} is not a shard: its ending is not {' or '.join(allowed)}"
                + (" (unpack the compression first)" if ".tar." in name else ""),
                hint="tarkit curate ingest 'FOLDER/{00000..00009}.tar' --out DIR",
            )
    if len(endings) != 1:
        raise UserError(
            f"{len(endings)} forms of shards are named: {', '.join(sorted(endings))}",
            hint="name those of one form",
        )
    return next(iter(endings))
