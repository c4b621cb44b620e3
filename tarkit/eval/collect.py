"""`tarkit eval collect`: verdicts on a run's pictures that an official scorer made elsewhere.

- `geneval-jsonl`: the results file of GenEval's `evaluate_images.py`, a line a picture with
  `filename`, `correct` and `reason`; the figures are taken anew from the verdicts.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from tarkit.errors import UserError
from tarkit.files import read_lines
from tarkit.outcomes import score_row, write_outcome
from tarkit.runs import open_run, scorer_folder
from tarkit.scoring.results import run_figures
from tarkit.scoring.tables import run_tables, show

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
    for row, item in enumerate(asked.items):
        for sample in range(asked.n):
            place = f"{row:05d}/samples/{sample:04d}.png"
            if place not in verdicts:
                raise UserError(
                    f"{file} has no verdict on {place}: it is of {len(verdicts)} pictures, the "
                    f"run has {len(asked.items) * asked.n}"
                )
            found = verdicts[place]
            said = found.get("prompt", item.prompt)
            if said != item.prompt:
                raise UserError(f"{file} has {said!r} for {place}, the run {item.prompt!r}")
            rows.append(
                score_row(
                    "geneval",
                    item.tag,
                    "",
                    item.id,
                    sample=sample,
                    seed=asked.seed_of(item, sample),
                    prompt=item.prompt,
                    file=f"samples/{place}",
                    correct=bool(found["correct"]),
                    reason=found.get("reason") or None,
                )
            )
    figures = run_figures([item.tag for item in asked.items], rows, n=asked.n)
    out = scorer_folder(asked, scorer)
    tables = run_tables({f"geneval@{scorer}": figures})
    show(tables)
    write_outcome(
        out,
        {f"geneval@{scorer}": figures},
        settings={"run": str(asked.path), "collected": file.name, "n": asked.n},
        report="\n".join([f"# geneval@{scorer}\n", *(table.markdown() for table in tables)]),
        rows=rows,
    )
    return out


def _verdicts(file: Path) -> dict[str, dict[str, Any]]:
    """`00000/samples/0000.png` -> the line about it."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in read_lines(file):
        try:
            row = json.loads(line)
            name, _ = "/".join(PurePosixPath(row["filename"]).parts[-3:]), bool(row["correct"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{file}:{number} is no line of GenEval's results: {error}") from None
        if name in found:
            raise UserError(f"{file}:{number} has {name} for the second time")
        found[name] = row
    return found
