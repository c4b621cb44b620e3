"""Questions about pictures from the files that benchmarks publish, one row each.

A row has `id`, `tag` (the split, subtask or category), `prompt`, `truth`, `meta`, and its picture
as a path (`picture`) or as encoded bytes (`blob`). What cannot be asked, such as a question about
two pictures, stays a row: `meta["unasked"]` says why, and it counts as wrong.

Suffixes are those of lmms-eval, which the paper's figures were made with (spec: Table 1).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.tables import AGAIN, read_json, read_rows
from tarkit.errors import UserError

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJ"
MME_TAIL = " Please answer yes or no."
PICTURE_ENDINGS = (".jpg", ".png", ".jpeg", ".webp")

Row = dict[str, Any]


# ---- parts --------------------------------------------------------------------------------------


def _picture(found: Mapping[str, Any], images: Path | None, place: str) -> Row:
    """`picture`, `blob`, or in `meta` why the question cannot be asked."""
    more = [name for name in found if re.fullmatch(r"image_[2-9]", name) and found[name]]
    if more:
        return {"meta": {"unasked": f"it is about {len(more) + 1} pictures"}}
    given = next(
        (found[n] for n in ("image", "image_1", "imageId", "data_id") if found.get(n)), None
    )
    if isinstance(given, Mapping):  # as datasets keep pictures: bytes, or a path
        given = given.get("bytes") or given.get("path")
    if isinstance(given, bytes):
        return {"blob": given}
    if given is None:
        return {"meta": {"unasked": "it names no picture"}}
    name = str(given)
    if len(name) > 500:
        try:
            return {"blob": base64.b64decode(name, validate=True)}
        except binascii.Error as error:
            raise UserError(f"{place}: its picture is no base64: {error}") from None
    folder = _images(Path(place.split(":")[0]), images, "the benchmark")
    endings = ("", *PICTURE_ENDINGS)
    files = [_inside(folder, name + ending, place) for ending in endings]
    return {"picture": str(next((file for file in files if file.is_file()), files[0]))}


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(FILE:LINE, row) of a file, or of every file of a folder; rows of JSON by name or number."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.suffix.lower() == ".json":
            yield from _json_rows(file)
        else:
            for row in read_rows(file):
                yield f"{file}:{row.number}", row.require()


def _json_rows(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a list, of an object by id (GQA), or of its list `questions` (SEED-Bench)."""
    rows = read_json(file)
    if isinstance(rows, dict) and isinstance(rows.get("questions"), list):
        rows = rows["questions"]
    if not isinstance(rows, dict | list):
        raise UserError(f"{file} is not a list of questions, but {type(rows).__name__}", hint=AGAIN)
    for name, row in rows.items() if isinstance(rows, dict) else enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{file}: {name} is no question but {type(row).__name__}", hint=AGAIN)
        yield f"{file}:{name}", {"id": name, **row}


def _images(path: Path, images: Path | None, name: str) -> Path:
    if images is None:
        raise UserError(f"{path}: {name} names pictures by file", hint="--images DIR")
    if not images.is_dir():
        raise UserError(f"{images} is no folder of pictures", hint="--images DIR")
    return images


def _inside(folder: Path, name: str, place: str) -> Path:
    """`folder / name`, which must not leave the folder."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{place}: the picture {name!r} is outside {folder}")
    return file


def _need(found: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    lacking = [name for name in names if found.get(name) is None]
    if lacking:
        raise UserError(f"{place} has no {lacking[0]}; it has {', '.join(map(str, found))}")


def _first(
    found: Mapping[str, Any], names: Sequence[str], place: str, default: str | None = None
) -> Any:
    for name in names:
        if found.get(name) is not None:
            return found[name]
    return default if default is not None else place
