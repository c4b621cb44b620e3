"""How good a judge is, by hand."""

import numpy as np
import pytest

from tarkit.eval.metrics.judges import (
    auroc,
    auroc_within,
    best_of_n,
    calibration_error,
    first_accepted,
    judge_results,
    predicted,
)

SCORES = np.array([[0.2, 0.9, 0.9, 0.1], [0.1, 0.2, 0.4, 0.3]])


def test_auroc_is_the_share_of_pairs_in_order_with_ties_half() -> None:
    # right .9 .4, wrong .4 .1: .9 beats both, .4 ties one and beats one: (2 + 1.5) / 4
    scores = np.array([0.9, 0.4, 0.4, 0.1])
    assert auroc(scores, np.array([True, True, False, False])) == pytest.approx(3.5 / 4)
    assert auroc(scores, np.array([True] * 4)) is None


def test_within_prompts_only_pictures_of_one_prompt_are_compared() -> None:
    # Prompt a is easy and scored high, b hard and low: over both the judge looks perfect but for
    # one pair; within a the right one is below the wrong one, within b above it: (0 + 1) / 2.
    scores = np.array([0.9, 0.8, 0.2, 0.1])
    labels = np.array([False, True, True, False])
    assert auroc_within(scores, labels, ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert auroc_within(scores, labels, ["a", "b", "c", "d"]) is None


def test_figures_of_a_yes_by_hand() -> None:
    # said yes: .9 (right) .8 (wrong); no: .3 (right) .2 (wrong) .1 (wrong)
    found = judge_results(
        [0.9, 0.8, 0.3, 0.2, 0.1],
        [True, False, True, False, False],
        ["a", "a", "b", "b", "c"],
        threshold=0.5,
        probability=True,
    )
    assert found["tpr"] == pytest.approx(1 / 2) and found["tnr"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["f1_no"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["accepted_accuracy"] == pytest.approx(1 / 2)
    # p t / (p t + (1-p)(1-s)) = .4 x .5 / (.4 x .5 + .6 / 3): what was accepted, exactly.
    assert found["predicted"] == pytest.approx(1 / 2)
    # right .9 .3 against wrong .8 .2 .1: .9 beats 3, .3 beats 2.
    assert found["auroc"]["value"] == pytest.approx(5 / 6) and found["auroc"]["num_prompts"] == 3


def test_a_judge_of_no_use_predicts_no_gain() -> None:
    # t + s = 1: what is accepted is right as often as what is not.
    assert predicted(0.6, 0.8, 0.2) == pytest.approx(0.6)
    assert predicted(0.6, 0.0, 1.0) is None


def test_calibration_error_by_hand() -> None:
    # bin .2-.3: mean .25, right 0 of 2; bin .9-1: mean .95, right 1 of 1 -> (2 x .25 + .05) / 3
    probabilities, labels = np.array([0.25, 0.25, 0.95]), np.array([False, False, True])
    assert calibration_error(probabilities, labels) == pytest.approx(0.55 / 3)
    assert calibration_error(np.array([1.0]), np.array([True])) == 0.0


def test_the_best_is_the_first_of_the_highest_within_the_budget() -> None:
    assert best_of_n(SCORES, 1).tolist() == [0, 0]
    assert best_of_n(SCORES, 2).tolist() == [1, 1]
    assert best_of_n(SCORES, 4).tolist() == [1, 2]


def test_the_first_that_is_accepted_ends_the_search() -> None:
    chosen, tried = first_accepted(SCORES, 4, 0.5)
    # The second row has no yes: all four are tried and the best is kept.
    assert chosen.tolist() == [1, 2] and tried.tolist() == [2.0, 4.0]
    chosen, tried = first_accepted(SCORES, 1, 0.5)
    assert chosen.tolist() == [0, 0] and tried.tolist() == [1.0, 1.0]
