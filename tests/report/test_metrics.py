"""Which figure speaks for a metric, and how anything at all becomes tables."""

from typing import Any

import pytest

from tarkit.report.blocks import Cell, FigureGrid, PageTable
from tarkit.report.metrics import geneval_drift, headline, summary, understanding
from tarkit.report.nested import flattened, nested_tables
from tarkit.report.plots import plots
from tarkit.report.values import cell, number, value_at

HALF = {"value": 0.5, "low": 0.25, "high": 0.75, "num_prompts": 8}


@pytest.mark.parametrize(
    ("metric", "path"),
    [
        (0.5, ()),
        (HALF, ()),
        ({"micro": HALF, "overall": HALF}, ("overall",)),
        ({"kinds": {"a": {"accuracy": HALF}}, "all": {"accuracy": HALF}}, ("all", "accuracy")),
        ({"overall": None, "deep": {"er": {"x": HALF}}, "y": {"z": HALF}}, ("y", "z")),
        ({"arms": {"a": {"2": HALF, "10": HALF}}}, ("arms", "a", "10")),
        ({"coverage": 1.0, "n": 3, "part": {"share": 0.5}}, ("part", "share")),
        ({"coverage": 1.0, "said": "so"}, None),
        (None, None),
    ],
)
def test_one_figure_speaks_for_a_metric(metric: Any, path: tuple[str, ...] | None) -> None:
    assert headline(metric) == path
    assert path is None or value_at(metric, path) in (0.5, HALF)


def test_the_summary_has_a_row_a_metric_and_a_column_a_run() -> None:
    table = summary(["one", "two"], [{"a@x": HALF, "b@x": {"said": "so"}}, {"a@y": {"f1": 0.25}}])
    rows = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    assert rows == [["a@x", "0.500", "–"], ["b@x", "below", "–"], ["a@y", "–", "0.250"]]


def test_alike_tables_become_rows_and_others_their_own() -> None:
    value = {"a": {"x": 1, "y": HALF}, "b": {"x": 2}, "c": {"deep": {"er": 3}}, "d": 4}
    flat, rows, deeper = nested_tables(value, title="t")
    assert (
        isinstance(flat, PageTable)
        and isinstance(rows, PageTable)
        and isinstance(deeper, PageTable)
    )
    assert (flat.title, rows.title, deeper.title) == ("t", "t", "t · c · deep")
    assert (list(rows.header), len(rows.rows)) == (["", "x", "y"], 2)
    assert list(deeper.rows[0])[0] == "er"


def test_further_numbers_of_an_estimate_are_shown() -> None:
    (table,) = nested_tables({"a": HALF | {"tokens": 12}, "b": {}})
    assert isinstance(table, PageTable)
    assert list(table.header) == ["figure", "value", "95 % interval", "n", "tokens"]


def test_many_rows_are_cut_and_counted() -> None:
    (table,) = nested_tables({str(n): n for n in range(450)})
    assert isinstance(table, PageTable)
    assert (len(table.rows), table.note) == (400, "50 more rows are in the file.")


def test_bars_are_drawn_of_estimates_that_stand_together() -> None:
    (side,) = plots({"m@x": {"tasks": {"a": HALF, "b": HALF, "n": 7}, "one": {"a": HALF}}})
    assert isinstance(side, FigureGrid)
    assert [figure.title for figure in side.figures] == ["m@x: tasks"]
    assert plots({"m@x": {"tasks": {"a": HALF, "b": {**HALF, "low": -1.0}}}}) == []


def test_numbers_have_the_digits_that_count() -> None:
    shown = [number(value) for value in (0.1234, 12.346, 123.46, 0.00012345, 1234567.0, 7, True)]
    assert shown == ["0.123", "12.35", "123.5", "0.000123", "1.23e+06", "7", "True"]


def test_settings_are_flattened_to_their_names() -> None:
    found = dict(flattened({"a": {"b": 1, "c": {}}, "d": [1, 2], "e": "text"}))
    assert found == {"a.b": "1", "a.c": "{}", "d": "[1, 2]", "e": "text"}


def test_a_paired_difference_takes_one_cell_with_its_sign() -> None:
    gain = {"delta": 0.04, "low": -0.01, "high": 0.09, "p": 0.375, "better": 4, "worse": 1}
    assert cell(gain) == Cell("+0.040", "[-0.010, 0.090], p 0.375")


def test_many_arms_are_several_plots_and_no_colour_stands_for_two() -> None:
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    arms = {f"arm-{n}": {"1": estimate, "2": estimate} for n in range(10)}
    (side,) = plots({"reflect@x": {"arms": arms}})
    assert isinstance(side, FigureGrid)
    drawn = side.figures
    # Eight between the first and the last, four a plot.
    assert len(drawn) == 2
    for figure in drawn:
        assert "arm-0" in figure.svg and "arm-9" in figure.svg
    assert "arm-4" in drawn[0].svg and "arm-5" in drawn[1].svg


def test_und_is_shown_where_all_four_benchmarks_are_and_not_where_one_is_twice() -> None:
    share = {"value": 0.61, "low": 0.6, "high": 0.62}
    runs: list[dict[str, Any]] = [
        {"mme@official-parse": {"perception": 1428.0}},
        {"gqa@exact-match": {"accuracy": share}},
        {"seed@first-letter": {"accuracy": {**share, "value": 0.6886}}},
        {"pope@official-parse": {"all": {"f1": {**share, "value": 0.874}}}},
    ]
    (table,) = understanding(runs)
    # The paper's Table 9c: und 92.9 of GQA 61.0, MME 1428 and POPE 87.4 (and SEED 68.9).
    assert isinstance(table, PageTable)
    assert [row[0] for row in table.rows] == ["und_paper", "und_norm"]
    assert table.rows[0][1] == Cell("92.90")  # 4 / .0430576 = 92.899
    assert understanding(runs[:3]) == [] and understanding([*runs, runs[0]]) == []


def test_geneval_stands_beside_geneval_2_with_its_drift() -> None:
    share = {"value": 0.61, "low": 0.6, "high": 0.62, "num_prompts": 9}
    new = {"geneval2@softtifa-judge": {"soft_tifa_am": share, "soft_tifa_gm": share}}
    old = {"geneval@hf-m2f": {"overall": share}}
    (table,) = geneval_drift([old, new])
    assert isinstance(table, PageTable) and "17.7 %" in table.note
    assert [row[:2] for row in table.rows] == [
        ["geneval@hf-m2f", "overall"],
        ["geneval2@softtifa-judge", "Soft-TIFA AM (atoms)"],
        ["geneval2@softtifa-judge", "Soft-TIFA GM (prompts)"],
    ]
    # The drawn world's scorer is exact, and of one benchmark alone there is nothing to say.
    assert geneval_drift([{"geneval@shapes": old["geneval@hf-m2f"]}, new]) == []
    assert geneval_drift([new]) == geneval_drift([old]) == []
    assert len(geneval_drift([{"geneval@hf-m2f": None}, {"geneval2@x": 3}])) == 1  # a strange file
