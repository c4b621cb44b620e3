"""The summary of runs: one figure for each metric, and the paper's "Und" (Tables 3, 5, 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tarkit.errors import UserError
from tarkit.report.blocks import Cell, PageBlock, PageTable, TableRow
from tarkit.report.plots import curves_over_n
from tarkit.report.readers import is_finite, is_number
from tarkit.report.values import NOTHING, KeyPath, Metric, cell, is_estimate, overall_cell, value_at

MAX_DEPTH = 12
# The keys of the paper's four understanding benchmarks' figures.
UND: dict[str, KeyPath] = {
    "mme": ("perception",),
    "gqa": ("accuracy", "value"),
    "seed": ("accuracy", "value"),
    "pope": ("all", "f1", "value"),
}
DRIFT_FIGURES = {
    "geneval": {"overall": "overall"},
    "geneval2": {"soft_tifa_am": "Soft-TIFA AM (atoms)", "soft_tifa_gm": "Soft-TIFA GM (prompts)"},
}
# The figure that stands for a metric is the first of these that it has, else its first estimate.
HEADLINES: tuple[KeyPath, ...] = (
    ("overall",),
    ("all", "accuracy"),
    ("all", "f1"),
    ("score",),
    ("accuracy",),
    ("f1",),
)


def headline(metric: Any) -> KeyPath | None:
    """The keys of the figure that stands for a metric, None where it has no figure."""
    if is_estimate(metric) or is_number(metric):
        return ()
    for path in HEADLINES:
        value = value_at(metric, path)
        if is_estimate(value) or is_number(value):
            return path
    curves = curves_over_n(metric)
    if curves is not None:
        key, arms = curves
        arm = next(iter(arms))
        return (key, arm, max(arms[arm], key=int))
    return next(_paths(metric, is_estimate), None) or next(_paths(metric, _is_float), None)


def _is_float(value: Any) -> bool:
    return isinstance(value, float)


def _paths(metric: Any, fits: Callable[[Any], bool]) -> Iterator[KeyPath]:
    """The keys of the values that fit, the least nested first."""
    level: list[tuple[KeyPath, Any]] = [((), metric)]
    for _ in range(MAX_DEPTH):
        inner = [
            ((*path, key), value)
            for path, table in level
            if isinstance(table, Mapping) and not is_estimate(table)
            for key, value in table.items()
            if key != "coverage"
        ]
        yield from (path for path, value in inner if fits(value))
        level = inner


def summary(
    names: Sequence[str], metrics: Sequence[Metric], *, unlike: Sequence[str] = ()
) -> PageTable:
    """One row for each metric and variant, one column for each run.

    `unlike` names the metrics whose runs were scored on different items.
    """
    rows: list[TableRow] = []
    for name in dict.fromkeys(name for each in metrics for name in each):
        path = next((p for m in metrics if (p := headline(m.get(name))) is not None), None)
        mark = " †" if name in unlike else ""
        if path is None:  # no run has a figure for it
            marks = [Cell("below" if name in each else NOTHING, tone="dim") for each in metrics]
            rows.append([name + mark, *marks])
            continue
        figures = [_headline_cell(each.get(name), path) for each in metrics]
        rows.append([Cell(name + mark, " · ".join(path)), *figures])
    note = (
        "Brackets hold 95 % intervals, parentheses the number of prompts, or other units, that "
        "were redrawn."
    )
    if unlike:
        note += " † The runs were scored on different items: the figures do not compare."
    return PageTable(["metric@variant", *names], rows, note=note)


def _headline_cell(metric: Any, path: KeyPath) -> Cell:
    return overall_cell(metric) if path == ("overall",) else cell(value_at(metric, path))


def understanding(metrics: Sequence[Metric]) -> list[PageBlock]:
    """The paper's "Und" where the runs hold MME, GQA, SEED and POPE once each, else nothing."""
    figures: dict[str, float] = {}
    for name, metric in ((n, m) for each in metrics for n, m in each.items()):
        bench = name.partition("@")[0]
        value = value_at(metric, UND.get(bench, ()))
        if bench in UND and is_finite(value):
            if bench in figures:
                return []
            figures[bench] = float(value)
    if set(figures) != set(UND):
        return []
    percent = {bench: 100 * value for bench, value in figures.items() if bench != "mme"}
    try:
        means = und(figures["mme"], percent["gqa"], percent["seed"], percent["pope"])
    except UserError:
        return []
    rows: list[TableRow] = [[name, cell(value)] for name, value in means.items()]
    note = (
        "Harmonic means: und_paper takes MME as it is, as the paper does; und_norm takes MME / 20. "
        "POPE is F1."
    )
    return [PageTable(["understanding", ""], rows, note=note)]


def geneval_drift(metrics: Sequence[Metric]) -> list[PageBlock]:
    """GenEval's figures beside GenEval 2's where the runs hold both, else nothing.

    The drawn world's own GenEval is not meant: its scorer is exact.
    """
    figures = {name: metric for each in metrics for name, metric in each.items()}
    new = [name for name in figures if name.startswith("geneval2@")]
    old = [name for name in figures if name.startswith("geneval@") and not name.endswith("@shapes")]
    if not (new and old):
        return []
    rows: list[TableRow] = [
        [name, label, cell(value_at(metric, (key,)))]
        for name in (*old, *new)
        for metric in (each[name] for each in metrics if name in each)
        for key, label in DRIFT_FIGURES[name.partition("@")[0]].items()
    ]
    note = (
        "GenEval's scorer has drifted from human judgement, with an absolute error of as much as "
        "17.7 % for current models (GenEval 2, arXiv 2512.16853, abstract). The prompts differ "
        "too, so a figure of one is not compared with one of the other."
    )
    return [PageTable(["GenEval and GenEval 2", "", ""], rows, note=note)]


def und(mme_perception: float, gqa: float, seed: float, pope: float) -> dict[str, float]:
    """The paper's "Und", the harmonic mean of four benchmarks (Tables 3, 5, 6), on two scales.

    MME in 0-2000, the others in 0-100. `und_paper` takes them as they are, the only reading that
    the paper's own figures allow (GQA 61.0, MME 1428, POPE 87.4 and Und 92.9 give SEED 68.9), in
    which MME has next to no weight; `und_norm` takes MME / 20. Raises UserError where a figure is
    not above zero.
    """
    four = {"MME": mme_perception, "GQA": gqa, "SEED": seed, "POPE": pope}
    wrong = [name for name, value in four.items() if value <= 0]
    if wrong:
        raise UserError(f"no harmonic mean with {wrong[0]} = {four[wrong[0]]}")
    return {
        "und_paper": _harmonic([mme_perception, gqa, seed, pope]),
        "und_norm": _harmonic([mme_perception / 20, gqa, seed, pope]),
    }


def _harmonic(values: Sequence[float]) -> float:
    return len(values) / sum(1 / value for value in values)
