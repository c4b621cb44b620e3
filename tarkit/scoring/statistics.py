"""Statistics of a benchmark's scores: means, intervals, and the score of chance.

Everything works on one value per prompt (the share of its pictures that are correct, or whether any
is). Pictures of one prompt are not independent, so a bootstrap redraws prompts.
Letters: P prompts, n pictures a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOR_POSITION = "color_position"  # drawn world only; never part of the overall


class Estimate(NamedTuple):
    """A mean with its 95 % bootstrap interval, and the number of clusters behind it."""

    value: float
    low: float
    high: float
    num_prompts: int


class Paired(NamedTuple):
    """A mean difference with its 95 % bootstrap interval, and a sign test over clusters.

    `better` and `worse` count clusters that rose and fell, `p` is the exact two-sided
    probability of a split at least as uneven if rising and falling were equally likely.
    """

    delta: float
    low: float
    high: float
    p: float
    better: int
    worse: int
    num_items: int
    num_clusters: int


def per_prompt(correct: NDArray[Any]) -> Floats:
    """(P, n) verdicts -> (P,) share of each prompt's pictures that are correct."""
    return np.asarray(correct.mean(axis=1), dtype=np.float64)


def any_of_n(correct: NDArray[Any]) -> Floats:
    """(P, n) verdicts -> (P,) 1.0 where at least one of the n pictures is correct."""
    return np.asarray(correct.any(axis=1), dtype=np.float64)


def micro(values: Sequence[float] | Floats, *, replicates: int = 1000, seed: int = 0) -> Estimate:
    """The plain mean over prompts, its interval from redrawing prompts.

    Where every prompt fails or every prompt succeeds, redrawing shows no spread, and the interval
    is the exact one of a binomial (Clopper and Pearson, 1934).
    """
    values = _values(values)
    rng = np.random.default_rng(seed)
    draws = _redraw(values, rng, replicates)
    estimate = _estimate(values.mean(), draws, len(values))
    return _without_spread(estimate, values, len(values))


def macro(
    values: Sequence[float] | Floats,
    tasks: Sequence[str],
    *,
    over: Sequence[str] = TASKS,
    replicates: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The unweighted mean of the tasks' means, GenEval's overall.

    The bootstrap redraws prompts within each task, whose sizes are the benchmark's choice.
    Prompts of tasks not in `over` are left out. Raises ValueError if a task of `over` has no
    prompt: a mean over five tasks is not GenEval's overall, so `over` must name the five.
    Where no prompt or every prompt succeeds, the interval is exact, as that of `micro`.
    """
    values, names = _values(values), np.asarray(tasks)
    missing = [task for task in over if not (names == task).any()]
    if missing or not over:
        raise ValueError(f"no prompt of the tasks {', '.join(missing) or '(none named)'}")
    rng = np.random.default_rng(seed)
    groups = [values[names == task] for task in over]
    draws = np.mean([_redraw(group, rng, replicates) for group in groups], axis=0)
    value = float(np.mean([group.mean() for group in groups]))
    estimate = _estimate(value, draws, sum(len(group) for group in groups))
    # As many prompts as would give the plain mean the variance of the mean of the tasks' means.
    effective = len(groups) ** 2 / sum(1 / len(group) for group in groups)
    return _without_spread(estimate, np.concatenate(groups), effective)


def bootstrap(
    counts: NDArray[Any],
    clusters: Sequence[Any],
    statistic: Callable[[Floats], Floats],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> Estimate:
    """An interval for a figure computed from sums, such as F1, by redrawing whole clusters.

    `counts` (rows, m) are the terms of the sums; `clusters` names each row's cluster, such as the
    picture that six questions share; `statistic` maps sums (..., m) to figures (...).
    """
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    num_clusters = int(inverse.max()) + 1
    sums = np.zeros((num_clusters, counts.shape[1]))
    np.add.at(sums, inverse, counts)
    rng = np.random.default_rng(seed)
    times_drawn = rng.multinomial(
        num_clusters, np.full(num_clusters, 1 / num_clusters), size=replicates
    )
    value = statistic(sums.sum(axis=0, keepdims=True))[0]
    return _estimate(value, statistic(times_drawn @ sums), num_clusters)


def paired(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    *,
    clusters: Sequence[Any],
    groups: Sequence[str] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Paired:
    """The mean difference of `after` and `before` on the same items.

    With `groups` the delta is the unweighted mean of the groups' mean differences, as GenEval's
    overall is of its tasks', and clusters are redrawn within each group; without, it is the plain
    mean over items. A cluster, such as a prompt that several items share, rises if its summed
    difference is above zero; clusters without a difference take no part in the sign test.
    Raises ValueError where the lengths differ or there is no item.
    """
    first, second = _values(before), _values(after)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values before, {len(second)} after")
    differences = second - first
    names = np.asarray(list(groups) if groups is not None else ["all"] * len(first))
    cluster_names = np.asarray([str(cluster) for cluster in clusters])
    if not len(differences) == len(names) == len(cluster_names):
        raise ValueError(
            f"{len(differences)} items, {len(cluster_names)} clusters, {len(names)} groups"
        )
    rng = np.random.default_rng(seed)
    means, draws, signs = [], [], []
    for name in np.unique(names):
        chosen = differences[names == name]
        _, inverse = np.unique(cluster_names[names == name], return_inverse=True)
        sums, sizes = np.bincount(inverse, weights=chosen), np.bincount(inverse)
        count = len(sums)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=replicates)
        means.append(chosen.mean())
        draws.append((drawn @ sums) / (drawn @ sizes))
        # Shares such as thirds are inexact, and a rounding error must not count as a sign.
        signs.append(np.sign(np.round(sums, 9)))
    rose = np.concatenate(signs)
    better, worse = int((rose > 0).sum()), int((rose < 0).sum())
    low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5])
    return Paired(
        delta=float(np.mean(means)),
        low=float(low),
        high=float(high),
        p=sign_test(better, worse),
        better=better,
        worse=worse,
        num_items=len(differences),
        num_clusters=len(rose),
    )


def over_seeds(
    values: NDArray[Any],
    *,
    clusters: Sequence[Any],
    groups: Sequence[str] | None = None,
    replicates: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean of values (S, I) of the same I items by S trainings that differ in their seeds.

    Values may be scores, or paired differences of scores. Seeds and clusters of items are both
    redrawn, each independently of the other (the pigeonhole bootstrap, Owen 2007), so that the
    interval holds for other seeds and other prompts. Of S seeds S - 1 are redrawn, without which
    the variance over few seeds would be too small (McCarthy & Snowden 1985); with one seed, only
    clusters are. `groups` are as those of `paired`; values that are all 0 or all 1 have the exact
    interval of `micro`. Raises ValueError where there is no value, or
    not one cluster and group an item.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"values of seeds and items are needed, got the shape {array.shape}")
    num_seeds, num_items = array.shape
    names = np.asarray(list(groups) if groups is not None else ["all"] * num_items)
    cluster_names = np.asarray([str(cluster) for cluster in clusters])
    if not num_items == len(names) == len(cluster_names):
        raise ValueError(f"{num_items} items, {len(cluster_names)} clusters, {len(names)} groups")
    rng = np.random.default_rng(seed)
    redrawn = max(1, num_seeds - 1)
    seed_weights = rng.multinomial(redrawn, np.full(num_seeds, 1 / num_seeds), size=replicates)
    means, draws, num_clusters = [], [], 0
    for name in np.unique(names):
        chosen = array[:, names == name]
        _, inverse = np.unique(cluster_names[names == name], return_inverse=True)
        sums = np.stack([np.bincount(inverse, weights=row) for row in chosen])  # (S, clusters)
        sizes = np.bincount(inverse)
        count = len(sizes)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=replicates)
        means.append(chosen.mean())
        draws.append(((seed_weights @ sums) * drawn).sum(axis=1) / (redrawn * (drawn @ sizes)))
        num_clusters += count
    estimate = _estimate(float(np.mean(means)), np.mean(draws, axis=0), num_clusters)
    return _without_spread(estimate, array.ravel(), num_clusters)


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p of `better` heads and `worse` tails of a fair coin; 1.0 for no tosses."""
    tosses = better + worse
    ways, tail = 1, 0
    for heads in range(min(better, worse) + 1):
        tail += ways
        ways = ways * (tosses - heads) // (heads + 1)
    return min(1.0, 2 * tail / 2**tosses)


def chance_floor(
    judge: Callable[[int, int], float], num_prompts: int, *, shuffles: int = 20, seed: int = 0
) -> Floats:
    """(P,) the share of other prompts' pictures that fulfil each prompt.

    `judge(prompt, picture)` is the verdict, or score, of the picture made for prompt `picture`.
    """
    hits = np.zeros(num_prompts)
    for prompt, picture in mismatches(num_prompts, shuffles=shuffles, seed=seed):
        hits[prompt] += judge(prompt, picture)
    return hits / shuffles


def mismatches(num_prompts: int, *, shuffles: int, seed: int = 0) -> Iterator[tuple[int, int]]:
    """Pairs (prompt, picture): in each shuffle every prompt once, never with its own picture.

    A shuffle is a random order shifted by one.
    """
    if num_prompts < 2:
        raise ValueError(f"{num_prompts} prompts cannot be shuffled against each other")
    rng = np.random.default_rng(seed)
    for _ in range(shuffles):
        order = rng.permutation(num_prompts)
        yield from zip(order.tolist(), np.roll(order, 1).tolist(), strict=True)


def _values(values: Sequence[float] | Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"one value a prompt is needed, got an array of shape {array.shape}")
    return array


def _redraw(values: Floats, rng: np.random.Generator, replicates: int) -> Floats:
    """(replicates,) means of as many values, drawn with replacement."""
    drawn: Floats = values[rng.integers(len(values), size=(replicates, len(values)))]
    return drawn.mean(axis=1)


def _estimate(value: float, draws: Floats, num_prompts: int) -> Estimate:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), num_prompts)


def _without_spread(estimate: Estimate, values: Floats, num_prompts: float) -> Estimate:
    """The exact 95 % interval of values that are all 0 or all 1; any other estimate as it is."""
    if not ((values == 0).all() or (values == 1).all()):
        return estimate
    least = 0.025 ** (1 / num_prompts)
    low, high = (0.0, 1 - least) if estimate.value == 0 else (least, 1.0)
    return estimate._replace(low=low, high=high)


COLUMNS = ("seen", "heldout", "extrapolation")
