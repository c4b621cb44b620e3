"""MME's scores, and the paper's mean over understanding benchmarks.

Sources: MME (Fu et al. 2306.13394), `calculation.py` of its evaluation tool: yes or no within the
first four characters of an answer; an image has two questions; a subtask scores 100 times the
share of right answers and 100 times the share of images with both right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tarkit.errors import UserError
from tarkit.scoring.statistics import bootstrap

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity"),
    *("scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


class Asked(NamedTuple):
    """One question of MME; `answer` is None where none could be had."""

    task: str
    picture: str
    truth: str
    answer: str | None


def parse_mme(answer: str) -> str | None:
    """yes, no, or None for neither, which is wrong whatever the truth."""
    start = answer.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in start), None)


def mme_results(asked: Sequence[Asked]) -> dict[str, Any]:
    """`perception` (at most 2000) and `cognition` (at most 800) with the subtasks they sum.

    A sum over fewer subtasks than MME's is None: it is another figure. Raises UserError for a
    picture that has not two questions, of which acc+ cannot be taken.
    """
    pairs: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for one in asked:
        said = None if one.answer is None else parse_mme(one.answer)
        pairs[one.task][one.picture].append(said == one.truth.strip().lower())
    tasks = {task: _subtask(task, pictures) for task, pictures in pairs.items()}
    unclear = [a for a in asked if a.answer is None or parse_mme(a.answer) is None]
    return {
        "perception": _sum(tasks, PERCEPTION),
        "cognition": _sum(tasks, COGNITION),
        "tasks": tasks,
        "unclear": len(unclear) / len(asked),
        "coverage": 1.0 - sum(a.answer is None for a in asked) / len(asked),
        "num_questions": len(asked),
    }


def _subtask(task: str, pictures: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    odd = [picture for picture, right in pictures.items() if len(right) != 2]
    if odd:
        raise UserError(f"{odd[0]} of {task} has {len(pictures[odd[0]])} questions, MME asks two")
    counts = np.array([(sum(right), all(right), 1) for right in pictures.values()], dtype=float)

    def score(sums: np.ndarray) -> np.ndarray:
        return np.asarray((50 * sums[..., 0] + 100 * sums[..., 1]) / sums[..., 2])

    return bootstrap(counts, list(pictures), score)._asdict()


def _sum(tasks: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> float | None:
    if any(name not in tasks for name in names):
        return None
    return sum(tasks[name]["value"] for name in names)
