"""Plots of a run's metrics: bars by task with chance, and scores over N candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tarkit.report.blocks import Figure, FigureGrid, PageBlock
from tarkit.report.readers import is_finite
from tarkit.report.svg import NUM_COLOURS, Bar, Series, bars, lines
from tarkit.report.values import ESTIMATE_KEYS, Metric, is_estimate, value_at

MAX_BARS = 40
# Of a table of tables, the first of these that two of them hold is drawn.
LEADING = ("overall", "accuracy", "f1", "score")


def plots(metrics: Metric) -> list[PageBlock]:
    """Bars by task with chance, curves over N, and use of the codes; empty where nothing fits."""
    figures = [figure for name, metric in metrics.items() for figure in _plots_of(name, metric)]
    ceilings: dict[str, dict[str, Any]] = {}
    for name, metric in metrics.items():
        ceiling, _, variant = name.partition("@")
        if ceiling.startswith("ceiling_"):
            overall = value_at(metric, ("overall",))
            ceilings.setdefault(variant, {})[ceiling.removeprefix("ceiling_")] = overall
    for variant, group in ceilings.items():
        figures += _bar_figure(f"ceilings@{variant}: overall", group)
    return [FigureGrid(figures)] if figures else []


def _plots_of(name: str, metric: Any) -> Iterator[Figure]:
    if not isinstance(metric, Mapping) or name.startswith("ceiling_"):
        return
    curves = curves_over_n(metric)
    if curves is not None:
        yield from _curve_figures(name, *curves)
    for key, group in metric.items():
        if not isinstance(group, Mapping) or is_estimate(group) or curves and key == curves[0]:
            continue
        yield from _bar_figure(f"{name}: {key}", group, value_at(metric, ("chance", key)))
        for leading in LEADING:
            values = {row: value_at(part, (leading,)) for row, part in group.items()}
            if sum(map(is_estimate, values.values())) >= 2:
                chance = {row: value_at(part, ("chance",)) for row, part in group.items()}
                yield from _bar_figure(f"{name}: {leading} by {key}", values, chance)
                break
    if name.partition("@")[0] == "codes":
        for figure in ("used", "perplexity"):
            scales = {f"scale {scale}": value_at(part, (figure,)) for scale, part in metric.items()}
            yield from _bar_figure(f"{name}: {figure} by scale", scales, plain=True)


def _bar_figure(
    title: str, group: Metric, chance: Any = None, *, plain: bool = False
) -> Iterator[Figure]:
    """Bars where a table holds at least two estimates from 0 on; with `plain` numbers count too."""
    drawn = []
    for row, value in group.items():
        ends = [value[name] for name in ESTIMATE_KEYS] if is_estimate(value) else [value]
        if not (is_estimate(value) or plain) or not all(is_finite(x) and x >= 0 for x in ends):
            continue
        floor = value_at(chance, (row,))
        floor = floor if is_finite(floor) and floor >= 0 else None
        low, high = ends[1:] if len(ends) == 3 else (None, None)
        drawn.append(Bar(row, ends[0], low=low, high=high, chance=floor))
    if len(drawn) < 2:
        return
    notes = ["95 % intervals"] if any(bar.low is not None for bar in drawn) else []
    notes += ["red: chance"] if any(bar.chance is not None for bar in drawn) else []
    num_cut = len(drawn) - MAX_BARS
    notes += [f"{num_cut} more in the tables"] if num_cut > 0 else []
    yield Figure(bars(drawn[:MAX_BARS]), title, "; ".join(notes))


# ---- scores over N candidates -------------------------------------------------------------------


def curves_over_n(metric: Any) -> tuple[str, Mapping[str, Metric]] | None:
    """The first key of a metric that holds curves, and these: {arm: {N: estimate}}."""
    for key, arms in metric.items() if isinstance(metric, Mapping) else ():
        if isinstance(arms, Mapping) and arms and all(map(is_curve, arms.values())):
            return key, arms
    return None


def is_curve(arm: Any) -> bool:
    """Whether the value is {N: estimate}, N the number of candidates in digits."""
    return (
        isinstance(arm, Mapping)
        and bool(arm)
        and all(key.isascii() and key.isdigit() and len(key) < 9 for key in arm)
        and all(is_estimate(value) for value in arm.values())
    )


def _curve_figures(name: str, key: str, arms: Mapping[str, Metric]) -> Iterator[Figure]:
    """A few arms in each plot, so that no two share a colour.

    Every plot has the first and the last arm: no choice at all, and the bound.
    """
    first, *middle, last = arms if len(arms) > 1 else (*arms, *arms)
    num_middle = NUM_COLOURS - 2
    for start in range(0, max(len(middle), 1), num_middle):
        names = dict.fromkeys((first, *middle[start : start + num_middle], last))
        yield _curve_figure(f"{name}: score over N by {key}", {arm: arms[arm] for arm in names})


def _curve_figure(title: str, arms: Mapping[str, Metric]) -> Figure:
    series = []
    for arm, curve in arms.items():
        points = sorted((int(n), value) for n, value in curve.items() if _is_drawable(value))
        columns = [[float(value[key]) for _, value in points] for key in ESTIMATE_KEYS]
        series.append(Series(arm, [float(n) for n, _ in points], *columns))
    x_ticks = sorted({x for each in series for x in each.x})
    svg = lines(series, x_name="N", x_ticks=x_ticks, whiskers=True, y_name="score")
    return Figure(svg, title, "95 % intervals")


def _is_drawable(estimate: Metric) -> bool:
    return all(is_finite(estimate[key]) for key in ESTIMATE_KEYS)
