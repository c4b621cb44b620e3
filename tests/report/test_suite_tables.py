"""Tables of the drawn world's evaluations: each number from results.json, in its cell."""

from typing import Any

import pytest

from tarkit.report.blocks import PageTable
from tarkit.report.suite_tables import suite_tables


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.125, "high": value + 0.125, "num_prompts": 8}


def shown(value: float) -> str:
    return f"{value:.3f} [{value - 0.125:.3f}, {value + 0.125:.3f}] (8)"


def texts(table: PageTable) -> list[list[str]]:
    return [[f"{cell.text} {cell.aside}".strip() for cell in row] for row in table.cells]


def only_table(metrics: dict[str, Any]) -> PageTable:
    (table,), covered = suite_tables(metrics)
    assert covered == list(metrics)
    return table


def test_questions_have_a_row_for_each_kind_of_negative_and_each_column() -> None:
    def part(accuracy: float) -> dict[str, Any]:
        plain = {"precision": 0.5, "recall": 1.0, "yes_share": 0.25, "unclear": 0.125}
        return {"accuracy": estimate(accuracy), "f1": estimate(0.75), **plain, "chance": 0.5}

    kinds = {"random": part(0.5), "popular": part(0.25)}
    metric = {"kinds": kinds, "all": part(0.375), "columns": {"seen": part(0.625)}}
    table = only_table({"pope@shapes": metric | {"coverage": 0.875, "num_questions": 48}})
    assert list(table.header[1:4]) == ["accuracy", "F1", "precision"]
    rest = [shown(0.75), "0.500", "1.000", "0.250", "0.125", "0.500"]
    assert texts(table) == [
        ["random", shown(0.5), *rest],
        ["popular", shown(0.25), *rest],
        ["all", shown(0.375), *rest],
        ["seen", shown(0.625), *rest],
    ]
    assert table.cells[2][0].strong
    assert table.note.startswith("48 questions, coverage 0.875.")


def test_captions_have_estimates_and_plain_numbers() -> None:
    names = ("precision", "recall", "relation_precision", "relation_recall", "relation_f1")
    plain = dict.fromkeys((*names, "background", "unreadable"), 0.25)
    model = plain | {"f1": estimate(0.5), "exact": estimate(0.375)}
    chance = plain | {"f1": 0.125, "exact": 0.0}
    metric = {"all": model, "columns": {}, "chance": chance, "coverage": 1.0, "num_captions": 8}
    whole, by_chance = texts(only_table({"caption@shapes": metric}))
    assert whole == ["all", "0.250", "0.250", shown(0.5), *["0.250"] * 4, shown(0.375), "0.250"]
    assert by_chance[3] == "0.125" and by_chance[8] == "0.000"


def test_ceilings_are_one_table_with_the_model_last() -> None:
    def part(value: float) -> dict[str, Any]:
        return {
            "overall": estimate(value),
            "over": ["colors", "counting"],
            "tasks": {"colors": estimate(value)},
        }

    model = part(0.25) | {"columns": {}, "chance": {"overall": None, "tasks": {}}}
    metrics = {"geneval@shapes": model, "ceiling_pixel_vq@shapes": part(0.5)}
    (_, ceilings), covered = suite_tables(metrics)
    assert covered == ["geneval@shapes", "ceiling_pixel_vq@shapes"]
    pixel_vq, last = texts(ceilings)
    # single_object, two_object and counting have no score; colors is the fourth of the six tasks.
    assert pixel_vq == [
        "pixel vq",
        f"{shown(0.5)} over 2 tasks",
        *["–"] * 3,
        "0.500",
        *["–"] * 2,
    ]
    assert last[:2] == ["the model", f"{shown(0.25)} over 2 tasks"]


def test_codes_have_a_row_for_each_scale() -> None:
    part = {"num_codes": 36, "shape": 0.65, "colour": 0.9, "position_px": 4.25, "used": 1080}
    trained = {"cosine": 0.9671, "used": 1575}
    scales = {"2": part | {"perplexity": 69.26, "num_pictures": 200, "trained": trained}}
    (row,) = texts(only_table({"codes@shapes": scales}))
    figures = ["36", "0.650", "0.900", "4.250", "1080", "69.26", "0.967", "1575", "–"]
    assert row == ["2", *figures]


@pytest.mark.parametrize("value", [None, 7, [], {}, {"tasks": 3}, {"all": {}}, {"1": {"x": 2}}])
def test_another_form_gets_no_table(value: Any) -> None:
    names = ("geneval", "pope", "caption", "ceiling_truth", "codes")
    assert suite_tables({f"{name}@shapes": value for name in names}) == ([], [])
