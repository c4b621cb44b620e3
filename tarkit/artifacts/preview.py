"""What a verb that maps shards to shards has before it: how far a limit reaches, what is left."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tarkit.artifacts.artifact import Artifact, Source, open_artifact
from tarkit.artifacts.manifest import MANIFEST
from tarkit.errors import UserError


def first_rows(source: Artifact, limit: int | None) -> dict[str, int]:
    """Shards that hold the first `limit` rows, and how many rows of each; None: all of them.

    Raises UserError where a shard that is reached has not been made.
    """
    if limit is None:
        source.require_complete()
    taken: dict[str, int] = {}
    left = limit
    for name in source.shards:
        if left is not None and left <= 0:
            break
        source.shard_sha256(name)  # raises with the next command where the shard is missing
        num_rows = pq.read_metadata(source.shard_path(name)).num_rows
        taken[name] = num_rows if left is None else min(num_rows, left)
        left = None if left is None else left - taken[name]
    return taken


def preview_rows(
    path: Path, kind: str, *, out: Path, limit: int | None = None, tries: int | None = None
) -> dict[str, int]:
    """What a verb that maps row to row would do with the artifact at `path`; writes nothing.

    `tries` is how often a model is asked about a row at most, where one is asked.
    """
    source = open_artifact(path, kind)
    rows_of = first_rows(source, limit)
    num_rows = sum(rows_of.values())
    calls = {} if tries is None else {"calls_at_most": num_rows * tries}
    return {"rows": num_rows} | calls | preview_shards(source, out, list(rows_of))


def preview_shards(source: Source | None, out: Path, shards: Sequence[str]) -> dict[str, int]:
    """How many shards there are in all and how many a run would make; writes nothing."""
    return {"shards": len(shards), "shards_to_make": to_make(out, len(shards), source)}


def to_make(out: Path, shards: int, source: Source | None = None) -> int:
    """Of so many shards, those that a run would make; UserError where `out` was begun for others.

    A shard made from other bytes than `source` has now is made again.
    """
    if not (out / MANIFEST).exists():
        return shards
    artifact = open_artifact(out)
    if len(artifact.shards) != shards:
        raise UserError(
            f"{out} was begun for {len(artifact.shards)} shards, this run has {shards}",
            hint="the --limit and the numbers it was begun with, or another --out",
        )
    return len(artifact.pending(source))


def disk(out: Path, left: int) -> dict[str, int]:
    """Bytes free where `out` stands, and bytes that the shards left will take.

    A shard to come is taken for as large as those that are there; before the first is, nobody
    knows, and nothing is said.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = {"disk_bytes_free": shutil.disk_usage(there).free}
    if not (out / MANIFEST).exists():
        return free
    artifact = open_artifact(out)
    made = [name for name in artifact.shards if artifact.shard_path(name).exists()]
    if not made:
        return free
    files = [path for name in made for path in (artifact.shard_path(name), artifact.tar_path(name))]
    taken = sum(path.stat().st_size for path in files if path.exists())
    return free | {"disk_bytes_to_come": taken * left // len(made)}


def num_failed(artifact: Artifact) -> int:
    """Failed rows in the shards that exist."""
    total = 0
    for name in artifact.shards:
        if artifact.shard_path(name).exists():
            status = artifact.read(name, ["status"])["status"]
            total += pc.sum(pc.equal(status, "failed")).as_py() or 0
    return total
