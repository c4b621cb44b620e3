"""Arms of self-reflect on pools made by hand."""

from typing import Any

import numpy as np
import pytest

from tarkit.eval.metrics.selection import SCORES, Cost, Pool, Slots, arms, reflect_tables

# Three prompts of one task with one slot each, four candidates.
RIGHT = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
YES = np.array([[0.1, 0.9, 0.2, 0.3], [0.2, 0.1, 0.6, 0.1], [0.1, 0.1, 0.1, 0.4]])
JUDGE = {"yes_codes": 3, "yes_pixels": 7, "gain_codes": 5, "gain_pixels": 5}
COST = Cost(words=10, judge=JUDGE, pixels=100)
SLOTS = Slots(prompts=["a", "b", "c"], tasks=["colors"] * 3, columns=["seen", "heldout", "heldout"])


def found() -> dict[str, dict[str, Any]]:
    scores = dict.fromkeys(SCORES, YES)
    # Edits of prompt a: the second is right; b was not tried again after its third; c never.
    edits = Pool({"yes_codes": YES}, RIGHT)
    return arms(Pool(scores, RIGHT), edits, SLOTS, COST, budgets=(1, 2, 4))


def test_one_candidate_is_the_mean_of_all_by_every_arm() -> None:
    # a 2 of 4, b 1 of 4, c none: (1/2 + 1/4 + 0) / 3. Edits have the first candidates alone: 1/3.
    values = {name: figures["1"]["value"] for name, figures in found().items()}
    assert values.pop("edit-yes-codes") == pytest.approx(1 / 3)
    assert all(value == pytest.approx(1 / 4) for value in values.values())


def test_the_best_of_each_budget_by_hand() -> None:
    by_yes = found()["best-yes-codes"]
    # N = 2, two pools a prompt: a .9 (right) and .3 (right); b .2 (right) and .6 (wrong); c none.
    assert by_yes["2"]["value"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert by_yes["2"]["gain"]["delta"] == pytest.approx(1 / 2 - 1 / 4)
    # N = 4: a its second, right; b its third, wrong.
    assert by_yes["4"]["value"] == pytest.approx(1 / 3)
    assert by_yes["4"]["heldout"]["value"] == 0.0
    # Held out are b and c, of which a single picture is right in 1/4 and 0.
    assert by_yes["4"]["heldout_gain"]["delta"] == pytest.approx(-1 / 8)


def test_the_oracle_is_right_where_any_is() -> None:
    bound = found()["oracle"]
    # N = 2: a both pools, b the first of two; N = 4: a and b.
    assert [bound[n]["value"] for n in ("1", "2", "4")] == pytest.approx([1 / 4, 1 / 2, 2 / 3])
    assert list(found())[-1] == "oracle"


def test_until_yes_stops_at_the_first_yes() -> None:
    until = found()["until-yes-codes"]
    # a stops at its second, b at its third, c tries all four: mean 3.
    assert until["4"]["tried"] == pytest.approx(3.0)
    assert until["4"]["value"] == pytest.approx(1 / 3)


def test_tokens_are_counted_by_what_an_arm_needs() -> None:
    of = {name: figures["4"]["tokens"] for name, figures in found().items()}
    assert of["single"] == pytest.approx(10 + 100)
    # Judged on codes only the winner is drawn; on pixels all four are.
    assert of["best-yes-codes"] == pytest.approx(4 * (10 + 3) + 100)
    assert of["best-gain-codes"] == pytest.approx(4 * (10 + 5) + 100)
    assert of["best-yes-pixels"] == pytest.approx(4 * (10 + 7 + 100))
    assert of["until-yes-codes"] == pytest.approx(3 * (10 + 3) + 100)


def test_slots_of_a_prompt_are_one_value() -> None:
    slots = Slots(prompts=["a", "a", "b"], tasks=["colors"] * 3, columns=["seen"] * 3)
    pool = Pool(dict.fromkeys(SCORES, YES), RIGHT)
    single = arms(pool, pool, slots, COST, budgets=(1,))["single"]["1"]
    # a: 3 of the 8 pictures of its two slots, b none: (3/8 + 0) / 2.
    assert single["value"] == pytest.approx(3 / 16) and single["num_prompts"] == 2
    assert "heldout" not in single


def test_tables_name_every_arm() -> None:
    judge = {"auroc": None, "tpr": 1.0, "tnr": None, "balanced_accuracy": None}
    judge |= {"base_accuracy": 0.5, "accepted_accuracy": 0.25, "predicted": None}
    results = {
        "arms": found(),
        "judge": {"yes_codes": {"all": judge}},
        "renders": {"yes": {"drop": judge}},
    }
    seconds = dict.fromkeys(("words", "judge", "pixels", "judge_pixels"), 0.5)
    text = "\n".join(table.markdown() for table in reflect_tables(results, seconds))
    assert all(f"| {name} |" in text for name in found())
    assert "| yes on codes | all | - | - | 1.000 | - | - | 0.500 | 0.250 | - |" in text
