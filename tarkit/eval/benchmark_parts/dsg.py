"""Davidsonian scene graphs: yes/no questions of a prompt, where a yes needs a yes to each parent.

Sources: Cho et al., "Davidsonian Scene Graph" (2310.18235) with j-min/DSG's released answers, and
DPG-Bench (Hu et al. 2403.05135, TencentQQGYLab/ELLA `dpg_bench/`), whose csv has the same columns:
item_id, text, proposition_id, dependency, category_broad, category_detailed, tuple,
question_natural_language. The answers come from any judge. The judge is part of a result's name,
because judges differ by six points on the same pictures, and rules by a fifth of a point.

DPG's published scorer departs from this in ways that change its figures (ELLA#60, #61):
`as_published` repeats them, so that old numbers can be compared.
Letters: P prompts, n pictures a prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tarkit.artifacts.tables import read_rows
from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.question_files import encoding_of
from tarkit.scoring.statistics import bootstrap, micro

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "question_natural_language", "tuple")


@dataclass(frozen=True)
class GraphQuestion:
    """One question; `parents` are ids of questions of the same graph, empty for a root."""

    id: int
    text: str
    parents: tuple[int, ...] = ()
    category: str = ""
    """`entity - whole`, the part of the csv's tuple before its arguments."""
    malformed: str | None = None
    """The dependency cell where it is not a list of numbers; such a question counts as a root."""

    @property
    def broad(self) -> str:
        return self.category.split(" - ")[0]


@dataclass(frozen=True)
class SceneGraph:
    """The questions of one prompt, in the order of the file."""

    item: str
    prompt: str
    questions: tuple[GraphQuestion, ...]


GraphAnswers = Mapping[int, bool | None]
"""Of one picture: question id -> yes, no, or None where there is no answer."""


def parse_dependency(cell: str) -> tuple[int, ...] | None:
    """Ids of the parents; () for 0 or an empty cell, None for a cell that is no list of numbers."""
    parts = [part.strip() for part in cell.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        return None
    return tuple(dict.fromkeys(number for number in map(int, parts) if number))


def question_of(number: str, text: str, dependency: str, category: str = "") -> GraphQuestion:
    """The question of a row of the csv; ids are whole numbers, as in the published files."""
    parents = parse_dependency(dependency)
    return GraphQuestion(
        int(number), text, parents or (), category, dependency if parents is None else None
    )


def read_graphs(path: Path) -> list[SceneGraph]:
    """Graphs of a csv in DSG's or DPG-Bench's layout; raises UserError with the line."""
    questions: dict[str, list[GraphQuestion]] = defaultdict(list)
    prompts: dict[str, str] = {}
    for line in read_rows(path, encoding=encoding_of(path)):
        row = line.require()
        missing = [name for name in COLUMNS if name not in row]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]}: it is not a csv of DSG or DPG-Bench"
            )
        if not any(row.values()):
            continue
        item = str(row["item_id"])
        try:
            one = question_of(
                row["proposition_id"],
                row["question_natural_language"],
                row["dependency"] or "",
                (row["tuple"] or "").split("(")[0].strip(),
            )
        except (TypeError, ValueError, AttributeError):
            raise UserError(
                f"{path}:{line.number}: proposition_id {row['proposition_id']!r:.60} of "
                f"{item:.200} is not a number"
            ) from None
        questions[item].append(one)
        prompts.setdefault(item, str(row["text"]))
    return [SceneGraph(item, prompts[item], tuple(rows)) for item, rows in questions.items()]


def graph_to_json(graph: SceneGraph) -> dict[str, Any]:
    return {"questions": [asdict(question) for question in graph.questions]}


def graph_from_json(item: str, prompt: str, document: Mapping[str, Any]) -> SceneGraph:
    rows = [{**row, "parents": tuple(row["parents"])} for row in document["questions"]]
    return SceneGraph(item, prompt, tuple(GraphQuestion(**row) for row in rows))


def valid(graph: SceneGraph, answers: GraphAnswers) -> dict[int, bool]:
    """Question id -> whether it and all its parents have a yes; grandparents do not count (DSG)."""
    return {
        q.id: bool(answers.get(q.id)) and all(answers.get(parent) for parent in q.parents)
        for q in graph.questions
    }


def graph_results(
    graphs: Sequence[SceneGraph],
    answers: Mapping[str, Sequence[GraphAnswers]],
    *,
    as_published: bool = False,
) -> dict[str, Any]:
    """Overall (mean over prompts of the mean over pictures), categories, coverage.

    `answers` has the n pictures of every item. A missing answer is None, which counts as no and
    lowers coverage. Intervals redraw prompts. Raises UserError for a prompt without answers.
    """
    missing = [graph.item for graph in graphs if not answers.get(graph.item)]
    if missing:
        raise UserError(f"{len(missing)} prompts have no answers, the first is {missing[0]}")
    answered = [
        answers[graph.item][picture].get(question.id) is not None
        for graph in graphs
        for picture in range(len(answers[graph.item]))
        for question in graph.questions
    ]
    figures = _as_published(graphs, answers) if as_published else _correct(graphs, answers)
    return {
        **figures,
        "coverage": float(np.mean(answered)),
        "num_prompts": len(graphs),
        "num_questions": sum(len(graph.questions) for graph in graphs),
        "malformed": [
            f"{graph.item} question {q.id}: {q.malformed}"
            for graph in graphs
            for q in graph.questions
            if q.malformed is not None
        ],
    }


def _correct(
    graphs: Sequence[SceneGraph], answers: Mapping[str, Sequence[GraphAnswers]]
) -> dict[str, Any]:
    scores, categories = [], _Categories()
    for graph in graphs:
        pictures = [valid(graph, picture) for picture in answers[graph.item]]
        scores.append(float(np.mean([np.mean(list(one.values())) for one in pictures])))
        for question in graph.questions:
            for one in pictures:
                categories.add(graph.item, question, one[question.id])
    return {"overall": micro(scores)._asdict(), **categories.results(), "skipped": []}


def _as_published(
    graphs: Sequence[SceneGraph], answers: Mapping[str, Sequence[GraphAnswers]]
) -> dict[str, Any]:
    """With the published scorer's faults.

    It loses the csv's first row, and with it a prompt whose questions depend on that row (#61). A
    question that it sets to zero is a no to that question's own children. Its categories come from
    the last picture alone, and from the answers before any is set to zero (#60).
    """
    first = graphs[0]
    scores, skipped, categories = [], [], _Categories()
    for graph in (replace(first, questions=first.questions[1:]), *graphs[1:]):
        known = {question.id for question in graph.questions}
        if any(not set(question.parents) <= known for question in graph.questions):
            skipped.append(graph.item)
            continue
        if not graph.questions:
            continue
        scores.append(float(np.mean([_zeroed_in_place(graph, a) for a in answers[graph.item]])))
        last = answers[graph.item][-1]
        for question in graph.questions:
            categories.add(graph.item, question, bool(last.get(question.id)))
    if not scores:
        raise UserError("as published, no prompt remains to score")
    return {"overall": micro(scores)._asdict(), **categories.results(), "skipped": skipped}


def _zeroed_in_place(graph: SceneGraph, answers: GraphAnswers) -> float:
    yes = {question.id: bool(answers.get(question.id)) for question in graph.questions}
    for question in graph.questions:
        if not all(yes[parent] for parent in question.parents):
            yes[question.id] = False
    return float(np.mean(list(yes.values())))


class _Categories:
    """Means over questions, for each broad category and each detailed one."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, list[tuple[str, bool]]]] = {
            "categories": defaultdict(list),
            "detailed": defaultdict(list),
        }

    def add(self, item: str, question: GraphQuestion, yes: bool) -> None:
        self._rows["categories"][question.broad].append((item, yes))
        self._rows["detailed"][question.category].append((item, yes))

    def results(self) -> dict[str, Any]:
        return {
            kind: {name: _share(rows) for name, rows in sorted(by_name.items()) if name}
            for kind, by_name in self._rows.items()
        }


def _share(rows: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    counts = np.array([(yes, 1) for _, yes in rows], dtype=np.float64)
    clusters = [item for item, _ in rows]
    return bootstrap(counts, clusters, lambda sums: sums[..., 0] / sums[..., 1])._asdict()
