"""The scorer `shapes`: whether a picture of the drawn world shows its prompt, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tarkit.errors import UserError
from tarkit.scoring.geneval import check
from tarkit.scoring.scorers import Scores, Shown
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.shapes.prompts import clauses_of


class ShapesScorer:
    """`correct`: 1 where a picture shows what its prompt asks by GenEval's verdict, else 0.

    A prompt that asks for something the verdict does not know has a reason and no number.
    """

    columns = ("correct",)

    def __init__(self) -> None:
        self._detector = ShapesDetector()

    def score(self, shown: Sequence[Shown]) -> list[Scores]:
        """A number or a reason for each picture; pictures of 64 x 64 px or a multiple of it."""
        return [self._score_one(one) for one in shown]

    def _score_one(self, shown: Shown) -> Scores:
        if shown.prompt is None:
            return "it has no prompt to compare with"
        try:
            metadata = clauses_of(shown.prompt)
            if "background" in metadata:
                raise UserError("a picture's background is not judged")
            detections = self._detector.detect(np.asarray(shown.picture.convert("RGB")))
        except UserError as error:
            return str(error)
        return {"correct": float(check(metadata, detections).correct)}
