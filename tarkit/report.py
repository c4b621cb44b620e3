"""One page that says what runs amount to: tables, plots, pictures, comparisons, how to repeat.

`out/index.html` stands alone, without a script or anything from elsewhere, and `out/report.md`
holds its tables and texts. A run is a directory with a `results.json`, with or without judged
samples, or one of a training. The same runs and numbers give the same bytes.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from tarkit.errors import UserError
from tarkit.figures import NOTHING, flattened, known_tables, nested, number, plots, summary
from tarkit.files import write_whole
from tarkit.pages import (
    Block,
    Card,
    Cell,
    Code,
    Figure,
    Folded,
    Page,
    Paragraph,
    Picture,
    Section,
    Sheet,
    Side,
    Table,
    Tone,
    data_uri,
    shorten,
)
from tarkit.plots import Bar, Series, deltas, lines, signed, thinned
from tarkit.runs import Row, Run, is_finite, picture_of, read_runs, uncovered
from tarkit.scoring.statistics import COLOR_POSITION, TASKS, Paired, paired
from tarkit.worlds.scenes import scene_from_json

INDEX, MARKDOWN = "index.html", "report.md"
CARD_PX, SHEET_PX = 224, 1100
NUM_ANSWERS = 8
MAX_TEXT, MAX_SETTING = 240, 2000
# How a training's figures are grouped; what fits no pattern stands with the rest.
CODEBOOK = re.compile(r"codebook|perplexity|usage|used|dead|cosine|commit")
SAME_AT_EVERY_SCALE = {"rate", "grad_norm", "rows_per_s"}
NOT_DRAWN = {"step", "scale"}


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
            *_comparison(found),
            *_differences(found),
            _repeat(found, _own_command(runs, out, title, pictures, seed, allow_missing)),
        ],
    )
    write_whole(out / MARKDOWN, shown.markdown().encode())
    write_whole(out / INDEX, shown.html().encode())
    return out / INDEX


def _subtitle(runs: Sequence[Run]) -> str:
    trained = sum(bool(each.log) for each in runs)
    kinds = [(len(runs) - trained, "result"), (trained, "training")]
    told = [f"{count} {kind}{'s' if count > 1 else ''}" for count, kind in kinds if count]
    versions = {each.versions.get("tarkit") for each in runs} - {None}
    made = f", tarkit {', '.join(sorted(map(str, versions)))}" if versions else ""
    return f"{' and '.join(told)}{made}"


def _gaps(missing: Sequence[tuple[Run, str, float]]) -> list[Block]:
    return [
        Paragraph(
            f"{each.name}: {metric} has a coverage of {coverage:.3f}. What failed is counted as "
            "wrong.",
            "warning",
        )
        for each, metric, coverage in missing
    ]


def _summary(runs: Sequence[Run]) -> list[Block]:
    with_metrics = [each for each in runs if each.metrics]
    if not with_metrics:
        return [Paragraph("Trainings alone: no run here holds metrics.", "note")]
    unlike = [
        name
        for name in dict.fromkeys(name for each in with_metrics for name in each.metrics)
        if _are_unlike([each for each in with_metrics if name in each.metrics], name)
    ]
    names = [each.name for each in with_metrics]
    return [summary(names, [each.metrics for each in with_metrics], unlike=unlike)]


def _are_unlike(runs: Sequence[Run], metric: str) -> bool:
    suite = metric.partition("@")[0]
    items = [{row["item"] for row in each.scores if row["suite"] == suite} for each in runs]
    known = [each for each in items if each]
    return any(one != other for one, other in combinations(known, 2))


# ---- one run ------------------------------------------------------------------------------------


def _run(run: Run, anchor: str, *, pictures: int, seed: int) -> Section:
    blocks: list[Block] = [*_metrics(run), *_training(run)]
    blocks += _sheet(run, pictures=pictures, seed=seed)
    blocks += _answers(run, seed=seed)
    return Section(run.name, blocks, anchor, lead=_settings_line(run))


def _settings_line(run: Run) -> str:
    """The settings that fit into a sentence; all of them stand at the end of the page."""
    short = {name: text for name, text in flattened(run.settings) if len(text) <= 24}
    names = ("stage", "split", "n", "limit", "scale", "seed", "steps", "batch_size")
    told = [f"{name} {short[name]}" for name in names if name in short and short[name] != "null"]
    return ", ".join(told)


def _metrics(run: Run) -> list[Block]:
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


def _sheet(run: Run, *, pictures: int, seed: int) -> list[Block]:
    """Judged pictures, half correct and half wrong as far as there are so many of each."""
    drawn = [row for row in run.scores if row["file"] and row["correct"] is not None]
    own = [row for row in drawn if not row["suite"].startswith("ceiling_")] or drawn
    rows = [row for row in own if row["error"] is None]
    if not rows or pictures < 1:
        return []
    blocks: list[Block] = []
    chosen = half_and_half([row["correct"] for row in rows], pictures, seed=seed)
    for verdict in (True, False):
        cards = [_card(run, rows[at]) for at in chosen if rows[at]["correct"] is verdict]
        total = sum(row["correct"] is verdict for row in rows)
        if cards:
            word = "Correct" if verdict else "Wrong"
            blocks += [Paragraph(f"{word}: {len(cards)} of {total}"), Sheet(cards)]
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


def _card(run: Run, row: Row) -> Card:
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


def _answers(run: Run, *, seed: int) -> list[Block]:
    """A few answers of each suite that has no pictures of its own."""
    blocks: list[Block] = []
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
        blocks.append(Table(["asked", "answer", "truth", "verdict"], lines, suite))
    return [Section("Answers", blocks, level=3)] if blocks else []


def _truth(label: str) -> str:
    """A label as it is; of a scene its objects, each with the middle's place in pixels."""
    try:
        scene = scene_from_json(label)
        return ", ".join(f"{o.colour} {o.shape} ({o.x:.0f}, {o.y:.0f})" for o in scene.objects)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return label


# ---- trainings ----------------------------------------------------------------------------------


def _training(run: Run) -> list[Block]:
    if not run.log:
        return []
    curves = Curves(run.log)
    last = {name: value for name, value in run.log[-1].items() if name not in NOT_DRAWN}
    blocks: list[Block] = []
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
    drawn += [_curve(f"codebook: {name}", curves, [name]) for name in codebook]
    drawn += [_curve(name, curves, [name]) for name in rest]
    blocks.append(Side(drawn))
    scale = f", scale {number(run.log[-1]['scale'])}" if curves.scales else ""
    blocks.append(
        Table(
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
        scales = {row.get("scale") for row in self.log}
        by_scale = 1 < len(scales) <= 6 and all(is_finite(scale) for scale in scales)
        object.__setattr__(self, "names", list(counts))
        object.__setattr__(self, "scales", sorted(scales) if by_scale else [])
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


def _last_samples(run: Run) -> list[Block]:
    folder = run.path / "samples"
    sheets = sorted(folder.glob("[0-9]*.png")) if folder.is_dir() else []
    if not sheets:
        return []
    try:
        picture = picture_of(run, f"samples/{sheets[-1].name}")
    except UserError as error:
        return [Paragraph(f"The last sample sheet is not shown: {error.message}", "note")]
    uri = data_uri(picture, side_px=SHEET_PX)
    return [Picture(uri, f"Samples of the training: {sheets[-1].name}")]


# ---- runs against each other --------------------------------------------------------------------

PAIRED_NOTE = (
    "Delta is the later run less the first, over the items of both; its 95 % interval from "
    "redrawing prompts (pictures, where questions share one), paired. Better and worse count "
    "prompts that rose and fell, p is the exact two-sided sign test of the two counts. No "
    "correction is made for the number of rows: of twenty, one falls below p = 0.05 by chance. "
    "Overall is the mean over tasks. A delta has a colour where its interval leaves zero out and "
    "p is below 0.05."
)


def _comparison(runs: Sequence[Run]) -> list[Section]:
    blocks: list[Block] = []
    scored = [each for each in runs if each.scores]
    for other in scored[1:]:
        blocks += _pair(scored[0], other)
    if not blocks:
        return []
    return [Section("Comparison", [*blocks, Paragraph(PAIRED_NOTE, "note")], "comparison")]


def _pair(first: Run, other: Run) -> list[Block]:
    blocks: list[Block] = []
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
        blocks.append(Side([_delta_figure(f"{suite}: delta", found)]))
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
    def of(cls, first: Run, other: Run, suite: str) -> _Shared | None:
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
class _Item:
    task: str
    asked: tuple[str, str]
    cluster: str
    value: float


def _items(run: Run, suite: str) -> dict[str, _Item]:
    """Each judged item of a suite with the share of its samples that are correct."""
    rows: dict[str, list[Row]] = {}
    for row in run.scores:
        if row["suite"] == suite and row["correct"] is not None:
            rows.setdefault(row["item"], []).append(row)
    return {
        item: _Item(
            samples[0]["task"],
            (samples[0]["task"], samples[0]["prompt"]),
            _cluster(samples[0]),
            sum(row["correct"] for row in samples) / len(samples),
        )
        for item, samples in rows.items()
    }


def _cluster(row: Row) -> str:
    """What samples share: their prompt, or the picture, by its seed, that questions are about."""
    if row["file"] or row["seed"] is None:
        return f"prompt {row['prompt']}"
    return f"picture {row['seed']}"


def _delta_table(
    title: str, first: str, other: str, found: Sequence[tuple[str, Compared]], *, note: str
) -> Table:
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
    return Table(header, rows, title, note)


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


# ---- settings and repeating ---------------------------------------------------------------------


def _differences(runs: Sequence[Run]) -> list[Section]:
    """Settings and versions that are not the same in runs of one kind."""
    blocks: list[Block] = []
    for group in _kinds(runs):
        rows = _differing(group)
        names = [each.name for each in group]
        if rows:
            blocks.append(Table(["setting", *names], rows))
        elif len(group) > 1:
            blocks.append(Paragraph(f"All settings and versions of {', '.join(names)} are alike."))
    return [Section("Differences of settings", blocks, "settings")] if blocks else []


def _kinds(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that have most of their settings' names in common with the first of their group."""
    groups: list[list[Run]] = []
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


def _differing(runs: Sequence[Run]) -> list[list[Cell | str]]:
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


def _repeat(runs: Sequence[Run], own: str) -> Section:
    blocks: list[Block] = []
    for each in runs:
        shown: list[Block] = []
        command = _command(each)
        if command:
            shown.append(Code(command))
        else:
            shown.append(Paragraph("The run does not say by which command it was made.", "note"))
        parts = {
            "settings": each.settings,
            "versions": each.versions,
            "inputs": each.parents,
            "sha256 of the files read": each.fingerprints,
        }
        tables = [_listing(title, values) for title, values in parts.items() if values]
        shown.append(Folded(f"{each.name}: {', '.join(parts)}", tables, kept=True))
        blocks.append(Section(each.name, shown, level=3))
    blocks.append(Section("This page", [Code(own)], level=3))
    return Section("Repeat", blocks, "repeat")


def _listing(title: str, values: Mapping[str, Any]) -> Table:
    rows = [[name, shorten(text, MAX_SETTING)] for name, text in flattened(values)]
    return Table(["name", "value"], rows, title)


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


def _command(run: Run) -> str:
    """The command that makes the run, as far as its settings tell it; upper case is to be named.

    The model of an evaluation is named by its fingerprints, which stand below it.
    """
    settings = run.settings
    if isinstance(settings.get("suites"), list) and isinstance(settings.get("sampling"), Mapping):
        sampling = settings["sampling"]
        words = ["tarkit", "eval", "shapes", "--model", "MODEL"]
        for suite in settings["suites"]:
            words += ["--suite", str(suite)]
        for name in ("n", "seed", "scale", "limit", "batch_size"):
            words += _option(name, settings.get(name))
        for name in ("temperature", "top_k", "top_p", "prompt_guidance", "guidance"):
            words += _option(name, sampling.get(name))
        words += ["--validation"] if settings.get("split") == "validation" else []
        return shlex.join([*words, "--out", "DIR"])
    if run.log and isinstance(settings.get("stage"), str):
        words = ["tarkit", "train", settings["stage"], str(run.path / "run.toml")]
        for name, parent in run.parents.items():
            path = parent.get("path") if isinstance(parent, Mapping) else None
            words += _option(re.sub(r"_\d+$", "", name), str(run.path / path) if path else None)
        return shlex.join([*words, "--out", "DIR"])
    return ""


def _option(name: str, value: Any) -> list[str]:
    return [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
