"""Rows of one artifact to rows of another, shard by shard: a row in, a row out.

What caption, split, score and judge share: which shards are mine, what of a finished shard is kept
when only failures are redone, that every row is accounted for, and how often each reason occurred.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.resume import pending_shards
from tarkit.progress import Progress

Row = Mapping[str, Any]
REASONS_SHOWN = 8


@dataclass(frozen=True)
class Todo:
    """One row that has no result yet: its place in the shard, itself, and its encoded picture.

    `blob` is None for kinds that hold no pictures.
    """

    place: int
    row: Row
    blob: bytes | None = None


Result = Row | str
"""The columns that a stage adds, or the reason why it has none."""

Make = Callable[[Iterator[Todo]], Iterator[tuple[int, Result]]]
"""Results by place, in any order, each place once."""


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

    `carry` gives the columns that are taken over from the input row, the key among them. A row that
    failed upstream never reaches `make`. With `retry_failed` the failed rows of finished shards are
    made again and their ok rows kept. RuntimeError where `make` leaves a row out.
    """
    rank, world = rank_and_world()
    pending = set(pending_shards(artifact, source, rank=rank, world=world))
    mine = [s for s in artifact.shards[rank::world] if s in pending or retry_failed]
    reasons: collections.Counter[str] = collections.Counter()
    with Progress(name, total=sum(rows_of[s] for s in mine), unit="rows") as progress:
        for shard in mine:
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
    made: dict[int, Row] = {i: row for i, row in enumerate(old) if row["status"] == "ok"}
    carried: dict[int, Row] = {}
    progress.advance(len(made))

    def todo() -> Iterator[Todo]:
        for place, (row, blob) in enumerate(_rows(source, shard)):
            if place == num_rows:
                return
            if place in made:
                continue
            carried[place] = carry(row)
            if row["status"] != "ok":
                error = f"its {source.kind} row failed: {row['error']}"
                made[place] = artifact.failed_row(error=error, **carried[place])
                progress.advance(1, failed=1)
                continue
            yield Todo(place, row, blob)

    blank = dict.fromkeys(artifact.schema.names)
    for place, result in make(todo()):
        if place in made or place not in carried:
            raise RuntimeError(f"row {place} of shard {shard} was made twice or never asked for")
        if isinstance(result, str):
            made[place] = artifact.failed_row(error=result, **carried[place])
        else:
            made[place] = blank | dict(carried[place]) | dict(result) | {"status": "ok"}
        progress.advance(1, failed=int(isinstance(result, str)))
    if len(made) != num_rows:
        raise RuntimeError(f"shard {shard}: {len(made)} of {num_rows} rows were made")
    return [made[place] for place in range(num_rows)]


def _rows(source: Artifact, shard: str) -> Iterator[tuple[Row, bytes | None]]:
    if source.kind == "images":
        return source.read_images(shard)
    return ((row, None) for row in source.rows(shard))


def kind_of(error: str) -> str:
    """The reason without its particulars, so that equal reasons are counted together."""
    return re.sub(r"\d+", "N", error.split(":")[0])[:80]
