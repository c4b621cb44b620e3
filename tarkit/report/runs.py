"""A run's folder as one object: metrics, settings, judged samples, a training's log, commands."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tarkit.artifacts.commands import COMMANDS, read_commands
from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.manifest import MANIFEST, read_manifest
from tarkit.errors import UserError
from tarkit.images import read_picture
from tarkit.report.readers import (
    MAX_TEXT_BYTES,
    ScoreRow,
    TrainingLog,
    as_table,
    is_finite,
    is_number,
    read_log,
    read_scores,
    read_table,
)

RESULTS, SCORES, LOG, CONFIG = "results.json", "scores.parquet", "metrics.jsonl", "config.json"
BAD_ROWS = "bad_rows.jsonl"
MAX_IMAGE_BYTES = 64 << 20


@dataclass(frozen=True)
class RecordedRun:
    """Results of an evaluation or a training. A field is empty where the folder lacks its file.

    `figures` are those of a trained model's config.json, `bad_rows` those of its bad steps,
    `fingerprints` the sha256 of the files read, `commands` the recorded commands, oldest first.
    """

    path: Path
    name: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[ScoreRow] = ()
    log: TrainingLog = field(default_factory=TrainingLog)
    bad_rows: Sequence[Mapping[str, Any]] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[Sequence[str]] = ()

    def suites(self) -> list[str]:
        """The suites of the judged samples, in their order."""
        return list(dict.fromkeys(row["suite"] for row in self.scores))


def read_runs(paths: Sequence[Path]) -> list[RecordedRun]:
    """The runs, named by their folders, or by their paths where two folders have one name."""
    names = [path.resolve().name for path in paths]
    return [
        read_run(path, name=name if names.count(name) == 1 else str(path))
        for path, name in zip(paths, names, strict=True)
    ]


def read_run(path: Path, *, name: str | None = None) -> RecordedRun:
    """The run in a folder. Raises UserError where it has neither results nor a training's log."""
    if not path.is_dir():
        reason = "it is a file" if path.exists() else "there is no such folder"
        raise UserError(f"{path} is no run: {reason}")
    if not any((path / file).is_file() for file in (RESULTS, LOG)):
        raise UserError(
            f"{path} is no run: it has neither {RESULTS} nor {LOG}", hint=f"tarkit inspect {path}"
        )
    results = read_table(path / RESULTS)
    if (path / RESULTS).is_file() and not isinstance(results.get("metrics"), Mapping):
        raise UserError(f"{path / RESULTS} holds no metrics: it has no table of that name")
    manifest = read_table(path / MANIFEST)
    log = read_log(path / LOG)
    return RecordedRun(
        path,
        name=name or path.resolve().name,
        metrics=as_table(results.get("metrics")),
        settings=as_table(results.get("settings")) or as_table(manifest.get("settings")),
        versions=as_table(results.get("versions"))
        or ({"tarkit": manifest["tarkit"]} if "tarkit" in manifest else {}),
        parents=as_table(manifest.get("parents")),
        figures=as_table(read_table(path / CONFIG).get("figures")) if log.rows else {},
        scores=read_scores(path / SCORES),
        log=log,
        bad_rows=read_log(path / BAD_ROWS).rows,
        fingerprints={
            file: file_sha256(path / file)
            for file in (RESULTS, SCORES, LOG, BAD_ROWS, MANIFEST)
            if (path / file).is_file()
        },
        commands=_commands(path),
    )


def _commands(path: Path) -> list[list[str]]:
    """The commands recorded in the folder, after those of the run that it holds the scores of."""
    folder, home = path.resolve(), _home(path.resolve())
    commands: list[list[str]] = []
    for each in dict.fromkeys((home, folder)):
        file = each / COMMANDS
        if file.is_file() and file.stat().st_size > MAX_TEXT_BYTES:
            raise UserError(f"{file} has {file.stat().st_size} bytes, more than {MAX_TEXT_BYTES}")
        commands += read_commands(each)
    return commands


def _home(folder: Path) -> Path:
    """The folder with the run's pictures: RUN for the results of its scorer in RUN/scores/NAME."""
    above = folder.parent.parent
    is_scorer = folder.parent.name == "scores" and (above / MANIFEST).is_file()
    return above if is_scorer and read_manifest(above)["kind"] == "run" else folder


def read_image(run: RecordedRun, file: str) -> Image.Image:
    """The RGB picture of a judged sample.

    Raises UserError for a file that is no sound picture or is too large, and, without reading it,
    for one outside the run's folder.
    """
    home = _home(run.path.resolve())
    try:
        place = (home / file).resolve()
        is_inside = place.is_relative_to(home) and place.is_file()
        size = place.stat().st_size if is_inside else 0
    except (OSError, ValueError) as error:  # too long a name, a zero byte in it, a loop of links
        raise UserError(f"the picture's name cannot be read: {type(error).__name__}") from None
    if not place.is_relative_to(home):
        raise UserError("the picture's path leaves the run's folder")
    if not is_inside:
        raise UserError("the picture is not there")
    if size > MAX_IMAGE_BYTES:
        raise UserError(f"the picture has {size} bytes, more than {MAX_IMAGE_BYTES}")
    return read_picture(place)


def incomplete_metrics(run: RecordedRun) -> Iterator[tuple[str, float]]:
    """(name, coverage) of every metric that lacks some of its samples."""

    def walk(name: str, value: Any) -> Iterator[tuple[str, float]]:
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            if key == "coverage" and is_number(inner) and not inner >= 1:
                yield name, float(inner) if is_finite(inner) else math.nan
            yield from walk(name, inner)

    for name, value in run.metrics.items():
        yield from walk(name, value)
