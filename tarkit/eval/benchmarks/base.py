"""What a scorer says of a run, benchmark by benchmark, and how it is written down.

    geneval.py      objects detected in a picture, by GenEval's checker
    dpg.py          a judge's answers to the questions of a prompt's scene graph
    questions.py    answers to questions, read as each benchmark publishes it

A picture or answer that failed scores 0 and lowers `coverage`; it is never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tarkit.eval.outcome import Scored, write_outcome
from tarkit.eval.run import Run, scorer_folder
from tarkit.scoring.tables import run_tables, show

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdicts:
    """By the scorer `name`: figures under the names of results, and a row for every verdict.

    `settings` say what the scorer was; its name alone is not enough to repeat it.
    """

    name: str
    figures: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Row]
    settings: Mapping[str, Any]

    @property
    def coverage(self) -> float:
        """The share in [0, 1] of pictures or questions that there is a verdict on."""
        return min(float(figures["coverage"]) for figures in self.figures.values())


def write_verdicts(asked: Run, found: Verdicts, *, settings: Mapping[str, Any]) -> Scored:
    """`scores/BENCH@NAME` of the run with `settings` and the scorer's own; shows the tables."""
    tables = run_tables(found.figures)
    show(tables)
    report = "\n".join([f"# {asked.bench}@{found.name}\n", *(t.markdown() for t in tables)])
    out = scorer_folder(asked, found.name)
    complete = {**settings, **found.settings}
    write_outcome(out, found.figures, settings=complete, report=report, rows=found.rows)
    return Scored(out, report, sum(row["error"] is not None for row in found.rows))
