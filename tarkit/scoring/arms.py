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

from tarkit.scoring.judging import ACCEPTED, best_of_n, first_accepted, random_of_n
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


@dataclass(frozen=True)
class Cost:
    """Tokens of one candidate: written as codes, read by each judge, written as pixels."""

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
    """Arm -> budget -> overall with its interval, gain over `single`, held-out, tried, tokens."""
    single = pool.right[:, 0]
    return {
        name: {str(n): _figures(choose(n), single, slots) for n in budgets}
        for name, choose in _choosers(pool, edits, cost).items()
    }


def _choosers(pool: Pool, edits: Pool, cost: Cost) -> dict[str, Callable[[int], _Choice]]:
    num_slots = len(pool.right)
    everyone = np.arange(num_slots)

    def chosen(
        own: Pool, picks: Ints, tried: Floats, judge: str | None, *, on_pixels: bool = False
    ) -> _Choice:
        drawn = tried if on_pixels else np.ones(num_slots)
        judged = cost.judge.get(judge or "", 0.0) * tried
        tokens = cost.words * tried + judged + cost.pixels * drawn
        return _Choice(own.right[everyone, picks], tried, tokens)

    def of_n(n: int) -> Floats:
        return np.full(num_slots, float(n))

    def single(n: int) -> _Choice:
        return chosen(pool, np.zeros(num_slots, dtype=np.int64), of_n(1), None)

    def random(n: int) -> _Choice:
        return chosen(pool, random_of_n(num_slots, n, seed=n), of_n(1), None)

    def best(score: str) -> Callable[[int], _Choice]:
        by, on = score.split("_")

        def choose(n: int) -> _Choice:
            picks = best_of_n(pool.scores[score], n)
            return chosen(pool, picks, of_n(n), by, on_pixels=on == "pixels")

        return choose

    def until(own: Pool, score: str) -> Callable[[int], _Choice]:
        by, _ = score.split("_")

        def choose(n: int) -> _Choice:
            picks, tried = first_accepted(own.scores[score], n, ACCEPTED[by])
            return chosen(own, picks, tried, by)

        return choose

    def oracle(n: int) -> _Choice:
        picks = best_of_n(pool.right.astype(np.float64), n)
        return chosen(pool, picks, of_n(n), None, on_pixels=True)

    return {
        "single": single,
        "random": random,
        **{f"best-{score.replace('_', '-')}": best(score) for score in pool.scores},
        "until-yes-codes": until(pool, "yes_codes"),
        "until-gain-codes": until(pool, "gain_codes"),
        "edit-yes-codes": until(edits, "yes_codes"),
        ORACLE: oracle,
    }


def _figures(choice: _Choice, single: Bools, slots: Slots) -> dict[str, Any]:
    """Slots of a prompt are not independent: a value is a prompt's share of right pictures."""
    prompts = list(dict.fromkeys(slots.prompts))
    first = [slots.prompts.index(prompt) for prompt in prompts]
    tasks = [slots.tasks[place] for place in first]
    heldout = np.array([slots.columns[place] == "heldout" for place in first])
    after, before = (_per_prompt(right, slots, prompts) for right in (choice.right, single))
    over = [task for task in TASKS if task in tasks]
    six = np.isin(tasks, TASKS)
    names = [task for task in tasks if task in TASKS]
    gain = paired(
        before[six],
        after[six],
        clusters=[p for p, s in zip(prompts, six, strict=True) if s],
        groups=names,
    )
    figures: dict[str, Any] = {
        **macro(after, tasks, over=over)._asdict(),
        "gain": gain._asdict(),
        "tried": float(choice.tried.mean()),
        "tokens": float(choice.tokens.mean()),
    }
    if heldout.any():
        held = paired(
            before[heldout],
            after[heldout],
            clusters=[p for p, h in zip(prompts, heldout, strict=True) if h],
        )
        figures["heldout"] = micro(after[heldout])._asdict()
        figures["heldout_gain"] = held._asdict()
    return figures


def _per_prompt(right: Bools, slots: Slots, prompts: Sequence[str]) -> Floats:
    place = {prompt: index for index, prompt in enumerate(prompts)}
    index = np.array([place[prompt] for prompt in slots.prompts])
    totals = np.bincount(index, weights=right.astype(np.float64), minlength=len(prompts))
    return np.asarray(totals / np.bincount(index, minlength=len(prompts)), dtype=np.float64)


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
