"""What is needed to repeat the runs: their commands, settings, versions and inputs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tarkit.report.blocks import (
    CommandLines,
    Folded,
    PageBlock,
    PageTable,
    Paragraph,
    Section,
    TableRow,
)
from tarkit.report.escaping import shorten
from tarkit.report.nested import flattened
from tarkit.report.runs import RecordedRun
from tarkit.report.values import NOTHING

MAX_TEXT, MAX_SETTING = 240, 2000


def repeat_section(runs: Sequence[RecordedRun], command: str) -> Section:
    """The commands of each run with all that it records of itself; `command` makes this page."""
    blocks: list[PageBlock] = [Section(each.name, _recorded(each), level=3) for each in runs]
    blocks.append(Section("This page", [CommandLines(command)], level=3))
    lead = (
        "Commands are shown as they were given, oldest first. Relative paths start at the folder "
        "where the command ran."
    )
    return Section("Repeat", blocks, "repeat", lead=lead)


def _recorded(run: RecordedRun) -> list[PageBlock]:
    """The recorded commands, or the settings where there are none; the rest is folded."""
    by_title = {
        "settings": run.settings,
        "versions": run.versions,
        "inputs": run.parents,
        "sha256 of the files read": run.fingerprints,
    }
    tables = {title: _listing(title, values) for title, values in by_title.items() if values}
    blocks: list[PageBlock] = []
    if run.commands:
        blocks.append(CommandLines("\n".join(shlex.join(argv) for argv in run.commands)))
    else:
        text = "No command is recorded: the run was made from Python or by an older version."
        settings = tables.pop("settings", None)
        also = "Its settings:" if settings else "It records no settings either."
        blocks.append(Paragraph(f"{text} {also}", "note"))
        blocks += [settings] if settings else []
    title = f"{run.name}: {', '.join(tables)}"
    blocks.append(Folded(title, list(tables.values()), in_markdown=True))
    return blocks


def _listing(title: str, values: Mapping[str, Any]) -> PageTable:
    rows: list[TableRow] = [[name, shorten(text, MAX_SETTING)] for name, text in flattened(values)]
    return PageTable(["name", "value"], rows, title)


def report_command(
    runs: Sequence[Path],
    *,
    out: Path,
    title: str | None,
    pictures: int,
    seed: int,
    allow_missing: bool,
    findings: Path | None,
) -> str:
    """The command that makes the page of these arguments."""
    words = ["tarkit", "report", *map(str, runs), "--out", str(out)]
    words += ["--findings", str(findings)] if findings else []
    words += ["--title", title] if title else []
    words += ["--pictures", str(pictures), "--seed", str(seed)]
    return shlex.join([*words, *(["--allow-missing"] if allow_missing else [])])


# ---- differences --------------------------------------------------------------------------------


def settings_that_differ(runs: Sequence[RecordedRun]) -> list[Section]:
    """A table of the settings and versions that differ between runs of one kind."""
    blocks: list[PageBlock] = []
    for group in groups_of_one_kind(runs):
        rows = _differing_rows(group)
        names = [each.name for each in group]
        if rows:
            blocks.append(PageTable(["setting", *names], rows))
        elif len(group) > 1:
            text = f"{', '.join(names)} have the same settings and versions."
            blocks.append(Paragraph(text))
    return [Section("Differences of settings", blocks, "settings")] if blocks else []


def groups_of_one_kind(runs: Sequence[RecordedRun]) -> list[list[RecordedRun]]:
    """Runs of one kind: each shares most names of its settings with the first of its group."""
    groups: list[list[RecordedRun]] = []
    for each in runs:
        own = {name for name, _ in flattened(each.settings)}
        for group in groups:
            first = {name for name, _ in flattened(group[0].settings)}
            if 2 * len(own & first) >= len(own | first):
                group.append(each)
                break
        else:
            groups.append([each])
    return groups


def _differing_rows(runs: Sequence[RecordedRun]) -> list[TableRow]:
    settings = [
        dict(flattened(each.settings))
        | {f"version of {name}": text for name, text in flattened(each.versions)}
        for each in runs
    ]
    names = dict.fromkeys(name for each in settings for name in each)
    return [
        [name, *(_brief(each.get(name, NOTHING)) for each in settings)]
        for name in names
        if len({each.get(name) for each in settings}) > 1
    ]


def _brief(text: str) -> str:
    """The beginning of a fingerprint, which is complete under Repeat; other texts shortened."""
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else shorten(text, MAX_TEXT)
