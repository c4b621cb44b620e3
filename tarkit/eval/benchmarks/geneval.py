"""GenEval: objects detected in each picture, by its checker; or verdicts made elsewhere.

Detectors: `shapes` (the drawn world), `hf-m2f` (Mask2Former and CLIP by transformers),
`detections` (a file of them, from a detector elsewhere).
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tarkit.artifacts.files import read_lines, write_whole
from tarkit.errors import UserError
from tarkit.eval.benchmarks.base import Row, Verdicts
from tarkit.eval.benchmarks.detections import read_detections
from tarkit.eval.benchmarks.layouts import _drawn
from tarkit.eval.metrics.summaries import run_figures
from tarkit.eval.outcome import score_row
from tarkit.eval.run import Drawn, Run
from tarkit.eval.samples import Failure, open_pictures
from tarkit.images import png_bytes, to_uint8
from tarkit.progress import Progress
from tarkit.scoring.geneval import OFFICIAL_RULES, SHAPES_RULES, Detection, Rules, check
from tarkit.scoring.geneval_prompts import geneval_prompts
from tarkit.scoring.statistics import chance_floor

DETECTORS = ("shapes", "hf-m2f", "detections")
SHAPES = "tarkit.scoring.shapes_detector:ShapesDetector"  # only the drawn world imports it


@dataclass(frozen=True)
class Detector:
    """Finds the objects of a picture; `settings` say what it is. `detect` raises UserError."""

    detect: Callable[[Image.Image, Drawn], list[Detection]]
    rules: Rules
    settings: dict[str, Any]


def geneval_verdicts(asked: Run, name: str, detector: Detector) -> Verdicts:
    """Detects and checks every picture of the run; `name` is the detector's."""
    rows: list[Row] = []
    found: list[list[Detection]] = []
    drawn = asked.drawn()
    files = [asked.picture(one.row, one.sample) for one in drawn]
    with Progress(f"score {name}", total=len(drawn), unit="pictures") as progress:
        for one, picture in zip(drawn, open_pictures(files), strict=True):
            error, objects = None, list[Detection]()
            try:
                if isinstance(picture, Failure):
                    raise UserError(picture.reason)
                objects = detector.detect(picture, one)
            except UserError as reason:
                error = reason.message
            verdict = check(one.item.meta or {}, objects, rules=detector.rules)
            found.append(objects)
            rows.append(
                geneval_row(
                    asked,
                    one,
                    correct=verdict.correct and error is None,
                    reason=verdict.reason if error is None else None,
                    clauses=list(verdict.clauses),
                    detections=json.dumps([asdict(each) for each in objects]),
                    error=error,
                )
            )
            progress.advance(1, failed=int(error is not None))

    def fulfils(prompt: int, other: int) -> bool:
        objects = found[other * asked.n]
        return check(asked.items[prompt].meta or {}, objects, rules=detector.rules).correct

    figures = geneval_figures(asked, rows)
    if len(asked.items) > 1:
        figures["chance"] = _chance(asked, chance_floor(fulfils, len(asked.items)))
    settings = {"scorer": detector.settings, "rules": asdict(detector.rules)}
    return Verdicts(name, {f"geneval@{name}": figures}, rows, settings)


def geneval_row(asked: Run, one: Drawn, *, correct: bool, reason: str | None, **more: Any) -> Row:
    """The row of `scores.parquet` about one picture of a run."""
    return score_row(
        "geneval",
        one.item.tag,
        "",
        one.item.id,
        sample=one.sample,
        seed=asked.seed_of(one.item, one.sample),
        prompt=one.item.prompt,
        file=f"samples/{one.place}",
        correct=correct,
        reason=reason,
        **more,
    )


def geneval_figures(asked: Run, rows: Sequence[Row]) -> dict[str, Any]:
    """GenEval's figures of a row for every picture of the run, in their order."""
    return run_figures([item.tag for item in asked.items], rows, n=asked.n)


def _chance(asked: Run, chance: np.ndarray) -> dict[str, Any]:
    tags = np.array([item.tag for item in asked.items])
    tasks = {str(tag): float(chance[tags == tag].mean()) for tag in dict.fromkeys(tags)}
    return {"overall": float(np.mean(list(tasks.values()))), "tasks": tasks}


def load_detector(
    name: str, *, model: str | None, clip: str | None, file: Path | None, device: str
) -> Detector:
    """The detector of that name; `model` and `clip` are hf-m2f's, `file` that of `detections`.

    Raises UserError for an unknown name, and where a detector lacks what it needs.
    """
    if name == "shapes":
        shapes = pkgutil.resolve_name(SHAPES)()
        return Detector(
            lambda picture, one: shapes.detect(to_uint8(picture)),
            SHAPES_RULES,
            {"detector": "shapes"},
        )
    if name == "hf-m2f":
        if model is None or clip is None:
            raise UserError(
                "hf-m2f needs a detector and CLIP",
                hint="--model facebook/mask2former-swin-small-coco-instance "
                "--clip openai/clip-vit-large-patch14",
            )
        from tarkit.eval.benchmarks.mask2former import Mask2FormerDetector

        network = Mask2FormerDetector(model, clip, device)
        return Detector(
            lambda picture, one: network.detect(picture, one.item.meta or {}),
            OFFICIAL_RULES,
            {"detector": model, "clip": clip, "resize": "PIL"},
        )
    if name == "detections" and file is not None:
        known = read_detections(file)

        def from_file(picture: Image.Image, one: Drawn) -> list[Detection]:
            if one.place not in known:
                raise UserError(f"{file} has no detections of {one.place}")
            return known[one.place]

        return Detector(from_file, OFFICIAL_RULES, {"detections": file.name})
    raise UserError(
        f"no detector {name!r}", hint="--scorer shapes | hf-m2f | detections --file JSONL"
    )


def _geneval_dir(asked: Run, folder: Path) -> None:
    for row, item, pictures in _drawn(asked):
        line = json.dumps({"prompt": item.prompt, **(item.meta or {})}) + "\n"
        write_whole(folder / f"{row:05d}" / "metadata.jsonl", line.encode())
        for sample, picture in enumerate(pictures):
            file = folder / f"{row:05d}" / "samples" / f"{sample:04d}.png"
            write_whole(file, png_bytes(picture))


def _geneval(data: Path | None, images: Path | None) -> list[dict[str, Any]]:
    if data is None:
        records = geneval_prompts()
    else:
        records = [_record(data, number, line) for number, line in read_lines(data)]
    for record in records:
        check(record, [])  # raises UserError where it is not GenEval's schema
    return [
        {"id": f"{row:05d}", "tag": record["tag"], "prompt": record["prompt"], "meta": record}
        for row, record in enumerate(records)
    ]


def _record(data: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        if not (isinstance(found["tag"], str) and isinstance(found["prompt"], str)):
            raise TypeError("tag and prompt are texts")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{data}:{number} is no line of GenEval's metadata: {error}") from None
    return dict(found)
