"""`tarkit eval collect`: verdicts on a run's pictures that an official scorer made elsewhere.

- `geneval-jsonl`: the results file of GenEval's `evaluate_images.py`, a line a picture with
  `filename`, `correct` and `reason`; the figures are taken anew from the verdicts.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from tarkit.artifacts.files import read_lines
from tarkit.errors import UserError
from tarkit.eval.benchmarks.base import Verdicts, write_verdicts
from tarkit.eval.benchmarks.geneval import geneval_figures, geneval_row
from tarkit.eval.run import open_run

FORMATS = ("geneval-jsonl",)


def run(path: Path, file: Path, *, layout: str = "geneval-jsonl", scorer: str = "official") -> Path:
    """Write `scores/geneval@SCORER` of the run from `file`; every picture must have a verdict."""
    asked = open_run(path)
    if layout not in FORMATS or asked.bench != "geneval":
        raise UserError(
            f"{layout!r} of {asked.bench} is not collected", hint=f"--format {FORMATS[0]}"
        )
    verdicts = _verdicts(file)
    rows = []
    for one in asked.drawn():
        if one.place not in verdicts:
            raise UserError(
                f"{file} has no verdict on {one.place}: it is of {len(verdicts)} pictures, the "
                f"run has {len(asked.items) * asked.n}"
            )
        found = verdicts[one.place]
        said = found.get("prompt", one.item.prompt)
        if said != one.item.prompt:
            raise UserError(f"{file} has {said!r} for {one.place}, the run {one.item.prompt!r}")
        correct, reason = bool(found["correct"]), found.get("reason") or None
        rows.append(geneval_row(asked, one, correct=correct, reason=reason))
    figures = {f"geneval@{scorer}": geneval_figures(asked, rows)}
    settings = {"run": str(asked.path), "collected": file.name, "n": asked.n}
    return write_verdicts(asked, Verdicts(scorer, figures, rows, {}), settings=settings).path


def _verdicts(file: Path) -> dict[str, dict[str, Any]]:
    """`00000/samples/0000.png` -> the line about it."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in read_lines(file):
        try:
            row = json.loads(line)
            name, _ = "/".join(PurePosixPath(row["filename"]).parts[-3:]), bool(row["correct"])
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise UserError(f"{file}:{number} is no line of GenEval's results: {error}") from None
        if name in found:
            raise UserError(f"{file}:{number} has {name} for the second time")
        found[name] = row
    return found
