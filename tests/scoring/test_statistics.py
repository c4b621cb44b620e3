"""Means and intervals, by hand and against theory."""

import numpy as np
import pytest

from tarkit.scoring.statistics import (
    TASKS,
    any_of_n,
    bootstrap,
    chance_floor,
    macro,
    micro,
    per_prompt,
)


def test_macro_weighs_tasks_and_micro_weighs_prompts() -> None:
    # single: 3 of 4 prompts; two: 0 of 1. Macro (.75 + 0) / 2 = .375, micro 3 / 5 = .6
    values = [1.0, 1.0, 1.0, 0.0, 0.0]
    tasks = ["single_object"] * 4 + ["two_object"]
    assert macro(values, tasks, over=("single_object", "two_object")).value == pytest.approx(0.375)
    assert micro(values).value == pytest.approx(0.6)


def test_the_seventh_task_is_not_in_the_overall() -> None:
    # six tasks right, color_position wrong: the overall is 1
    overall = macro([1.0] * 6 + [0.0], [*TASKS, "color_position"])
    assert overall.value == 1.0
    assert overall.num_prompts == 6


def test_a_missing_task_is_an_error_and_not_a_mean_over_fewer() -> None:
    with pytest.raises(ValueError, match="color_attr"):
        macro([1.0] * 5, TASKS[:5])


def test_share_and_any_of_n() -> None:
    correct = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert per_prompt(correct).tolist() == [0.25, 0.0, 1.0]
    assert any_of_n(correct).tolist() == [1.0, 0.0, 1.0]


def test_the_interval_has_the_width_theory_gives_it() -> None:
    # 400 prompts at one half: sigma of the mean = sqrt(.25 / 400) = .025; 95 % is +- 1.96 x .025
    estimate = micro([0.0, 1.0] * 200)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.025, rel=0.1)
    assert estimate.low < 0.5 < estimate.high


def test_pictures_of_one_prompt_do_not_narrow_the_interval() -> None:
    # four equal pictures a prompt say no more than one: the interval must not halve
    once = micro([0.0, 1.0] * 50)
    four = micro(per_prompt(np.repeat([[0], [1]] * 50, 4, axis=1)))
    assert four == once


def test_macro_intervals_redraw_within_tasks() -> None:
    # tasks at 0 and 1 are certain whatever prompts are redrawn: the interval is a point
    values, tasks = [0.0] * 9 + [1.0] * 9, ["colors"] * 9 + ["position"] * 9
    assert macro(values, tasks, over=("colors", "position"))[:3] == (0.5, 0.5, 0.5)


def test_intervals_are_the_same_every_time() -> None:
    values = np.random.default_rng(3).random(50)
    assert micro(values) == micro(values)
    assert micro(values) != micro(values, seed=1)


def test_a_bootstrap_over_clusters_redraws_whole_pictures() -> None:
    # two pictures of three questions each, all right and all wrong: a redraw of two pictures is
    # right by 0, 1/2 or 1, never by a sixth
    counts = np.array([[1, 1], [1, 1], [1, 1], [0, 1], [0, 1], [0, 1]])  # right, asked
    seen: set[float] = set()

    def accuracy(sums: np.ndarray) -> np.ndarray:
        shares = np.asarray(sums[:, 0] / sums[:, 1])
        seen.update(shares.tolist())
        return shares

    estimate = bootstrap(counts, list("aaabbb"), accuracy)
    assert seen == {0.0, 0.5, 1.0}
    assert estimate == (0.5, 0.0, 1.0, 2)


def test_a_bootstrap_of_a_mean_is_that_of_micro_but_for_its_draws() -> None:
    # sigma = sqrt(.25 / 400) = .025 again, by another road
    values = np.array([0.0, 1.0] * 200)
    counts = np.stack([values, np.ones(400)], axis=1)
    estimate = bootstrap(counts, range(400), lambda sums: sums[:, 0] / sums[:, 1])
    assert estimate.value == micro(values).value
    assert estimate.low == pytest.approx(micro(values).low, abs=0.006)
    assert estimate.high == pytest.approx(micro(values).high, abs=0.006)


def test_the_chance_floor_never_shows_a_prompt_its_own_picture() -> None:
    assert chance_floor(lambda prompt, picture: prompt == picture, 10).max() == 0
    # every other picture fulfils prompt 0 and nothing fulfils the rest
    floor = chance_floor(lambda prompt, picture: prompt == 0, 10)
    assert floor.tolist() == [1.0] + [0.0] * 9
