"""The part of a page about a training: its figures over the steps, and its last samples."""

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
from tarkit.report.escaping import shorten
from tarkit.report.nested import nested_tables
from tarkit.report.readers import is_finite
from tarkit.report.runs import RecordedRun, read_image
from tarkit.report.svg import Series, lines, thinned
from tarkit.report.values import number

SHEET_PX = 1100
MAX_REASON = 120
# The figures about a codebook; losses are drawn before them, all others after them.
CODEBOOK = re.compile(r"codebook|perplexity|usage|used|dead|cosine|commit")
SAME_AT_EVERY_SCALE = {"rate", "grad_norm", "weight_rms", "skipped_steps"}
OF_THE_MACHINE = re.compile(r"(_per_s|_s|_gb)$|^mfu$")
TOGETHER = (
    ("step_s", "data_wait_s"),
    ("tokens_per_s", "supervised_tokens_per_s"),
    ("flops_per_s", "float32_flops_per_s"),
)
# Where each row is about one scale, all figures have a line each scale.
BY_SCALE = "loss_by_scale/"
NOT_DRAWN = {"step", "scale"}


def training(run: RecordedRun) -> list[PageBlock]:
    """Figures over the steps, their last values, and the last sheet of samples."""
    log = run.log.rows
    if not log:
        return []
    curves = Curves(log)
    blocks: list[PageBlock] = []
    if run.log.num_damaged_lines:
        text = f"{run.log.num_damaged_lines} lines of metrics.jsonl are no rows of figures."
        blocks.append(Paragraph(f"{text} They are left out.", "warning"))
    if curves.num_left_out:
        text = f"{curves.num_left_out} values are no finite numbers and are not drawn."
        blocks.append(Paragraph(text, "warning"))
    if run.bad_rows:
        blocks.append(Paragraph(_bad_rows(run), "warning"))
    blocks.append(FigureGrid(_figures(curves)))
    scale = f", scale {number(log[-1]['scale'])}" if curves.scales else ""
    last = {name: value for name, value in log[-1].items() if name not in NOT_DRAWN}
    blocks.append(
        PageTable(
            ["figure", "value"],
            [[name, number(value)] for name, value in last.items()],
            f"At step {number(log[-1]['step'])}{scale}",
        )
    )
    if run.figures:
        blocks += nested_tables(run.figures, title="the finished model")
    blocks += _last_samples(run)
    return [Section("Training", blocks, level=3)]


def _bad_rows(run: RecordedRun) -> str:
    steps = {number(row["step"]) for row in run.bad_rows}
    reasons = list(dict.fromkeys(str(row.get("reason")) for row in run.bad_rows))
    text = f"bad_rows.jsonl lists {len(run.bad_rows)} rows of {len(steps)} bad steps"
    return f"{text}; the last: {shorten(reasons[-1], MAX_REASON)}."


def _figures(curves: Curves) -> list[Figure]:
    """Plots of losses, of figures of a group, of the codebook, of others, and of the machine."""
    names = [name for name in curves.names if not (curves.scales and name.startswith(BY_SCALE))]
    groups: dict[str, list[str]] = {}
    for name in names:
        if "/" in name:
            groups.setdefault(name.split("/")[0], []).append(name)
    single = [name for name in names if "/" not in name]
    losses = [name for name in single if "loss" in name]
    codebook = [name for name in single if name not in losses and CODEBOOK.search(name)]
    machine = [name for name in single if OF_THE_MACHINE.search(name)]
    rest = [name for name in single if name not in (*losses, *codebook, *machine)]
    figures = [_figure("loss", curves, losses)] if losses else []
    figures += [_figure(group.replace("_", " "), curves, of) for group, of in groups.items()]
    for name in codebook:
        title = name if "codebook" in name else f"codebook: {name}"
        figures.append(_figure(title, curves, [name]))
    figures += [_figure(name, curves, [name]) for name in rest]
    for first, *others in TOGETHER:
        together = [name for name in (first, *others) if name in machine]
        if together:
            figures.append(_figure(" and ".join(together), curves, together))
    paired = {name for names in TOGETHER for name in names}
    return figures + [_figure(name, curves, [name]) for name in machine if name not in paired]


def _figure(title: str, curves: Curves, names: Sequence[str]) -> Figure:
    series = [line for name in names for line in curves.lines(name, is_alone=len(names) == 1)]
    drawn = [thinned(each) for each in series]
    is_thinned = any(len(each.x) < len(whole.x) for each, whole in zip(drawn, series, strict=True))
    note = "means of neighbouring rows; the band is their range" if is_thinned else ""
    return Figure(lines(drawn, x_name="step", y_name=title), title, note)


@dataclass(frozen=True)
class Curves:
    """A training's figures as lines over its steps.

    Each row of a tokenizer's log is about one scale, and its figures differ between scales: each
    scale has a line.
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
        of_rows: list[Any] = [row.get("scale") for row in self.log]
        scales = sorted(set(of_rows)) if all(map(is_finite, of_rows)) else []
        object.__setattr__(self, "names", list(counts))
        object.__setattr__(self, "scales", scales if 1 < len(scales) <= 6 else [])
        num_values = sum(name not in NOT_DRAWN for row in self.log for name in row)
        object.__setattr__(self, "num_left_out", num_values - counts.total())

    def lines(self, name: str, *, is_alone: bool) -> list[Series]:
        """The lines of a figure; their names include the figure's unless its plot has no other."""
        label = name.partition("/")[2] or name
        if not self.scales or name in SAME_AT_EVERY_SCALE or OF_THE_MACHINE.search(name):
            return [_line(name, label, self.log)]
        prefix = "" if is_alone and "/" not in name else f"{label}, "
        by_scale = [
            _line(
                name, f"{prefix}scale {scale:g}", [row for row in self.log if row["scale"] == scale]
            )
            for scale in self.scales
        ]
        return [each for each in by_scale if each.x]


def _line(name: str, label: str, rows: Sequence[Mapping[str, Any]]) -> Series:
    # Sorted, because the line of a log that two processes wrote would run back and forth.
    points = sorted((row["step"], row[name]) for row in rows if is_finite(row.get(name)))
    return Series(label, [float(step) for step, _ in points], [float(y) for _, y in points])


def _last_samples(run: RecordedRun) -> list[PageBlock]:
    folder = run.path / "samples"
    sheets = sorted(folder.glob("[0-9]*.png")) if folder.is_dir() else []
    if not sheets:
        return []
    try:
        image = read_image(run, f"samples/{sheets[-1].name}")
    except UserError as error:
        return [Paragraph(f"The last sample sheet is not shown: {error.message}", "note")]
    uri = data_uri(image, side_px=SHEET_PX)
    return [CaptionedImage(uri, f"Samples of the training: {sheets[-1].name}")]
