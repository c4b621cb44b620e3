"""The items of a source in a temporary file, so that a source of any length fits into memory."""

from __future__ import annotations

import array
import itertools
import pickle
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from tarkit.artifacts.files import sweep, temporary_ending
from tarkit.curate.sources.items import SourceItem

BLOCK_ITEMS = 256
"""Items of a block, which are in memory together."""


class StoredItems(Sequence[SourceItem]):
    """Items written to a temporary file in blocks; memory holds 8 bytes for each block.

    The file is in the folder of temporary files (TMPDIR) and goes when this object does, or with
    the next object after its process was killed. A copy
    made by pickle, in a worker process, reads the same file and must not outlive the original.
    Measured: 40 bytes of disk for an item of a tar with a caption of ten words.
    """

    def __init__(self, items: Iterable[SourceItem]) -> None:
        self._offsets = array.array("q", [0])
        self._num_items = 0
        remaining = iter(items)
        sweep(Path(tempfile.gettempdir()))
        with tempfile.NamedTemporaryFile(
            prefix=".tarkit-items-", suffix=temporary_ending(), delete=False
        ) as file:
            self._path = Path(file.name)
            self._remove = weakref.finalize(self, self._path.unlink, missing_ok=True)
            while block := list(itertools.islice(remaining, BLOCK_ITEMS)):
                file.write(zlib.compress(pickle.dumps(block), level=1))
                self._offsets.append(file.tell())
                self._num_items += len(block)

    def __len__(self) -> int:
        return self._num_items

    def __iter__(self) -> Iterator[SourceItem]:
        return self._from(0)

    @overload
    def __getitem__(self, place: int) -> SourceItem: ...

    @overload
    def __getitem__(self, place: slice) -> list[SourceItem]: ...

    def __getitem__(self, place: int | slice) -> SourceItem | list[SourceItem]:
        places = range(self._num_items)[place]
        if isinstance(places, int):
            return next(self._from(places))
        if places.step != 1:
            return [self[number] for number in places]
        return list(itertools.islice(self._from(places.start), len(places)))

    def _from(self, start: int) -> Iterator[SourceItem]:
        """The items from `start` on, one block in memory at a time."""
        number, skip = divmod(start, BLOCK_ITEMS)
        with self._path.open("rb") as file:
            file.seek(self._offsets[min(number, len(self._offsets) - 1)])
            for begin, end in itertools.pairwise(self._offsets[number:]):
                block = pickle.loads(zlib.decompress(file.read(end - begin)))
                yield from itertools.islice(block, skip, None)
                skip = 0

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_remove"}
