"""Tables of an evaluation, for report.md and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tarkit.scoring.statistics import COLOR_POSITION, COLUMNS, TASKS
from tarkit.terminal import printable

Estimates = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; `note` is printed below them."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        lines = [self.header, ["-" * 3] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(row) + " |" for row in lines)
        note = f"\n\n{self.note}" if self.note else ""
        return f"## {self.title}\n\n{body}{note}\n"


def show(all_tables: Sequence[Table]) -> None:
    """Print tables on stderr, 200 characters wide where that is not a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=200)
    for each in all_tables:
        table = RichTable(
            title=printable(each.title), caption=printable(each.note), title_justify="left"
        )
        for name in each.header:
            table.add_column(escape(printable(name)), overflow="fold")
        for row in each.rows:
            table.add_row(*(escape(printable(cell.replace("**", ""))) for cell in row))
        console.print(table)


def tables(metrics: Mapping[str, Any]) -> list[Table]:
    """The tables of the drawn world's results under `metrics` of `results.json`."""
    shown = []
    pictures = metrics.get("geneval@shapes")
    if pictures is not None:
        shown.append(_picture_table(pictures))
    if "pope@shapes" in metrics:
        shown.append(_question_table(metrics["pope@shapes"]))
    if "caption@shapes" in metrics:
        shown.append(_caption_table(metrics["caption@shapes"]))
    ceilings = {
        name.removeprefix("ceiling_"): value
        for name, value in metrics.items()
        if name.startswith("ceiling_")
    }
    if ceilings:
        shown.append(_ceiling_table(ceilings, pictures))
    if "codes@shapes" in metrics:
        shown.append(_codes_table(metrics["codes@shapes"]))
    return shown


def _picture_table(result: Mapping[str, Any]) -> Table:
    present = [name for name in COLUMNS if name in result["columns"]]
    parts = [result, *(result["columns"][name] for name in present)]
    rows = [
        [task, *(_estimate(part["tasks"].get(task)) for part in parts), _chance(result, task)]
        for task in TASKS
    ]
    overall = [f"{_estimate(part['overall'])}{_over(part)}" for part in parts]
    rows.append(["**overall**", *overall, _share(result["chance"]["overall"])])
    blank = [""] * (len(present) + 1)
    rows.append(["micro", _estimate(result["micro"]), *blank])
    rows.append(["any of n", _estimate(result["any_of_n"]), *blank])
    if "clauses_am" in result:
        rows.append(["clauses, mean (AM)", _estimate(result["clauses_am"]), *blank])
        rows.append(["clauses, all (GM)", _estimate(result["clauses_gm"]), *blank])
    last = [_estimate(part["tasks"].get(COLOR_POSITION)) for part in parts]
    rows.append([COLOR_POSITION, *last, _chance(result, COLOR_POSITION)])
    note = (
        f"{result['num_prompts']} prompts, {result['num_pictures']} pictures, coverage "
        f"{result['coverage']:.3f}. Overall is the unweighted mean of the six tasks, "
        f"{COLOR_POSITION} beside it; 95 % intervals from redrawing prompts; chance is the same "
        "pictures shuffled between prompts."
    )
    return Table("geneval@shapes", ["task", "all", *present, "chance"], rows, note)


def _question_table(result: Mapping[str, Any]) -> Table:
    parts = {**result["kinds"], "**all**": result["all"], **result["columns"]}
    header = ["negatives", "accuracy", "F1", "precision", "recall", "yes", "unclear", "chance"]
    rows = [
        [
            name,
            _estimate(part["accuracy"]),
            _estimate(part["f1"]),
            *(_share(part[key]) for key in ("precision", "recall", "yes_share")),
            *(_share(part[key]) for key in ("unclear", "chance")),
        ]
        for name, part in parts.items()
    ]
    note = (
        f"{result['num_questions']} questions, coverage {result['coverage']:.3f}; answers read as "
        "POPE's program reads them (no / not / No is no, all else yes); chance is the accuracy of "
        "the same answers shuffled between questions."
    )
    return Table("pope@shapes", header, rows, note)


def _caption_table(result: Mapping[str, Any]) -> Table:
    parts = {"**all**": result["all"], **result["columns"], "chance": result["chance"]}
    keys = ["precision", "recall", "f1", "relation_precision", "relation_recall", "relation_f1"]
    keys += ["background", "exact", "unreadable"]
    header = ["scenes", "P", "R", "F1", "relation P", "relation R", "relation F1"]
    header += ["background", "exact", "unreadable"]
    rows = [[name, *(_figure(part[key]) for key in keys)] for name, part in parts.items()]
    note = (
        f"{result['num_captions']} captions, coverage {result['coverage']:.3f}; groups of (count, "
        "colour, shape) as a multiset; exact: all groups, no false relation, a pair's relation "
        "told."
    )
    return Table("caption@shapes", header, rows, note)


def _ceiling_table(
    ceilings: Mapping[str, Mapping[str, Any]], model: Mapping[str, Any] | None
) -> Table:
    parts = dict(ceilings) | ({"the model@shapes": model} if model is not None else {})
    rows = [
        [
            name.removesuffix("@shapes").replace("_", " "),
            f"{_estimate(part['overall'])}{_over(part)}",
            *(_share((part["tasks"].get(task) or {}).get("value")) for task in TASKS),
        ]
        for name, part in parts.items()
    ]
    note = (
        "Pictures of scenes that fulfil the prompts, judged as drawn, after the image VQ alone, "
        "and after TA-Tok's codes and AR-DTok at each scale: what each step loses of a true scene. "
        "A model that draws easier scenes of a prompt than these can do better."
    )
    return Table("ceilings", ["", "overall", *TASKS], rows, note)


def _codes_table(scales: Mapping[str, Mapping[str, Any]]) -> Table:
    header = ["scale", "codes", "shape", "colour", "position px", "used", "perplexity"]
    header += ["cosine", "used in training", "perplexity in training"]
    rows = []
    for scale, part in scales.items():
        trained = part["trained"]
        rows.append(
            [
                scale,
                str(part["num_codes"]),
                *(_share(part[key]) for key in ("shape", "colour")),
                f"{part['position_px']:.2f}",
                str(part["used"]),
                f"{part['perplexity']:.0f}",
                _share(trained.get("cosine")),
                *(str(trained.get(key, "-")) for key in ("used", "perplexity")),
            ]
        )
    pictures = next(iter(scales.values()))["num_pictures"]
    note = (
        f"Linear probes on {pictures} pictures of one object, a fifth held out: shape and colour "
        "from the counts of a picture's codes, the centre from the codes' vectors. Cosine, and "
        "usage in training, are of decoded features and the teacher's on training pictures."
    )
    return Table("codes@shapes", header, rows, note)


def _over(part: Mapping[str, Any]) -> str:
    """A mark for a mean over fewer than the six tasks."""
    count = len(part["over"])
    return "" if count == len(TASKS) or not count else f" over {count} tasks"


def _chance(result: Mapping[str, Any], task: str) -> str:
    return _share(result["chance"]["tasks"].get(task))


def _figure(value: Any) -> str:
    return _estimate(value) if isinstance(value, Mapping) else _share(value)


def _estimate(estimate: Estimates | None) -> str:
    """`.823 [.790, .851]`"""
    if estimate is None:
        return "-"
    return (
        f"{_share(estimate['value'])} [{_share(estimate['low'])}, {_share(estimate['high'])}] "
        f"({estimate['num_prompts']})"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def run_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """Tables of a benchmark's run: a row for each figure, with its interval if it has one."""
    return [_run_table(name, figures) for name, figures in metrics.items()]


def _run_table(name: str, figures: Mapping[str, Any]) -> Table:
    rows = []
    for key, value in figures.items():
        if key in ("columns", "chance"):
            continue
        if isinstance(value, Mapping) and "value" in value:
            rows.append([f"**{key}**", _estimate(value)])
        elif isinstance(value, Mapping):
            rows += [
                [f"{key}: {part}", _estimate(each)]
                for part, each in value.items()
                if isinstance(each, Mapping) and "value" in each
            ]
            rows += [
                [
                    f"{key}: {part}",
                    f"accuracy {_estimate(each['accuracy'])}, F1 {_estimate(each['f1'])}",
                ]
                for part, each in value.items()
                if isinstance(each, Mapping) and "f1" in each
            ]
            if "f1" in value:
                both = f"accuracy {_estimate(value['accuracy'])}, F1 {_estimate(value['f1'])}"
                rows.append([f"**{key}**", both])
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            rows.append([key, f"{value:.3f}" if isinstance(value, float) else str(value)])
        elif isinstance(value, list) and value and key in ("skipped", "malformed"):
            rows.append([key, f"{len(value)}: {', '.join(map(str, value[:3]))}"])
    return Table(name, ["", "figure"], rows)
