"""The result of `tarkit bench` as a table for people, in a terminal or on a page."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 120
COLUMNS = ("median", "interval", "rate", "x ours", "of floor", "equal")


def table(result: Mapping[str, Any]) -> str:
    """Machine, ceilings, and a row for each way of each case, in at most 120 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable

    rows = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    rows.add_column("work and way", no_wrap=True)
    for name in COLUMNS:
        rows.add_column(name, justify="right", no_wrap=True)
    for case in result["cases"]:
        head, *ways = _rows(case)
        rows.add_section()
        rows.add_row(*head)
        for name, *cells in ways:
            rows.add_row(f"  {name}", *cells)
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, markup=False, highlight=False, no_color=True)
    console.print("\n".join(_heading(result)), soft_wrap=True)
    console.print(rows)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def markdown(result: Mapping[str, Any]) -> str:
    """The same in Markdown, with a section for each subject."""
    lines = [f"- {line}" for line in _heading(result)]
    for subject, cases in itertools.groupby(result["cases"], key=lambda case: case["subject"]):
        lines += ["", f"### {subject}", "", f"| work and way | {' | '.join(COLUMNS)} |"]
        lines.append("|---" + "|---:" * len(COLUMNS) + "|")
        for case in cases:
            (name, *cells), *ways = _rows(case)
            lines += [f"| {' | '.join(row)} |" for row in ([f"**{name}**", *cells], *ways)]
    return "\n".join(lines)


def _rows(case: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """A head, the floor where there is one, and a row for each way; each has all columns."""
    yield (case["name"], "", "", f"{case['unit']}/s", "", "", "")
    if case["floor_seconds"]:
        name = f"floor, by {case['floor_by']}"
        yield (name, duration(case["floor_seconds"]), "", "", "", "", "")
    for name, way in case["ways"].items():
        yield (name, *_cells(way))


def _cells(way: Mapping[str, Any]) -> list[str]:
    share, agreement, times = way.get("of_floor"), way.get("agreement"), way.get("times_ours")
    unit, factor = unit_of(way["seconds"])
    low, high = (short(way[name] * factor) for name in ("seconds_low", "seconds_high"))
    return [
        f"{short(way['seconds'] * factor)} {unit}",
        f"[{low}, {high}]",
        short(way["per_second"]),
        "" if times is None else f"{times:.2f}",
        "" if share is None else f"{share:.0%}",
        "" if agreement is None else f"{agreement:.2%}",
    ]


def _heading(result: Mapping[str, Any]) -> list[str]:
    machine, ceilings = result["machine"], result["ceilings"]
    products = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in ceilings["gemm"].items())
    traffic = ", ".join(f"{name} {rate / 1e9:,.1f}" for name, rate in ceilings["bandwidth"].items())
    where = machine.get("gpu") or machine["processor"]
    lines = [
        f"{where}, {machine['threads']} threads, torch {result['versions'].get('torch')}, "
        f"seed {result['seed']}",
        f"products, GFLOP/s: {products}",
        f"memory, GB/s: {traffic}",
    ]
    if result["tiny"]:
        lines.append("--tiny: small models and arrays; these times say nothing about speed")
    return lines


def unit_of(seconds: float) -> tuple[str, float]:
    """The unit in which a time has digits before the point, and how many make a second."""
    if seconds >= 1:
        return "s", 1.0
    return ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)


def duration(seconds: float) -> str:
    """Seconds as a short text with its unit, for example 1.25 s, 31.4 ms, 8.02 us."""
    unit, factor = unit_of(seconds)
    return f"{short(seconds * factor)} {unit}"


def short(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
