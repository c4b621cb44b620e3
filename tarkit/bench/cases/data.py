"""Pictures per second through `curate ingest`, `encode` and a training's reader.

"one process" is the same work with one worker where ours has two. Pictures per second at several
numbers of pictures say whether the time grows in proportion.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tarkit.artifacts.artifact import open_artifact
from tarkit.bench.case import BenchSettings, Case
from tarkit.bench.cases.start import command
from tarkit.train.batch_workers import BatchPart, read_in_workers
from tarkit.train.streams import PictureRow, Stream, picture_stream

SIDE = 256
NUMBERS, TINY_NUMBERS = (1_000, 10_000), (8, 16)
BATCH = 32


def cases(settings: BenchSettings) -> Iterator[Case]:
    numbers = TINY_NUMBERS if settings.tiny else NUMBERS
    for count in numbers:
        pictures = _pictures(settings, count)
        yield Case(
            name=f"ingest of {count:,} JPEGs of {SIDE} px",
            ours=_ingest(settings, pictures, workers=2),
            against={"one process": _ingest(settings, pictures, workers=1)},
            count=count,
            unit="pictures",
        )
    count = numbers[0]
    images = settings.folder / "images"
    command(["curate", "ingest", str(_pictures(settings, count)), "--out", str(images)])()
    yield Case(
        name=f"encode of {count:,} pictures by mini",
        ours=_fresh(
            settings, lambda out: ["encode", str(images), "--tokenizer", "mini", "--out", str(out)]
        ),
        count=count,
        unit="pictures",
    )
    yield Case(
        name=f"training reader, {count:,} pictures",
        ours=_read(images, count, workers=2),
        against={"one process": _read(images, count, workers=1)},
        count=max(1, count // BATCH) * BATCH,
        unit="pictures",
    )


def _pictures(settings: BenchSettings, count: int) -> Path:
    """A folder of `count` JPEG files with smooth noise, about 10 kB each."""
    folder = settings.folder / f"jpeg_{count}"
    if not folder.exists():
        folder.mkdir()
        random = np.random.default_rng(settings.seed)
        for number in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            picture = coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            picture.save(folder / f"{number:06d}.jpg", quality=90)
    return folder


def _ingest(settings: BenchSettings, pictures: Path, *, workers: int) -> Callable[[], None]:
    sets = ["--set", f"num_workers={workers}"]
    return _fresh(
        settings, lambda out: ["curate", "ingest", str(pictures), "--out", str(out), *sets]
    )


_numbers = itertools.count()


def _fresh(settings: BenchSettings, words: Callable[[Path], list[str]]) -> Callable[[], None]:
    """A command that writes into a new folder each time: one that is there would be done."""

    def way() -> None:
        command(words(settings.folder / f"out_{next(_numbers)}"))()

    return way


@dataclass
class PictureReading:
    """What a worker process of a training does: the rows of a step, decoded."""

    images: Path

    @cached_property
    def stream(self) -> Stream[PictureRow]:
        return picture_stream(open_artifact(self.images), seed=0, split=None)

    def batch(self, step: int, size: int, part: int, parts: int) -> list[Any]:
        rows = self.stream.batch(step, size, rank=part, world=parts)
        return [row.pixels() for row in rows]


def _read(images: Path, count: int, *, workers: int) -> Callable[[], None]:
    task: Any = PictureReading(images)

    def way() -> None:
        parts = [BatchPart(step, BATCH, 0, 1) for step in range(max(1, count // BATCH))]
        for _ in read_in_workers(task, parts, workers):
            pass

    return way
