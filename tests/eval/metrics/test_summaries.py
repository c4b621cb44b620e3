"""Figures of a report, by hand, and the tables that show them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tarkit.eval.metrics.summaries import (
    PictureScores,
    QuestionScores,
    picture_results,
    question_results,
)
from tarkit.eval.result_tables import tables
from tarkit.scoring.statistics import COLOR_POSITION, TASKS


def picture_scores() -> PictureScores:
    """Two prompts a task and one of color_position, two pictures each.

    Seen prompts: both pictures right. Held-out ones: the first picture only, but none of counting,
    whose second prompt extrapolates.
    """
    tasks = [task for task in TASKS for _ in range(2)] + [COLOR_POSITION]
    columns = ["seen", "heldout"] * 6 + ["seen"]
    correct = [[1, 1], [1, 0]] * 6 + [[0, 0]]
    columns[tasks.index("counting") + 1] = "extrapolation"
    correct[tasks.index("counting") + 1] = [0, 0]
    failed = np.zeros((13, 2), dtype=bool)
    failed[-1] = True
    return PictureScores(
        tasks=tasks,
        columns=columns,
        correct=np.array(correct, dtype=bool),
        failed=failed,
        chance=np.full(13, 0.1),
    )


def test_picture_figures_by_hand() -> None:
    found = picture_results(picture_scores())
    # five tasks (1 + .5) / 2 = .75, counting (1 + 0) / 2 = .5: (5 x .75 + .5) / 6 = .7083
    assert found["overall"]["value"] == pytest.approx(4.25 / 6)
    assert found["over"] == list(TASKS)
    assert found["micro"]["value"] == pytest.approx((6 + 2.5) / 12)
    assert found["any_of_n"]["value"] == pytest.approx(11 / 12)
    assert found["tasks"]["counting"]["value"] == 0.5
    assert found["tasks"][COLOR_POSITION]["value"] == 0.0
    # 13 x 2 pictures, 2 failed
    assert found["coverage"] == pytest.approx(24 / 26)
    assert found["chance"]["overall"] == pytest.approx(0.1)


def test_the_means_of_clauses_are_those_of_exact_verdicts() -> None:
    scores = picture_scores()
    assert "clauses_am" not in picture_results(scores)
    # A right picture fulfils both clauses, a wrong one the first of two; the last prompt is of the
    # seventh task and does not count.
    clauses = [[True, bool(right)] for right in scores.correct.ravel()]
    found = picture_results(replace(scores, clauses=clauses))
    # 6 prompts 1, 5 prompts (1 + .5) / 2 = .75, one prompt .5: 10.25 / 12
    assert found["clauses_am"]["value"] == pytest.approx(10.25 / 12)
    assert found["clauses_gm"] == found["micro"]
    assert {k: v for k, v in found.items() if "clauses" not in k} == picture_results(scores)


def test_columns_say_over_which_tasks_their_mean_goes() -> None:
    columns = picture_results(picture_scores())["columns"]
    assert columns["seen"]["overall"]["value"] == 1.0
    assert columns["heldout"]["overall"]["value"] == 0.5
    assert columns["heldout"]["over"] == [task for task in TASKS if task != "counting"]
    assert columns["extrapolation"]["over"] == ["counting"]
    assert columns["extrapolation"]["overall"]["value"] == 0.0


def test_question_figures_by_kind_and_column() -> None:
    scores = QuestionScores(
        kinds=["random", "random", "popular", "popular"],
        columns=["seen", "heldout", "seen", "heldout"],
        pictures=["0", "1", "0", "1"],
        answers=["yes", "no", "yes", None],
        labels=[True, False, False, True],
        chance=np.array([0.5, 0.5, 0.25, 0.25]),
    )
    found = question_results(scores)
    assert found["kinds"]["random"]["accuracy"]["value"] == 1.0
    assert found["kinds"]["popular"]["accuracy"]["value"] == 0.0
    assert found["kinds"]["popular"]["chance"] == 0.25
    assert found["all"]["accuracy"]["value"] == 0.5
    assert found["all"]["accuracy"]["num_prompts"] == 2  # pictures are redrawn, not questions
    # said yes: 2, rightly 1; is yes: 2. F1 = 2 / 4
    assert found["all"]["f1"]["value"] == 0.5
    assert found["columns"]["seen"]["accuracy"]["value"] == 0.5
    assert found["coverage"] == 0.75


def test_every_figure_is_plain_json() -> None:
    assert json.loads(json.dumps(picture_results(picture_scores())))["over"] == list(TASKS)


def test_tables_show_the_figures_beside_their_floor() -> None:
    pictures = picture_results(picture_scores())
    first, ceilings = tables({"geneval@shapes": pictures, "ceiling_truth@shapes": pictures})
    text = first.markdown()
    assert text.startswith("## geneval@shapes\n")
    assert "| task | all | seen | heldout | extrapolation | chance |" in text
    assert "| single_object | 0.750 [" in text
    # what a column lacks is a dash and a mean over fewer tasks says so
    row = next(line for line in text.splitlines() if line.startswith("| **overall**"))
    assert "0.500 [0.500, 0.500] (5) over 5 tasks" in row
    assert row.endswith("| 0.100 |")
    counting = next(line for line in text.splitlines() if line.startswith("| counting"))
    assert counting.split("|")[4].strip() == "-"
    assert [row[0] for row in ceilings.rows] == ["truth", "the model"]
    # every row of a table has a cell under each name
    for table in (first, ceilings):
        assert {len(row) for row in table.rows} == {len(table.header)}
