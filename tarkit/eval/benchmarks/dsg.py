"""Davidsonian scene graphs: yes/no questions of a prompt, each asked in vain where a parent is no.

Sources: Cho et al., "Davidsonian Scene Graph" (2310.18235) with j-min/DSG's released answers, and
DPG-Bench (Hu et al. 2403.05135, TencentQQGYLab/ELLA `dpg_bench/`), whose csv has the same columns:
item_id, text, proposition_id, dependency, category_broad, category_detailed, tuple,
question_natural_language. The answers come from any judge; which one is part of a result's name,
for judges differ by six points on the same pictures and rules by a fifth of one.

DPG's published scorer departs from this in ways that change its figures (ELLA#60, #61):
`as_published` repeats them, that old numbers can be compared.
Letters: P prompts, n pictures a prompt.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tarkit.errors import UserError
from tarkit.scoring.statistics import bootstrap, micro

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "question_natural_language", "tuple")


@dataclass(frozen=True)
class Question:
    """One question; `parents` are ids of questions of the same graph, empty for a root."""

    id: int
    text: str
    parents: tuple[int, ...] = ()
    category: str = ""
    """`entity - whole`, the part of the csv's tuple before its arguments."""
    malformed: str | None = None
    """The dependency cell where it is no list of numbers; such a question counts as a root."""

    @property
    def broad(self) -> str:
        return self.category.split(" - ")[0]


@dataclass(frozen=True)
class Graph:
    """The questions of one prompt, in the order of the file."""

    item: str
    prompt: str
    questions: tuple[Question, ...]


Answers = Mapping[int, bool | None]
"""Of one picture: question id -> yes, no, or None where no answer could be had."""


def parse_dependency(cell: str) -> tuple[int, ...] | None:
    """Ids of the parents, () for 0 or nothing, None for a cell that is no list of numbers."""
    parts = [part.strip() for part in cell.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        return None
    return tuple(dict.fromkeys(number for number in map(int, parts) if number))


def question_of(number: str, text: str, dependency: str, category: str = "") -> Question:
    """A row of the csv; ids are whole numbers, as published files have them."""
    parents = parse_dependency(dependency)
    return Question(
        int(number), text, parents or (), category, dependency if parents is None else None
    )


def read_graphs(path: Path) -> list[Graph]:
    """Graphs of a csv in DSG's or DPG-Bench's layout; raises UserError with the line."""
    found: dict[str, list[Question]] = defaultdict(list)
    prompts: dict[str, str] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise UserError(f"{path} has no column {lacking[0]}: it is no DSG or DPG-Bench csv")
        for row in reader:
            item = row["item_id"]
            try:
                one = question_of(
                    row["proposition_id"],
                    row["question_natural_language"],
                    row["dependency"] or "",
                    (row["tuple"] or "").split("(")[0].strip(),
                )
            except (TypeError, ValueError):
                raise UserError(
                    f"{path}:{reader.line_num}: proposition_id {row['proposition_id']!r} of "
                    f"{item} is no number"
                ) from None
            found[item].append(one)
            prompts.setdefault(item, row["text"])
    return [Graph(item, prompts[item], tuple(rows)) for item, rows in found.items()]


def graph_to_json(graph: Graph) -> dict[str, Any]:
    return {"questions": [asdict(question) for question in graph.questions]}


def graph_from_json(item: str, prompt: str, found: Mapping[str, Any]) -> Graph:
    rows = [{**row, "parents": tuple(row["parents"])} for row in found["questions"]]
    return Graph(item, prompt, tuple(Question(**row) for row in rows))


def valid(graph: Graph, answers: Answers) -> dict[int, bool]:
    """Question id -> yes, and the judge's own answer to every parent is yes: DSG's one hop."""
    return {
        q.id: bool(answers.get(q.id)) and all(answers.get(parent) for parent in q.parents)
        for q in graph.questions
    }


def score_of(graph: Graph, answers: Answers) -> float:
    """A picture's share of valid yes, in [0, 1]."""
    return float(np.mean(list(valid(graph, answers).values())))


def graph_results(
    graphs: Sequence[Graph], answers: Mapping[str, Sequence[Answers]], *, as_published: bool = False
) -> dict[str, Any]:
    """Overall (mean over prompts of the mean over pictures), categories, coverage.

    `answers` has the n pictures of every item; one that lacks an answer has None there, which
    counts as no and lowers coverage. Intervals redraw prompts.
    """
    lacking = [graph.item for graph in graphs if not answers.get(graph.item)]
    if lacking:
        raise UserError(f"{len(lacking)} prompts have no answers, the first is {lacking[0]}")
    asked = [
        answers[graph.item][picture].get(question.id) is not None
        for graph in graphs
        for picture in range(len(answers[graph.item]))
        for question in graph.questions
    ]
    figures = _as_published(graphs, answers) if as_published else _correct(graphs, answers)
    return {
        **figures,
        "coverage": float(np.mean(asked)),
        "num_prompts": len(graphs),
        "num_questions": sum(len(graph.questions) for graph in graphs),
        "malformed": [
            f"{graph.item} question {q.id}: {q.malformed}"
            for graph in graphs
            for q in graph.questions
            if q.malformed is not None
        ],
    }


def _correct(graphs: Sequence[Graph], answers: Mapping[str, Sequence[Answers]]) -> dict[str, Any]:
    scores, by_category = [], _Categories()
    for graph in graphs:
        held = [valid(graph, picture) for picture in answers[graph.item]]
        scores.append(float(np.mean([np.mean(list(one.values())) for one in held])))
        for question in graph.questions:
            for one in held:
                by_category.add(graph.item, question, one[question.id])
    return {"overall": micro(scores)._asdict(), **by_category.results(), "skipped": []}


def _as_published(
    graphs: Sequence[Graph], answers: Mapping[str, Sequence[Answers]]
) -> dict[str, Any]:
    """With the scorer's faults: the csv's first row is lost, and with it a prompt whose questions
    depend on it (#61); a question is zeroed while its children are still to be read; categories
    are of the last picture alone and of answers that were not zeroed (#60)."""
    first = graphs[0]
    scores, skipped, by_category = [], [], _Categories()
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
            by_category.add(graph.item, question, bool(last.get(question.id)))
    if not scores:
        raise UserError("as published, no prompt is left to be scored")
    return {"overall": micro(scores)._asdict(), **by_category.results(), "skipped": skipped}


def _zeroed_in_place(graph: Graph, answers: Answers) -> float:
    held = {question.id: bool(answers.get(question.id)) for question in graph.questions}
    for question in graph.questions:
        if not all(held[parent] for parent in question.parents):
            held[question.id] = False
    return float(np.mean(list(held.values())))


class _Categories:
    """Means over questions, by the broad category and by the detailed one."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, list[tuple[str, bool]]]] = {
            "categories": defaultdict(list),
            "detailed": defaultdict(list),
        }

    def add(self, item: str, question: Question, yes: bool) -> None:
        self._rows["categories"][question.broad].append((item, yes))
        self._rows["detailed"][question.category].append((item, yes))

    def results(self) -> dict[str, Any]:
        return {
            kind: {name: _share(rows) for name, rows in sorted(found.items()) if name}
            for kind, found in self._rows.items()
        }


def _share(rows: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    counts = np.array([(yes, 1) for _, yes in rows], dtype=np.float64)
    clusters = [item for item, _ in rows]
    return bootstrap(counts, clusters, lambda sums: sums[..., 0] / sums[..., 1])._asdict()
