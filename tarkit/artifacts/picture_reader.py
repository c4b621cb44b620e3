"""Reads and decodes stored pictures ahead of a model, in worker processes or in threads.

The members of a tar are found once, by the process that has the model. A worker gets the place of
a picture, reads and decodes it, and sends back what is made of it; the encoded bytes never pass
between processes. Results come in order, and are the same whatever reads them.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from PIL import Image

from tarkit.artifacts.picture_tar import PicturePlace
from tarkit.artifacts.workers import mapping_workers
from tarkit.images import ImageError, decode

NUM_THREADS = 4  # where no worker process reads; Pillow decodes and resizes beside other threads
READ_AHEAD = 256

Argument = TypeVar("Argument")
Made = TypeVar("Made")
MadeOf = TypeVar("MadeOf", covariant=True)


class ReadsPictures(Protocol[MadeOf]):
    """From places to what is made of each picture, or the reason why it cannot be read."""

    def __call__(self, places: Sequence[PicturePlace], /) -> Iterator[MadeOf | ImageError]: ...


@contextmanager
def picture_reader(
    make: Callable[[Image.Image], Made],
    *,
    max_pixels: int,
    num_workers: int,
    ahead: int = READ_AHEAD,
) -> Iterator[ReadsPictures[Made]]:
    """Reads pictures and calls `make` of each, up to `ahead` of what takes the results.

    `make` gets an RGB picture. Workers and errors are those of `reading_ahead`; a tar that has
    become shorter is a UserError.
    """
    read = functools.partial(read_picture, make, max_pixels)
    with reading_ahead(read, num_workers=num_workers, ahead=ahead) as pictures_at:
        yield pictures_at


@contextmanager
def reading_ahead(
    read: Callable[[Argument], Made], *, num_workers: int, ahead: int
) -> Iterator[Callable[[Sequence[Argument]], Iterator[Made]]]:
    """A map of `read`, in order, which is up to `ahead` results ahead of what takes them.

    `read` is pickled where there are workers, and so are its arguments and results. Without workers
    NUM_THREADS threads read. Raises the UserError of a worker, and UserError where one was killed.
    """
    with (
        mapping_workers(read, num_workers) as results_of,
        # Results are taken by one thread, so that workers go on while the model computes.
        ThreadPoolExecutor(1 if num_workers else NUM_THREADS) as threads,
    ):

        def read_ahead(arguments: Sequence[Argument]) -> Iterator[Made]:
            if not num_workers:
                return _in_order((threads.submit(read, each) for each in arguments), ahead)
            results = results_of(arguments)
            return _in_order((threads.submit(next, results) for _ in arguments), ahead)

        yield read_ahead


def read_picture(
    make: Callable[[Image.Image], Made], max_pixels: int, place: PicturePlace
) -> Made | ImageError:
    """What `make` returns for the picture at a place, or why it cannot be decoded."""
    blob = place.read()
    try:
        return make(decode(blob, max_pixels=max_pixels))
    except ImageError as error:
        return error


def as_decoded(picture: Image.Image) -> Image.Image:
    """The picture itself: what `picture_reader` makes for those who want all pixels."""
    return picture


def _in_order(futures: Iterator[Future[Made]], ahead: int) -> Iterator[Made]:
    waiting: collections.deque[Future[Made]] = collections.deque()
    try:
        for future in futures:
            waiting.append(future)
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
