"""Runs against each other on the items that both judged: paired deltas, task by task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tarkit.report.blocks import (
    Cell,
    Figure,
    FigureGrid,
    PageBlock,
    PageTable,
    Paragraph,
    Section,
    Tone,
)
from tarkit.report.metrics import number
from tarkit.report.runs import RecordedRun, ScoreRow
from tarkit.report.svg import Bar, deltas, signed
from tarkit.scoring.statistics import COLOR_POSITION, TASKS, Paired, paired

PAIRED_NOTE = (
    "Delta is the later run less the first, over the items of both; its 95 % interval from "
    "redrawing prompts (pictures, where questions share one), paired. Better and worse count "
    "prompts that rose and fell, p is the exact two-sided sign test of the two counts. No "
    "correction is made for the number of rows: of twenty, one falls below p = 0.05 by chance. "
    "Overall is the mean over tasks. A delta has a colour where its interval leaves zero out and "
    "p is below 0.05."
)


def comparison(runs: Sequence[RecordedRun]) -> list[Section]:
    """Each later run against the first, suite by suite; none where fewer than two are judged."""
    blocks: list[PageBlock] = []
    scored = [each for each in runs if each.scores]
    for other in scored[1:]:
        blocks += _pair(scored[0], other)
    if not blocks:
        return []
    return [Section("Comparison", [*blocks, Paragraph(PAIRED_NOTE, "note")], "comparison")]


def _pair(first: RecordedRun, other: RecordedRun) -> list[PageBlock]:
    blocks: list[PageBlock] = []
    ceilings: list[tuple[str, Compared]] = []
    for suite in first.suites():
        shared = _Shared.of(first, other, suite)
        if shared is None:
            continue
        found = list(shared.compared())
        if suite.startswith("ceiling_"):
            ceilings += [(suite.removeprefix("ceiling_"), found[-1][1])]
            continue
        title = f"{suite}: {other.name} against {first.name}"
        blocks.append(_delta_table(title, first.name, other.name, found, note=shared.told))
        blocks.append(FigureGrid([_delta_figure(f"{suite}: delta", found)]))
    if ceilings:
        title = f"ceilings: {other.name} against {first.name}"
        blocks.append(_delta_table(title, first.name, other.name, ceilings, note=""))
    if not blocks:
        text = f"{other.name} shares no judged item with {first.name}: nothing is compared."
        return [Paragraph(text, "note")]
    return blocks


@dataclass(frozen=True)
class Compared:
    """Both means and what lies between them."""

    before: float
    after: float
    paired: Paired


@dataclass(frozen=True)
class _Shared:
    """What two runs say of the items of one suite that both have, an item a place."""

    tasks: Sequence[str]
    clusters: Sequence[str]
    before: Sequence[float]
    after: Sequence[float]
    told: str

    @classmethod
    def of(cls, first: RecordedRun, other: RecordedRun, suite: str) -> _Shared | None:
        mine, theirs = _items(first, suite), _items(other, suite)
        both = [item for item in mine if item in theirs]
        # An item of one name and another prompt is another item.
        alike = [item for item in both if mine[item].asked == theirs[item].asked]
        if not alike:
            return None
        told = f"{len(alike)} shared items"
        single = len(mine) + len(theirs) - 2 * len(both)
        told += f"; {single} that only one run has are left out" if single else ""
        differ = len(both) - len(alike)
        told += f"; {differ} of one name but other prompts are left out" if differ else ""
        return cls(
            [mine[item].task for item in alike],
            [mine[item].cluster for item in alike],
            [mine[item].value for item in alike],
            [theirs[item].value for item in alike],
            told + ".",
        )

    def compared(self) -> Iterator[tuple[str, Compared]]:
        """A row a task, and last one over all: GenEval's overall of its tasks, else the mean."""
        names = [task for task in dict.fromkeys(self.tasks) if task]
        names.sort(key=lambda name: TASKS.index(name) if name in TASKS else len(TASKS))
        for name in names if len(names) > 1 else ():
            yield name, self._over([task == name for task in self.tasks])
        six = [task in TASKS for task in self.tasks]
        known = {task for task in names if task != COLOR_POSITION}
        if known and known <= set(TASKS):
            over = f"overall over {len(known)} tasks" if len(known) < len(TASKS) else "overall"
            yield over, self._over(six, by_task=True)
        else:
            yield "all", self._over([True] * len(self.tasks))

    def _over(self, chosen: Sequence[bool], *, by_task: bool = False) -> Compared:
        places = [place for place, is_in in enumerate(chosen) if is_in]
        before, after = ([values[p] for p in places] for values in (self.before, self.after))
        groups = [self.tasks[place] if by_task else "" for place in places]
        clusters = [self.clusters[place] for place in places]
        found = paired(before, after, clusters=clusters, groups=groups)
        return Compared(_mean(before, groups), _mean(after, groups), found)


def _mean(values: Sequence[float], groups: Sequence[str]) -> float:
    """The unweighted mean of the groups' means."""
    array, names = np.asarray(values), np.asarray(groups)
    return float(np.mean([array[names == name].mean() for name in dict.fromkeys(groups)]))


@dataclass(frozen=True)
class _JudgedItem:
    task: str
    asked: tuple[str, str]
    cluster: str
    value: float


def _items(run: RecordedRun, suite: str) -> dict[str, _JudgedItem]:
    """Each judged item of a suite with the share of its samples that are correct."""
    rows: dict[str, list[ScoreRow]] = {}
    for row in run.scores:
        if row["suite"] == suite and row["correct"] is not None:
            rows.setdefault(row["item"], []).append(row)
    return {
        item: _JudgedItem(
            samples[0]["task"],
            (samples[0]["task"], samples[0]["prompt"]),
            _cluster(samples[0]),
            sum(row["correct"] for row in samples) / len(samples),
        )
        for item, samples in rows.items()
    }


def _cluster(row: ScoreRow) -> str:
    """What samples share: their prompt, or the picture, by its seed, that questions are about."""
    if row["file"] or row["seed"] is None:
        return f"prompt {row['prompt']}"
    return f"picture {row['seed']}"


def _delta_table(
    title: str, first: str, other: str, found: Sequence[tuple[str, Compared]], *, note: str
) -> PageTable:
    rows: list[list[Cell | str]] = [
        [
            Cell(name, strong=name.startswith(("overall", "all"))),
            number(each.before),
            number(each.after),
            Cell(
                signed(each.paired.delta),
                f"[{signed(each.paired.low)}, {signed(each.paired.high)}]",
                _direction(each.paired),
            ),
            str(each.paired.better),
            str(each.paired.worse),
            _p(each.paired.p),
            f"{each.paired.num_items}",
            f"{each.paired.num_clusters}",
        ]
        for name, each in found
    ]
    header = ["", first, other, "delta", "better", "worse", "p", "items", "clusters"]
    return PageTable(header, rows, title, note)


def _direction(found: Paired) -> Tone:
    """A colour only where the interval leaves zero out and the sign test agrees.

    Of one prompt, or few, the bootstrap's interval is too narrow to be believed alone.
    """
    if found.p >= 0.05:
        return ""
    return "good" if found.low > 0 else "bad" if found.high < 0 else ""


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _delta_figure(title: str, found: Sequence[tuple[str, Compared]]) -> Figure:
    shown = [Bar(name, c.paired.delta, c.paired.low, c.paired.high) for name, c in found]
    return Figure(deltas(shown), title, "95 % intervals")
