"""Items of a source, and functions that read its names and texts, which are not trusted."""

import codecs
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import UTF8

SYSTEM_NOTE = "{} files that macOS, Windows or WebDataset adds are left out"
SYSTEM_MEMBER = "a file that macOS, Windows or WebDataset adds"
"""The error of an item that is left out of a listing, and counted in a note."""
IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path", "key", "id")
CAPTION_COLUMNS = ("prompt", "caption", "text", "captions")
ABOUT_COLUMNS = ("group", "role", "template")
# What img2dataset writes of a picture: where it was, and its size before it was resized.
ORIGIN_COLUMNS = ("url", "original_width", "original_height")
ROLES = ("target", "similar", "reference")
MAX_FILE_BYTES = 256 << 20
MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceItem:
    """One picture of a source, or a part of the source that gives no picture.

    `name` is its place in the source, and `aliases` are other names that a captions or questions
    file may use. `fingerprint` has the size and place of the picture. `read` returns its bytes or
    raises OSError. `error` is the reason, known before reading, why it cannot be used. `about`
    holds the columns group, role and template of a captions file for I2I and TI2I data. `origin`
    has the `ORIGIN_COLUMNS` that the source states. `captions_from` names what gave its captions,
    for people: ".txt", "column text" or a file's name; `left_aside` what gave nothing.
    """

    name: str
    fingerprint: str = ""
    aliases: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    captions_from: tuple[str, ...] = ()
    left_aside: tuple[str, ...] = ()
    qa: tuple[tuple[str, str], ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    read: Callable[[], bytes] = bytes


@dataclass(frozen=True)
class Listing:
    """Every item of a source in order; `form` is folder, parquet, tar or tar.gz; `notes` are for
    people."""

    form: str
    items: Sequence[SourceItem]
    notes: tuple[str, ...] = ()
    tables: tuple[Path, ...] = ()
    """Captions files that were found in a folder."""


def is_absent(value: Any) -> bool:
    """Whether a table has no value here: null, or the nan by which pandas writes it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def lowered(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row under column names in lower case; a name that is so already goes before others."""
    names = sorted((str(name) for name in row), key=str.islower)
    return {name.lower(): row[name] for name in names if name in row}


def in_any_case(columns: Iterable[str]) -> tuple[str, ...]:
    """Column names as tables write them: text, TEXT and Text."""
    return tuple(
        dict.fromkeys(each for name in columns for each in (name, name.upper(), name.capitalize()))
    )


def with_captions(
    item: SourceItem, row: Mapping[str, Any], where: str, *, source: str | None = None
) -> SourceItem:
    """`item` with the captions, group, role and template of a row, or with an error.

    `source` names the file that the row is from; without one the columns are named.
    """
    try:
        captions = captions_of(row, CAPTION_COLUMNS)
    except ValueError as error:
        return replace(item, error=f"{where}: {error}")
    try:
        about = dict(item.about) | _about(row)
    except ValueError as error:
        return replace(item, error=f"{where}: {error}")
    columns = [f"column {name}" for name in CAPTION_COLUMNS if captions_of(row, (name,))]
    named = tuple(columns) if source is None else (source,) * bool(captions)
    return replace(
        item,
        captions=(*item.captions, *(text for text in captions if text not in item.captions)),
        captions_from=tuple(dict.fromkeys((*item.captions_from, *named))),
        about=about,
    )


def _about(row: Mapping[str, Any]) -> dict[str, str]:
    """Group, role and template of a row, where it has them."""
    about: dict[str, str] = {}
    for column in ABOUT_COLUMNS:
        value = row.get(column)
        if is_absent(value) or value == "":
            continue
        if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
            raise ValueError(f"{column} is not a text of at most {MAX_TEXT_BYTES} bytes")
        about[column] = shown(value.strip())
    if about.get("role", ROLES[0]) not in ROLES:
        raise ValueError(f"role {about['role']!r}: expected one of {', '.join(ROLES)}")
    return about


def origin_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The `ORIGIN_COLUMNS` of a row that have a text or a size in pixels.

    Any other value is not an origin: a sample's JSON may use these names for something else.
    """
    origin: dict[str, Any] = {}
    url, *sizes = ORIGIN_COLUMNS
    if isinstance(row.get(url), str) and row[url].strip():
        origin[url] = shown(row[url].strip())
    for name in sizes:
        value = row.get(name)
        if type(value) is int and 0 < value < 1 << 31:
            origin[name] = value
    return origin


def captions_of(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[str, ...]:
    """Captions in the columns, each of which has a text or a list of texts; else ValueError."""
    captions: list[str] = []
    for column in columns:
        value = row.get(column)
        for text in value if isinstance(value, list) else [value]:
            if is_absent(text):
                continue
            if not isinstance(text, str):
                raise ValueError(f"{column} is {type(text).__name__}, not text")
            captions += caption_of(text.encode("utf-8", "surrogatepass"), column)
    return tuple(captions)


def caption_of(blob: bytes, name: str) -> tuple[str, ...]:
    """The text as one caption with single spaces; none if it is empty, ValueError if not UTF-8."""
    text = " ".join(text_of(blob, name).split())
    return (text,) if text else ()


def text_of(blob: bytes, name: str) -> str:
    """The text of bytes in UTF-8, or in UTF-16 with its mark; ValueError that names them by `name`.

    No text in UTF-8 begins as UTF-16's mark does.
    """
    is_utf16 = blob.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return blob.decode("utf-16" if is_utf16 else UTF8)
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(name)} is not UTF-8 text: {error.reason}") from None


def json_of(text: str) -> Any:
    """The JSON value of a text; ValueError if there is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def shown(name: str) -> str:
    """A name as valid UTF-8: other bytes of a file system or tar become escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, without an errno or a path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
