"""`tarkit eval export`: the pictures of a run in the layout that an official scorer reads.

- `geneval-dir`: `DIR/00000/{metadata.jsonl, samples/0000.png}`, for `evaluate_images.py`.
- `dpg-grid`: `DIR/ITEM.png`, the pictures of a prompt in a square grid, for `compute_dpg_bench.py`
  with `--resolution` the side of one picture.

Official scorers need programs of their own age; `tarkit eval collect` brings their verdicts back.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from PIL import Image

from tarkit.errors import UserError
from tarkit.files import write_whole
from tarkit.images import png_bytes
from tarkit.progress import Progress
from tarkit.runs import Run, open_run
from tarkit.samples import Failure, open_pictures

FORMATS = {"geneval-dir": "geneval", "dpg-grid": "dpg"}


def run(path: Path, *, out: Path, layout: str) -> Path:
    """Write `out` in `layout`; a picture that failed is an error, for its place cannot be empty."""
    asked = open_run(path)
    if FORMATS.get(layout) != asked.bench:
        known = ", ".join(name for name, bench in FORMATS.items() if bench == asked.bench)
        raise UserError(
            f"{asked.bench} is not exported as {layout!r}", hint=f"--format {known or 'nothing'}"
        )
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give another --out")
    with Progress("export", total=len(asked.items), unit="prompts") as progress:
        for row in range(len(asked.items)):
            pictures = _pictures(asked, row)
            if layout == "geneval-dir":
                _folder(asked, row, pictures, out / f"{row:05d}")
            else:
                _grid(asked.items[row].id, pictures, out)
            progress.advance(1)
    return out


def _pictures(asked: Run, row: int) -> list[Image.Image]:
    files = [asked.picture(row, sample) for sample in range(asked.n)]
    pictures = []
    for file, picture in zip(files, open_pictures(files), strict=True):
        if isinstance(picture, Failure):
            raise UserError(
                f"{file} failed: {picture.reason}",
                hint=f"tarkit eval generate {asked.path} --retry-failed",
            )
        pictures.append(picture)
    return pictures


def _folder(asked: Run, row: int, pictures: list[Image.Image], folder: Path) -> None:
    item = asked.items[row]
    line = json.dumps({"prompt": item.prompt, **(item.meta or {})}) + "\n"
    write_whole(folder / "metadata.jsonl", line.encode())
    for sample, picture in enumerate(pictures):
        write_whole(folder / "samples" / f"{sample:04d}.png", png_bytes(picture))


def _grid(item: str, pictures: list[Image.Image], out: Path) -> None:
    if not re.fullmatch(r"[\w.-]+", item) or item.startswith("."):
        raise UserError(f"the item {item!r} cannot be the name of a file")
    side = math.isqrt(len(pictures))
    if side * side != len(pictures):
        raise UserError(f"{len(pictures)} pictures of {item} make no square grid; DPG draws 4")
    width, height = pictures[0].size
    sheet = Image.new("RGB", (side * width, side * height))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % side * width, place // side * height))
    write_whole(out / f"{item}.png", png_bytes(sheet))
