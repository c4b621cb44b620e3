"""Figures of verdicts and answers: for each task and each column, with intervals.

Every function returns plain JSON values. A failed picture or answer scores 0 and lowers
`coverage`; it is never left out. A column is the kind of prompt or scene: `seen` in training,
`heldout` compositions, `extrapolation` beyond training's counts.
Letters: P prompts, n pictures a prompt, Q questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarkit.eval.metrics.yes_no import accuracy, f1, outcomes, score_yes_no
from tarkit.scoring.statistics import (
    COLOR_POSITION,
    COLUMNS,
    TASKS,
    Estimate,
    any_of_n,
    bootstrap,
    macro,
    micro,
    per_prompt,
)

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PictureScores:
    """Verdicts (P, n) on pictures of P prompts; `chance` (P,) those on shuffled ones.

    `clauses` are the verdicts on each picture's clauses, P * n of them, prompt by prompt.
    """

    tasks: Sequence[str]
    columns: Sequence[str]
    correct: Bools
    failed: Bools
    chance: Floats
    clauses: Sequence[Sequence[bool]] | None = None


def picture_results(scores: PictureScores) -> dict[str, Any]:
    """GenEval's figures: overall over the six tasks, micro, any of n, tasks, columns, chance."""
    values, tasks = per_prompt(scores.correct), np.asarray(scores.tasks)
    columns = np.asarray(scores.columns)
    everything = _task_means(values, tasks)
    six = np.isin(tasks, TASKS)
    return {
        **everything,
        "micro": _plain(micro(values[six])) if six.any() else None,
        "any_of_n": _plain(micro(any_of_n(scores.correct)[six])) if six.any() else None,
        **_clause_means(scores, six),
        "columns": {
            name: _task_means(values[columns == name], tasks[columns == name])
            for name in COLUMNS
            if (columns == name).any()
        },
        "chance": _chance(scores.chance, tasks),
        "coverage": 1.0 - float(scores.failed.mean()),
        "num_prompts": len(values),
        "num_pictures": int(scores.correct.size),
    }


def _clause_means(scores: PictureScores, six: Bools) -> dict[str, Any]:
    """Soft-TIFA's means (GenEval 2) of exact verdicts 0 and 1, over the prompts of `micro`.

    The atoms of a prompt are its clauses, such as "two red circles": GenEval 2 cuts finer. The
    geometric mean of verdicts is 1 where all hold, else 0.
    """
    if scores.clauses is None or not six.any():
        return {}
    shape = scores.correct.shape
    shares = np.array([np.mean(each) for each in scores.clauses]).reshape(shape).mean(axis=1)
    whole = np.array([all(each) for each in scores.clauses]).reshape(shape).mean(axis=1)
    return {
        "clauses_am": _plain(micro(shares[six])),
        "clauses_gm": _plain(micro(whole[six])),
    }


def run_figures(
    tags: Sequence[str], rows: Sequence[Mapping[str, Any]], *, n: int
) -> dict[str, Any]:
    """GenEval's figures of score rows (`correct`, `error`), n for each prompt, in their order."""
    shape = (len(tags), n)
    figures = picture_results(
        PictureScores(
            tasks=tags,
            columns=[""] * len(tags),
            correct=np.array([bool(row["correct"]) for row in rows]).reshape(shape),
            failed=np.array([row["error"] is not None for row in rows]).reshape(shape),
            chance=np.zeros(len(tags)),
        )
    )
    return {name: value for name, value in figures.items() if name not in ("chance", "columns")}


def _task_means(values: Floats, tasks: NDArray[Any]) -> dict[str, Any]:
    """`overall` is the mean over the tasks named in `over`: GenEval's own if it names all six."""
    over = [task for task in TASKS if (tasks == task).any()]
    return {
        "overall": _plain(macro(values, tasks.tolist(), over=over)) if over else None,
        "over": over,
        "tasks": {
            task: _plain(micro(values[tasks == task]))
            for task in (*TASKS, COLOR_POSITION)
            if (tasks == task).any()
        },
    }


def _chance(chance: Floats, tasks: NDArray[Any]) -> dict[str, Any]:
    """Means without intervals."""
    means = {
        task: float(chance[tasks == task].mean())
        for task in (*TASKS, COLOR_POSITION)
        if (tasks == task).any()
    }
    six = [value for task, value in means.items() if task in TASKS]
    return {"overall": float(np.mean(six)) if six else None, "tasks": means}


@dataclass(frozen=True)
class QuestionScores:
    """Q yes/no questions; `pictures` names the picture of each, `chance` (Q,) as above."""

    kinds: Sequence[str]
    columns: Sequence[str]
    pictures: Sequence[str]
    answers: Sequence[str | None]
    labels: Sequence[bool]
    chance: Floats


def question_results(scores: QuestionScores) -> dict[str, Any]:
    """POPE's figures for each kind of negative, for all questions, and for each column."""
    kinds, columns = np.asarray(scores.kinds), np.asarray(scores.columns)
    everything = np.ones(len(kinds), dtype=bool)
    return {
        "kinds": {name: _yes_no(scores, kinds == name) for name in dict.fromkeys(scores.kinds)},
        "all": _yes_no(scores, everything),
        "columns": {
            name: _yes_no(scores, columns == name) for name in COLUMNS if (columns == name).any()
        },
        "coverage": 1.0 - sum(a is None for a in scores.answers) / len(kinds),
        "num_questions": len(kinds),
    }


def _yes_no(scores: QuestionScores, chosen: Bools) -> dict[str, Any]:
    """Figures of the chosen questions; intervals redraw pictures with all their questions."""
    rows = np.flatnonzero(chosen).tolist()
    answers = [scores.answers[row] for row in rows]
    labels = [scores.labels[row] for row in rows]
    figures = asdict(score_yes_no(answers, labels))
    clusters = [scores.pictures[row] for row in rows]
    counts = outcomes(answers, labels)
    for name, figure in (("accuracy", accuracy), ("f1", f1)):
        figures[name] = _plain(bootstrap(counts, clusters, figure))
    return {**figures, "chance": float(scores.chance[rows].mean())}


def _plain(estimate: Estimate) -> dict[str, Any]:
    return estimate._asdict()
