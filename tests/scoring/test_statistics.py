"""Means and intervals, by hand and against theory."""

import numpy as np
import pytest

from tarkit.scoring.statistics import (
    COLOR_POSITION,
    TASKS,
    any_of_n,
    bootstrap,
    chance_floor,
    macro,
    micro,
    over_seeds,
    paired,
    per_prompt,
    sign_test,
)
from tarkit.shapes import prompts


def test_the_tasks_are_those_of_the_shapes_prompts() -> None:
    # Written twice: what is for everybody never imports the drawn world.
    assert (TASKS, COLOR_POSITION) == (prompts.TASKS, prompts.EXTRA_TASK)


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


def test_a_paired_delta_is_the_mean_of_differences() -> None:
    # differences 1, 1, 1, 0, -1: mean 2 / 5 = .4; three clusters rose, one fell
    found = paired([0, 0, 0, 1, 1], [1, 1, 1, 1, 0], clusters="abcde")
    assert found.delta == pytest.approx(0.4)
    assert (found.better, found.worse) == (3, 1)
    assert (found.num_items, found.num_clusters) == (5, 5)
    # 3 of 4 or more uneven, both sides: 2 (1 + 4) / 16 = .625
    assert found.p == pytest.approx(0.625)
    assert found.low < found.delta < found.high


def test_items_of_one_cluster_are_redrawn_and_counted_together() -> None:
    # Cluster a: +1 and -1, no difference; b: +1 and +1. Mean (0 + 2) / 4 = .5, one cluster rose.
    # A redraw is aa, ab, ba or bb: means 0, .5, .5, 1, each end with probability 1/4, so that
    # the 2.5th and 97.5th percentiles are 0 and 1.
    found = paired([0, 1, 0, 0], [1, 0, 1, 1], clusters=["a", "a", "b", "b"])
    assert (found.delta, found.low, found.high) == (0.5, 0.0, 1.0)
    assert (found.better, found.worse, found.p) == (1, 0, 1.0)


def test_clusters_weigh_by_their_items() -> None:
    # a: one item of +1; b: three items of 0. Mean 1 / 4; redraws aa 1, ab 1 / 4, bb 0
    found = paired([0, 0, 0, 0], [1, 0, 0, 0], clusters="abbb")
    assert (found.delta, found.low, found.high) == (0.25, 0.0, 1.0)


def test_the_delta_of_groups_weighs_groups_alike() -> None:
    # x: 4 items, mean (1 + 1 + 0 + 0) / 4 = .5; y: 1 item, -1. (.5 - 1) / 2 = -.25
    before, after = [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]
    found = paired(before, after, clusters="abcde", groups="xxxxy")
    assert found.delta == pytest.approx(-0.25)
    assert paired(before, after, clusters="abcde").delta == pytest.approx(1 / 5)


def test_a_paired_interval_is_that_of_theory() -> None:
    # 400 differences, 300 of +1 and 100 of -1: mean .5, sd sqrt(1 - .25) = .866, so the interval
    # is .5 +- 1.96 * .866 / 20 = .5 +- .0849
    before, after = [0] * 300 + [1] * 100, [1] * 300 + [0] * 100
    found = paired(before, after, clusters=range(400), replicates=4000)
    assert found.low == pytest.approx(0.5 - 0.0849, abs=0.01)
    assert found.high == pytest.approx(0.5 + 0.0849, abs=0.01)


def test_a_cluster_that_rounding_alone_has_moved_is_a_tie() -> None:
    # .3 + .3 + .4 - 1 = 0 by hand, and not in binary when .3 is made as .1 + .2
    found = paired([0, 0, 0, 1], [0.1 + 0.2, 0.3, 0.4, 0.0], clusters="aaaa")
    assert (found.better, found.worse) == (0, 0)


def test_sign_tests_by_hand() -> None:
    # 5 : 0 is 2 / 32; 6 : 1 is 2 (1 + 7) / 128 = .125; 2 : 2 is certain; 0 : 0 has no toss
    assert sign_test(5, 0) == pytest.approx(0.0625)
    assert sign_test(6, 1) == sign_test(1, 6) == pytest.approx(0.125)
    assert sign_test(2, 2) == 1.0
    assert sign_test(0, 0) == 1.0
    # 60 : 40, the exact binomial of every table: .05689
    assert sign_test(60, 40) == pytest.approx(0.05689, abs=1e-5)


def test_the_same_seed_gives_the_same_interval_and_lengths_must_agree() -> None:
    one = paired([0, 1, 0], [1, 1, 0], clusters="abc", seed=3)
    assert one == paired([0, 1, 0], [1, 1, 0], clusters="abc", seed=3)
    with pytest.raises(ValueError, match="3 items, 2 clusters"):
        paired([0, 1, 0], [1, 1, 0], clusters="ab")
    with pytest.raises(ValueError, match="values before"):
        paired([0, 1], [1, 1, 0], clusters="abc")
    with pytest.raises(ValueError, match="one value"):
        paired([], [], clusters=[])


def test_over_seeds_redraws_seeds_and_clusters() -> None:
    # Two seeds of .75 and .25: redrawing one of two gives either.
    seeds_differ = np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    found = over_seeds(np.repeat(seeds_differ, 50, axis=1), clusters=range(200))
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.25, abs=0.06)
    assert found.high == pytest.approx(0.75, abs=0.06)
    assert found.num_prompts == 200
    # Items of one cluster stay together: two clusters leave all, half or none.
    both = over_seeds(np.array([[1.0] * 5 + [0.0] * 5]), clusters=["a"] * 5 + ["b"] * 5)
    assert (both.value, both.low, both.high) == (0.5, 0.0, 1.0)


def test_over_seeds_weighs_groups_alike() -> None:
    values = np.array([[1.0, 1.0, 1.0, 0.0]] * 3)
    found = over_seeds(values, clusters=range(4), groups=["a", "a", "a", "b"])
    assert found.value == pytest.approx(0.5)


def test_over_seeds_covers_the_truth_where_seeds_and_prompts_vary() -> None:
    # 3 seeds, 60 prompts, effects of both: the interval of a zero mean excludes zero seldom.
    rng = np.random.default_rng(0)
    missed = 0
    for trial in range(200):
        seeds, prompts_of = rng.normal(0, 0.1, (3, 1)), rng.normal(0, 0.5, (1, 60))
        values = seeds + prompts_of + rng.normal(0, 0.5, (3, 60))
        found = over_seeds(values, clusters=range(60), replicates=300, seed=trial)
        missed += not found.low <= 0 <= found.high
    assert missed / 200 < 0.12


def test_over_seeds_refuses_what_has_no_value() -> None:
    with pytest.raises(ValueError, match="shape"):
        over_seeds(np.zeros((0, 4)), clusters=range(4))
    with pytest.raises(ValueError, match="4 items, 3 clusters"):
        over_seeds(np.zeros((2, 4)), clusters=range(3))
