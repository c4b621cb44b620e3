"""What a run left in its directory: results, judged samples, a training's log. Reads only.

A directory may come from elsewhere: sizes are limited, types are checked, and a picture that is
named in `scores.parquet` is read only from inside the directory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tarkit.artifacts.manifest import MANIFEST, file_sha256, read_manifest
from tarkit.errors import UserError
from tarkit.images import read_picture

RESULTS, SCORES, LOG, CONFIG = "results.json", "scores.parquet", "metrics.jsonl", "config.json"
MAX_TEXT_BYTES = 256 << 20
MAX_SCORE_BYTES = 1 << 30
"""Of the columns read, unpacked: a few million judged samples."""
MAX_PICTURE_BYTES = 64 << 20
MAX_DEPTH = 64

# The columns of the evaluations' scores.parquet that are read; one that is absent is null.
COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("suite", "task", "column", "item")),
        ("seed", pa.int64()),
        *((name, pa.string()) for name in ("prompt", "file", "answer", "label")),
        ("correct", pa.bool_()),
        *((name, pa.string()) for name in ("reason", "error")),
    ]
)

ScoreRow = dict[str, Any]


@dataclass(frozen=True)
class RecordedRun:
    """One directory. What it lacks is empty; `log` holds the rows of a training, step by step."""

    path: Path
    name: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[ScoreRow] = ()
    log: Sequence[Mapping[str, Any]] = ()
    torn_lines: int = 0
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def suites(self) -> list[str]:
        """Of the judged samples, in their order."""
        return list(dict.fromkeys(row["suite"] for row in self.scores))


def read_runs(paths: Sequence[Path]) -> list[RecordedRun]:
    """The runs, named by their folders, or by their paths where two folders have one name."""
    names = [path.resolve().name for path in paths]
    return [
        read_run(path, name=name if names.count(name) == 1 else str(path))
        for path, name in zip(paths, names, strict=True)
    ]


def read_run(path: Path, *, name: str | None = None) -> RecordedRun:
    """What lies in a directory. Raises UserError where that is neither results nor a training."""
    if not path.is_dir():
        why = "it is a file" if path.exists() else "there is no such folder"
        raise UserError(f"{path} is no run: {why}")
    if not any((path / file).is_file() for file in (RESULTS, LOG)):
        raise UserError(
            f"{path} is no run: it has neither {RESULTS} nor {LOG}", hint=f"tarkit inspect {path}"
        )
    document = _json(path / RESULTS)
    if (path / RESULTS).is_file() and not isinstance(document.get("metrics"), Mapping):
        raise UserError(f"{path / RESULTS} holds no metrics: it has no table of that name")
    manifest = read_manifest(path) if (path / MANIFEST).is_file() else {}
    log, torn = _log(path / LOG)
    return RecordedRun(
        path,
        name=name or path.resolve().name,
        metrics=_mapping(document.get("metrics")),
        settings=_mapping(document.get("settings")) or _mapping(manifest.get("settings")),
        versions=_mapping(document.get("versions"))
        or ({"tarkit": manifest["tarkit"]} if "tarkit" in manifest else {}),
        parents=_mapping(manifest.get("parents")),
        figures=_mapping(_json(path / CONFIG).get("figures")) if log else {},
        scores=_scores(path / SCORES),
        log=log,
        torn_lines=torn,
        fingerprints={
            file: file_sha256(path / file)
            for file in (RESULTS, SCORES, LOG, MANIFEST)
            if (path / file).is_file()
        },
    )


def _home(folder: Path) -> Path:
    """Where a run's pictures are: RUN for the results of one of its scorers, RUN/scores/NAME."""
    above = folder.parent.parent
    is_scorer = folder.parent.name == "scores" and (above / MANIFEST).is_file()
    return above if is_scorer and read_manifest(above)["kind"] == "run" else folder


def picture_of(run: RecordedRun, file: str) -> Image.Image:
    """The RGB picture that a judged sample names.

    Raises UserError, without the picture's bytes having been read, if it lies outside the run,
    and for anything that is no sound picture of a bearable size.
    """
    home = _home(run.path.resolve())
    try:
        place = (home / file).resolve()
        inside = place.is_relative_to(home) and place.is_file()
        size = place.stat().st_size if inside else 0
    except (OSError, ValueError) as error:  # too long a name, a zero byte in it, a loop of links
        raise UserError(f"the picture's name cannot be read: {type(error).__name__}") from None
    if not place.is_relative_to(home):
        raise UserError("the picture's path leaves the run's folder")
    if not inside:
        raise UserError("the picture is not there")
    if size > MAX_PICTURE_BYTES:
        raise UserError(f"the picture has {size} bytes, more than {MAX_PICTURE_BYTES}")
    return read_picture(place)


def uncovered(run: RecordedRun) -> Iterator[tuple[str, float]]:
    """(name, coverage) of every metric that does not rest on all its samples."""

    def walk(name: str, value: Any) -> Iterator[tuple[str, float]]:
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            if key == "coverage" and is_number(inner) and not inner >= 1:
                yield name, float(inner) if is_finite(inner) else math.nan
            yield from walk(name, inner)

    for name, value in run.metrics.items():
        yield from walk(name, value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether it can be drawn; an integer beyond the floats cannot."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False


# ---- files --------------------------------------------------------------------------------------


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise UserError(f"{path} has {size} bytes, more than {MAX_TEXT_BYTES}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _json(path: Path) -> Mapping[str, Any]:
    """The table in a file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if _is_deep(found):
        raise UserError(f"{path} holds tables in tables to a depth of {MAX_DEPTH} and more")
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not a table")
    return found


def _is_deep(value: Any) -> bool:
    """Whether tables and lists lie too deep in each other for what walks through them."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = inner
    return bool(level)


def _log(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """Rows with a step, and how many lines are none: a training may be writing at this moment."""
    rows: list[Mapping[str, Any]] = []
    torn = 0
    for line in _text(path).splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and is_finite(row.get("step")) and not _is_deep(row):
            rows.append(row)
        else:
            torn += 1
    return rows, torn


def _scores(path: Path) -> list[ScoreRow]:
    if not path.is_file():
        return []
    try:
        file = pq.ParquetFile(path)
        there = [name for name in COLUMNS.names if name in file.schema_arrow.names]
        size = sum(
            file.metadata.row_group(group).total_byte_size
            for group in range(file.metadata.num_row_groups)
        )
        if size > MAX_SCORE_BYTES:
            raise UserError(f"{path} unpacks to {size} bytes, more than {MAX_SCORE_BYTES}")
        read = file.read(columns=there)
        arrays = [
            read[name].cast(kind) if name in there else pa.nulls(read.num_rows, kind)
            for name, kind in zip(COLUMNS.names, COLUMNS.types, strict=True)
        ]
        rows = pa.Table.from_arrays(arrays, schema=COLUMNS).to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as judged samples: {error}") from None
    texts = ("suite", "task", "column", "item", "prompt")
    return [{**row, **{name: row[name] or "" for name in texts}} for row in rows]
