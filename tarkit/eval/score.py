"""`tarkit eval score`: verdicts on what a run drew or answered, by a scorer of one's choice.

A scorer is part of a result's name (`geneval@hf-m2f`, `dpg@tar`): two scorers are two benchmarks.
How each benchmark is scored stands in `tarkit/verdicts/`. A picture or answer that failed scores 0
and lowers coverage, and with coverage below 1 no result is written unless `allow_missing`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tarkit.artifacts.manifest import MANIFEST, read_manifest
from tarkit.errors import UserError
from tarkit.eval.benchmarks.answers import READERS, question_verdicts
from tarkit.eval.benchmarks.base import write_verdicts
from tarkit.eval.benchmarks.dpg import JUDGES, dpg_verdicts
from tarkit.eval.benchmarks.geneval import DETECTORS, geneval_verdicts, load_detector
from tarkit.eval.outcome import Scored
from tarkit.eval.run import Run, open_run


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
    """Score the run at `path`; `model` and `clip` are the scorer's, `file` what it reads.

    With `retry_failed` a judge of DPG is asked again what it failed to answer. Raises UserError.
    """
    asked = open_run(path)
    name = scorer or READERS.get(asked.bench)
    if name is None:
        known = DETECTORS if asked.bench == "geneval" else JUDGES
        raise UserError(f"{asked.bench} needs a scorer", hint=f"--scorer {' | '.join(known)}")
    if asked.bench == "geneval":
        detector = load_detector(name, model=model, clip=clip, file=file, device=device)
        found = geneval_verdicts(asked, name, detector)
    elif asked.bench == "dpg":
        found = dpg_verdicts(
            asked,
            name,
            model=model,
            file=file,
            server=server,
            as_published=as_published,
            retry_failed=retry_failed,
            device=device,
        )
    else:
        found = question_verdicts(asked, name)
    if found.coverage < 1 and not allow_missing:
        first = next(row["error"] for row in found.rows if row["error"] is not None)
        raise UserError(
            f"{1 - found.coverage:.1%} of {asked.path} failed, and a failure scores 0; "
            f"the first with: {first}",
            hint=_mend(asked, name, file),
        )
    return write_verdicts(asked, found, settings=_made(asked))


def _mend(asked: Run, scorer: str, file: Path | None) -> str:
    """The commands that make what failed anew and judge it, or let it be."""
    named = "" if scorer == READERS.get(asked.bench) else f" --scorer {scorer}"
    score = f"tarkit eval score {asked.path}{named}"
    allow = f"or {score} --allow-missing; each with the options it had"
    if scorer == "answers":  # the pictures are not looked at
        return f"complete {file}, then {score}; {allow}"
    verb = "generate" if asked.bench in ("geneval", "dpg") else "answer"
    again = f"{score} --retry-failed" if asked.bench == "dpg" else score
    steps = f"tarkit eval {verb} {asked.path} --retry-failed, then {again}"
    if scorer == "detections":
        steps = f"complete {file}, or {steps}"
    return f"{steps}; {allow}"


def _made(asked: Run) -> dict[str, Any]:
    """The settings of the run, and of how its pictures or answers were made."""
    part = "samples" if asked.bench in ("geneval", "dpg") else "answers"
    made = asked.path / part
    return {
        **read_manifest(asked.path)["settings"],
        part: read_manifest(made)["settings"] if (made / MANIFEST).exists() else None,
    }
