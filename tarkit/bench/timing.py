"""Times the ways to do a piece of work in turn, so that a change of the machine's load hits all.

Every way runs once untimed; this first call builds caches, compiles, and fills memory. Then come
rounds: each runs every way once, in rotating order. A ratio of two ways is the median of the ratios
within rounds. Intervals are those of a median from order statistics, without an assumption about
the distribution.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

SHORTEST_S = 0.02
"""A shorter run is repeated within a round until it takes this long, for the sake of the clock."""
MIN_ROUNDS = 3
CONFIDENCE = 0.95


class Spread(NamedTuple):
    """A median and its interval."""

    median: float
    low: float
    high: float
    confidence: float  # that low <= true median <= high; below .95 where there are few rounds


def spread(values: Sequence[float]) -> Spread:
    """The median of some values, and the narrowest symmetric interval of at least 95 %.

    Of n values the k + 1 smallest and k + 1 largest bound the interval; the true median lies
    outside of it with probability 2 P(X <= k), X binomial with n draws of probability 1/2. Fewer
    than six values reach no 95 %, and the interval is then their range.
    """
    ordered = sorted(values)
    n = len(ordered)

    def outside(k: int) -> float:
        return 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n

    k = 0
    while k + 1 < n / 2 and outside(k + 1) <= 1 - CONFIDENCE:
        k += 1
    low, high = ordered[k], ordered[n - 1 - k]
    return Spread(statistics.median(ordered), low, high, max(0.0, 1 - outside(k)))


@dataclass(frozen=True)
class Timing:
    """The seconds of one way: of its first call, and of one run in each round."""

    first_s: float
    rounds_s: tuple[float, ...]

    def seconds(self) -> Spread:
        return spread(self.rounds_s)

    def times(self, other: Timing) -> Spread:
        """How many times the seconds of `other` this way takes, round by round."""
        return spread([a / b for a, b in zip(self.rounds_s, other.rounds_s, strict=True)])


def seconds_of(way: Callable[[], Any], device: torch.device, number: int = 1) -> tuple[float, Any]:
    """Seconds of one run, averaged over `number` of them, and the last result.

    On a GPU the time is taken by events on its own clock, between synchronisations.
    """
    result = None
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(number):
            result = way()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000 / number, result
    began = time.perf_counter()
    for _ in range(number):
        result = way()
    return (time.perf_counter() - began) / number, result


def timed(
    ways: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    rounds: int,
    budget_s: float = math.inf,
    shortest_s: float = SHORTEST_S,
) -> tuple[dict[str, Timing], dict[str, Any]]:
    """The timing of every way, and the result of its first call.

    There are `rounds` rounds, or fewer where they would take more than `budget_s`, but at least
    three. Garbage is collected before the rounds and not within one.
    """
    firsts: dict[str, float] = {}
    results: dict[str, Any] = {}
    numbers: dict[str, int] = {}
    for name, way in ways.items():
        firsts[name], results[name] = seconds_of(way, device)
        # The first call is slow for its own reasons: a second one says how often to repeat.
        brief = firsts[name] < 10 * shortest_s
        again = seconds_of(way, device)[0] if brief else firsts[name]
        numbers[name] = max(1, math.ceil(shortest_s / max(again, 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    gc.collect()
    began = time.perf_counter()
    for done in range(rounds):
        elapsed = time.perf_counter() - began
        if done >= MIN_ROUNDS and elapsed * (done + 1) / done > budget_s:
            break
        gc.disable()
        try:
            for name in order[done % len(order) :] + order[: done % len(order)]:
                seconds[name].append(seconds_of(ways[name], device, numbers[name])[0])
        finally:
            gc.enable()
    timings = {name: Timing(firsts[name], tuple(seconds[name])) for name in ways}
    return timings, results
