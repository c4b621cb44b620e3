"""The items that a run judged, which comparisons of runs are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tarkit.report.readers import ScoreRow
from tarkit.report.runs import RecordedRun
from tarkit.scoring.statistics import COLOR_POSITION, TASKS


@dataclass(frozen=True)
class JudgedItem:
    """An item of a suite; `score` is the share of its samples that are correct.

    `clauses` is the share of clauses that hold, such as "two red circles", as the mean over its
    samples; None where the samples have none.
    """

    task: str
    prompt: str
    cluster: str
    score: float
    clauses: float | None


def judged_items(run: RecordedRun, suite: str) -> dict[str, JudgedItem]:
    """The items of a suite that the run judged, by their names."""
    rows: dict[str, list[ScoreRow]] = {}
    for row in run.scores:
        if row["suite"] == suite and row["correct"] is not None:
            rows.setdefault(row["item"], []).append(row)
    return {
        item: JudgedItem(
            samples[0]["task"],
            samples[0]["prompt"],
            _cluster(samples[0]),
            sum(bool(row["correct"]) for row in samples) / len(samples),
            _clauses(samples),
        )
        for item, samples in rows.items()
    }


def _clauses(samples: Sequence[ScoreRow]) -> float | None:
    shares = [sum(row["clauses"]) / len(row["clauses"]) for row in samples if row["clauses"]]
    return sum(shares) / len(shares) if len(shares) == len(samples) else None


def _cluster(row: ScoreRow) -> str:
    """The name of what samples share: a prompt, or the picture (its seed) of several questions."""
    if row["file"] or row["seed"] is None:
        return f"prompt {row['prompt']}"
    return f"picture {row['seed']}"


def overall_tasks(tasks: Iterable[str]) -> set[str]:
    """The tasks that GenEval's overall is the mean of; none where the tasks are not GenEval's.

    The drawn world's own task is not one of them.
    """
    known = {task for task in tasks if task != COLOR_POSITION}
    return known if known <= set(TASKS) else set()
