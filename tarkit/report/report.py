"""`tarkit report`: one page of runs, with tables, plots, pictures, comparisons and commands.

`out/index.html` stands alone, without a script and without anything from elsewhere;
`out/report.md` holds its tables and texts. A run is the folder of an evaluation's results, with or
without judged samples, or of a training. The same runs and options give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from tarkit.artifacts.files import write_whole
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.report.blocks import Folded, Page, PageBlock, Paragraph, Section
from tarkit.report.comparison import comparison
from tarkit.report.findings import FindingsConfig, finding_sections
from tarkit.report.html import render
from tarkit.report.metrics import geneval_drift, summary, understanding
from tarkit.report.repeat_commands import repeat_section, report_command, settings_that_differ
from tarkit.report.run_section import run_section
from tarkit.report.runs import RecordedRun, incomplete_metrics, read_runs
from tarkit.report.trainings import trainings_section

INDEX, MARKDOWN = "index.html", "report.md"


def run(
    runs: Sequence[Path],
    *,
    out: Path,
    title: str | None = None,
    pictures: int = 24,
    seed: int = 0,
    allow_missing: bool = False,
    findings: Path | None = None,
) -> Path:
    """Write the page of the runs and return its path; the others are compared with the first.

    With `findings`, a TOML of `FindingsConfig`, the page compares the arms that it names instead,
    over seeds and prompts, and has a line for each training in place of a section for each run.
    The page shows at most `pictures` judged pictures of each run, half of them correct and half
    wrong, chosen by `seed`. Raises UserError for a folder that is no run, and for a run that lacks
    samples unless `allow_missing`.
    """
    if not runs:
        raise UserError("no run is named", hint="tarkit report DIR --out DIR")
    recorded = read_runs(runs)
    if len({each.path.resolve() for each in recorded}) < len(recorded):
        raise UserError("a run is named twice; a run does not compare with itself")
    incomplete = [(each, *metric) for each in recorded for metric in incomplete_metrics(each)]
    if incomplete and not allow_missing:
        first, metric, coverage = incomplete[0]
        raise UserError(
            f"{first.path}: {metric} has a coverage of {coverage:.3f}; samples that failed count "
            "as wrong, so the figures are lower than the model's",
            hint="make the missing samples (tarkit eval shapes --retry-failed), or show the "
            "figures as they are: --allow-missing",
        )
    command = report_command(
        runs,
        out=out,
        title=title,
        pictures=pictures,
        seed=seed,
        allow_missing=allow_missing,
        findings=findings,
    )
    if findings is None:
        sections = _sections_of_runs(recorded, incomplete, pictures=pictures, seed=seed)
        repeat = repeat_section(recorded, command)
    else:
        asked = load_config(FindingsConfig, findings)
        overview, *tables = finding_sections(asked, recorded)
        overview = replace(overview, blocks=[*_warnings(incomplete), *overview.blocks])
        sections = [overview, *tables, *trainings_section(recorded)]
        repeat = _folded(repeat_section(recorded, command))
    default_title = "Findings" if findings else ", ".join(each.name for each in recorded)
    page = Page(title or default_title, _subtitle(recorded), [*sections, repeat])
    write_whole(out / MARKDOWN, page.markdown().encode())
    write_whole(out / INDEX, render(page).encode())
    return out / INDEX


def _sections_of_runs(
    recorded: Sequence[RecordedRun],
    incomplete: Sequence[tuple[RecordedRun, str, float]],
    *,
    pictures: int,
    seed: int,
) -> list[Section]:
    return [
        Section("Summary", [*_warnings(incomplete), *_summary(recorded)], "summary"),
        *(
            run_section(each, f"run{number}", pictures=pictures, seed=seed)
            for number, each in enumerate(recorded, 1)
        ),
        *comparison(recorded),
        *settings_that_differ(recorded),
    ]


def _folded(section: Section) -> Section:
    """The section, closed until a reader opens it: of many runs it is most of the page."""
    return replace(section, blocks=[Folded(section.title, section.blocks, in_markdown=True)])


def _subtitle(runs: Sequence[RecordedRun]) -> str:
    num_trainings = sum(bool(each.log.rows) for each in runs)
    counts = {"result": len(runs) - num_trainings, "training": num_trainings}
    parts = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count]
    versions = {str(each.versions["tarkit"]) for each in runs if "tarkit" in each.versions}
    version = f", tarkit {', '.join(sorted(versions))}" if versions else ""
    return f"{' and '.join(parts)}{version}"


def _warnings(incomplete: Sequence[tuple[RecordedRun, str, float]]) -> list[PageBlock]:
    return [
        Paragraph(
            f"{each.name}: {metric} has a coverage of {coverage:.3f}. Samples that failed count as "
            "wrong.",
            "warning",
        )
        for each, metric, coverage in incomplete
    ]


def _summary(runs: Sequence[RecordedRun]) -> list[PageBlock]:
    with_metrics = [each for each in runs if each.metrics]
    if not with_metrics:
        return [Paragraph("These are trainings: no run here has metrics.", "note")]
    unlike = [
        name
        for name in dict.fromkeys(name for each in with_metrics for name in each.metrics)
        if _have_other_items([each for each in with_metrics if name in each.metrics], name)
    ]
    names = [each.name for each in with_metrics]
    metrics = [each.metrics for each in with_metrics]
    table = summary(names, metrics, unlike=unlike)
    return [table, *geneval_drift(metrics), *understanding(metrics)]


def _have_other_items(runs: Sequence[RecordedRun], metric: str) -> bool:
    """Whether two of the runs have judged samples of a metric's suite, but of different items."""
    suite = metric.partition("@")[0]
    items = [{row["item"] for row in each.scores if row["suite"] == suite} for each in runs]
    known = [each for each in items if each]
    return any(one != other for one, other in combinations(known, 2))
