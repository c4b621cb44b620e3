"""The files of every evaluation: results.json, report.md, and scores.parquet, a row a verdict."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.artifacts.files import write_whole
from tarkit.config import provenance

SCORES = pa.schema(
    [
        ("suite", pa.string()),
        ("task", pa.string()),
        ("column", pa.string()),
        ("item", pa.string()),
        ("sample", pa.int32()),
        ("seed", pa.int64()),
        ("prompt", pa.string()),
        ("file", pa.string()),
        ("answer", pa.string()),
        ("label", pa.string()),
        ("correct", pa.bool_()),
        ("clauses", pa.list_(pa.bool_())),
        ("reason", pa.string()),
        ("detections", pa.string()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Scored:
    """The folder of an evaluation's results, its report as text, and how many samples failed."""

    path: Path
    report: str
    num_failed: int


def score_row(suite: str, task: str, column: str, item: str, **more: Any) -> dict[str, Any]:
    """One row of `scores.parquet`; a column that is not named is null."""
    return {
        **dict.fromkeys(SCORES.names),
        "sample": 0,
        **{"suite": suite, "task": task, "column": column, "item": item},
        **more,
    }


def write_outcome(
    out: Path,
    metrics: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    report: str,
    rows: Sequence[Mapping[str, Any]] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write results.json with settings and versions, report.md, and `rows` as scores.parquet.

    `versions` are those of programs beyond tarkit's own packages. Raises ValueError for a figure
    that is not finite.
    """
    if rows is not None:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCORES), sink, compression="zstd")
        write_whole(out / "scores.parquet", sink.getvalue())
    all_versions = provenance() | dict(versions or {})
    document = {"metrics": metrics, "settings": settings, "versions": all_versions}
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    write_whole(out / "results.json", text.encode())
    write_whole(out / "report.md", report.encode())
