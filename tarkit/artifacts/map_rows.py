"""Makes one row of an artifact from each row of another, shard by shard.

`curate` caption, split, score and judge use it. It chooses the shards of this rank, keeps the ok
rows of finished shards when failed rows are retried, checks that every row has a result, and counts
the reasons of failures.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.picture_tar import PicturePlace
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.remote import with_next_fetched
from tarkit.artifacts.resume import pending_shards
from tarkit.images import MAX_PIXELS
from tarkit.progress import Progress

Row = Mapping[str, Any]
REASONS_SHOWN = 8


@dataclass(frozen=True)
class Todo:
    """An input row that has no result yet, with its number in the shard and its picture.

    `picture` is None for kinds without pictures; `max_pixels` is the limit with which they were
    taken.
    """

    place: int
    row: Row
    picture: PicturePlace | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def blob(self) -> bytes | None:
        """The encoded picture, read from its tar. Raises UserError as `PicturePlace.read` does."""
        return None if self.picture is None else self.picture.read()


Result = Row | str
"""The columns that a verb adds to a row, or the reason why the row failed."""

Make = Callable[[Iterator[Todo]], Iterator[tuple[int, Result]]]
"""From rows to (place, result) pairs in any order, one for each row."""


def map_rows(
    artifact: Artifact,
    source: Artifact,
    rows_of: Mapping[str, int],
    make: Make,
    *,
    carry: Callable[[Row], Row],
    name: str,
    retry_failed: bool = False,
) -> None:
    """Write this rank's shards of `artifact` from the first `rows_of[shard]` rows of `source`.

    `carry` returns the columns to copy from an input row, its key among them. A row that failed in
    `source` fails here too and is not given to `make`. With `retry_failed` the failed rows of
    finished shards are made again and their ok rows kept. Raises RuntimeError when `make` gives a
    row no result or two.
    """
    rank, world = rank_and_world()
    pending = set(pending_shards(artifact, source, rank=rank, world=world))
    own_shards = [s for s in artifact.shards[rank::world] if s in pending or retry_failed]
    reasons: collections.Counter[str] = collections.Counter()
    with Progress(name, total=sum(rows_of[s] for s in own_shards), unit="rows") as progress:
        for shard in with_next_fetched(own_shards, source.files):
            old = [] if shard in pending else artifact.rows(shard)
            rows = _shard(source, shard, rows_of[shard], old, make, carry, artifact, progress)
            failed = [row["error"] for row in rows if row["status"] == "failed"]
            reasons.update(kind_of(error) for error in failed)
            if not old or rows != old:
                artifact.write(shard, rows, source_sha256=source.shard_sha256(shard))
        for reason, count in reasons.most_common(REASONS_SHOWN):
            progress.message(f"{count} failed: {reason}")


def _shard(
    source: Artifact,
    shard: str,
    num_rows: int,
    old: Sequence[Row],
    make: Make,
    carry: Callable[[Row], Row],
    artifact: Artifact,
    progress: Progress,
) -> list[Row]:
    rows: dict[int, Row] = {i: row for i, row in enumerate(old) if row["status"] == "ok"}
    carried: dict[int, Row] = {}
    progress.advance(len(rows))

    def todo() -> Iterator[Todo]:
        for place, (row, picture) in enumerate(_rows(source, shard)):
            if place == num_rows:
                return
            if place in rows:
                continue
            carried[place] = carry(row)
            if row["status"] != "ok":
                error = f"its {source.kind} row failed: {row['error']}"
                rows[place] = artifact.failed_row(error=error, **carried[place])
                progress.advance(1, failed=1)
                continue
            yield Todo(place, row, picture, source.max_pixels)

    blank = dict.fromkeys(artifact.schema.names)
    for place, result in make(todo()):
        if place in rows or place not in carried:
            raise RuntimeError(f"row {place} of shard {shard} has two results, or was not pending")
        if isinstance(result, str):
            rows[place] = artifact.failed_row(error=result, **carried[place])
        else:
            rows[place] = blank | dict(carried[place]) | dict(result) | {"status": "ok"}
        progress.advance(1, failed=int(isinstance(result, str)))
    if len(rows) != num_rows:
        raise RuntimeError(f"shard {shard}: {len(rows)} of {num_rows} rows have a result")
    return [rows[place] for place in range(num_rows)]


def _rows(source: Artifact, shard: str) -> Iterator[tuple[Row, PicturePlace | None]]:
    rows = source.rows(shard)
    is_pictures = source.kind == "images"
    return zip(
        rows, source.picture_places(shard) if is_pictures else [None] * len(rows), strict=True
    )


def kind_of(error: str) -> str:
    """The error up to its first colon, with N for every number, so that equal reasons are equal."""
    return re.sub(r"\d+", "N", error.split(":")[0])[:80]
