"""What several layouts of official scorers share; a failed picture or answer is an error in all.

`adm-npz` is `DIR/samples.npz`: its `arr_0` is uint8 (N, H, W, 3), the pictures of one prompt after
those of another, for ADM's `evaluator.py`, whose Inception Score splits them in this order.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tarkit.artifacts.files import whole_file
from tarkit.errors import UserError
from tarkit.eval.run import BenchmarkItem, BenchmarkRun
from tarkit.eval.sample_files import Failure, open_pictures
from tarkit.images import to_uint8
from tarkit.progress import Progress


def run_pictures(run: BenchmarkRun) -> Iterator[tuple[int, BenchmarkItem, list[Image.Image]]]:
    """Row, prompt and pictures of every prompt; raises UserError for a picture that failed."""
    with Progress("export", total=len(run.items), unit="prompts") as progress:
        for row, item in enumerate(run.items):
            files = [run.picture_path(row, sample) for sample in range(run.n)]
            pairs = zip(files, open_pictures(files), strict=True)
            yield row, item, [_whole(run, file, picture) for file, picture in pairs]
            progress.advance(1)


def _whole(run: BenchmarkRun, file: Path, picture: Image.Image | Failure) -> Image.Image:
    if isinstance(picture, Failure):
        raise UserError(
            f"{file} failed: {picture.reason}",
            hint=f"tarkit eval generate {run.path} --retry-failed",
        )
    return picture


def require_size(picture: Image.Image, size: tuple[int, int], file: Path) -> None:
    """Raise UserError unless the picture has the (width, height) of the first one."""
    if picture.size != size:
        own, first = (f"{width} x {height}" for width, height in (picture.size, size))
        raise UserError(f"{file} is {own}, the first is {first}: this layout has one size")


def run_answers(
    run: BenchmarkRun, *, unasked: str | None = None
) -> Iterator[tuple[BenchmarkItem, str]]:
    """Every question and its answer; `unasked` stands for the answer where it cannot be asked.

    Raises UserError for an answer that failed.
    """
    for item, answer in zip(run.items, run.answers(), strict=True):
        if item.unasked is not None and unasked is not None:
            yield item, unasked
        elif isinstance(answer, Failure):
            raise UserError(
                f"the answer to {item.id} failed: {answer.reason}",
                hint=f"tarkit eval answer {run.path} --retry-failed",
            )
        else:
            yield item, answer


def file_name(part: str) -> str:
    """`part`, which names a file; raises UserError unless it is letters, digits, '.', '_', '-'."""
    if not re.fullmatch(r"[\w.-]+", part) or part.startswith("."):
        raise UserError(f"{part!r} cannot be the name of a file")
    return part


def write_adm_npz(run: BenchmarkRun, folder: Path) -> None:
    """Write `samples.npz`; raises UserError for pictures of different sizes.

    The pictures are written one by one, because 50,000 of 256 x 256 are 10 GB.
    """
    size = None
    with (
        whole_file(folder / "samples.npz") as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as array,
    ):
        for row, _, pictures in run_pictures(run):
            if size is None:
                size = width, height = pictures[0].size
                array.write(_npy_header((len(run.items) * run.n, height, width, 3)))
            for sample, picture in enumerate(pictures):
                require_size(picture, size, run.picture_path(row, sample))
                array.write(to_uint8(picture).tobytes())


def _npy_header(shape: tuple[int, ...]) -> bytes:
    sink = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(sink, header)
    return sink.getvalue()
