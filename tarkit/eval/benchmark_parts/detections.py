"""A file of detections that a detector elsewhere made: one picture a line.

    {"filename": "00000/samples/0000.png", "detections":
        [{"class": "bench", "box": [x0, y0, x1, y1], "score": 0.97, "color": "red"}]}

Boxes are in pixels, scores in [0, 1]; `color` is optional. GenEval's own results file holds
verdicts and no detections; `tarkit eval collect` reads that.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import read_lines
from tarkit.errors import UserError
from tarkit.scoring.geneval import Detection


def read_detections(file: Path) -> dict[str, list[Detection]]:
    """File name -> detections. Raises UserError with the number of a line in another format."""
    detections: dict[str, list[Detection]] = {}
    for number, line in read_lines(file):
        try:
            row = json.loads(line)
            name, objects = str(row["filename"]), [_detection(each) for each in row["detections"]]
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise UserError(f"{file}:{number} is not a line of detections: {error}") from None
        if name in detections:
            raise UserError(f"{file}:{number} has {name} for the second time")
        detections[name] = objects
    return detections


def _detection(row: dict[str, Any]) -> Detection:
    x0, y0, x1, y1 = (float(side) for side in row["box"])
    score = float(row["score"])
    if not (0 <= score <= 1 and x0 <= x1 and y0 <= y1 and math.isfinite(x0 + y0 + x1 + y1)):
        raise ValueError(f"box {row['box']} and score {score}")
    colour = row.get("color")
    return Detection(str(row["class"]), (x0, y0, x1, y1), score, colour and str(colour))
