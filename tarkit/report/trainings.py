"""A line for each of many trainings: what differs between them, and what they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tarkit.report.blocks import Folded, PageBlock, PageTable, Section, TableRow
from tarkit.report.escaping import shorten
from tarkit.report.nested import flattened
from tarkit.report.repeat_commands import groups_of_one_kind
from tarkit.report.runs import RecordedRun
from tarkit.report.values import NOTHING, number

MAX_SETTING = 60


def trainings_section(runs: Sequence[RecordedRun]) -> list[Section]:
    """One section, or none where no run is a training: a table for each kind of training."""
    trainings = [run for run in runs if run.log.rows]
    blocks = [block for group in groups_of_one_kind(trainings) for block in _group(group)]
    return [Section("Trainings", blocks, "trainings")] if blocks else []


def _group(runs: Sequence[RecordedRun]) -> list[PageBlock]:
    settings = [dict(flattened(run.settings)) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    differing = [name for name in names if len({each.get(name) for each in settings}) > 1]
    rows: list[TableRow] = []
    for run, each in zip(runs, settings, strict=True):
        last = run.log.rows[-1]
        values = [shorten(each.get(name, NOTHING), MAX_SETTING) for name in differing]
        rows.append([run.path.resolve().name, number(last["step"]), _loss(last), *values])
    shared = [[name, settings[0][name]] for name in names if name not in differing]
    return [
        PageTable(["training", "at step", "loss", *differing], rows),
        Folded("The settings that these trainings share", [PageTable(["name", "value"], shared)]),
    ]


def _loss(row: Mapping[str, Any]) -> str:
    return number(row["loss"]) if "loss" in row else NOTHING
