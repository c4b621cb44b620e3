"""Training streams whose every batch is a pure function of (seed, step), which makes resume exact.

An epoch visits the shards in random order, some at a time, and their rows in random order. A
position in it is computed, not searched for: resuming at step 60,000 reads no earlier row.

Letters: B pictures, H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from tarkit import images as pictures
from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.picture_tar import PicturePlace
from tarkit.artifacts.remote import FetchAhead, shown_path, url_of
from tarkit.artifacts.row_counts import row_counts
from tarkit.errors import UserError
from tarkit.seeds import training_seed
from tarkit.train.task import RowName
from tarkit.vocab import Scale

StreamRow = TypeVar("StreamRow")
AnyRow = TypeVar("AnyRow", covariant=True)


class Rows(Protocol[AnyRow]):
    """The rows of one shard, by their number."""

    def __getitem__(self, row: int, /) -> AnyRow: ...


class Order:
    """The endless random order of numbered shards' rows; each position is computed by itself."""

    def __init__(self, counts: Sequence[int], *, seed: int, shards_together: int = 8) -> None:
        """`counts`: rows of each shard.

        Rows are shuffled within groups of `shards_together` shards. Raises ValueError without rows.
        """
        self.counts = np.asarray(counts, dtype=np.int64)
        self.total = int(self.counts.sum())
        self.seed = seed
        self.together = shards_together
        self._group = lru_cache(maxsize=4)(self._group_order)
        self._epoch = lru_cache(maxsize=2)(self._epoch_plan)
        if not self.total:
            raise ValueError("a stream needs at least one row")

    def _epoch_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards in this epoch's order, and the first position of each group of shards."""
        order = np.random.default_rng(training_seed(self.seed, epoch, "shards")).permutation(
            len(self.counts)
        )
        sizes = np.add.reduceat(self.counts[order], np.arange(0, len(order), self.together))
        return order, np.concatenate([[0], np.cumsum(sizes)])

    def _group_order(self, epoch: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The shards of a group, where each ends in their rows, and the order of those rows."""
        order, _ = self._epoch(epoch)
        shards = order[group * self.together : (group + 1) * self.together]
        ends = np.cumsum(self.counts[shards])
        rng = np.random.default_rng(training_seed(self.seed, epoch, group, "rows"))
        return shards, ends, rng.permutation(int(ends[-1]))

    def coming(self, position: int) -> list[int]:
        """The shards of a position's group and those of the next one, which are read soon."""
        epoch, within = divmod(position, self.total)
        order, starts = self._epoch(epoch)
        first = (int(np.searchsorted(starts, within, side="right")) - 1) * self.together
        shards: list[int] = order[first : first + 2 * self.together].tolist()
        if first + self.together >= len(order):
            shards += self._epoch(epoch + 1)[0][: self.together].tolist()
        return [shard for shard in shards if self.counts[shard]]

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(shard, row in it) at a position of the endless order."""
        epoch, within = divmod(position, self.total)
        _, starts = self._epoch(epoch)
        group = int(np.searchsorted(starts, within, side="right")) - 1
        shards, ends, rows = self._group(epoch, group)
        row = int(rows[within - int(starts[group])])
        place = int(np.searchsorted(ends, row, side="right"))
        return int(shards[place]), row - (int(ends[place - 1]) if place else 0)


class ShardsAhead:
    """Has the files of shards at URLs fetched before a stream opens them: a group of shards ahead.

    Every process that reads rows has one; a file is fetched once for all of a machine.
    """

    def __init__(self, order: Order, files: Callable[[int], Sequence[Path]]) -> None:
        """`files(i)`: the paths of shard i, which stand for URLs."""
        self._order = order
        self._files = files
        self._coming: list[int] = []
        self._fetch = FetchAhead()

    def at(self, position: int) -> None:
        """Begin to fetch what comes after a position of the order; returns at once."""
        coming = self._order.coming(position)
        if coming != self._coming:
            self._coming = coming
            self._fetch(path for shard in coming for path in self._files(shard))


class Stream(Generic[StreamRow]):
    """Rows of numbered shards in an endless random order, with random access by position."""

    def __init__(
        self,
        counts: Sequence[int],
        load: Callable[[int], Rows[StreamRow]],
        *,
        seed: int,
        shards_together: int = 8,
        files: Callable[[int], Sequence[Path]] | None = None,
    ) -> None:
        """`counts`: rows of each shard; `load(i)`: the rows of shard i, in order; `files(i)`: the
        paths of shard i where they stand for URLs.

        Raises ValueError without rows.
        """
        self.order = Order(counts, seed=seed, shards_together=shards_together)
        self.total = self.order.total
        self._load = lru_cache(maxsize=2 * shards_together)(load)
        self._ahead = ShardsAhead(self.order, files) if files else None

    def __getitem__(self, position: int) -> StreamRow:
        """The row at a position of the endless stream."""
        if self._ahead:
            self._ahead.at(position)
        shard, row = self.order[position]
        return self._load(shard)[row]

    def batch(self, step: int, size: int, *, rank: int = 0, world: int = 1) -> list[StreamRow]:
        """This rank's rows of a step: `size` of the step's `size * world`."""
        first = (step * world + rank) * size
        return [self[first + i] for i in range(size)]


class Rounds:
    """The order in which sources are mixed by weight: each round holds every source that often.

    Which source a slot takes, and which of that source's rows, are functions of the seed and the
    slot's number.
    """

    def __init__(self, weights: Sequence[int], *, seed: int) -> None:
        """`weights`: slots of each source in a round, by its number."""
        self.weights = weights
        self.seed = seed
        self.sources = [i for i, weight in enumerate(weights) for _ in range(weight)]

    def __getitem__(self, slot: int) -> tuple[int, int]:
        """(source, position in that source's own stream) of a slot."""
        number, within = divmod(slot, len(self.sources))
        rng = np.random.default_rng(training_seed(self.seed, number, "round"))
        order = [self.sources[int(i)] for i in rng.permutation(len(self.sources))]
        source = order[within]
        return source, number * self.weights[source] + order[:within].count(source)


class MixedStream(Generic[StreamRow]):
    """Several streams as one, mixed by weight; random access by position, as in each of them."""

    def __init__(
        self, streams: Sequence[Stream[StreamRow]], weights: Sequence[int], *, seed: int
    ) -> None:
        self.streams = streams
        self.rounds = Rounds(weights, seed=seed)
        self.total = sum(stream.total for stream in streams)

    def __getitem__(self, position: int) -> StreamRow:
        """The row at a position of the endless stream."""
        source, of_source = self.rounds[position]
        return self.streams[source][of_source]

    def batch(self, step: int, size: int, *, rank: int = 0, world: int = 1) -> list[StreamRow]:
        """This rank's rows of a step: `size` of the step's `size * world`."""
        first = (step * world + rank) * size
        return [self[first + i] for i in range(size)]


class PictureRow(dict[str, Any]):
    """One row of an images artifact; its pixels are read from the tar file on demand."""

    def __init__(self, row: Mapping[str, Any], place: PicturePlace) -> None:
        super().__init__(row)
        self._place = place

    @property
    def name(self) -> RowName:
        """Which row of which artifact it is: unlike the key, another one for every picture."""
        return RowName(shown_path(Path(self._place.tar).parent), self["key"])

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        return pictures.to_uint8(pictures.decode(self._place.read()))


PictureStream = Stream[PictureRow] | MixedStream[PictureRow]

COLUMNS = ("key", "split", "role", "status", "prompt", "captions", "scene")


class PictureShards:
    """The usable pictures of an images artifact: status "ok", and of the split or without one."""

    def __init__(self, artifact: Artifact, split: str | None) -> None:
        """`split=None` takes every split."""
        self.artifact = artifact
        self.split = split

    def counts(self) -> list[int]:
        """The number of usable pictures in each shard; UserError for an incomplete artifact."""
        return [
            sum(n for kind, n in counts.items() if self._usable(kind.split, kind.status))
            for counts in row_counts(self.artifact)
        ]

    def load(self, index: int) -> PictureShard:
        """The usable pictures of shard `index`, in order."""
        name = self.artifact.shards[index]
        table = self.artifact.read(name, columns=list(COLUMNS))
        offsets, sizes = self.artifact.image_offsets(name)
        has_picture = np.asarray(pc.equal(table["status"], "ok"))
        outcomes = zip(table["split"].to_pylist(), table["status"].to_pylist(), strict=True)
        usable = np.array([self._usable(*outcome) for outcome in outcomes], dtype=bool)
        kept = usable[has_picture]
        return PictureShard(
            table.filter(pa.array(usable)),
            str(self.artifact.tar_path(name)),
            offsets[kept],
            sizes[kept],
        )

    def files(self, index: int) -> list[Path]:
        """The index and the tar of shard `index`."""
        return self.artifact.files(self.artifact.shards[index])

    def _usable(self, split: str | None, status: str | None) -> bool:
        return status == "ok" and (self.split is None or split in (None, self.split))


class PictureShard:
    """Rows of an index, each decoded when it is needed, and where their pictures stand."""

    def __init__(self, table: pa.Table, path: str, offsets: np.ndarray, sizes: np.ndarray) -> None:
        """`path` of the tar; `offsets` and `sizes` in bytes, one for each row of `table`."""
        self.table = table
        self.path = path
        self.offsets = offsets
        self.sizes = sizes

    def __getitem__(self, row: int) -> PictureRow:
        [columns] = self.table.slice(row, 1).to_pylist()
        place = PicturePlace(self.path, int(self.offsets[row]), int(self.sizes[row]))
        return PictureRow(columns, place)


def picture_stream(
    artifact: Artifact, *, seed: int, split: str | None = "train"
) -> Stream[PictureRow]:
    """The usable pictures of an images artifact: status "ok", and of the split or without one.

    A user's own pictures have no split. `split=None` takes every split. Raises UserError for an
    incomplete artifact and for one without a usable picture.
    """
    shards = PictureShards(artifact, split)
    counts = shards.counts()
    if not sum(counts):
        raise UserError(
            f"{artifact.path} holds no usable picture of split {split!r}",
            hint=f"tarkit inspect {artifact.path}",
        )
    files = shards.files if url_of(artifact.path) else None
    return Stream(counts, shards.load, seed=seed, files=files)


def mixed_pictures(
    artifacts: Sequence[Artifact], weights: Sequence[int] | None, *, seed: int
) -> MixedStream[PictureRow]:
    """The usable training pictures of several images artifacts, mixed by weight (None: equally).

    Of a single artifact the order is that of its own stream. Raises UserError for another number
    of weights than of artifacts, and where `picture_stream` does.
    """
    weights = [1] * len(artifacts) if weights is None else weights
    if len(weights) != len(artifacts):
        raise UserError(
            f"images_weights has {len(weights)} weights, but there are {len(artifacts)} --images",
            hint="give a weight for each --images, in their order",
        )
    streams = [
        picture_stream(artifact, seed=training_seed(seed, number, "images") if number else seed)
        for number, artifact in enumerate(artifacts)
    ]
    return MixedStream(streams, weights, seed=seed)


def picture_parents(images: Sequence[Path]) -> dict[str, Path]:
    """The images artifacts of a training by their names in its manifest."""
    return {f"images_{i}" if i else "images": path for i, path in enumerate(images)}


def source_names(folders: Sequence[Path]) -> dict[Path, str]:
    """What figures call each input: its folder's name, or its path where another has that name."""
    counts = Counter(folder.name for folder in folders)
    return {f: f.name if counts[f.name] == 1 else shown_path(f) for f in folders}


def sized(
    picture: np.ndarray, size_px: int, *, square: Literal["crop"] | None = None
) -> np.ndarray:
    """A square picture of a model's size, by the default resize (PIL bicubic).

    "crop" keeps the middle square; by default the whole picture is squashed.
    """
    if picture.shape[:2] == (size_px, size_px):
        return picture
    return pictures.to_uint8(pictures.resize(Image.fromarray(picture), size_px, square or "squash"))


def draw_scale(ratio: Sequence[int], seed: int, step: int) -> Scale:
    """A random scale with odds `ratio` for scales 1, 2, 3: the same for a step on every process."""
    rng = np.random.default_rng(training_seed(seed, step, "scale"))
    weights = np.asarray(ratio, dtype=float)
    return Scale(int(rng.choice(3, p=weights / weights.sum())) + 1)
