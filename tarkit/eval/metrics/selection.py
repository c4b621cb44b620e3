"""Ways of choosing among candidates, compared on the same pools: the figures of self-reflect.

An arm is one way of choosing. Its budget is the number of candidates that it may draw, its tokens
those that it reads and writes for one reported picture.
Letters: S slots (reported pictures), N candidates a slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tarkit.eval.metrics.judges import best_of_n, first_accepted
from tarkit.eval.result_tables import Table
from tarkit.inference.self_reflect import ACCEPTED
from tarkit.scoring.statistics import TASKS, macro, micro, paired

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

SCORES = ("yes_codes", "yes_pixels", "gain_codes", "gain_pixels")
EXTERNAL = "external_pixels"  # of a scorer that is no Tar; its tokens are not counted
ORACLE = "oracle"


@dataclass(frozen=True)
class Pool:
    """(S, N) each: the scores of every judge, and whether the candidate is right."""

    scores: Mapping[str, Floats]
    right: Bools


@dataclass(frozen=True)
class Slots:
    """The prompt, the task and the column of each of the S slots."""

    prompts: Sequence[str]
    tasks: Sequence[str]
    columns: Sequence[str]

    def repeated(self, times: int) -> Slots:
        """Every slot `times` times, one after the other."""
        columns = (self.prompts, self.tasks, self.columns)
        return Slots(*([each for each in column for _ in range(times)] for column in columns))


@dataclass(frozen=True)
class _Values:
    """Whether each picture is right, with its prompt, task and column."""

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
class _ArmResult:
    """(S,) each: whether the chosen candidate is right, candidates drawn, tokens spent."""

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
    figures: dict[str, dict[str, Any]] = {}
    for n in budgets:
        pools = _split(pool, n)
        pool_slots = slots.repeated(len(pools.right) // len(slots.prompts))
        results = {"single": (_single(_split(pool, 1), cost), each)}
        for name, choose in _choosers(pool, cost).items():
            results[name] = (choose(pools, n), pool_slots)
        results["edit-yes-codes"] = (_until(edits, "yes_codes", n, cost), slots)
        results[ORACLE] = (_oracle(pools, n, cost), pool_slots)
        for name, (result, own_slots) in results.items():
            figures.setdefault(name, {})[str(n)] = _figures(result, own_slots, single)
    return figures


def _split(pool: Pool, n: int) -> Pool:
    """(S, N) -> (S N / n, n): disjoint pools, those of a slot one after the other."""
    assert pool.right.shape[1] % n == 0
    scores = {name: values.reshape(-1, n) for name, values in pool.scores.items()}
    return Pool(scores, pool.right.reshape(-1, n))


def _choosers(pool: Pool, cost: Cost) -> dict[str, Callable[[Pool, int], _ArmResult]]:
    def best(score: str) -> Callable[[Pool, int], _ArmResult]:
        on_pixels = score.endswith("_pixels")

        def choose(own: Pool, n: int) -> _ArmResult:
            picks = best_of_n(own.scores[score], n)
            tried = np.full(len(picks), float(n))
            return _chosen(own, picks, tried, cost, score, on_pixels=on_pixels)

        return choose

    return {
        **{f"best-{score.replace('_', '-')}": best(score) for score in pool.scores},
        "until-yes-codes": lambda own, n: _until(own, "yes_codes", n, cost),
        "until-gain-codes": lambda own, n: _until(own, "gain_codes", n, cost),
    }


def _single(own: Pool, cost: Cost) -> _ArmResult:
    picks = np.zeros(len(own.right), dtype=np.int64)
    return _chosen(own, picks, np.ones(len(picks)), cost, None)


def _oracle(own: Pool, n: int, cost: Cost) -> _ArmResult:
    picks = best_of_n(own.right.astype(np.float64), n)
    return _chosen(own, picks, np.full(len(picks), float(n)), cost, None, on_pixels=True)


def _until(own: Pool, score: str, n: int, cost: Cost) -> _ArmResult:
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
) -> _ArmResult:
    num_drawn = tried if on_pixels else np.ones(len(tried))
    tokens = cost.words * tried + cost.judge.get(score or "", 0.0) * tried
    tokens = tokens + cost.pixels * num_drawn
    return _ArmResult(own.right[np.arange(len(picks)), picks], tried, tokens)


def _figures(result: _ArmResult, slots: Slots, single: _Values) -> dict[str, Any]:
    """The figures of an arm at a budget, over prompts.

    Pictures of a prompt are not independent, so a value is a prompt's share of right pictures.
    """
    prompts = list(dict.fromkeys(slots.prompts))
    first = [slots.prompts.index(prompt) for prompt in prompts]
    tasks = [slots.tasks[place] for place in first]
    after, before = _Values(result.right, slots).of(prompts), single.of(prompts)
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
        "tried": float(result.tried.mean()),
        "tokens": float(result.tokens.mean()),
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
    duration = Table(
        "Seconds a candidate, on the machine that drew it",
        ["codes drawn", "codes judged", "pixels drawn", "pixels judged"],
        [[f"{seconds[n]:.4f}" for n in ("words", "judge", "pixels", "judge_pixels")]],
        "Both judges together, in batches.",
    )
    return [
        *_arm_tables(results["arms"]),
        _own_pictures_table(results["judge"]),
        _renders_table(results["renders"]),
        duration,
    ]


def _arm_tables(by_arm: Mapping[str, Any]) -> list[Table]:
    budgets = list(next(iter(by_arm.values())))
    last = budgets[-1]
    return [
        Table(
            "Self-reflect: overall by arm and budget N",
            ["arm", *(f"N = {n}" for n in budgets), f"held-out, N = {last}", f"tokens, N = {last}"],
            [
                [
                    name,
                    *(_interval(figures[n]) for n in budgets),
                    _interval(figures[last].get("heldout")),
                    f"{figures[last]['tokens']:.0f}",
                ]
                for name, figures in by_arm.items()
            ],
            "95 % intervals redraw prompts. oracle is the scorer itself: a bound and no result.",
        ),
        Table(
            "Gain over a single picture, paired by prompt",
            ["arm", *(f"N = {n}" for n in budgets), *(f"held-out, N = {n}" for n in budgets)],
            [
                [
                    name,
                    *(_delta(figures[n]["gain"]) for n in budgets),
                    *(_delta(figures[n].get("heldout_gain")) for n in budgets),
                ]
                for name, figures in by_arm.items()
                if name != "single"
            ],
        ),
    ]


def _own_pictures_table(judges: Mapping[str, Any]) -> Table:
    return Table(
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
                _interval(figures["auroc"]),
                *(
                    _share(figures.get(key))
                    for key in (
                        *("auroc_within", "tpr", "tnr", "balanced_accuracy"),
                        *("base_accuracy", "accepted_accuracy", "predicted"),
                    )
                ),
            ]
            for name, columns in judges.items()
            for column, figures in columns.items()
        ],
        "within: AUROC among the pictures of one prompt, all that a choice needs. right: of "
        "all pictures; accepted: of those judged yes; predicted: from TPR and TNR. "
        "There is no gain where TPR + TNR is 1 or less.",
    )


def _renders_table(renders: Mapping[str, Any]) -> Table:
    return Table(
        "Judges on true pictures against corrupted ones, AUROC",
        ["judge", *next(iter(renders.values()))],
        [
            [by, *(_interval(figures["auroc"]) for figures in kinds.values())]
            for by, kinds in renders.items()
        ],
    )


def _interval(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _delta(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['delta']:+.3f} [{figure['low']:+.3f}, {figure['high']:+.3f}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
