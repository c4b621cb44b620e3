"""How good a judge is, and the picks that its scores make.

A label is True where the picture is right. Letters: B pictures, P pools, N candidates a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BINS = 10


def auroc(scores: Floats, labels: Bools) -> float | None:
    """The chance that a right picture has a higher score than a wrong one, ties half.

    None where all are right or all wrong.
    """
    right, wrong = scores[labels], np.sort(scores[~labels])
    if not len(right) or not len(wrong):
        return None
    below = np.searchsorted(wrong, right, side="left")
    not_above = np.searchsorted(wrong, right, side="right")
    return float((below + not_above).mean() / (2 * len(wrong)))


def auroc_within(scores: Floats, labels: Bools, clusters: Sequence[Any]) -> float | None:
    """`auroc` over pairs of pictures of one prompt: choosing among them needs no more.

    A judge that only tells hard prompts from easy ones has a high AUROC and cannot choose. The mean
    over prompts with both right and wrong pictures; None where there is no such prompt.
    """
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    values = [auroc(scores[inverse == n], labels[inverse == n]) for n in range(inverse.max() + 1)]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def judge_results(
    scores: Sequence[float],
    labels: Sequence[bool],
    clusters: Sequence[Any],
    *,
    threshold: float | None,
    probability: bool,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC with its 95 % interval (prompts redrawn), and the figures of a yes above `threshold`.

    `predicted` is the share of right pictures among those accepted, p t / (p t + (1-p)(1-s)) with
    base accuracy p, true positive rate t and true negative rate s; no gain where t + s <= 1.
    A score without a threshold has an AUROC alone. Only probabilities have `ece`, the expected
    calibration error over ten equal bins.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    base = float(truth.mean())
    ranks = {
        "auroc": _interval(values, truth, clusters, replicates, seed),
        "auroc_within": auroc_within(values, truth, clusters),
    }
    if threshold is None:
        return {**ranks, "base_accuracy": base, "num_pictures": len(values)}
    accepted = values > threshold
    tpr = float(accepted[truth].mean()) if truth.any() else None
    tnr = float((~accepted[~truth]).mean()) if (~truth).any() else None
    figures: dict[str, Any] = {
        **ranks,
        "tpr": tpr,
        "tnr": tnr,
        "balanced_accuracy": None if tpr is None or tnr is None else (tpr + tnr) / 2,
        "f1_no": _f1(~accepted, ~truth),
        "yes_share": float(accepted.mean()),
        "base_accuracy": base,
        "accepted_accuracy": float(truth[accepted].mean()) if accepted.any() else None,
        "predicted": None if tpr is None or tnr is None else predicted(base, tpr, tnr),
        "num_pictures": len(values),
    }
    if probability:
        figures["ece"] = calibration_error(values, truth)
    return figures


def predicted(base: float, tpr: float, tnr: float) -> float | None:
    """P(right | accepted); None where nothing is accepted."""
    accepted = base * tpr + (1 - base) * (1 - tnr)
    return base * tpr / accepted if accepted else None


def calibration_error(probabilities: Floats, labels: Bools) -> float:
    """Mean over pictures of |share right - mean probability| of their bin of ten, in [0, 1]."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = [
        abs(labels[bins == b].mean() - probabilities[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    ]
    return float(sum(gaps))


def _f1(answers: Bools, truth: Bools) -> float:
    return float(2 * (answers & truth).sum() / max(answers.sum() + truth.sum(), 1))


def _interval(
    scores: Floats, labels: Bools, clusters: Sequence[Any], replicates: int, seed: int
) -> dict[str, Any] | None:
    value = auroc(scores, labels)
    if value is None:
        return None
    names, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    rows = [np.flatnonzero(inverse == number) for number in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(replicates):
        chosen = np.concatenate([rows[n] for n in rng.integers(len(rows), size=len(rows))])
        draw = auroc(scores[chosen], labels[chosen])
        if draw is not None:
            draws.append(draw)
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high), "num_prompts": len(names)}


# ---- choosing -----------------------------------------------------------------------------------


def best_of_n(scores: Floats, n: int) -> NDArray[np.int64]:
    """(P, N) scores -> (P,) the candidate of the highest among the first n; of ties the first."""
    return np.asarray(scores[:, :n].argmax(axis=1), dtype=np.int64)


def first_accepted(scores: Floats, n: int, threshold: float) -> tuple[NDArray[np.int64], Floats]:
    """(P, N) scores -> (P,) the first of n above the threshold, and (P,) how many were tried.

    Where none is above it, all n were tried and the best is chosen.
    """
    accepted = scores[:, :n] > threshold
    any_accepted = accepted.any(axis=1)
    first = accepted.argmax(axis=1)
    chosen = np.where(any_accepted, first, best_of_n(scores, n))
    return chosen.astype(np.int64), np.where(any_accepted, first + 1, n).astype(np.float64)
