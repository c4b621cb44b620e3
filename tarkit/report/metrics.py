"""Metrics of a results.json as blocks of a page: tables, bars by task, best-of-N curves.

What has the form of the evaluations on the drawn world gets their tables; everything else is
shown as the nested tables that it is, and nothing is left out. An estimate is a table with
`value`, `low` and `high`, and may carry further numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tarkit.errors import UserError
from tarkit.report.blocks import Cell, Figure, FigureGrid, PageBlock, PageTable
from tarkit.report.escaping import shorten
from tarkit.report.runs import is_finite, is_number
from tarkit.report.svg import NUM_COLOURS, Bar, Series, bars, lines, signed
from tarkit.scoring.statistics import TASKS
from tarkit.scoring.tables import tables

MAX_COLUMNS = 12
MAX_ROWS = 400
MAX_DEPTH = 12
MAX_CELL = 400
NOTHING = "–"
ENDS = ("value", "low", "high")
USUAL = (*ENDS, "num_prompts")
# Where the paper's four understanding benchmarks keep their figure.
UND = {
    **{"mme": ("perception",), "gqa": ("accuracy", "value"), "seed": ("accuracy", "value")},
    "pope": ("all", "f1", "value"),
}
DELTA = ("delta", "low", "high", "p")
# What stands for a whole metric, the first that it has; otherwise its first estimate.
HEADLINES = (("overall",), ("all", "accuracy"), ("all", "f1"), ("score",), ("accuracy",), ("f1",))
LEADING = ("overall", "accuracy", "f1", "score")

Metric = Mapping[str, Any]
Named = tuple[str, ...]


def is_estimate(value: Any) -> bool:
    return isinstance(value, Mapping) and all(is_number(value.get(name)) for name in ENDS)


def is_delta(value: Any) -> bool:
    return isinstance(value, Mapping) and all(is_number(value.get(name)) for name in DELTA)


def number(value: Any) -> str:
    """Three digits behind the point; more where the number is small, fewer where it is large."""
    if isinstance(value, bool) or not is_finite(value):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else f"{value:.4g}"
    if value and (abs(value) < 5e-4 or abs(value) >= 1e5):
        return f"{value:.3g}"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:.{digits}f}"


def interval(estimate: Metric) -> str:
    return f"[{number(estimate['low'])}, {number(estimate['high'])}]"


def cell(value: Any) -> Cell:
    """Any value in one cell; an estimate with its interval and the prompts it rests on."""
    if is_estimate(value):
        rests_on = value.get("num_prompts")
        count = f" ({rests_on})" if is_number(rests_on) else ""
        return Cell(number(value["value"]), f"{interval(value)}{count}")
    if is_delta(value):
        return Cell(signed(value["delta"]), f"{interval(value)}, p {number(value['p'])}")
    if value is None:
        return Cell(NOTHING, tone="dim")
    if is_number(value):
        return Cell(number(value))
    if isinstance(value, str):
        return Cell(shorten(value, MAX_CELL))
    return Cell(shorten(_as_json(value), MAX_CELL))


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---- the summary --------------------------------------------------------------------------------


def headline(metric: Any) -> Named | None:
    """Where in a metric the figure stands that speaks for it."""
    if is_estimate(metric) or is_number(metric):
        return ()
    for path in HEADLINES:
        if _is_figure(at(metric, path)):
            return path
    curves = _curves(metric)
    if curves is not None:
        key, found = curves
        arm = next(iter(found))
        return (key, arm, max(found[arm], key=int))
    return next(_places(metric, is_estimate), None) or next(_places(metric, _is_share), None)


def _is_share(value: Any) -> bool:
    return isinstance(value, float)


def _is_figure(value: Any) -> bool:
    return is_estimate(value) or is_number(value)


def at(metric: Any, path: Named) -> Any:
    """What stands at a place, None where nothing does."""
    for key in path:
        metric = metric.get(key) if isinstance(metric, Mapping) else None
    return metric


def _places(metric: Any, fits: Any) -> Iterator[Named]:
    """Where values fit, the least nested first."""
    level: list[tuple[Named, Any]] = [((), metric)]
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
    """One row a metric and variant, one column a run; `unlike` names rows on differing items."""
    rows: list[list[Cell | str]] = []
    for name in dict.fromkeys(name for each in metrics for name in each):
        path = next((p for m in metrics if (p := headline(m.get(name))) is not None), None)
        mark = " †" if name in unlike else ""
        if path is None:  # no figure speaks for it
            marks = [Cell("below" if name in each else NOTHING, tone="dim") for each in metrics]
            rows.append([name + mark, *marks])
            continue
        found = [_headline_cell(each.get(name), path) for each in metrics]
        rows.append([Cell(name + mark, " · ".join(path)), *found])
    note = "95 % intervals in brackets, the number of prompts or other units redrawn behind them."
    if unlike:
        note += " † The runs were scored on different items: the figures do not compare."
    return PageTable(["metric@variant", *names], rows, note=note)


def understanding(metrics: Sequence[Metric]) -> list[PageBlock]:
    """The paper's "Und" where the runs hold MME, GQA, SEED and POPE once each, else nothing."""
    found: dict[str, float] = {}
    for name, metric in ((n, m) for each in metrics for n, m in each.items()):
        bench = name.partition("@")[0]
        value = at(metric, UND.get(bench, ()))
        if bench in UND and is_finite(value):
            if bench in found:
                return []
            found[bench] = float(value)
    if set(found) != set(UND):
        return []
    shares = {bench: 100 * value for bench, value in found.items() if bench != "mme"}
    try:
        figures = und(found["mme"], shares["gqa"], shares["seed"], shares["pope"])
    except UserError:
        return []
    rows: list[list[Cell | str]] = [[name, cell(value)] for name, value in figures.items()]
    note = "Harmonic means: und_paper with MME as it is, the paper's own; und_norm with MME / 20. "
    return [PageTable(["understanding", ""], rows, note=note + "POPE is F1.")]


def _headline_cell(metric: Any, path: Named) -> Cell:
    found = cell(at(metric, path))
    over = metric.get("over") if isinstance(metric, Mapping) and path == ("overall",) else None
    if not isinstance(over, list) or not 0 < len(over) < len(TASKS):
        return found
    # A mean over fewer tasks is another figure, and says so.
    return Cell(found.text, f"{found.aside} over {len(over)} tasks")


# ---- one run ------------------------------------------------------------------------------------


def known_tables(metrics: Metric) -> tuple[list[PageBlock], list[str]]:
    """The evaluation's own tables, and the names of the metrics in them.

    None where a metric has another form than this version writes: it is then shown as it is.
    """
    of_shapes = {name: value for name, value in metrics.items() if name.endswith("@shapes")}
    try:
        found = tables(of_shapes)
    except (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError):
        return [], []
    shown = [table.title for table in found]
    covered = [
        name
        for name in of_shapes
        if name in shown or (name.startswith("ceiling_") and "ceilings" in shown)
    ]
    blocks: list[PageBlock] = [
        PageTable(
            table.header, [[_own(text) for text in row] for row in table.rows], table.title, note
        )
        for table in found
        for note in [table.note]
    ]
    return blocks, covered


def _own(text: str) -> Cell:
    """`**0.556** [0.459, 0.667] (53)` as a figure with its interval."""
    strong = text.startswith("**") and text.endswith("**")
    text = text.replace("**", "")
    found = re.match(r"^(\S+) (\[.*)$", text)
    if found:
        return Cell(found[1], found[2], strong=strong)
    return Cell(NOTHING if text == "-" else text, strong=strong)


def plots(metrics: Metric) -> list[PageBlock]:
    """Bars by task with chance, curves over N, and what the codes hold; none where none fits."""
    found = [figure for name, metric in metrics.items() for figure in _plots_of(name, metric)]
    ceilings: dict[str, dict[str, Any]] = {}
    for name, metric in metrics.items():
        ceiling, _, variant = name.partition("@")
        if ceiling.startswith("ceiling_"):
            overall = at(metric, ("overall",))
            ceilings.setdefault(variant, {})[ceiling.removeprefix("ceiling_")] = overall
    for variant, group in ceilings.items():
        found += _bar_figure(f"ceilings@{variant}: overall", group)
    return [FigureGrid(found)] if found else []


def _plots_of(name: str, metric: Any) -> Iterator[Figure]:
    if not isinstance(metric, Mapping) or name.startswith("ceiling_"):
        return
    curves = _curves(metric)
    if curves is not None:
        yield from _best_of(name, *curves)
    for key, group in metric.items():
        if not isinstance(group, Mapping) or is_estimate(group) or curves and key == curves[0]:
            continue
        yield from _bar_figure(f"{name}: {key}", group, at(metric, ("chance", key)))
        for leading in LEADING:
            led = {row: at(part, (leading,)) for row, part in group.items()}
            if sum(map(is_estimate, led.values())) >= 2:
                chance = {row: at(part, ("chance",)) for row, part in group.items()}
                yield from _bar_figure(f"{name}: {leading} by {key}", led, chance)
                break
    if name.partition("@")[0] == "codes":
        for figure in ("used", "perplexity"):
            scales = {f"scale {scale}": at(part, (figure,)) for scale, part in metric.items()}
            yield from _bar_figure(f"{name}: {figure} by scale", scales, plain=True)


def _bar_figure(
    title: str, group: Metric, chance: Any = None, *, plain: bool = False
) -> Iterator[Figure]:
    """Bars where a table holds at least two estimates from 0 on; with `plain` numbers count too."""
    found = []
    for row, value in group.items():
        whole = [value[name] for name in ENDS] if is_estimate(value) else [value]
        if not (is_estimate(value) or plain) or not all(is_finite(x) and x >= 0 for x in whole):
            continue
        floor = at(chance, (row,))
        floor = floor if is_finite(floor) and floor >= 0 else None
        low, high = whole[1:] if len(whole) == 3 else (None, None)
        found.append(Bar(row, whole[0], low=low, high=high, chance=floor))
    if len(found) < 2:
        return
    note = "95 % intervals" if any(bar.low is not None for bar in found) else ""
    if any(bar.chance is not None for bar in found):
        note += "; red: chance"
    yield Figure(bars(found[:40]), title, note)


def _curves(metric: Any) -> tuple[str, Mapping[str, Metric]] | None:
    """The first table of tables that are keyed by numbers of candidates and hold estimates."""
    for key, arms in metric.items() if isinstance(metric, Mapping) else ():
        if isinstance(arms, Mapping) and arms and all(map(_is_curve, arms.values())):
            return key, arms
    return None


def _is_curve(arm: Any) -> bool:
    return (
        isinstance(arm, Mapping)
        and bool(arm)
        and all(key.isascii() and key.isdigit() and len(key) < 9 for key in arm)
        and all(is_estimate(value) for value in arm.values())
    )


def _best_of(name: str, key: str, arms: Mapping[str, Metric]) -> Iterator[Figure]:
    """A few arms a plot, so that no colour stands for two; the first and the last arm, what there
    is without a choice and at best, are in every one."""
    first, *middle, last = arms if len(arms) > 1 else (*arms, *arms)
    each = NUM_COLOURS - 2
    for start in range(0, max(len(middle), 1), each):
        names = dict.fromkeys((first, *middle[start : start + each], last))
        yield _arms_figure(f"{name}: score over N by {key}", {arm: arms[arm] for arm in names})


def _arms_figure(title: str, arms: Mapping[str, Metric]) -> Figure:
    series = []
    for arm, curve in arms.items():
        points = sorted((int(n), value) for n, value in curve.items() if _drawable(value))
        columns = [[float(value[of]) for _, value in points] for of in ENDS]
        series.append(Series(arm, [float(n) for n, _ in points], *columns))
    places = sorted({x for each in series for x in each.x})
    svg = lines(series, x_name="N", x_ticks=places, whiskers=True, y_name="score")
    return Figure(svg, title, "95 % intervals")


def _drawable(estimate: Metric) -> bool:
    return all(is_finite(estimate[name]) for name in ENDS)


# ---- anything -----------------------------------------------------------------------------------


def nested(value: Any, *, title: str = "", depth: int = 0) -> list[PageBlock]:
    """Tables of any JSON value: its figures, rows of alike tables, and the rest one by one."""
    if not isinstance(value, Mapping) or is_estimate(value):
        return [_figures(title, {"value": value})]
    if depth == MAX_DEPTH:
        return [PageTable(["figure", "value"], [[title, cell(value)]])]
    if value and all(map(_is_curve, value.values())):
        return [_curve_table(title, value)]
    flat = {key: inner for key, inner in value.items() if _is_flat(inner)}
    deep = {key: inner for key, inner in value.items() if key not in flat}
    blocks: list[PageBlock] = [_figures(title, flat)] if flat else []
    alike = {key: inner for key, inner in deep.items() if _is_row(inner)}
    columns = list(dict.fromkeys(column for inner in alike.values() for column in inner))
    if len(alike) >= 2 and len(columns) <= MAX_COLUMNS:
        blocks.append(_matrix(title, columns, alike))
        deep = {key: inner for key, inner in deep.items() if key not in alike}
    for key, inner in deep.items():
        name = f"{title} · {key}" if title else key
        blocks += nested(_as_table(inner), title=name, depth=depth + 1)
    return blocks


def _is_flat(value: Any) -> bool:
    if isinstance(value, Mapping):
        return is_estimate(value) or not value
    return not (isinstance(value, list) and any(isinstance(each, Mapping) for each in value))


def _is_row(value: Any) -> bool:
    """Whether its values take a cell each; an estimate that carries more takes several."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(map(_is_flat, value.values()))
        and not any(is_estimate(each) and set(each) - set(USUAL) for each in value.values())
    )


def _as_table(value: Any) -> Any:
    return {str(n): each for n, each in enumerate(value)} if isinstance(value, list) else value


def _figures(title: str, flat: Metric) -> PageTable:
    """A row a figure; what estimates carry beside their interval has columns of its own."""
    estimates = [value for value in flat.values() if is_estimate(value)]
    if not estimates:
        rows: list[list[Cell | str]] = [[key, cell(value)] for key, value in flat.items()]
        return _cut(PageTable(["figure", "value"], rows, title))
    more = list(dict.fromkeys(key for each in estimates for key in each if key not in USUAL))
    more = more[:MAX_COLUMNS]
    rows = []
    for key, value in flat.items():
        if is_estimate(value):
            tail = [cell(value.get(name)) for name in ("num_prompts", *more)]
            rows.append([key, number(value["value"]), Cell(interval(value), tone="dim"), *tail])
        else:
            rows.append([key, cell(value), *[""] * (2 + len(more))])
    return _cut(PageTable(["figure", "value", "95 % interval", "n", *more], rows, title))


def _curve_table(title: str, arms: Mapping[str, Metric]) -> PageTable:
    """The curves of `_best_of` as rows, with what each point cost."""
    points = [(arm, n, curve[n]) for arm, curve in arms.items() for n in sorted(curve, key=int)]
    more = list(dict.fromkeys(key for *_, point in points for key in point if key not in USUAL))
    rows: list[list[Cell | str]] = [
        [
            arm,
            n,
            number(point["value"]),
            Cell(interval(point), tone="dim"),
            *(cell(point.get(name)) for name in ("num_prompts", *more[:MAX_COLUMNS])),
        ]
        for arm, n, point in points
    ]
    header = ["", "N", "value", "95 % interval", "n", *more[:MAX_COLUMNS]]
    return _cut(PageTable(header, rows, title))


def _matrix(title: str, columns: Sequence[str], alike: Mapping[str, Metric]) -> PageTable:
    rows: list[list[Cell | str]] = [
        [key, *(cell(inner[column]) if column in inner else "" for column in columns)]
        for key, inner in alike.items()
    ]
    return _cut(PageTable(["", *columns], rows, title))


def _cut(table: PageTable) -> PageTable:
    left_out = len(table.rows) - MAX_ROWS
    if left_out <= 0:
        return table
    note = f"{left_out} more rows stand in the file."
    return PageTable(table.header, table.rows[:MAX_ROWS], table.title, note)


def flattened(value: Any, path: str = "", *, depth: int = 0) -> Iterator[tuple[str, str]]:
    """(a.b.c, text) of every value in nested tables."""
    if isinstance(value, Mapping) and value and depth < MAX_DEPTH:
        for key, inner in value.items():
            yield from flattened(inner, f"{path}.{key}" if path else str(key), depth=depth + 1)
    else:
        yield path, value if isinstance(value, str) else _as_json(value)


def und(mme_perception: float, gqa: float, seed: float, pope: float) -> dict[str, float]:
    """The paper's "Und", the harmonic mean of four benchmarks (Tables 3, 5, 6), on two scales.

    MME in 0-2000, the others in 0-100. `und_paper` takes them as they are, the only reading that
    the paper's own figures allow (GQA 61.0, MME 1428, POPE 87.4 and Und 92.9 give SEED 68.9), in
    which MME has next to no weight; `und_norm` takes MME / 20.
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
