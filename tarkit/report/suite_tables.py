"""Tables of `tarkit eval shapes`, built from the numbers of its results.json.

A metric of one of the known names that has another form gets no table here: the report then shows
it as the nested values that it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tarkit.report.blocks import Cell, PageTable, TableRow
from tarkit.report.values import Metric, cell, number, overall_cell, value_at
from tarkit.scoring.statistics import COLOR_POSITION, COLUMNS, TASKS

CEILING = "ceiling_"
CLAUSE_MEANS = {"clauses_am": "clauses, mean (AM)", "clauses_gm": "clauses, all (GM)"}


def suite_tables(metrics: Metric) -> tuple[list[PageTable], list[str]]:
    """The tables of the metrics with a known name and form, and the names of these metrics."""
    builders: dict[str, Callable[[Any], PageTable]] = {
        "geneval@shapes": _geneval,
        "pope@shapes": _pope,
        "caption@shapes": _caption,
    }
    tables: list[PageTable] = []
    covered: list[str] = []
    for name, build in builders.items():
        if name in metrics and _has_form(name, metrics[name]):
            tables.append(build(metrics[name]))
            covered.append(name)
    ceilings = {
        name: value
        for name, value in metrics.items()
        if name.startswith(CEILING) and name.endswith("@shapes") and _has_form(CEILING, value)
    }
    if ceilings:
        tables.append(_ceilings(ceilings, metrics.get("geneval@shapes")))
        covered += ceilings
    scales = metrics.get("codes@shapes")
    if isinstance(scales, Mapping) and scales and all(map(_is_scale, scales.values())):
        tables.append(_codes(scales))
        covered.append("codes@shapes")
    return tables, covered


# The objects that a metric of a name must hold; other keys are optional.
FORMS = {
    "geneval@shapes": ("tasks", "columns", "chance"),
    "pope@shapes": ("kinds", "all", "columns"),
    "caption@shapes": ("all", "columns", "chance"),
    CEILING: ("tasks",),
}


def _has_form(name: str, metric: Any) -> bool:
    return all(isinstance(value_at(metric, (key,)), Mapping) for key in FORMS[name])


def _is_scale(value: Any) -> bool:
    return isinstance(value, Mapping) and "num_codes" in value


def _geneval(metric: Metric) -> PageTable:
    columns = [name for name in COLUMNS if name in metric["columns"]]
    parts = [metric, *(metric["columns"][name] for name in columns)]

    def task_row(task: str) -> TableRow:
        scores = [cell(value_at(part, ("tasks", task))) for part in parts]
        return [task, *scores, cell(value_at(metric, ("chance", "tasks", task)))]

    empty = [""] * (len(columns) + 1)
    clause_means: list[TableRow] = [  # results of earlier versions have none
        [label, cell(metric[key]), *empty] for key, label in CLAUSE_MEANS.items() if key in metric
    ]
    rows: list[TableRow] = [
        *(task_row(task) for task in TASKS),
        [
            Cell("overall", strong=True),
            *map(overall_cell, parts),
            cell(value_at(metric, ("chance", "overall"))),
        ],
        ["micro", cell(metric.get("micro")), *empty],
        ["any of n", cell(metric.get("any_of_n")), *empty],
        *clause_means,
        task_row(COLOR_POSITION),
    ]
    note = (
        f"{_count(metric, 'num_prompts')} prompts, {_count(metric, 'num_pictures')} pictures, "
        f"coverage {_count(metric, 'coverage')}. Overall is the unweighted mean of the six tasks, "
        f"which do not include {COLOR_POSITION}. The 95 % intervals come from redrawing prompts. "
        "Chance is the score of the same pictures, shuffled between prompts."
    )
    return PageTable(["task", "all", *columns, "chance"], rows, "geneval@shapes", note)


def _pope(metric: Metric) -> PageTable:
    columns = {
        "accuracy": "accuracy",
        "F1": "f1",
        "precision": "precision",
        "recall": "recall",
        "yes": "yes_share",
        "unclear": "unclear",
        "chance": "chance",
    }
    rows = [
        *_rows(metric["kinds"], columns.values()),
        *_rows({"all": metric["all"]}, columns.values(), strong=True),
        *_rows(metric["columns"], columns.values()),
    ]
    note = (
        f"{_count(metric, 'num_questions')} questions, coverage {_count(metric, 'coverage')}. "
        "Answers are read as POPE's program reads them: no, not and No are no, all else is yes. "
        "Chance is the accuracy of the same answers, shuffled between questions."
    )
    return PageTable(["negatives", *columns], rows, "pope@shapes", note)


def _caption(metric: Metric) -> PageTable:
    columns = {
        "P": "precision",
        "R": "recall",
        "F1": "f1",
        "relation P": "relation_precision",
        "relation R": "relation_recall",
        "relation F1": "relation_f1",
        "background": "background",
        "exact": "exact",
        "unreadable": "unreadable",
    }
    rows = [
        *_rows({"all": metric["all"]}, columns.values(), strong=True),
        *_rows({**metric["columns"], "chance": metric["chance"]}, columns.values()),
    ]
    note = (
        f"{_count(metric, 'num_captions')} captions, coverage {_count(metric, 'coverage')}. "
        "P, R and F1 compare the groups (count, colour, shape) of a caption with "
        "those of its scene, as multisets. A caption is exact if it has all groups, no false "
        "relation, and for a pair the relation."
    )
    return PageTable(["scenes", *columns], rows, "caption@shapes", note)


def _ceilings(ceilings: Metric, geneval: Any) -> PageTable:
    named = {
        name.removeprefix(CEILING).removesuffix("@shapes").replace("_", " "): value
        for name, value in ceilings.items()
    }
    if geneval is not None:
        named["the model"] = geneval
    rows: list[TableRow] = [
        [
            name,
            overall_cell(value),
            *(cell(value_at(value, ("tasks", task, "value"))) for task in TASKS),
        ]
        for name, value in named.items()
    ]
    note = (
        "Pictures of scenes that fulfil the prompts, judged as drawn, after the image VQ alone, "
        "and after TA-Tok's codes and AR-DTok at each scale: what each step loses of a true scene. "
        "A model that draws easier scenes of a prompt than these can do better."
    )
    return PageTable(["", "overall", *TASKS], rows, "ceilings", note)


def _codes(scales: Mapping[str, Metric]) -> PageTable:
    columns: dict[str, tuple[str, ...]] = {
        "codes": ("num_codes",),
        "shape": ("shape",),
        "colour": ("colour",),
        "position px": ("position_px",),
        "used": ("used",),
        "perplexity": ("perplexity",),
        "cosine": ("trained", "cosine"),
        "used in training": ("trained", "used"),
        "perplexity in training": ("trained", "perplexity"),
    }
    rows: list[TableRow] = [
        [scale, *(cell(value_at(part, path)) for path in columns.values())]
        for scale, part in scales.items()
    ]
    num_pictures = _count(next(iter(scales.values())), "num_pictures")
    note = (
        f"Linear probes on {num_pictures} pictures of one object, a fifth of them held out: shape "
        "and colour from the counts of a picture's codes, the centre from the codes' vectors. "
        "Cosine is between decoded features and the teacher's on training pictures; the last two "
        "columns are of training pictures too."
    )
    return PageTable(["scale", *columns], rows, "codes@shapes", note)


def _rows(parts: Metric, keys: Iterable[str], *, strong: bool = False) -> list[TableRow]:
    return [
        [Cell(name, strong=strong), *(cell(value_at(part, (key,))) for key in keys)]
        for name, part in parts.items()
    ]


def _count(metric: Metric, key: str) -> str:
    return number(metric.get(key))
