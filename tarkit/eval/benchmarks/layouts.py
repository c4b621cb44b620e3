"""What the layouts of official scorers share: a run's pictures and answers, none failed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tarkit.errors import UserError
from tarkit.eval.run import Item, Run
from tarkit.eval.samples import Failure, open_pictures
from tarkit.progress import Progress


def _drawn(asked: Run) -> Iterator[tuple[int, Item, list[Image.Image]]]:
    """Row, prompt and pictures of every prompt; raises UserError for a picture that failed."""
    with Progress("export", total=len(asked.items), unit="prompts") as progress:
        for row, item in enumerate(asked.items):
            files = [asked.picture(row, sample) for sample in range(asked.n)]
            found = zip(files, open_pictures(files), strict=True)
            yield row, item, [_whole(asked, file, picture) for file, picture in found]
            progress.advance(1)


def _whole(asked: Run, file: Path, picture: Image.Image | Failure) -> Image.Image:
    if isinstance(picture, Failure):
        raise UserError(
            f"{file} failed: {picture.reason}",
            hint=f"tarkit eval generate {asked.path} --retry-failed",
        )
    return picture


def _require_size(picture: Image.Image, size: tuple[int, int], file: Path) -> None:
    if picture.size != size:
        found, first = (f"{width} x {height}" for width, height in (picture.size, size))
        raise UserError(f"{file} is {found}, the first is {first}: this layout has one size")


def _answered(asked: Run, *, unasked: str | None = None) -> Iterator[tuple[Item, str]]:
    """Every question and its answer, `unasked` for one that cannot be asked.

    Raises UserError for an answer that failed.
    """
    for item, answer in zip(asked.items, asked.answers(), strict=True):
        if item.unasked is not None and unasked is not None:
            yield item, unasked
        elif isinstance(answer, Failure):
            raise UserError(
                f"the answer to {item.id} failed: {answer.reason}",
                hint=f"tarkit eval answer {asked.path} --retry-failed",
            )
        else:
            yield item, answer


def _name(part: str) -> str:
    if not re.fullmatch(r"[\w.-]+", part) or part.startswith("."):
        raise UserError(f"{part!r} cannot be the name of a file")
    return part
