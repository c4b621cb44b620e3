"""Ways of choosing among candidates, compared on the same pools: self-reflect's figures.

Letters: S slots (reported pictures), N candidates a slot. A budget is how many candidates an arm
may draw; `tokens` is what an arm spends on one reported picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarkit.eval.metrics.judges import best_of_n, first_accepted
from tarkit.inference.self_reflect import ACCEPTED
from tarkit.scoring.statistics import TASKS, macro, micro, paired
from tarkit.scoring.tables import Table

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

SCORES = ("yes_codes", "yes_pixels", "gain_codes", "gain_pixels")
EXTERNAL = "external_pixels"  # of a scorer that is no Tar; its tokens are not counted
ORACLE = "oracle"


@dataclass(frozen=True)
class Pool:
    """(S, N) each: what every judge gave, and whether the candidate is right."""

    scores: Mapping[str, Floats]
    right: Bools


@dataclass(frozen=True)
class Slots:
    """What each of the S slots belongs to."""

    prompts: Sequence[str]
    tasks: Sequence[str]
    columns: Sequence[str]

    def repeated(self, times: int) -> Slots:
        """Every slot `times` times, one after the other."""
        columns = (self.prompts, self.tasks, self.columns)
        return Slots(*([each for each in column for _ in range(times)] for column in columns))


@dataclass(frozen=True)
class _Values:
    """Whether pictures are right, and what they belong to."""

    right: Bools
    slots: Slots

    def of(self, prompts: Sequence[str]) -> Floats:
        """The share of right pictures of each prompt."""
        place = {prompt: index for index, prompt in enumerate(prompts)}
        index = np.array([place[prompt] for prompt in self.slots.prompts])
        totals = np.bincount(index, weights=self.right.astype(np.float64), minlength=len(prompts))
        return np.asarray(totals / np.bincount(index, minlength=len(prompts)), dtype=np.float64)


@dataclass(frozen=True)
class Cost:
    """Tokens of one candidate: written as codes, read for each score, written as pixels."""

    words: float
    judge: Mapping[str, float]
    pixels: float


@dataclass(frozen=True)
class _Choice:
    """(S,) chosen candidates, how many were drawn, and the tokens spent on each slot."""

    right: Bools
    tried: Floats
    tokens: Floats


def arms(
    pool: Pool, edits: Pool, slots: Slots, cost: Cost, *, budgets: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Arm -> budget -> overall with its interval, gain over `single`, held-out, tried, tokens.

    A pool of N candidates is N / n pools of n, and an arm chooses in each: `single` is the mean of
    all candidates. A chain of edits begins with the first candidate and is one pool.
    """
    each = slots.repeated(pool.right.shape[1])
    single = _Values(pool.right.ravel(), each)
    found: dict[str, dict[str, Any]] = {}
    for n in budgets:
        apart = _apart(pool, n)
        of_apart = slots.repeated(len(apart.right) // len(slots.prompts))
        choices = {"single": (_single(_apart(pool, 1), cost), each)}
        for name, choose in _choosers(pool, cost).items():
            choices[name] = (choose(apart, n), of_apart)
        choices["edit-yes-codes"] = (_until(edits, "yes_codes", n, cost), slots)
        choices[ORACLE] = (_oracle(apart, n, cost), of_apart)
        for name, (choice, of) in choices.items():
            found.setdefault(name, {})[str(n)] = _figures(choice, of, single)
    return found


def _apart(pool: Pool, n: int) -> Pool:
    """(S, N) -> (S N / n, n): disjoint pools, those of a slot one after the other."""
    assert pool.right.shape[1] % n == 0
    scores = {name: values.reshape(-1, n) for name, values in pool.scores.items()}
    return Pool(scores, pool.right.reshape(-1, n))


def _choosers(pool: Pool, cost: Cost) -> dict[str, Callable[[Pool, int], _Choice]]:
    def best(score: str) -> Callable[[Pool, int], _Choice]:
        on_pixels = score.endswith("_pixels")

        def choose(own: Pool, n: int) -> _Choice:
            picks = best_of_n(own.scores[score], n)
            tried = np.full(len(picks), float(n))
            return _chosen(own, picks, tried, cost, score, on_pixels=on_pixels)

        return choose

    return {
        **{f"best-{score.replace('_', '-')}": best(score) for score in pool.scores},
        "until-yes-codes": lambda own, n: _until(own, "yes_codes", n, cost),
        "until-gain-codes": lambda own, n: _until(own, "gain_codes", n, cost),
    }


def _single(own: Pool, cost: Cost) -> _Choice:
    picks = np.zeros(len(own.right), dtype=np.int64)
    return _chosen(own, picks, np.ones(len(picks)), cost, None)


def _oracle(own: Pool, n: int, cost: Cost) -> _Choice:
    picks = best_of_n(own.right.astype(np.float64), n)
    return _chosen(own, picks, np.full(len(picks), float(n)), cost, None, on_pixels=True)


def _until(own: Pool, score: str, n: int, cost: Cost) -> _Choice:
    by, _ = score.split("_")
    picks, tried = first_accepted(own.scores[score], n, ACCEPTED[by])
    return _chosen(own, picks, tried, cost, score)


def _chosen(
    own: Pool,
    picks: Ints,
    tried: Floats,
    cost: Cost,
    score: str | None,
    *,
    on_pixels: bool = False,
) -> _Choice:
    drawn = tried if on_pixels else np.ones(len(tried))
    tokens = cost.words * tried + cost.judge.get(score or "", 0.0) * tried + cost.pixels * drawn
    return _Choice(own.right[np.arange(len(picks)), picks], tried, tokens)


def _figures(choice: _Choice, slots: Slots, single: _Values) -> dict[str, Any]:
    """Pictures of a prompt are not independent: a value is a prompt's share of right ones."""
    prompts = list(dict.fromkeys(slots.prompts))
    first = [slots.prompts.index(prompt) for prompt in prompts]
    tasks = [slots.tasks[place] for place in first]
    after, before = _Values(choice.right, slots).of(prompts), single.of(prompts)
    six = np.isin(tasks, TASKS)
    heldout = six & np.array([slots.columns[place] == "heldout" for place in first])
    figures: dict[str, Any] = {
        **macro(after, tasks, over=[task for task in TASKS if task in tasks])._asdict(),
        "gain": paired(
            before[six],
            after[six],
            clusters=list(np.array(prompts)[six]),
            groups=[task for task in tasks if task in TASKS],
        )._asdict(),
        "tried": float(choice.tried.mean()),
        "tokens": float(choice.tokens.mean()),
    }
    if heldout.any():
        names = list(np.array(prompts)[heldout])
        held = paired(before[heldout], after[heldout], clusters=names)
        figures["heldout"] = micro(after[heldout])._asdict()
        figures["heldout_gain"] = held._asdict()
    return figures


# ---- tables -------------------------------------------------------------------------------------


def reflect_tables(results: Mapping[str, Any], seconds: Mapping[str, float]) -> list[Table]:
    """Arms over budgets, their gains and costs; the judges; the judges on corrupted renders."""
    budgets = list(next(iter(results["arms"].values())))
    last = budgets[-1]
    return [
        Table(
            "Self-reflect: overall by arm and budget N",
            ["arm", *(f"N = {n}" for n in budgets), f"held-out, N = {last}", f"tokens, N = {last}"],
            [
                [
                    name,
                    *(_interval(found[n]) for n in budgets),
                    _interval(found[last].get("heldout")),
                    f"{found[last]['tokens']:.0f}",
                ]
                for name, found in results["arms"].items()
            ],
            "95 % intervals redraw prompts. oracle is the scorer itself: a bound and no result.",
        ),
        Table(
            "Gain over a single picture, paired by prompt",
            ["arm", *(f"N = {n}" for n in budgets), *(f"held-out, N = {n}" for n in budgets)],
            [
                [
                    name,
                    *(_delta(found[n]["gain"]) for n in budgets),
                    *(_delta(found[n].get("heldout_gain")) for n in budgets),
                ]
                for name, found in results["arms"].items()
                if name != "single"
            ],
        ),
        Table(
            "Judges on the model's own pictures",
            [
                "judge",
                "prompts",
                "AUROC",
                "within",
                "TPR",
                "TNR",
                "balanced",
                "right",
                "accepted",
                "predicted",
            ],
            [
                [
                    name.replace("_", " on "),
                    column,
                    _interval(found["auroc"]),
                    *(
                        _share(found.get(key))
                        for key in (
                            *("auroc_within", "tpr", "tnr", "balanced_accuracy"),
                            *("base_accuracy", "accepted_accuracy", "predicted"),
                        )
                    ),
                ]
                for name, columns in results["judge"].items()
                for column, found in columns.items()
            ],
            "within: AUROC among the pictures of one prompt, all that a choice needs. right: of "
            "all pictures; accepted: of those judged yes; predicted: from TPR and TNR. "
            "There is no gain where TPR + TNR is 1 or less.",
        ),
        Table(
            "Judges on true pictures against corrupted ones, AUROC",
            ["judge", *next(iter(results["renders"].values()))],
            [
                [by, *(_interval(found["auroc"]) for found in kinds.values())]
                for by, kinds in results["renders"].items()
            ],
        ),
        Table(
            "Seconds a candidate, on the machine that drew it",
            ["codes drawn", "codes judged", "pixels drawn", "pixels judged"],
            [[f"{seconds[n]:.4f}" for n in ("words", "judge", "pixels", "judge_pixels")]],
            "Both judges together, in batches.",
        ),
    ]


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _delta(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['delta']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
