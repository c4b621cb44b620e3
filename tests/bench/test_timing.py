"""Medians, their intervals, and the order in which ways are timed."""

import math

import pytest
import torch

from tarkit.bench.timing import Timing, spread, timed

CPU = torch.device("cpu")


def test_the_interval_of_seven_values_leaves_out_none_and_of_nine_one_on_each_side() -> None:
    # P(X <= 0) = 1/128 for n = 7: the range holds the median with 1 - 2/128. One value further in,
    # 1 - 2 * 8/128 = .875 is below .95. For n = 9, 1 - 2 * 10/512 = .961 is enough.
    seven = spread([7.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert seven == (4.0, 1.0, 7.0, 1 - 2 / 128)
    nine = spread([float(n) for n in range(9)])
    assert nine == (4.0, 1.0, 7.0, 1 - 20 / 512)


def test_few_values_state_that_their_interval_is_less_sure() -> None:
    assert spread([1.0, 2.0, 3.0]) == (2.0, 1.0, 3.0, 1 - 2 / 8)
    assert spread([5.0]) == (5.0, 5.0, 5.0, 0.0)


def test_a_ratio_is_taken_within_rounds() -> None:
    # The machine became ten times slower after the first round: the ratio is 2 in each.
    slow, fast = Timing(1.0, (2.0, 20.0, 20.0)), Timing(1.0, (1.0, 10.0, 10.0))
    assert slow.times(fast)[:3] == (2.0, 2.0, 2.0)


def test_ways_take_turns_and_the_first_call_is_apart() -> None:
    calls: list[str] = []
    ways = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    timings, _ = timed(ways, CPU, rounds=3, shortest_s=0.0)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {len(timing.rounds_s) for timing in timings.values()} == {3}


def test_a_budget_shortens_the_rounds_to_three_at_least() -> None:
    ways = {"a": lambda: None}
    assert len(timed(ways, CPU, rounds=9, budget_s=0.0)[0]["a"].rounds_s) == 3
    assert len(timed(ways, CPU, rounds=9, budget_s=math.inf, shortest_s=0.0)[0]["a"].rounds_s) == 9


@pytest.mark.parametrize("shortest_s", [0.0, 0.01])
def test_a_short_run_is_repeated_within_a_round(shortest_s: float) -> None:
    calls: list[int] = []
    timing = timed({"a": lambda: calls.append(0)}, CPU, rounds=3, shortest_s=shortest_s)[0]["a"]
    assert (len(calls) > 100) == (shortest_s > 0)
    assert all(seconds < 0.01 for seconds in timing.rounds_s)
