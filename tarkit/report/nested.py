"""Any JSON value as tables of a page: rows beyond `MAX_ROWS` are counted in a note."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tarkit.report.blocks import Cell, PageBlock, PageTable, TableRow
from tarkit.report.plots import is_curve
from tarkit.report.values import (
    ESTIMATE_KEYS,
    Metric,
    cell,
    interval,
    is_estimate,
    json_text,
    number,
)

MAX_COLUMNS = 12
MAX_ROWS = 400
MAX_DEPTH = 12
# The keys of an estimate that have columns of their own names.
USUAL_KEYS = (*ESTIMATE_KEYS, "num_prompts")


def nested_tables(value: Any, *, title: str = "", depth: int = 0) -> list[PageBlock]:
    """A table of the value's figures, one whose rows are its similar tables, one for each other."""
    if not isinstance(value, Mapping) or is_estimate(value):
        return [_figure_table(title, {"value": value})]
    if depth == MAX_DEPTH:
        return [PageTable(["figure", "value"], [[title, cell(value)]])]
    if value and all(map(is_curve, value.values())):
        return [_curve_table(title, value)]
    flat = {key: inner for key, inner in value.items() if _is_flat(inner)}
    deep = {key: inner for key, inner in value.items() if key not in flat}
    blocks: list[PageBlock] = [_figure_table(title, flat)] if flat else []
    rows = {key: inner for key, inner in deep.items() if _fits_a_row(inner)}
    columns = list(dict.fromkeys(column for inner in rows.values() for column in inner))
    if len(rows) >= 2 and len(columns) <= MAX_COLUMNS:
        blocks.append(_row_table(title, columns, rows))
        deep = {key: inner for key, inner in deep.items() if key not in rows}
    for key, inner in deep.items():
        name = f"{title} · {key}" if title else key
        blocks += nested_tables(_as_mapping(inner), title=name, depth=depth + 1)
    return blocks


def _is_flat(value: Any) -> bool:
    if isinstance(value, Mapping):
        return is_estimate(value) or not value
    return not (isinstance(value, list) and any(isinstance(each, Mapping) for each in value))


def _fits_a_row(value: Any) -> bool:
    """Whether each value fits a cell; an estimate that carries more numbers needs several."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(map(_is_flat, value.values()))
        and not any(is_estimate(each) and set(each) - set(USUAL_KEYS) for each in value.values())
    )


def _as_mapping(value: Any) -> Any:
    return {str(n): each for n, each in enumerate(value)} if isinstance(value, list) else value


def _figure_table(title: str, flat: Metric) -> PageTable:
    """One row for each figure; further numbers of estimates have columns of their own."""
    estimates = [value for value in flat.values() if is_estimate(value)]
    if not estimates:
        rows: list[TableRow] = [[key, cell(value)] for key, value in flat.items()]
        return _limited(["figure", "value"], rows, title)
    more = _further_keys(estimates)
    rows = []
    for key, value in flat.items():
        if is_estimate(value):
            rows.append([key, *_estimate_cells(value, more)])
        else:
            rows.append([key, cell(value), *[""] * (2 + len(more))])
    return _limited(["figure", "value", "95 % interval", "n", *more], rows, title)


def _curve_table(title: str, arms: Mapping[str, Metric]) -> PageTable:
    """Curves over N candidates, one row for each point, with what it cost."""
    points = [(arm, n, curve[n]) for arm, curve in arms.items() for n in sorted(curve, key=int)]
    more = _further_keys([point for *_, point in points])
    rows: list[TableRow] = [[arm, n, *_estimate_cells(point, more)] for arm, n, point in points]
    return _limited(["", "N", "value", "95 % interval", "n", *more], rows, title)


def _further_keys(estimates: Sequence[Metric]) -> list[str]:
    return list(dict.fromkeys(key for each in estimates for key in each if key not in USUAL_KEYS))


def _estimate_cells(estimate: Metric, more: Sequence[str]) -> TableRow:
    """Value, interval, number of prompts, and the further numbers."""
    rest = [cell(estimate.get(name)) for name in ("num_prompts", *more)]
    return [number(estimate["value"]), Cell(interval(estimate), tone="dim"), *rest]


def _row_table(title: str, columns: Sequence[str], rows: Mapping[str, Metric]) -> PageTable:
    lines: list[TableRow] = [
        [key, *(cell(inner[column]) if column in inner else "" for column in columns)]
        for key, inner in rows.items()
    ]
    return _limited(["", *columns], lines, title)


def _limited(header: Sequence[str], rows: Sequence[TableRow], title: str) -> PageTable:
    """The table with at most `MAX_ROWS` rows, and a note that counts the others."""
    num_cut = len(rows) - MAX_ROWS
    note = f"{num_cut} more rows are in the file." if num_cut > 0 else ""
    return PageTable(header, rows[:MAX_ROWS], title, note)


def flattened(value: Any, path: str = "", *, depth: int = 0) -> Iterator[tuple[str, str]]:
    """(a.b.c, text) of every value in nested tables."""
    if isinstance(value, Mapping) and value and depth < MAX_DEPTH:
        for key, inner in value.items():
            yield from flattened(inner, f"{path}.{key}" if path else str(key), depth=depth + 1)
    else:
        yield path, value if isinstance(value, str) else json_text(value)
