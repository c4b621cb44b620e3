"""The scores of an evaluation on the drawn world: figures, and a row for every verdict.

Scores are always taken anew from the samples that lie in the folder; no model is needed. A sample
that failed scores 0 and lowers `coverage`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tarkit.errors import UserError
from tarkit.eval.metrics.shapes_captions import SceneCaptions, caption_results, compare_caption
from tarkit.eval.metrics.summaries import (
    PictureScores,
    QuestionScores,
    picture_results,
    question_results,
)
from tarkit.eval.metrics.yes_no import parse_yes_no
from tarkit.eval.outcome import score_row
from tarkit.eval.sample_files import Failure, open_pictures, read_answers
from tarkit.eval.shapes_items import ShapesPicture, ShapesPlan
from tarkit.images import to_uint8
from tarkit.progress import Progress
from tarkit.scoring.geneval import Detection, check
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.scoring.statistics import chance_floor, mismatches
from tarkit.shapes.questions import DESCRIBE
from tarkit.shapes.scene import scene_to_json

CAPTION_SHUFFLES = 5


class SuiteScores(NamedTuple):
    """The figures of a suite, and its rows of `scores.parquet`."""

    figures: dict[str, Any]
    rows: list[dict[str, Any]]


def score_pictures(
    out: Path, suite: str, files: Sequence[tuple[Path, ShapesPicture]], *, n: int = 1
) -> SuiteScores:
    """Detect and check every picture; prompts come one after the other, n pictures each."""
    detector = ShapesDetector()
    all_objects: list[list[Detection]] = []
    rows = []
    with Progress(f"score {suite}", total=len(files), unit="pictures") as progress:
        opened = open_pictures([file for file, _ in files])
        for (file, planned), picture in zip(files, opened, strict=True):
            detections = _detect(detector, picture)
            error = detections.reason if isinstance(detections, Failure) else None
            objects = [] if isinstance(detections, Failure) else detections
            verdict = check(planned.item.metadata, objects)
            all_objects.append(objects)
            rows.append(
                score_row(
                    suite,
                    planned.item.task,
                    planned.item.column,
                    planned.item.id,
                    sample=planned.sample,
                    seed=planned.seed,
                    prompt=planned.item.prompt,
                    file=file.relative_to(out).as_posix(),
                    correct=verdict.correct and error is None,
                    clauses=list(verdict.clauses),
                    reason=verdict.reason if error is None else None,
                    detections=json.dumps([asdict(each) for each in objects]),
                    error=error,
                )
            )
            progress.advance(1, failed=int(error is not None))
    items = [planned.item for _, planned in files[::n]]

    def fulfils(prompt: int, picture: int) -> bool:
        return check(items[prompt].metadata, all_objects[picture * n]).correct

    figures = picture_results(
        PictureScores(
            tasks=[item.task for item in items],
            columns=[item.column for item in items],
            correct=np.array([row["correct"] for row in rows]).reshape(-1, n),
            failed=np.array([row["error"] is not None for row in rows]).reshape(-1, n),
            chance=chance_floor(fulfils, len(items)),
            # A picture that failed fulfils nothing, not even "no circle".
            clauses=[[holds and row["error"] is None for holds in row["clauses"]] for row in rows],
        )
    )
    return SuiteScores(figures, rows)


def _detect(detector: ShapesDetector, picture: Image.Image | Failure) -> list[Detection] | Failure:
    if isinstance(picture, Failure):
        return picture
    try:
        return detector.detect(to_uint8(picture))
    except UserError as error:
        return Failure(error.message)


def score_questions(out: Path, plan: ShapesPlan, *, batch_size: int) -> SuiteScores:
    """POPE's figures of the answers to the questions of existence."""
    items = plan.questions()
    answers = read_answers(out / "answers" / "pope", len(items), batch_size=batch_size)
    texts = [None if isinstance(answer, Failure) else answer for answer in answers]
    labels = [item.answer == "yes" for item in items]
    rows = [
        score_row(
            "pope",
            item.kind,
            item.column,
            item.id,
            seed=item.seed,
            prompt=item.question,
            answer=text,
            label=item.answer,
            correct=text is not None and parse_yes_no(text) == (item.answer == "yes"),
            error=answer.reason if isinstance(answer, Failure) else None,
        )
        for item, text, answer in zip(items, texts, answers, strict=True)
    ]

    def right(question: int, other: int) -> bool:
        text = texts[other]
        return text is not None and parse_yes_no(text) == labels[question]

    figures = question_results(
        QuestionScores(
            kinds=[item.kind for item in items],
            columns=[item.column for item in items],
            pictures=[item.group for item in items],
            answers=texts,
            labels=labels,
            chance=chance_floor(right, len(items)),
        )
    )
    return SuiteScores(figures, rows)


def score_captions(out: Path, plan: ShapesPlan, *, batch_size: int) -> SuiteScores:
    """What the captions state, compared with the scenes that they describe."""
    items = plan.captions()
    answers = read_answers(out / "answers" / "caption", len(items), batch_size=batch_size)
    texts = [None if isinstance(answer, Failure) else answer for answer in answers]
    counts = [compare_caption(t, item.scene) for t, item in zip(texts, items, strict=True)]
    rows = [
        score_row(
            "caption",
            "",
            item.column,
            item.id,
            seed=item.seed,
            prompt=DESCRIBE,
            answer=text,
            label=scene_to_json(item.scene),
            correct=bool(count.exact),
            reason=json.dumps(count._asdict()),
            error=answer.reason if isinstance(answer, Failure) else None,
        )
        for item, text, answer, count in zip(items, texts, answers, counts, strict=True)
    ]
    pairs = mismatches(len(items), shuffles=CAPTION_SHUFFLES)
    figures = caption_results(
        SceneCaptions(
            columns=[item.column for item in items],
            counts=counts,
            chance=[compare_caption(texts[other], items[own].scene) for own, other in pairs],
            failed=[text is None for text in texts],
        )
    )
    return SuiteScores(figures, rows)
