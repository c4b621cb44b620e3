"""The first run against each later one, on the items that both judged: paired differences."""

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
    TableRow,
    Tone,
)
from tarkit.report.judged_items import judged_items, overall_tasks
from tarkit.report.runs import RecordedRun
from tarkit.report.svg import Bar, deltas, signed
from tarkit.report.values import number
from tarkit.scoring.statistics import TASKS, Paired, paired

PAIRED_NOTE = (
    "Delta is the score of the later run minus that of the first, on the items of both. Its 95 % "
    "interval comes from redrawing prompts (pictures, where several questions are about one), "
    "paired. Better and worse are the numbers of prompts that rose and fell; p is the exact "
    "two-sided sign test of these two. There is no correction for the number of rows: of twenty, "
    "one falls below p = 0.05 by chance. Overall is the mean over tasks. A delta has a colour "
    "where its interval excludes zero and p is below 0.05."
)


@dataclass(frozen=True)
class Compared:
    """The mean scores of the first and the later run, and their paired difference."""

    before: float
    after: float
    paired: Paired


ComparedTasks = Sequence[tuple[str, Compared]]


def comparison(runs: Sequence[RecordedRun]) -> list[Section]:
    """One section, or none where fewer than two runs have judged samples."""
    blocks: list[PageBlock] = []
    judged = [each for each in runs if each.scores]
    for later in judged[1:]:
        blocks += _pair(judged[0], later)
    if not blocks:
        return []
    return [Section("Comparison", [*blocks, Paragraph(PAIRED_NOTE, "note")], "comparison")]


def _pair(first: RecordedRun, later: RecordedRun) -> list[PageBlock]:
    """A table and a plot for each suite of both runs, and one table of all ceilings."""
    blocks: list[PageBlock] = []
    ceilings: list[tuple[str, Compared]] = []
    names = (first.name, later.name)
    for suite in first.suites():
        shared = _SharedItems.of(first, later, suite)
        if shared is None:
            continue
        tasks = list(shared.compare())
        if suite.startswith("ceiling_"):
            _, over_all_tasks = tasks[-1]
            ceilings.append((suite.removeprefix("ceiling_"), over_all_tasks))
            continue
        title = f"{suite}: {later.name} against {first.name}"
        blocks.append(_delta_table(title, names, tasks, note=shared.note))
        blocks.append(FigureGrid([_delta_figure(f"{suite}: delta", tasks)]))
    if ceilings:
        title = f"ceilings: {later.name} against {first.name}"
        blocks.append(_delta_table(title, names, ceilings, note=""))
    if not blocks:
        text = f"{later.name} shares no judged item with {first.name}: nothing is compared."
        return [Paragraph(text, "note")]
    return blocks


# ---- items --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SharedItems:
    """The items of a suite that both runs judged, one a place; `note` counts those left out."""

    tasks: Sequence[str]
    clusters: Sequence[str]
    before: Sequence[float]
    after: Sequence[float]
    note: str

    @classmethod
    def of(cls, first: RecordedRun, later: RecordedRun, suite: str) -> _SharedItems | None:
        """None where the runs share no item."""
        items, others = judged_items(first, suite), judged_items(later, suite)
        both = [item for item in items if item in others]
        # Items of one name but with another task or prompt are different items.
        shared = [
            item
            for item in both
            if (items[item].task, items[item].prompt) == (others[item].task, others[item].prompt)
        ]
        if not shared:
            return None
        note = f"{len(shared)} shared items"
        num_single = len(items) + len(others) - 2 * len(both)
        note += f"; {num_single} that only one run has are left out" if num_single else ""
        num_differing = len(both) - len(shared)
        other = f"; {num_differing} of one name but other prompts are left out"
        note += other if num_differing else ""
        return cls(
            tasks=[items[item].task for item in shared],
            clusters=[items[item].cluster for item in shared],
            before=[items[item].score for item in shared],
            after=[others[item].score for item in shared],
            note=f"{note}.",
        )

    def compare(self) -> Iterator[tuple[str, Compared]]:
        """Each task, and last all items: GenEval's overall if the tasks are its own, or the mean.

        GenEval's overall is the unweighted mean of its tasks, without the drawn world's own task.
        """
        names = [task for task in dict.fromkeys(self.tasks) if task]
        names.sort(key=lambda name: TASKS.index(name) if name in TASKS else len(TASKS))
        for name in names if len(names) > 1 else ():
            yield name, self._compare([task == name for task in self.tasks])
        known = overall_tasks(names)
        if known:
            name = f"overall over {len(known)} tasks" if len(known) < len(TASKS) else "overall"
            yield name, self._compare([task in TASKS for task in self.tasks], by_task=True)
        else:
            yield "all", self._compare([True] * len(self.tasks))

    def _compare(self, is_chosen: Sequence[bool], *, by_task: bool = False) -> Compared:
        places = np.flatnonzero(is_chosen).tolist()
        before, after = ([scores[p] for p in places] for scores in (self.before, self.after))
        groups = [self.tasks[place] if by_task else "" for place in places]
        clusters = [self.clusters[place] for place in places]
        difference = paired(before, after, clusters=clusters, groups=groups)
        return Compared(_mean(before, groups), _mean(after, groups), difference)


def _mean(values: Sequence[float], groups: Sequence[str]) -> float:
    """The unweighted mean of the groups' means."""
    array, names = np.asarray(values), np.asarray(groups)
    return float(np.mean([array[names == name].mean() for name in dict.fromkeys(groups)]))


# ---- tables and plots ---------------------------------------------------------------------------


def _delta_table(
    title: str, names: tuple[str, str], tasks: ComparedTasks, *, note: str
) -> PageTable:
    rows: list[TableRow] = [
        [
            Cell(name, strong=name.startswith(("overall", "all"))),
            number(each.before),
            number(each.after),
            _delta_cell(each.paired),
            str(each.paired.better),
            str(each.paired.worse),
            _p_value(each.paired.p),
            f"{each.paired.num_items}",
            f"{each.paired.num_clusters}",
        ]
        for name, each in tasks
    ]
    header = ["", *names, "delta", "better", "worse", "p", "items", "clusters"]
    return PageTable(header, rows, title, note)


def _delta_cell(difference: Paired) -> Cell:
    ends = f"[{signed(difference.low)}, {signed(difference.high)}]"
    return Cell(signed(difference.delta), ends, _tone(difference))


def _tone(difference: Paired) -> Tone:
    """A colour only where the interval excludes zero and the sign test agrees.

    The bootstrap's interval is too narrow to be trusted alone where there are few prompts.
    """
    if difference.p >= 0.05:
        return ""
    return "good" if difference.low > 0 else "bad" if difference.high < 0 else ""


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _delta_figure(title: str, tasks: ComparedTasks) -> Figure:
    bars = [Bar(name, c.paired.delta, c.paired.low, c.paired.high) for name, c in tasks]
    return Figure(deltas(bars), title, "95 % intervals")
