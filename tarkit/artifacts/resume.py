"""Resuming an artifact: which shards a run still has to make, of how many rows, on how much disk.

A shard is made when its file is missing, its footer damaged or its tar another one, and made again
when the input shard that it was made from has changed (artifact.py records its sha256). Damaged
pages are found where they are read, and by `tarkit verify`. Nothing else is remembered: the same
command again looks at the files, so it resumes wherever the last one stopped.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.compute as pc

from tarkit.artifacts.artifact import Artifact, Source, open_artifact
from tarkit.artifacts.manifest import MANIFEST
from tarkit.artifacts.parquet import read_num_rows
from tarkit.errors import UserError


def pending_shards(
    artifact: Artifact, source: Source | None = None, *, rank: int = 0, world: int = 1
) -> list[str]:
    """The shards of process `rank` of `world` that are missing, damaged or outdated by `source`."""
    return [
        name for name in artifact.shards[rank::world] if not _is_current(artifact, name, source)
    ]


def _is_current(artifact: Artifact, name: str, source: Source | None) -> bool:
    if not artifact.shard_path(name).exists():
        return False
    try:
        if artifact.kind == "images" and artifact.tar_fault(name):
            return False
        read_num_rows(artifact.shard_path(name))
    except UserError:  # a damaged index or shard
        return False
    return source is None or artifact.source_sha256(name) == source.shard_sha256(name)


def first_rows(source: Artifact, limit: int | None) -> dict[str, int]:
    """The shards that hold the first `limit` rows, with the number of rows to take from each.

    Without a limit these are all rows. Raises UserError where one of the shards does not exist.
    """
    if limit is None:
        source.require_complete()
    rows_of: dict[str, int] = {}
    remaining = limit
    for name in source.shards:
        if remaining is not None and remaining <= 0:
            break
        num_rows = source.num_rows(name)  # raises UserError where the shard is missing
        rows_of[name] = num_rows if remaining is None else min(num_rows, remaining)
        remaining = None if remaining is None else remaining - rows_of[name]
    return rows_of


def to_make(out: Path, num_shards: int, source: Source | None = None) -> int:
    """How many of the `num_shards` shards of `out` a run would make.

    These are the missing ones and those made from other bytes than `source` has now. Raises
    UserError where `out` was begun with another number of shards.
    """
    if not (out / MANIFEST).exists():
        return num_shards
    artifact = open_artifact(out)
    if len(artifact.shards) != num_shards:
        raise UserError(
            f"{out} was begun for {len(artifact.shards)} shards, this run has {num_shards}",
            hint="use the --limit and the settings it was begun with, or another --out",
        )
    return len(pending_shards(artifact, source))


def disk(out: Path, num_to_make: int) -> dict[str, int]:
    """Free bytes on the disk of `out`, and the bytes that the shards to make will take.

    The second number is the mean size of the finished shards times `num_to_make`; it is left out
    while no shard is finished.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = {"disk_bytes_free": shutil.disk_usage(existing).free}
    if not (out / MANIFEST).exists():
        return free
    artifact = open_artifact(out)
    finished = [name for name in artifact.shards if artifact.shard_path(name).exists()]
    if not finished:
        return free
    files = [
        path for name in finished for path in (artifact.shard_path(name), artifact.tar_path(name))
    ]
    num_bytes = sum(path.stat().st_size for path in files if path.exists())
    return free | {"disk_bytes_to_come": num_bytes * num_to_make // len(finished)}


def num_failed(artifact: Artifact) -> int:
    """The number of failed rows in the shards that exist."""
    total = 0
    for name in artifact.shards:
        if artifact.shard_path(name).exists():
            status = artifact.read(name, ["status"])["status"]
            total += pc.sum(pc.equal(status, "failed")).as_py() or 0
    return total
