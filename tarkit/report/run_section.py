"""The part of a page about one run: scores, training, judged pictures and answers."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from tarkit.errors import UserError
from tarkit.report.blocks import (
    Card,
    CardGrid,
    Cell,
    Folded,
    PageBlock,
    PageTable,
    Paragraph,
    Section,
    TableRow,
    data_uri,
)
from tarkit.report.escaping import shorten
from tarkit.report.nested import flattened, nested_tables
from tarkit.report.plots import plots
from tarkit.report.readers import ScoreRow
from tarkit.report.runs import RecordedRun, read_image
from tarkit.report.suite_tables import suite_tables
from tarkit.report.training import training

CARD_PX = 224
NUM_ANSWERS = 8
MAX_TEXT = 240


def run_section(run: RecordedRun, anchor: str, *, pictures: int, seed: int) -> Section:
    """All of one run but its settings; the judged pictures and answers are chosen by `seed`."""
    blocks: list[PageBlock] = [*_scores(run), *training(run)]
    blocks += _pictures(run, pictures, seed=seed)
    blocks += _answers(run, seed=seed)
    return Section(run.name, blocks, anchor, lead=_settings_line(run))


def _settings_line(run: RecordedRun) -> str:
    """The settings that fit into a sentence; all of them are at the end of the page."""
    short = {name: text for name, text in flattened(run.settings) if len(text) <= 24}
    names = ("stage", "split", "n", "limit", "scale", "read_scale", "seed", "steps", "batch_size")
    parts = [f"{name} {short[name]}" for name in names if short.get(name, "null") != "null"]
    return ", ".join(parts)


def _scores(run: RecordedRun) -> list[PageBlock]:
    if not run.metrics:
        return []
    tables, covered = suite_tables(run.metrics)
    blocks: list[PageBlock] = [*plots(run.metrics), *tables]
    for name, metric in run.metrics.items():
        if name not in covered:
            blocks.append(Section(name, nested_tables(metric), level=3))
    if covered:
        everything = [
            block for name in covered for block in nested_tables(run.metrics[name], title=name)
        ]
        blocks.append(Folded("Every figure of these tables as results.json holds it", everything))
    return [Section("Scores", blocks, level=3)]


# ---- judged samples -----------------------------------------------------------------------------


def _pictures(run: RecordedRun, count: int, *, seed: int) -> list[PageBlock]:
    """Judged pictures, half correct and half wrong as far as there are so many of each."""
    judged = [row for row in run.scores if row["file"] and row["correct"] is not None]
    # Ceilings are pictures of true scenes: they are shown only where the run has no others.
    judged = [row for row in judged if not row["suite"].startswith("ceiling_")] or judged
    rows = [row for row in judged if row["error"] is None]
    if not rows or count < 1:
        return []
    blocks: list[PageBlock] = []
    chosen = half_and_half([bool(row["correct"]) for row in rows], count, seed=seed)
    for verdict, word in ((True, "Correct"), (False, "Wrong")):
        cards = [_card(run, rows[place]) for place in chosen if rows[place]["correct"] is verdict]
        total = sum(row["correct"] is verdict for row in rows)
        if cards:
            blocks += [Paragraph(f"{word}: {len(cards)} of {total}"), CardGrid(cards)]
    num_failed = len(judged) - len(rows)
    lead = f"Chosen by seed {seed}, half correct and half wrong: their numbers are no score."
    lead += f" {num_failed} samples failed and have no picture." if num_failed else ""
    return [Section("Pictures", blocks, level=3, lead=lead)]


def half_and_half(correct: Sequence[bool], count: int, *, seed: int) -> list[int]:
    """Places of `count` samples, ascending: half of them correct, an odd one wrong.

    Where one half has too few, the other fills up.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(correct)).tolist()
    good = [place for place in order if correct[place]]
    bad = [place for place in order if not correct[place]]
    num_good = min(len(good), max(count // 2, count - len(bad)))
    return sorted(good[:num_good] + bad[: count - num_good])


def _card(run: RecordedRun, row: ScoreRow) -> Card:
    uri = missing = ""
    try:
        uri = data_uri(read_image(run, row["file"] or ""), side_px=CARD_PX)
    except UserError as error:
        # The message names the full path, which tells a reader nothing and may be hostile.
        missing = error.message.replace(str(run.path.resolve()), run.name)
    return Card(
        uri,
        prompt=shorten(row["prompt"], MAX_TEXT),
        verdict="correct" if row["correct"] else "wrong",
        good=bool(row["correct"]),
        reason=shorten(row["reason"] or "", MAX_TEXT),
        aside=" · ".join(part for part in (row["task"], row["column"]) if part),
        missing=shorten(missing, MAX_TEXT),
    )


def _answers(run: RecordedRun, *, seed: int) -> list[PageBlock]:
    """A few answers of each suite that has no pictures of its own."""
    blocks: list[PageBlock] = []
    for suite in run.suites():
        rows = [row for row in run.scores if row["suite"] == suite and row["answer"] is not None]
        rows = [row for row in rows if row["correct"] is not None and not row["file"]]
        chosen = half_and_half([bool(row["correct"]) for row in rows], NUM_ANSWERS, seed=seed)
        if chosen:
            lines = [_answer_row(rows[place]) for place in chosen]
            blocks.append(PageTable(["question", "answer", "truth", "verdict"], lines, suite))
    return [Section("Answers", blocks, level=3)] if blocks else []


def _answer_row(row: ScoreRow) -> TableRow:
    return [
        shorten(row["prompt"], MAX_TEXT),
        shorten(row["answer"] or "", MAX_TEXT),
        shorten(_truth(row["label"] or ""), MAX_TEXT),
        Cell("correct", tone="good") if row["correct"] else Cell("wrong", tone="bad"),
    ]


def _truth(label: str) -> str:
    """A label as it is; of a scene, its objects, each with the place of its middle in pixels."""
    try:
        objects = json.loads(label)["objects"]
        return ", ".join(
            f"{o['colour']} {o['shape']} ({o['x']:.0f}, {o['y']:.0f})" for o in objects
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return label
