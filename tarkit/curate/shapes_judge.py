"""The judge of the shapes world: its verdicts are exact and need no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tarkit.artifacts.map_rows import Result, Todo
from tarkit.curate.ask import Refused
from tarkit.errors import UserError
from tarkit.images import ImageError, decode
from tarkit.llm.base import AssistantConfig
from tarkit.scoring.geneval import check
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.shapes.prompts import clauses_of
from tarkit.shapes.scene import satisfies, scene_from_json


class ExactJudge:
    """Judges by the scene of a row; where a row has none, by the shapes detected in its picture."""

    name = "exact"

    def assistant_settings(self, config: AssistantConfig) -> None:
        return None

    def max_tries(self, config: AssistantConfig) -> None:
        return None

    def judge(
        self, rows: Iterator[Todo], *, config: AssistantConfig, seed: int, log: Path
    ) -> Iterator[tuple[int, Result]]:
        detector = ShapesDetector()
        for row in rows:
            try:
                verdict, reason = _verdict(row, detector)
            except (Refused, UserError) as error:
                yield row.place, str(error)
                continue
            yield row.place, {"verdict": "yes" if verdict else "no", "reason": reason}


def _verdict(todo: Todo, detector: ShapesDetector) -> tuple[bool, str | None]:
    """(whether the picture shows the prompt, why not); raises Refused or UserError."""
    clauses = clauses_of(todo.row["prompt"])
    if todo.row["scene"]:
        return satisfies(scene_from_json(todo.row["scene"]), clauses), None
    if "background" in clauses:
        raise Refused("the background of a picture without its scene is not judged")
    try:
        picture = np.asarray(decode(todo.blob or b"", max_pixels=todo.max_pixels))
    except ImageError as error:
        raise Refused(f"the picture cannot be read: {error}") from None
    verdict = check(clauses, detector.detect(picture))
    return verdict.correct, None if verdict.correct else verdict.reason
