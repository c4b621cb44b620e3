"""GenEval: prompts about objects, colours, counts and places (Ghosh et al. 2310.11513).

A detector finds the objects of each picture and GenEval's checker compares them with the prompt.
Detectors: `shapes` (the drawn world), `hf-m2f` (Mask2Former and CLIP by transformers), `detections`
(a file of a detector elsewhere, `detections.py`).

The layout `geneval-dir` is `DIR/00000/{metadata.jsonl, samples/0000.png}`, for djghosh13/geneval's
`evaluate_images.py`. The format `geneval-jsonl` is that program's results file, a line a picture
with `filename`, `correct` and `reason`; its figures are computed here from the verdicts.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from tarkit.artifacts.files import read_lines, write_whole
from tarkit.artifacts.tables import AGAIN, FileRow, read_json_records
from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.detections import read_detections
from tarkit.eval.benchmark_parts.export_layouts import run_pictures, write_adm_npz
from tarkit.eval.benchmark_parts.question_files import encoding_of
from tarkit.eval.benchmarks.base import (
    ItemRow,
    PictureBenchmark,
    ScorerOptions,
    ScoreRow,
    Verdicts,
    score_command,
)
from tarkit.eval.metrics.summaries import run_figures
from tarkit.eval.outcome import score_row
from tarkit.eval.run import BenchmarkRun, RunPicture
from tarkit.eval.sample_files import Failure, open_pictures
from tarkit.images import png_bytes, to_uint8
from tarkit.progress import Progress
from tarkit.scoring.geneval import OFFICIAL_RULES, SHAPES_RULES, Detection, Rules, check
from tarkit.scoring.geneval_prompts import geneval_prompts
from tarkit.scoring.statistics import chance_floor

SHAPES = "tarkit.scoring.shapes_detector:ShapesDetector"  # only the drawn world imports it

# ---- prompts ------------------------------------------------------------------------------------


def default_items() -> list[ItemRow]:
    """GenEval's 553 prompts."""
    return _items(geneval_prompts())


def read_geneval(path: Path, images: Path | None) -> list[ItemRow]:
    """Prompts of a file in the layout of `evaluation_metadata.jsonl`: another benchmark."""
    return _items([_record(row) for row in read_json_records(path, encoding=encoding_of(path))])


def _items(records: Sequence[dict[str, Any]]) -> list[ItemRow]:
    for record in records:
        check(record, [])  # raises UserError for a record that does not follow GenEval's schema
    return [
        {"id": f"{row:05d}", "tag": record["tag"], "prompt": record["prompt"], "meta": record}
        for row, record in enumerate(records)
    ]


def _record(row: FileRow) -> dict[str, Any]:
    record = dict(row.require())
    if not (isinstance(record.get("tag"), str) and isinstance(record.get("prompt"), str)):
        raise UserError(
            f"{row.path}:{row.number} lacks GenEval's tag or prompt as text",
            hint=AGAIN,
        )
    return record


# ---- scores -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detector:
    """Finds the objects of a picture; `settings` describe it. `detect` raises UserError."""

    detect: Callable[[Image.Image, RunPicture], list[Detection]]
    rules: Rules
    settings: dict[str, Any]


def score_geneval(run: BenchmarkRun, options: ScorerOptions) -> Verdicts:
    """Detect and check every picture of the run; raises UserError as `load_detector`."""
    detector = load_detector(options)
    name = options.scorer
    rows: list[ScoreRow] = []
    detections: list[list[Detection]] = []
    pictures = run.pictures()
    files = [run.picture_path(one.row, one.sample) for one in pictures]
    with Progress(f"score {name}", total=len(pictures), unit="pictures") as progress:
        for one, picture in zip(pictures, open_pictures(files), strict=True):
            error, objects = None, list[Detection]()
            try:
                if isinstance(picture, Failure):
                    raise UserError(picture.reason)
                objects = detector.detect(picture, one)
            except UserError as reason:
                error = reason.message
            verdict = check(one.item.meta or {}, objects, rules=detector.rules)
            detections.append(objects)
            rows.append(
                _row(
                    run,
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
        objects = detections[other * run.n]
        return check(run.items[prompt].meta or {}, objects, rules=detector.rules).correct

    figures = _figures(run, rows)
    if len(run.items) > 1:
        figures["chance"] = _chance(run, chance_floor(fulfils, len(run.items)))
    settings = {"scorer": detector.settings, "rules": asdict(detector.rules)}
    repair = f"tarkit eval generate {run.path} --retry-failed, then {score_command(run, name)}"
    if name == "detections":
        repair = f"complete {options.file}, or {repair}"
    return Verdicts(name, {f"geneval@{name}": figures}, rows, settings, repair)


def _row(
    run: BenchmarkRun, one: RunPicture, *, correct: bool, reason: str | None, **more: Any
) -> ScoreRow:
    return score_row(
        "geneval",
        one.item.tag,
        "",
        one.item.id,
        sample=one.sample,
        seed=run.seed_of(one.item, one.sample),
        prompt=one.item.prompt,
        file=f"samples/{one.file}",
        correct=correct,
        reason=reason,
        **more,
    )


def _figures(run: BenchmarkRun, rows: Sequence[ScoreRow]) -> dict[str, Any]:
    return run_figures([item.tag for item in run.items], rows, n=run.n)


def _chance(run: BenchmarkRun, chance: np.ndarray) -> dict[str, Any]:
    tags = np.array([item.tag for item in run.items])
    tasks = {str(tag): float(chance[tags == tag].mean()) for tag in dict.fromkeys(tags)}
    return {"overall": float(np.mean(list(tasks.values()))), "tasks": tasks}


def load_detector(options: ScorerOptions) -> Detector:
    """The detector of the scorer's name; raises UserError where it is unknown or lacks a part."""
    if options.scorer == "shapes":
        shapes = pkgutil.resolve_name(SHAPES)()
        return Detector(
            lambda picture, one: shapes.detect(to_uint8(picture)),
            SHAPES_RULES,
            {"detector": "shapes"},
        )
    model, clip, file = options.model, options.clip, options.file
    if options.scorer == "hf-m2f":
        if model is None or clip is None:
            raise UserError(
                "hf-m2f needs a detector and CLIP",
                hint="--scorer-model facebook/mask2former-swin-small-coco-instance "
                "--clip openai/clip-vit-large-patch14",
            )
        from tarkit.eval.benchmark_parts.mask2former import Mask2FormerDetector

        network = Mask2FormerDetector(model, clip, options.device)
        return Detector(
            lambda picture, one: network.detect(picture, one.item.meta or {}),
            OFFICIAL_RULES,
            {"detector": model, "clip": clip, "resize": "PIL"},
        )
    if options.scorer == "detections" and file is not None:
        known = read_detections(file)

        def from_file(picture: Image.Image, one: RunPicture) -> list[Detection]:
            if one.file not in known:
                raise UserError(f"{file} has no detections of {one.file}")
            return known[one.file]

        return Detector(from_file, OFFICIAL_RULES, {"detections": file.name})
    raise UserError(
        f"no detector {options.scorer!r}", hint="--scorer shapes | hf-m2f | detections --file JSONL"
    )


# ---- the official scorer ------------------------------------------------------------------------


def write_geneval_dir(run: BenchmarkRun, folder: Path) -> None:
    """A folder a prompt, with its metadata and its pictures."""
    for row, item, pictures in run_pictures(run):
        line = json.dumps({"prompt": item.prompt, **(item.meta or {})}) + "\n"
        write_whole(folder / f"{row:05d}" / "metadata.jsonl", line.encode())
        for sample, picture in enumerate(pictures):
            file = folder / f"{row:05d}" / "samples" / f"{sample:04d}.png"
            write_whole(file, png_bytes(picture))


def collect_geneval_jsonl(run: BenchmarkRun, file: Path, scorer: str) -> Verdicts:
    """The verdicts of a results file; raises UserError unless it has one on every picture."""
    lines = _result_lines(file)
    rows = []
    for one in run.pictures():
        if one.file not in lines:
            raise UserError(
                f"{file} has no verdict on {one.file}: it is of {len(lines)} pictures, the "
                f"run has {len(run.items) * run.n}"
            )
        line = lines[one.file]
        prompt = line.get("prompt", one.item.prompt)
        if prompt != one.item.prompt:
            raise UserError(f"{file} has {prompt!r} for {one.file}, the run {one.item.prompt!r}")
        rows.append(
            _row(run, one, correct=bool(line["correct"]), reason=line.get("reason") or None)
        )
    return Verdicts(scorer, {f"geneval@{scorer}": _figures(run, rows)}, rows, {})


def _result_lines(file: Path) -> dict[str, dict[str, Any]]:
    """`00000/samples/0000.png` -> the line about it."""
    lines: dict[str, dict[str, Any]] = {}
    for number, text in read_lines(file):
        try:
            row = json.loads(text)
            name, _ = "/".join(PurePosixPath(row["filename"]).parts[-3:]), bool(row["correct"])
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise UserError(
                f"{file}:{number} is not a line of GenEval's results: {error}"
            ) from None
        if name in lines:
            raise UserError(f"{file}:{number} has {name} for the second time")
        lines[name] = row
    return lines


BENCHMARK = PictureBenchmark(
    name="geneval",
    data="a .jsonl of prompts in GenEval's layout",
    read=read_geneval,
    default_items=default_items,
    scorers=("shapes", "hf-m2f", "detections"),
    score=score_geneval,
    layouts={"geneval-dir": write_geneval_dir, "adm-npz": write_adm_npz},
    collectors={"geneval-jsonl": collect_geneval_jsonl},
)
