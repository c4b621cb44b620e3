"""`tarkit eval score`: score the pictures or answers of a run with a scorer of one's choice.

A scorer is part of a result's name (`geneval@hf-m2f`, `dpg@tar`): two scorers are two benchmarks.
How each benchmark is scored stands in its module of `tarkit/eval/benchmarks/`. A picture or answer
that failed scores 0 and lowers coverage; a result with coverage below 1 is written only with
`allow_missing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tarkit.artifacts.manifest import MANIFEST, read_manifest
from tarkit.errors import UserError
from tarkit.eval.benchmarks import load_benchmark
from tarkit.eval.benchmarks.base import (
    PictureBenchmark,
    ScorerOptions,
    score_command,
    write_verdicts,
)
from tarkit.eval.outcome import Scored
from tarkit.eval.run import BenchmarkRun, open_run


def run(
    path: Path,
    *,
    scorer: str | None = None,
    model: str | None = None,
    clip: str | None = None,
    file: Path | None = None,
    server: str | None = None,
    as_published: bool = False,
    allow_missing: bool = False,
    retry_failed: bool = False,
    device: str = "cpu",
) -> Scored:
    """Score the run at `path`; the other arguments are those of `ScorerOptions`.

    `scorer` is required where pictures are scored. With `retry_failed` DPG's judge answers again
    where it failed. Raises UserError.
    """
    started = open_run(path)
    benchmark = load_benchmark(started.bench)
    if isinstance(benchmark, PictureBenchmark):
        made = "samples"
        if scorer is None:
            hint = f"--scorer {' | '.join(benchmark.scorers)}"
            raise UserError(f"{started.bench} needs a scorer", hint=hint)
        command = score_command(started, scorer)
    else:
        made = "answers"
        scorer = scorer or benchmark.reader
        command = score_command(started)
    options = ScorerOptions(
        scorer=scorer,
        model=model,
        clip=clip,
        file=file,
        server=server,
        as_published=as_published,
        retry_failed=retry_failed,
        device=device,
    )
    verdicts = benchmark.score(started, options)
    if verdicts.coverage < 1 and not allow_missing:
        first = next(row["error"] for row in verdicts.rows if row["error"] is not None)
        raise UserError(
            f"{1 - verdicts.coverage:.1%} of {started.path} failed, and a failure scores 0; "
            f"the first with: {first}",
            hint=f"{verdicts.repair}; or {command} --allow-missing; each with the options it had",
        )
    return write_verdicts(started, verdicts, settings=_settings(started, made))


def _settings(started: BenchmarkRun, made: str) -> dict[str, Any]:
    """The settings of the run, and those by which its pictures or answers were made."""
    folder = started.path / made
    return {
        **read_manifest(started.path)["settings"],
        made: read_manifest(folder)["settings"] if (folder / MANIFEST).exists() else None,
    }
