"""How many rows of each task, split and status every shard has: counted once, then remembered.

A training draws from millions of rows and must begin within seconds, at its start and whenever it
is resumed. The counts are kept in a hidden file in the artifact's folder, or for an artifact at a
URL in the cache, with the size and the time of each shard, so that only shards that are new or were
made again are read. Where the folder cannot be written to, all are read each time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.files import write_whole
from tarkit.artifacts.remote import file_stamp

FILE = ".row_counts.json"
SHARDS_TOGETHER = 64
NUM_THREADS = 16  # on object storage and network disks each file is a wait


class RowKind(NamedTuple):
    """What decides whether a training uses a row; None in a kind of artifact without the column."""

    task: str | None
    split: str | None
    status: str | None


Counts = dict[RowKind, int]


def row_counts(artifact: Artifact) -> list[Counts]:
    """The number of rows of each kind, shard by shard; UserError for an incomplete artifact."""
    artifact.require_complete()
    stamps = [file_stamp(artifact.shard_path(name)) for name in artifact.shards]
    remembered = _read(artifact)
    stale = [
        name
        for name, stamp in zip(artifact.shards, stamps, strict=True)
        if name not in remembered or remembered[name][0] != stamp
    ]
    counts = {name: remembered[name][1] for name in artifact.shards if name in remembered}
    for first in range(0, len(stale), SHARDS_TOGETHER):
        counts |= _counted(artifact, stale[first : first + SHARDS_TOGETHER])
    if stale:
        entries = zip(artifact.shards, stamps, strict=True)
        _write(artifact, {name: [stamp, counts[name]] for name, stamp in entries})
    return [{RowKind(*kind): n for *kind, n in counts[name]} for name in artifact.shards]


def _counted(artifact: Artifact, names: Sequence[str]) -> dict[str, list[list[Any]]]:
    """[task, split, status, number of rows] of every kind in each of these shards."""
    columns = [column for column in RowKind._fields if column in artifact.schema.names]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        tables = list(threads.map(lambda name: artifact.read_few(name, columns), names))
    numbers = [pa.repeat(pa.scalar(i, pa.int32()), len(table)) for i, table in enumerate(tables)]
    table = pa.concat_tables(tables).append_column("shard", pa.chunked_array(numbers, pa.int32()))
    grouped = table.group_by(["shard", *columns]).aggregate([([], "count_all")]).to_pylist()
    counts: dict[str, list[list[Any]]] = {name: [] for name in names}
    for row in grouped:
        kind = [row.get(column) for column in RowKind._fields]
        counts[names[row["shard"]]].append([*kind, row["count_all"]])
    return counts


def _read(artifact: Artifact) -> dict[str, Any]:
    """The remembered [stamp, counts] of each shard, without those that are not as written here."""
    try:
        remembered = json.loads((artifact.path / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(remembered, dict):
        return {}
    return {name: entry for name, entry in remembered.items() if _is_entry(entry)}


def _is_entry(entry: Any) -> bool:
    """Whether something is [stamp, [[task, split, status, number of rows], ...]]."""
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], list):
        return False
    return all(
        isinstance(kind, list)
        and len(kind) == len(RowKind._fields) + 1
        and all(isinstance(value, str | None) for value in kind[:-1])
        and type(kind[-1]) is int
        and kind[-1] > 0
        for kind in entry[1]
    )


def _write(artifact: Artifact, remembered: Mapping[str, Any]) -> None:
    text = json.dumps(remembered, separators=(",", ":"))
    with contextlib.suppress(OSError):  # a read-only artifact is counted each time
        write_whole(artifact.path / FILE, text.encode())
