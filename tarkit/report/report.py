"""One page that says what runs amount to: tables, plots, pictures, comparisons, how to repeat.

`out/index.html` stands alone, without a script or anything from elsewhere, and `out/report.md`
holds its tables and texts. A run is a directory with a `results.json`, with or without judged
samples, or one of a training. The same runs and numbers give the same bytes.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tarkit.artifacts.files import write_whole
from tarkit.errors import UserError
from tarkit.report.blocks import (
    Card,
    CardGrid,
    Cell,
    CommandLines,
    Folded,
    Page,
    PageBlock,
    PageTable,
    Paragraph,
    Section,
    data_uri,
)
from tarkit.report.comparison import comparison
from tarkit.report.escaping import shorten
from tarkit.report.html import render
from tarkit.report.metrics import (
    NOTHING,
    flattened,
    known_tables,
    nested,
    plots,
    summary,
    understanding,
)
from tarkit.report.runs import RecordedRun, ScoreRow, picture_of, read_runs, uncovered
from tarkit.report.training import training

INDEX, MARKDOWN = "index.html", "report.md"
CARD_PX = 224
NUM_ANSWERS = 8
MAX_TEXT, MAX_SETTING = 240, 2000


def run(
    runs: Sequence[Path],
    *,
    out: Path,
    title: str | None = None,
    pictures: int = 24,
    seed: int = 0,
    allow_missing: bool = False,
) -> Path:
    """Write the page of the runs; the first is what the others are compared with.

    `pictures` judged ones are shown of each run, half correct and half wrong, drawn by `seed`.
    Raises UserError for a directory that is no run, and where samples are missing unless
    `allow_missing`.
    """
    if not runs:
        raise UserError("no run is named", hint="tarkit report DIR --out DIR")
    found = read_runs(runs)
    if len({each.path.resolve() for each in found}) < len(found):
        raise UserError("a run is named twice; a run does not compare with itself")
    missing = [(each, *gap) for each in found for gap in uncovered(each)]
    if missing and not allow_missing:
        where, metric, coverage = missing[0]
        raise UserError(
            f"{where.path}: {metric} has a coverage of {coverage:.3f}; what failed is counted as "
            "wrong, so that its figures are lower than the model's",
            hint="make the missing samples (tarkit eval shapes --retry-failed), or show the "
            "figures as they are: --allow-missing",
        )
    shown = Page(
        title or ", ".join(each.name for each in found),
        _subtitle(found),
        [
            Section("Summary", [*_gaps(missing), *_summary(found)], "summary"),
            *(
                _run(each, f"run{place}", pictures=pictures, seed=seed)
                for place, each in enumerate(found, 1)
            ),
            *comparison(found),
            *_differences(found),
            _repeat(found, _own_command(runs, out, title, pictures, seed, allow_missing)),
        ],
    )
    write_whole(out / MARKDOWN, shown.markdown().encode())
    write_whole(out / INDEX, render(shown).encode())
    return out / INDEX


def _subtitle(runs: Sequence[RecordedRun]) -> str:
    trained = sum(bool(each.log) for each in runs)
    kinds = [(len(runs) - trained, "result"), (trained, "training")]
    told = [f"{count} {kind}{'s' if count > 1 else ''}" for count, kind in kinds if count]
    versions = {str(each.versions["tarkit"]) for each in runs if "tarkit" in each.versions}
    made = f", tarkit {', '.join(sorted(versions))}" if versions else ""
    return f"{' and '.join(told)}{made}"


def _gaps(missing: Sequence[tuple[RecordedRun, str, float]]) -> list[PageBlock]:
    return [
        Paragraph(
            f"{each.name}: {metric} has a coverage of {coverage:.3f}. What failed is counted as "
            "wrong.",
            "warning",
        )
        for each, metric, coverage in missing
    ]


def _summary(runs: Sequence[RecordedRun]) -> list[PageBlock]:
    with_metrics = [each for each in runs if each.metrics]
    if not with_metrics:
        return [Paragraph("Trainings alone: no run here holds metrics.", "note")]
    unlike = [
        name
        for name in dict.fromkeys(name for each in with_metrics for name in each.metrics)
        if _are_unlike([each for each in with_metrics if name in each.metrics], name)
    ]
    names = [each.name for each in with_metrics]
    metrics = [each.metrics for each in with_metrics]
    return [summary(names, metrics, unlike=unlike), *understanding(metrics)]


def _are_unlike(runs: Sequence[RecordedRun], metric: str) -> bool:
    suite = metric.partition("@")[0]
    items = [{row["item"] for row in each.scores if row["suite"] == suite} for each in runs]
    known = [each for each in items if each]
    return any(one != other for one, other in combinations(known, 2))


# ---- one run ------------------------------------------------------------------------------------


def _run(run: RecordedRun, anchor: str, *, pictures: int, seed: int) -> Section:
    blocks: list[PageBlock] = [*_metrics(run), *training(run)]
    blocks += _sheet(run, pictures=pictures, seed=seed)
    blocks += _answers(run, seed=seed)
    return Section(run.name, blocks, anchor, lead=_settings_line(run))


def _settings_line(run: RecordedRun) -> str:
    """The settings that fit into a sentence; all of them stand at the end of the page."""
    short = {name: text for name, text in flattened(run.settings) if len(text) <= 24}
    names = ("stage", "split", "n", "limit", "scale", "read_scale", "seed", "steps", "batch_size")
    told = [f"{name} {short[name]}" for name in names if name in short and short[name] != "null"]
    return ", ".join(told)


def _metrics(run: RecordedRun) -> list[PageBlock]:
    if not run.metrics:
        return []
    blocks = plots(run.metrics)
    own, covered = known_tables(run.metrics)
    blocks += own
    for name, metric in run.metrics.items():
        if name not in covered:
            blocks.append(Section(name, nested(metric), level=3))
    if covered:
        everything = [block for name in covered for block in nested(run.metrics[name], title=name)]
        blocks.append(Folded("Every figure of these tables as results.json holds it", everything))
    return [Section("Scores", blocks, level=3)]


def _sheet(run: RecordedRun, *, pictures: int, seed: int) -> list[PageBlock]:
    """Judged pictures, half correct and half wrong as far as there are so many of each."""
    drawn = [row for row in run.scores if row["file"] and row["correct"] is not None]
    own = [row for row in drawn if not row["suite"].startswith("ceiling_")] or drawn
    rows = [row for row in own if row["error"] is None]
    if not rows or pictures < 1:
        return []
    blocks: list[PageBlock] = []
    chosen = half_and_half([row["correct"] for row in rows], pictures, seed=seed)
    for verdict in (True, False):
        cards = [_card(run, rows[at]) for at in chosen if rows[at]["correct"] is verdict]
        total = sum(row["correct"] is verdict for row in rows)
        if cards:
            word = "Correct" if verdict else "Wrong"
            blocks += [Paragraph(f"{word}: {len(cards)} of {total}"), CardGrid(cards)]
    failed = len(own) - len(rows)
    lead = f"Drawn by seed {seed}, half correct and half wrong: their numbers are no score."
    lead += f" {failed} samples failed and have no picture." if failed else ""
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
        uri = data_uri(picture_of(run, row["file"]), side_px=CARD_PX)
    except UserError as error:
        # The message names the place, which is not the reader's concern and may be hostile.
        missing = error.message.replace(str(run.path.resolve()), run.name)
    return Card(
        uri,
        prompt=shorten(row["prompt"], MAX_TEXT),
        verdict="correct" if row["correct"] else "wrong",
        good=row["correct"],
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
        chosen = half_and_half([row["correct"] for row in rows], NUM_ANSWERS, seed=seed)
        if not chosen:
            continue
        lines: list[list[Cell | str]] = [
            [
                shorten(row["prompt"], MAX_TEXT),
                shorten(row["answer"], MAX_TEXT),
                shorten(_truth(row["label"] or ""), MAX_TEXT),
                Cell("correct", tone="good") if row["correct"] else Cell("wrong", tone="bad"),
            ]
            for row in (rows[place] for place in chosen)
        ]
        blocks.append(PageTable(["asked", "answer", "truth", "verdict"], lines, suite))
    return [Section("Answers", blocks, level=3)] if blocks else []


def _truth(label: str) -> str:
    """A label as it is; of a scene its objects, each with the middle's place in pixels."""
    try:
        objects = json.loads(label)["objects"]
        return ", ".join(
            f"{o['colour']} {o['shape']} ({o['x']:.0f}, {o['y']:.0f})" for o in objects
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return label


# ---- settings and repeating ---------------------------------------------------------------------


def _differences(runs: Sequence[RecordedRun]) -> list[Section]:
    """Settings and versions that are not the same in runs of one kind."""
    blocks: list[PageBlock] = []
    for group in _kinds(runs):
        rows = _differing(group)
        names = [each.name for each in group]
        if rows:
            blocks.append(PageTable(["setting", *names], rows))
        elif len(group) > 1:
            blocks.append(Paragraph(f"All settings and versions of {', '.join(names)} are alike."))
    return [Section("Differences of settings", blocks, "settings")] if blocks else []


def _kinds(runs: Sequence[RecordedRun]) -> list[list[RecordedRun]]:
    """Runs that have most of their settings' names in common with the first of their group."""
    groups: list[list[RecordedRun]] = []
    for each in runs:
        mine = {name for name, _ in flattened(each.settings)}
        for group in groups:
            theirs = {name for name, _ in flattened(group[0].settings)}
            if 2 * len(mine & theirs) >= len(mine | theirs):
                group.append(each)
                break
        else:
            groups.append([each])
    return groups


def _differing(runs: Sequence[RecordedRun]) -> list[list[Cell | str]]:
    each_run = [
        dict(flattened(each.settings))
        | {f"version of {name}": text for name, text in flattened(each.versions)}
        for each in runs
    ]
    keys = dict.fromkeys(key for found in each_run for key in found)
    return [
        [key, *(_brief(found.get(key, NOTHING)) for found in each_run)]
        for key in keys
        if len({found.get(key) for found in each_run}) > 1
    ]


def _brief(text: str) -> str:
    """A fingerprint by its beginning; in full it stands with what is needed to repeat the run."""
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else shorten(text, MAX_TEXT)


def _repeat(runs: Sequence[RecordedRun], own: str) -> Section:
    blocks: list[PageBlock] = []
    for each in runs:
        shown: list[PageBlock] = []
        command = _command(each)
        if command:
            shown.append(CommandLines(command))
        else:
            shown.append(Paragraph("The run does not say by which command it was made.", "note"))
        parts = {
            "settings": each.settings,
            "versions": each.versions,
            "inputs": each.parents,
            "sha256 of the files read": each.fingerprints,
        }
        tables = [_listing(title, values) for title, values in parts.items() if values]
        shown.append(Folded(f"{each.name}: {', '.join(parts)}", tables, in_markdown=True))
        blocks.append(Section(each.name, shown, level=3))
    blocks.append(Section("This page", [CommandLines(own)], level=3))
    return Section("Repeat", blocks, "repeat")


def _listing(title: str, values: Mapping[str, Any]) -> PageTable:
    rows = [[name, shorten(text, MAX_SETTING)] for name, text in flattened(values)]
    return PageTable(["name", "value"], rows, title)


def _own_command(
    runs: Sequence[Path],
    out: Path,
    title: str | None,
    pictures: int,
    seed: int,
    allow_missing: bool,
) -> str:
    words = ["tarkit", "report", *map(str, runs), "--out", str(out)]
    words += ["--title", title] if title else []
    words += ["--pictures", str(pictures), "--seed", str(seed)]
    return shlex.join([*words, *(["--allow-missing"] if allow_missing else [])])


def _command(run: RecordedRun) -> str:
    """The command that makes the run, as far as its settings tell it; upper case is to be named.

    The model of an evaluation is named by its fingerprints, which stand below it.
    """
    settings = run.settings
    if isinstance(settings.get("suites"), list) and isinstance(settings.get("sampling"), Mapping):
        sampling = settings["sampling"]
        words = ["tarkit", "eval", "shapes", "--model", "MODEL"]
        for suite in settings["suites"]:
            words += ["--suite", str(suite)]
        # A scale that is asked for is that of drawing and reading; two are the model's own.
        same = settings.get("scale") == settings.get("read_scale")
        for name in ("n", "seed", *(("scale",) if same else ()), "limit", "batch_size"):
            words += _option(name, settings.get(name))
        for name in ("temperature", "top_k", "top_p", "prompt_guidance", "guidance"):
            words += _option(name, sampling.get(name))
        words += ["--validation"] if settings.get("split") == "validation" else []
        return shlex.join([*words, "--out", "DIR"])
    if run.log and isinstance(settings.get("stage"), str):
        words = ["tarkit", "train", settings["stage"], str(run.path / "run.toml")]
        for name, parent in run.parents.items():
            path = parent.get("path") if isinstance(parent, Mapping) else None
            place = str(run.path / path) if isinstance(path, str) else None
            words += _option(re.sub(r"_\d+$", "", name), place)
        return shlex.join([*words, "--out", "DIR"])
    return ""


def _option(name: str, value: Any) -> list[str]:
    return [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
