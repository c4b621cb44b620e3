"""Values of a results.json: which are estimates, and how a cell of a table shows each.

An estimate is an object with `value`, `low` and `high`, its 95 % interval, and may carry further
numbers; a paired difference has `delta`, `low`, `high` and `p`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tarkit.report.blocks import Cell
from tarkit.report.escaping import shorten
from tarkit.report.readers import is_finite, is_number
from tarkit.report.svg import signed
from tarkit.scoring.statistics import TASKS

MAX_CELL = 400
NOTHING = "–"
ESTIMATE_KEYS = ("value", "low", "high")
DELTA_KEYS = ("delta", "low", "high", "p")

Metric = Mapping[str, Any]
KeyPath = tuple[str, ...]


def is_estimate(value: Any) -> bool:
    return isinstance(value, Mapping) and all(is_number(value.get(name)) for name in ESTIMATE_KEYS)


def is_delta(value: Any) -> bool:
    return isinstance(value, Mapping) and all(is_number(value.get(name)) for name in DELTA_KEYS)


def value_at(metric: Any, path: KeyPath) -> Any:
    """The value under nested keys, None where a key is missing."""
    for key in path:
        metric = metric.get(key) if isinstance(metric, Mapping) else None
    return metric


def number(value: Any) -> str:
    """Three decimals; significant digits for small numbers, fewer decimals for large ones."""
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
    """Any value in one cell; an estimate with its interval and its number of prompts."""
    if is_estimate(value):
        num_prompts = value.get("num_prompts")
        count = f" ({num_prompts})" if is_number(num_prompts) else ""
        return Cell(number(value["value"]), f"{interval(value)}{count}")
    if is_delta(value):
        return Cell(signed(value["delta"]), f"{interval(value)}, p {number(value['p'])}")
    if value is None:
        return Cell(NOTHING, tone="dim")
    if is_number(value):
        return Cell(number(value))
    if isinstance(value, str):
        return Cell(shorten(value, MAX_CELL))
    return Cell(shorten(json_text(value), MAX_CELL))


def overall_cell(metric: Any) -> Cell:
    """The cell of GenEval's overall, with the number of tasks where it is a mean over fewer."""
    shown = cell(value_at(metric, ("overall",)))
    tasks = value_at(metric, ("over",))
    if not isinstance(tasks, list) or not 0 < len(tasks) < len(TASKS):
        return shown
    return Cell(shown.text, f"{shown.aside} over {len(tasks)} tasks")


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
