"""Yes/no questions: POPE's reading of an answer, and its figures.

Source: AoiDragon/POPE, `evaluate.py` (MIT). It takes the first sentence without commas: any of the
words No, not and no means no, everything else means yes. An empty or evasive answer is therefore a
yes; `unclear` counts the answers that hold neither word, so that this is visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class YesNoScores:
    """POPE's figures, all in [0, 1]; "yes" is the positive class.

    `yes_share` is the share of yes among the answers (lmms-eval's `pope_yes_ratio` is that among
    the labels, and so always .5). Precision, recall and F1 are 0 where their denominator is 0.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_share: float
    unclear: float
    num_questions: int


def _words(answer: str) -> list[str]:
    return answer.split(".")[0].replace(",", "").split()


def parse_yes_no(answer: str) -> bool:
    """POPE's official reading: True is yes."""
    return not {"No", "not", "no"} & set(_words(answer))


def is_unclear(answer: str) -> bool:
    """Whether neither yes nor no is among the words that `parse_yes_no` reads."""
    return not {"yes", "no", "not"} & {word.lower().strip("!?:;\"'") for word in _words(answer)}


def score_yes_no(answers: Sequence[str | None], labels: Sequence[bool]) -> YesNoScores:
    """POPE's figures; an answer that failed is None and always wrong."""
    if not labels or len(answers) != len(labels):
        raise ValueError(f"{len(answers)} answers to {len(labels)} questions")
    sums = outcomes(answers, labels).sum(axis=0)
    true_yes, answered_yes, is_yes, _ = sums.tolist()
    return YesNoScores(
        accuracy=float(accuracy(sums)),
        precision=true_yes / max(answered_yes, 1.0),
        recall=true_yes / max(is_yes, 1.0),
        f1=float(f1(sums)),
        yes_share=answered_yes / len(labels),
        unclear=sum(answer is None or is_unclear(answer) for answer in answers) / len(labels),
        num_questions=len(labels),
    )


def outcomes(answers: Sequence[str | None], labels: Sequence[bool]) -> Floats:
    """(Q, 4) of 0 and 1: correctly answered yes, answered yes, labelled yes, and a 1 to count.

    The figures are functions of their sums.
    """
    is_yes = np.asarray(labels, dtype=bool)
    answered = np.array(
        [
            not label if answer is None else parse_yes_no(answer)
            for answer, label in zip(answers, labels, strict=True)
        ],
        dtype=bool,
    )
    columns = [answered & is_yes, answered, is_yes, np.ones(len(answered))]
    return np.stack(columns, axis=1).astype(np.float64)


def accuracy(sums: Floats) -> Floats:
    """(..., 4) sums of outcomes -> (...): 1 minus the share of wrong yes and missed yes."""
    wrong = (sums[..., 1] - sums[..., 0]) + (sums[..., 2] - sums[..., 0])
    return np.asarray(1 - wrong / sums[..., 3])


def f1(sums: Floats) -> Floats:
    """(..., 4) sums of outcomes -> (...): 2 TP / (answered yes + labelled yes), 0 for 0 / 0."""
    return np.asarray(2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1))
