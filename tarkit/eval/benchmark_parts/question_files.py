"""Rows of the files in which benchmarks publish questions about pictures.

Every function that may fail takes `place`, where a row stands (`FILE:LINE`), for its error. A
question that cannot be asked, such as one about two pictures, stays a row: `meta["unasked"]` is the
reason, and it counts as wrong.

The suffixes of prompts are those of lmms-eval, with which the paper's figures were made (Table 1).
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import UTF8, is_system_file, text_encoding
from tarkit.artifacts.tables import AGAIN, read_json, read_rows
from tarkit.errors import UserError
from tarkit.eval.benchmarks.base import ItemRow
from tarkit.terminal import print_note

SHORT_SUFFIX = "\nAnswer the question using a single word or phrase."
LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
UNFIT = re.compile("[\0\ud800-\udfff]")
MAX_NAME_BYTES = 255
PICTURE_ENDINGS = (".jpg", ".png", ".jpeg", ".webp")


def question_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place, row) of a .jsonl, .json, .tsv, .csv or .parquet file, or of every file of a folder.

    Raises UserError for a file of another kind, and for a file or a row that cannot be read.
    """
    for file in files_of(path, "**/*") if path.is_dir() else [path]:
        encoding = encoding_of(file)
        if file.suffix.lower() == ".json":
            yield from _json_rows(file, encoding)
        else:
            for row in read_rows(file, encoding=encoding):
                values = row.require()
                if any(value not in (None, "") for value in values.values()):  # a blank line: none
                    yield f"{file}:{row.number}", values


def files_of(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder by name, without those that macOS and Windows add."""
    files = (file for file in folder.glob(pattern) if file.is_file())
    return sorted(file for file in files if not is_system_file(file.relative_to(folder).as_posix()))


def encoding_of(path: Path) -> str:
    """The encoding of a file of questions; a note names one other than UTF-8."""
    if path.suffix.lower() == ".parquet":
        return UTF8
    encoding = text_encoding(path)
    if encoding != UTF8:
        print_note(f"{path} is not UTF-8 text; it is read as {encoding}")
    return encoding


def yes_or_no(label: Any, place: str) -> str:
    """A label without case, spaces and a full stop; raises UserError unless it is yes or no."""
    text = str(label).strip().rstrip(".").strip().lower()
    if text not in ("yes", "no"):
        raise UserError(f"{place}: the label {label!r} is neither yes nor no", hint=AGAIN)
    return text


def _json_rows(file: Path, encoding: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a list, of an object by id (GQA), or of its list `questions` (SEED-Bench)."""
    rows = read_json(file, encoding=encoding)
    if isinstance(rows, dict) and isinstance(rows.get("questions"), list):
        rows = rows["questions"]
    if not isinstance(rows, dict | list):
        raise UserError(f"{file} is {type(rows).__name__}, not a list of questions", hint=AGAIN)
    for name, row in rows.items() if isinstance(rows, dict) else enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{file}: {name} is {type(row).__name__}, not a question", hint=AGAIN)
        yield f"{file}:{name}", {"id": name, **row}


def require_columns(row: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    """Raise UserError unless the row has a value in each of these columns."""
    missing = [name for name in names if row.get(name) is None]
    if missing:
        raise UserError(f"{place} has no {missing[0]}; it has {', '.join(map(str, row))}")


def require_texts(row: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    """Raise UserError unless the row has a text or a number in each of these columns."""
    require_columns(row, names, place)
    for name in names:
        if not isinstance(row[name], str | int | float):
            raise UserError(f"{place}: its {name} is {type(row[name]).__name__}, not text")


def first_value(row: Mapping[str, Any], names: Sequence[str], *, default: str) -> Any:
    """The first value that is not None among these columns."""
    return next((row[name] for name in names if row.get(name) is not None), default)


def picture_fields(row: Mapping[str, Any], images: Path | None, place: str) -> ItemRow:
    """`picture`, a path in `images`; `blob`, encoded bytes; or `meta` with the reason for neither.

    Raises UserError where a picture is named and `images` is None, and for damaged base64.
    """
    more = [name for name in row if re.fullmatch(r"image_[2-9]", name) and row[name]]
    if more:
        return {"meta": {"unasked": f"it is about {len(more) + 1} pictures"}}
    columns = ("image", "image_1", "imageId", "data_id")
    picture = next((row[name] for name in columns if row.get(name)), None)
    if isinstance(picture, Mapping):  # as datasets keep pictures: bytes, or a path
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, bytes):
        return {"blob": picture}
    if picture is None:
        return {"meta": {"unasked": "it names no picture"}}
    name = str(picture)
    if len(name) > 500:
        try:
            return {"blob": base64.b64decode(name, validate=True)}
        except ValueError as error:
            raise UserError(f"{place}: its picture is not base64: {error}") from None
    folder = require_images(Path(place.split(":")[0]), images, "the benchmark")
    endings = ("", *PICTURE_ENDINGS)
    files = [file_inside(folder, name + ending, place) for ending in endings]
    return {"picture": str(next((file for file in files if file.is_file()), files[0]))}


def require_images(path: Path, images: Path | None, name: str) -> Path:
    """The folder of pictures; raises UserError unless it was given and exists."""
    if images is None:
        raise UserError(f"{path}: {name} names pictures by file", hint="--images DIR")
    if not images.is_dir():
        raise UserError(f"{images} is not a folder of pictures", hint="--images DIR")
    return images


def file_inside(folder: Path, name: Any, place: str) -> Path:
    """The file in a folder, also where another system wrote its name.

    Raises UserError for what cannot be the name of a file, and where it leaves the folder.
    """
    size = len(name.encode("utf-8", "replace")) if isinstance(name, str) else 0
    if not isinstance(name, str) or UNFIT.search(name) or size > MAX_NAME_BYTES:
        raise UserError(f"{place}: the picture {name!r:.100} is not the name of a file")
    portable = name.replace("\\", "/")
    forms = (name, portable, *(unicodedata.normalize(form, portable) for form in ("NFC", "NFD")))
    files = [folder / form for form in forms]
    if any(not file.resolve().is_relative_to(folder.resolve()) for file in files):
        raise UserError(f"{place}: the picture {name!r} is outside {folder}")
    return next((file for file in files if file.is_file()), files[0])
