"""`tarkit eval shapes`: a model on the drawn world, where every score is exact.

Items -> samples (shapes_samples.py) -> scores (shapes_scores.py) -> results. Suites: `geneval`
(prompts drawn and judged), `pope` (existence questions), `caption` (descriptions, parsed),
`ceilings` (what scorer, image VQ and codes of each scale do to true pictures), `codes` (usage and
linear probes). The same command again makes what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt

from tarkit.artifacts.files import read_object
from tarkit.artifacts.manifest import begin_directory, read_manifest, read_settings
from tarkit.checkpoints.representation import TEXT_ALIGNED
from tarkit.errors import UserError
from tarkit.eval.outcome import Scored, write_outcome
from tarkit.eval.result_tables import Table, show, tables
from tarkit.eval.shapes_items import CEILINGS, PIXEL_CEILINGS, SUITES, EvalSplit, ShapesPlan
from tarkit.eval.shapes_samples import CODES, MAX_ANSWER_TOKENS, ShapesSamples
from tarkit.eval.shapes_scores import score_captions, score_pictures, score_questions
from tarkit.vocab import Scale

if TYPE_CHECKING:
    from tarkit.inference.tar_model import Tar

# The settings that the report names.
_REPORTED = (
    *("split", "n", "seed", "limit", "scale", "read_scale"),
    *("sampling", "answers", "batch_size"),
)


@dataclass(frozen=True)
class _ShapesSettings:
    """The settings beside those of the plan that scoring and the report need."""

    scale: int
    read_scale: int
    sampling: dict[str, Any]
    answers: dict[str, Any]
    batch_size: PositiveInt
    model: dict[str, str]
    items: dict[str, Any]


def run(
    *,
    out: Path,
    model: str | Path = "mini",
    suites: Sequence[str] = SUITES,
    n: int = 1,
    seed: int = 0,
    scale: int | None = None,
    limit: int | None = None,
    split: EvalSplit = "test",
    batch_size: int = 16,
    sampling: Mapping[str, float | int] | None = None,
    retry_failed: bool = False,
    device: str = "cpu",
) -> Scored:
    """Evaluate a model; `limit` takes the first items of each suite, spread over its tasks.

    `sampling` changes single numbers of the model's own. `n` pictures are drawn of each geneval
    prompt, one of each ceiling. Raises UserError for an unknown suite, a limit below 2, and where
    `out` was begun with other settings.
    """
    unknown = [name for name in suites if name not in SUITES]
    if unknown or not suites:
        raise UserError(f"unknown suite {', '.join(unknown)!r}: known are {', '.join(SUITES)}")
    if limit is not None and limit < 2:
        raise UserError(f"limit {limit}: chance needs two items to shuffle; give 2 or more")
    chosen = tuple(name for name in SUITES if name in suites)
    plan = ShapesPlan(suites=chosen, split=split, n=n, seed=seed, limit=limit)
    tar = load_tar(model, device)
    complete = tar.sampling.changed(sampling)
    draw_scale = Scale(scale) if scale is not None else tar.default_scale
    read_scale = Scale(scale) if scale is not None else tar.read_scale
    named = {} if tar.representation == TEXT_ALIGNED else {"representation": tar.representation}
    begin_directory(
        out,
        "results",
        settings={
            **asdict(plan),
            **named,
            "scale": int(draw_scale),
            "read_scale": int(read_scale),
            "sampling": complete.model_dump(mode="json"),
            "answers": {"decoding": "greedy", "max_tokens": MAX_ANSWER_TOKENS},
            "batch_size": batch_size,
            "model": tar.fingerprints(),
            "items": plan.fingerprints(),
        },
    )
    ShapesSamples(out, plan, tar, draw_scale, read_scale, complete, batch_size, retry_failed).make()
    return score(out)


def load_tar(model: str | Path, device: str) -> Tar:
    """The model of a name or folder; torch is imported here, and scoring alone needs none of it."""
    from tarkit.inference.tar_model import Tar

    return Tar.load(model, device=device)


def score(out: Path) -> Scored:
    """Score the samples in `out` anew, without a model: scores.parquet, results.json, report.md.

    Raises UserError where `out` is no evaluation on the drawn world or lacks a sample, and where
    the test lists have changed since it was begun.
    """
    settings = _read_settings(out)
    plan = _read_plan(out, settings)
    batch_size = settings["batch_size"]
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    if "geneval" in plan.suites:
        pictures = score_pictures(out, "geneval", plan.picture_files(out), n=plan.n)
        metrics["geneval@shapes"] = pictures.figures
        rows += pictures.rows
    if "pope" in plan.suites:
        answers = score_questions(out, plan, batch_size=batch_size)
        metrics["pope@shapes"] = answers.figures
        rows += answers.rows
    if "caption" in plan.suites:
        captions = score_captions(out, plan, batch_size=batch_size)
        metrics["caption@shapes"] = captions.figures
        rows += captions.rows
    if "ceilings" in plan.suites:
        for name in PIXEL_CEILINGS if "representation" in settings else CEILINGS:
            ceiling = score_pictures(out, f"ceiling_{name}", plan.ceiling_files(out, name))
            metrics[f"ceiling_{name}@shapes"] = ceiling.figures
            rows += ceiling.rows
    if "codes" in plan.suites:
        metrics["codes@shapes"] = read_object(
            out / CODES, hint=f"rm {out / CODES}, and run the same command again"
        )
    shown = tables(metrics)
    report = _report(settings, shown)
    show(shown)
    write_outcome(out, metrics, settings=settings, report=report, rows=rows)
    return Scored(out, report, sum(row["error"] is not None for row in rows))


def _read_settings(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    settings: dict[str, Any] = manifest["settings"]
    if manifest["kind"] != "results" or "suites" not in settings:
        raise UserError(
            f"{out} holds {manifest['kind']}, not an evaluation on the drawn world",
            hint=f"tarkit eval shapes --out {out}",
        )
    read_settings(out, _ShapesSettings)
    return settings


def _read_plan(out: Path, settings: Mapping[str, Any]) -> ShapesPlan:
    plan = read_settings(out, ShapesPlan)
    if plan.fingerprints() != settings["items"]:
        raise UserError(
            f"{out} was made from other test lists than this version's; give another --out",
            hint="tarkit eval shapes --out DIR",
        )
    return plan


def _report(settings: Mapping[str, Any], shown: Sequence[Table]) -> str:
    numbers = ", ".join(f"{name} {json.dumps(settings[name])}" for name in _REPORTED)
    model = ", ".join(f"{name} {digest[:12]}" for name, digest in settings["model"].items())
    numbers += f"; model {model}"
    return "\n".join(["# tarkit eval shapes\n", f"{numbers}\n", *(t.markdown() for t in shown)])
