"""The findings of a paper beside those of one's own runs, each with a verdict that is computed.

A `FindingsConfig` (TOML) lists tables of the paper, the arms of each, and what the paper finds of
pairs of arms. An arm is a setting that several trainings share, which differ in their seeds: the
results of the arm `random` lie in folders named `random-0`, `random-1` and so on.

Letters: S seeds, I items.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from tarkit.config import Config
from tarkit.errors import UserError
from tarkit.report.blocks import (
    Cell,
    Figure,
    PageBlock,
    PageTable,
    Paragraph,
    Section,
    TableRow,
    Tone,
)
from tarkit.report.escaping import shorten
from tarkit.report.judged_items import JudgedItem, judged_items, overall_tasks
from tarkit.report.runs import RecordedRun
from tarkit.report.svg import Series, lines, signed
from tarkit.report.values import NOTHING, number
from tarkit.scoring.statistics import TASKS, Estimate, over_seeds

MAX_WARNING = 400
APPEARS, NOT_THERE = "appears", "does not appear"
UNKNOWN, NOT_RUN = "cannot be told", "not run"


class Measure(Config):
    """What arms are compared by."""

    suite: str
    """The suite of judged samples. One of GenEval's tasks has the mean over its tasks, any other
    the mean over its items."""
    of: Literal["samples", "clauses"] = "samples"
    """What is right or wrong: a sample, or each of its clauses, such as "two red circles"; then the
    score is the mean over the items of GenEval's tasks, as DPG's is over its prompts."""
    chance: float = Field(default=0.0, ge=0, le=1)
    """The score of a model that knows nothing. Of two arms of which neither is above it nothing can
    be told."""


class PaperArm(Config):
    """An arm of an ablation, and the paper's figures of it as the paper prints them, by measure.

    A measure that is not named here is not shown for this arm.
    """

    name: str
    label: str
    paper: Mapping[str, str] = {}


class Finding(Config):
    """What the paper finds of two arms: `arm` is higher or lower than `than`, or the same."""

    claim: str
    arm: str
    than: str
    measure: str
    difference: Literal["higher", "lower", "same"]
    paper: str = ""
    """What the paper says, where its figures of the two arms are no numbers to subtract."""


class PaperTable(Config):
    """A table of the paper."""

    title: str
    note: str = ""
    arms: tuple[PaperArm, ...]
    findings: tuple[Finding, ...] = ()

    @model_validator(mode="after")
    def _findings_are_of_its_arms(self) -> PaperTable:
        names = {arm.name for arm in self.arms}
        for finding in self.findings:
            if finding.arm == finding.than:
                raise ValueError(f"{self.title}: {finding.arm} does not compare with itself")
            for name in {finding.arm, finding.than} - names:
                raise ValueError(f"{self.title}: no arm is named {name}")
            if not finding.paper and self.difference(finding) is None:
                raise ValueError(
                    f"{self.title}: {finding.claim}: the paper's figures give no difference; say "
                    "in `paper` what it says"
                )
        return self

    def difference(self, finding: Finding) -> tuple[Decimal, str] | None:
        """The paper's difference, and its figures in words; None where they are no numbers."""
        figures = {arm.name: arm.paper.get(finding.measure, "") for arm in self.arms}
        later, first = figures[finding.arm], figures[finding.than]
        try:
            return Decimal(later) - Decimal(first), f"{later} against {first}"
        except InvalidOperation:
            return None


class CurveOfArms(Config):
    """A line of a figure: at each x an arm, in order."""

    label: str
    arms: tuple[str, ...]


class PaperFigure(Config):
    """A figure of the paper, drawn anew from the arms of its lines."""

    title: str
    measure: str
    x_name: str
    x: tuple[float, ...]
    curves: tuple[CurveOfArms, ...]

    @model_validator(mode="after")
    def _each_x_has_an_arm(self) -> PaperFigure:
        for curve in self.curves:
            if len(curve.arms) != len(self.x):
                raise ValueError(f"{curve.label} has {len(curve.arms)} arms for {len(self.x)} x")
        return self


class FindingsConfig(Config):
    """The tables and figures of a paper that runs are compared with."""

    measures: Mapping[str, Measure]
    tables: tuple[PaperTable, ...] = ()
    figures: tuple[PaperFigure, ...] = ()
    min_seeds: PositiveInt = 3
    same_within: float = Field(default=0.03, gt=0)
    """The largest difference that still counts as none, where the paper finds none."""
    note: str = ""
    """What a reader of the page must know of the runs."""

    @model_validator(mode="after")
    def _names_are_known(self) -> FindingsConfig:
        for table in self.tables:
            for name in {name for arm in table.arms for name in arm.paper}:
                self._require_measure(name)
            for finding in table.findings:
                self._require_measure(finding.measure)
        for figure in self.figures:
            self._require_measure(figure.measure)
        return self

    def _require_measure(self, name: str) -> None:
        if name not in self.measures:
            known = ", ".join(self.measures)
            raise ValueError(f"there is no measure {name}; known are {known}")


@dataclass(frozen=True)
class Judgement:
    """A finding in one's own runs: the paired difference, and what it says of the paper's."""

    difference: Estimate | None
    num_seeds: int
    verdict: str


def verdict(difference: Estimate, expected: str, *, num_seeds: int, config: FindingsConfig) -> str:
    """Whether the paper's finding appears, by the 95 % interval of the paired difference.

    It appears where the whole interval lies on the paper's side of zero, and does not where the
    whole interval lies on the other side. Where the paper finds no difference, it appears where the
    interval lies within `same_within` of zero, and does not where it lies wholly outside. Anything
    else cannot be told, nor can what has fewer than `min_seeds` seeds.
    """
    if num_seeds < config.min_seeds:
        return UNKNOWN
    low, high = difference.low, difference.high
    if expected == "lower":
        low, high = -high, -low
    if expected == "same":
        margin = config.same_within
        is_there, is_absent = -margin <= low and high <= margin, low > margin or high < -margin
    else:
        is_there, is_absent = low > 0, high < 0
    return APPEARS if is_there else NOT_THERE if is_absent else UNKNOWN


def rule(config: FindingsConfig) -> str:
    """The rule of the verdicts in words."""
    chances = ", ".join(f"{name} {number(each.chance)}" for name, each in config.measures.items())
    return (
        "Verdicts are computed. Ours is the difference between two arms, paired by seed and by "
        "prompt or question; its 95 % interval comes from redrawing seeds and prompts (pictures, "
        "where several questions are about one). A finding appears where the whole interval lies "
        "on the paper's side of zero, and does not appear where it lies on the other side. Where "
        "the paper finds no difference, it appears where the whole interval lies within "
        f"±{number(config.same_within)}, and does not where it lies outside. All else cannot be "
        f"told, nor can a difference over fewer than {config.min_seeds} seeds, or between two arms "
        f"of which neither is above chance ({chances}) by its own interval. There is no "
        "correction for the number of findings."
    )


def finding_sections(config: FindingsConfig, runs: Sequence[RecordedRun]) -> list[Section]:
    """All findings in one table, then the arms of each table of the paper, then its figures."""
    arms = _Arms.of(config, runs)
    rows: list[TableRow] = []
    sections: list[Section] = []
    for place, table in enumerate(config.tables, 1):
        rows += [_finding_row(table, finding, arms.judge(finding)) for finding in table.findings]
        block = _arms_table(table, arms)
        sections.append(Section(table.title, [block], f"table{place}", lead=table.note))
    sections += [
        Section(figure.title, [_figure(figure, arms)], f"figure{place}")
        for place, figure in enumerate(config.figures, 1)
    ]
    overview: list[PageBlock] = [Paragraph(config.note)] if config.note else []
    overview += arms.left_out()
    header = ["finding", "paper", "ours", "verdict"]
    overview += [PageTable(header, rows), Paragraph(rule(config), "note")]
    return [Section("Findings", overview, "findings"), *sections]


# ---- arms ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Arms:
    """The results of each arm by seed, {arm: {seed: run}}."""

    config: FindingsConfig
    runs: Mapping[str, Mapping[int, RecordedRun]]

    @classmethod
    def of(cls, config: FindingsConfig, runs: Sequence[RecordedRun]) -> _Arms:
        """Raises UserError where two results are of one arm and seed."""
        arms: dict[str, dict[int, RecordedRun]] = {}
        for run in runs:
            if not run.metrics:
                continue
            name = run.path.resolve().name
            match = re.fullmatch(r"(.+)-(\d{1,9})", name)
            arm, seed = (match[1], int(match[2])) if match else (name, 0)
            if seed in arms.setdefault(arm, {}):
                raise UserError(
                    f"{run.path} and {arms[arm][seed].path} are both seed {seed} of the arm {arm}",
                    hint="name each arm's results ARM-SEED",
                )
            arms[arm][seed] = run
        return cls(config, arms)

    def left_out(self) -> list[PageBlock]:
        """A warning that names the results of no arm of the findings."""
        known = {arm.name for table in self.config.tables for arm in table.arms}
        known |= {arm for each in self.config.figures for line in each.curves for arm in line.arms}
        others = [name for name in self.runs if name not in known]
        if not others:
            return []
        text = f"Left out are results of no arm of the findings: {', '.join(others)}."
        return [Paragraph(shorten(text, MAX_WARNING), "warning")]

    def score(self, arm: str, measure: str) -> tuple[Estimate | None, int]:
        """The mean of an arm over its seeds, and their number; None where it has no such score."""
        seeds = list(self._items(arm, measure).values())
        return (
            (_estimate([seeds], self.config.measures[measure]), len(seeds)) if seeds else (None, 0)
        )

    def judge(self, finding: Finding) -> Judgement:
        first = self._items(finding.than, finding.measure)
        later = self._items(finding.arm, finding.measure)
        both = [seed for seed in first if seed in later]
        if not both:
            return Judgement(None, 0, NOT_RUN)
        pair = [[items[seed] for seed in both] for items in (later, first)]
        measure = self.config.measures[finding.measure]
        difference = _estimate(pair, measure)
        if difference is None:
            return Judgement(None, len(both), UNKNOWN)
        scores = [_estimate([items], measure) for items in pair]
        if not any(score and score.low > measure.chance for score in scores):
            return Judgement(difference, len(both), UNKNOWN)
        found = verdict(difference, finding.difference, num_seeds=len(both), config=self.config)
        return Judgement(difference, len(both), found)

    def _items(self, arm: str, measure: str) -> dict[int, dict[str, JudgedItem]]:
        suite = self.config.measures[measure].suite
        by_seed = {
            seed: judged_items(run, suite) for seed, run in sorted(self.runs.get(arm, {}).items())
        }
        return {seed: items for seed, items in by_seed.items() if items}


def _estimate(
    arms: Sequence[Sequence[Mapping[str, JudgedItem]]], measure: Measure
) -> Estimate | None:
    """The mean over seeds and items of one arm, or of the first arm minus the second.

    `arms` holds the items of each seed. Only items that all have, with one task and prompt, count;
    None where there is none.
    """

    def score(item: JudgedItem) -> float:
        value = item.clauses if measure.of == "clauses" else item.score
        return math.nan if value is None else value

    every = [items for arm in arms for items in arm]
    names = [
        name
        for name, item in every[0].items()
        if all(
            name in items
            and (items[name].task, items[name].prompt) == (item.task, item.prompt)
            and not math.isnan(score(items[name]))
            for items in every
        )
    ]
    tasks = overall_tasks(every[0][name].task for name in names)
    if tasks:
        names = [name for name in names if every[0][name].task in TASKS]
    if not names:
        return None
    values = [np.array([[score(items[name]) for name in names] for items in arm]) for arm in arms]
    chosen = [every[0][name] for name in names]
    return over_seeds(
        values[0] - values[1] if len(values) == 2 else values[0],
        clusters=[item.cluster for item in chosen],
        groups=[item.task for item in chosen] if tasks and measure.of == "samples" else None,
    )


# ---- tables and figures -------------------------------------------------------------------------

TONES: Mapping[str, Tone] = {APPEARS: "good", NOT_THERE: "bad"}


def _finding_row(table: PaperTable, finding: Finding, judgement: Judgement) -> TableRow:
    of_paper = table.difference(finding)
    paper, figures = (_decimal(of_paper[0]), of_paper[1]) if of_paper else (NOTHING, finding.paper)
    source = f"{table.title.partition(':')[0]}, {finding.measure}: {figures}"
    found, seeds = judgement.difference, judgement.num_seeds
    num_seeds = f"{seeds} seed{'s' if seeds > 1 else ''}"
    ours = Cell(NOTHING)
    if found:
        ours = Cell(signed(found.value), f"{_ends(found, signed)} {num_seeds}")
    # Without a tone the words wrap, so that a narrow page shows the column.
    word = Cell(judgement.verdict, tone=TONES.get(judgement.verdict, ""), strong=True)
    return [Cell(finding.claim, source), paper, ours, word]


def _decimal(value: Decimal) -> str:
    """A difference with the digits of the figures that it is of: `+1.8`, `−0.3`."""
    return str(value).replace("-", "−") if value <= 0 else f"+{value}"


def _ends(estimate: Estimate, write: Callable[[float], str]) -> str:
    return f"[{write(estimate.low)}, {write(estimate.high)}]"


def _arms_table(table: PaperTable, arms: _Arms) -> PageTable:
    """The paper's figures and ours of each arm."""
    measures = list(dict.fromkeys(name for arm in table.arms for name in arm.paper))
    columns = [text for name in measures for text in (f"{name}: paper", "ours")]
    rows: list[TableRow] = []
    for arm in table.arms:
        row: TableRow = [arm.label]
        most = 0
        for name in measures:
            if name not in arm.paper:
                row += [NOTHING, NOTHING]
                continue
            found, num_seeds = arms.score(arm.name, name)
            most = max(most, num_seeds)
            ours = Cell(number(found.value), _ends(found, number)) if found else Cell(NOT_RUN)
            row += [arm.paper[name], ours]
        rows.append([*row, str(most)])
    return PageTable(["arm", *columns, "seeds"], rows)


def _figure(figure: PaperFigure, arms: _Arms) -> PageBlock:
    series = []
    for curve in figure.curves:
        points = [
            (x, found)
            for x, arm in zip(figure.x, curve.arms, strict=True)
            if (found := arms.score(arm, figure.measure)[0])
        ]
        series.append(
            Series(
                curve.label,
                [x for x, _ in points],
                [found.value for _, found in points],
                [found.low for _, found in points],
                [found.high for _, found in points],
            )
        )
    if not any(each.x for each in series):
        return Paragraph(f"{figure.measure}: {NOT_RUN}.", "note")
    drawing = lines(series, x_name=figure.x_name, whiskers=True, y_name=figure.measure)
    return Figure(drawing, figure.measure, "95 % intervals over seeds and prompts")
