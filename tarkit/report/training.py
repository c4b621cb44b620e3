"""A training as plots: the loss, what the codebook does, rates, and its last samples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tarkit.errors import UserError
from tarkit.report.blocks import (
    CaptionedImage,
    Figure,
    FigureGrid,
    PageBlock,
    PageTable,
    Paragraph,
    Section,
    data_uri,
)
from tarkit.report.metrics import nested, number
from tarkit.report.runs import RecordedRun, is_finite, picture_of
from tarkit.report.svg import Series, lines, thinned

SHEET_PX = 1100
# What tells of a codebook; the loss comes before it, everything else behind.
CODEBOOK = re.compile(r"codebook|perplexity|usage|used|dead|cosine|commit")
SAME_AT_EVERY_SCALE = {"rate", "grad_norm", "weight_rms", "rows_per_s"}
NOT_DRAWN = {"step", "scale"}


def training(run: RecordedRun) -> list[PageBlock]:
    """Its figures over the steps, as they stand at the end, and the last sheet of samples."""
    if not run.log:
        return []
    curves = Curves(run.log)
    last = {name: value for name, value in run.log[-1].items() if name not in NOT_DRAWN}
    blocks: list[PageBlock] = []
    if run.torn_lines:
        text = f"{run.torn_lines} lines of metrics.jsonl are no rows of figures and are left out."
        blocks.append(Paragraph(text, "warning"))
    if curves.num_left_out:
        text = f"{curves.num_left_out} values are no finite numbers and are not drawn."
        blocks.append(Paragraph(text, "warning"))
    losses = [name for name in curves.names if "loss" in name]
    codebook = [name for name in curves.names if name not in losses and CODEBOOK.search(name)]
    rest = [name for name in curves.names if name not in (*losses, *codebook)]
    drawn = [_curve("loss", curves, losses)] if losses else []
    for name in codebook:
        drawn.append(_curve(name if "codebook" in name else f"codebook: {name}", curves, [name]))
    drawn += [_curve(name, curves, [name]) for name in rest]
    blocks.append(FigureGrid(drawn))
    scale = f", scale {number(run.log[-1]['scale'])}" if curves.scales else ""
    blocks.append(
        PageTable(
            ["figure", "value"],
            [[name, number(value)] for name, value in last.items()],
            f"At step {number(run.log[-1]['step'])}{scale}",
        )
    )
    if run.figures:
        blocks += nested(run.figures, title="the finished model")
    blocks += _last_samples(run)
    return [Section("Training", blocks, level=3)]


def _curve(title: str, curves: Curves, names: Sequence[str]) -> Figure:
    series = [line for name in names for line in curves.of(name, alone=len(names) == 1)]
    drawn = [thinned(each) for each in series]
    is_thinned = any(len(each.x) < len(whole.x) for each, whole in zip(drawn, series, strict=True))
    note = "means of neighbouring rows, their range behind" if is_thinned else ""
    return Figure(lines(drawn, x_name="step", y_name=title), title, note)


@dataclass(frozen=True)
class Curves:
    """A training's figures as lines over its steps.

    A tokenizer's row is of one scale, and its figures differ between scales: a line each.
    """

    log: Sequence[Mapping[str, Any]]
    names: Sequence[str] = field(init=False)
    scales: Sequence[Any] = field(init=False)
    num_left_out: int = field(init=False)

    def __post_init__(self) -> None:
        counts = Counter(
            name
            for row in self.log
            for name, value in row.items()
            if is_finite(value) and name not in NOT_DRAWN
        )
        told: list[Any] = [row.get("scale") for row in self.log]
        scales = sorted(set(told)) if all(map(is_finite, told)) else []
        object.__setattr__(self, "names", list(counts))
        object.__setattr__(self, "scales", scales if 1 < len(scales) <= 6 else [])
        whole = sum(name not in NOT_DRAWN for row in self.log for name in row)
        object.__setattr__(self, "num_left_out", whole - counts.total())

    def of(self, name: str, *, alone: bool) -> list[Series]:
        """The lines of a figure, named by it unless it stands `alone` in its plot."""
        if not self.scales or name in SAME_AT_EVERY_SCALE:
            return [self._line(name, name, self.log)]
        called = "" if alone else f"{name}, "
        found = [
            self._line(name, f"{called}scale {scale}", [r for r in self.log if r["scale"] == scale])
            for scale in self.scales
        ]
        return [each for each in found if each.x]

    def _line(self, name: str, called: str, rows: Sequence[Mapping[str, Any]]) -> Series:
        # By step: a log that two processes wrote into would else run back and forth.
        points = sorted((row["step"], row[name]) for row in rows if is_finite(row.get(name)))
        return Series(called, [float(step) for step, _ in points], [float(y) for _, y in points])


def _last_samples(run: RecordedRun) -> list[PageBlock]:
    folder = run.path / "samples"
    sheets = sorted(folder.glob("[0-9]*.png")) if folder.is_dir() else []
    if not sheets:
        return []
    try:
        picture = picture_of(run, f"samples/{sheets[-1].name}")
    except UserError as error:
        return [Paragraph(f"The last sample sheet is not shown: {error.message}", "note")]
    uri = data_uri(picture, side_px=SHEET_PX)
    return [CaptionedImage(uri, f"Samples of the training: {sheets[-1].name}")]
