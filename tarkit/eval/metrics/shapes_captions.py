"""Captions of drawn scenes: parsed, and compared with what the picture shows.

A caption is read by the world's own grammar into groups, (count, colour, shape), and relations.
Groups are compared as a multiset, so "two red rings" is wrong as a whole where there are three. A
caption in which the grammar finds no object states nothing: it costs recall and counts in
`unreadable`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tarkit.scoring.statistics import COLUMNS, bootstrap
from tarkit.shapes.grammar import Facts, facts_of, parse
from tarkit.shapes.scene import Scene

Floats = NDArray[np.float64]


class CaptionCounts(NamedTuple):
    """What one caption states and how much of it is true; sums of these make every figure.

    `pairs` is 1 for a scene of two different objects with a relation, and `pairs_told` is 1 if the
    caption states a true one: no caption of the drawn world states more. The names stand in the
    rows of `scores.parquet`.
    """

    said: int
    shown: int
    right: int
    relations_said: int
    relations_right: int
    pairs: int
    pairs_told: int
    background_right: int
    exact: int
    unreadable: int
    captions: int = 1


class CaptionScores(NamedTuple):
    """Shares in [0, 1]; precision and F1 are 0 where captions state nothing.

    `exact`: the groups are those of the scene, no stated relation is false, and a pair's relation
    is stated. The background does not count there; it has its own share.
    """

    precision: float
    recall: float
    f1: float
    relation_precision: float
    relation_recall: float
    relation_f1: float
    background: float
    exact: float
    unreadable: float


def compare_caption(caption: str | None, scene: Scene) -> CaptionCounts:
    """Counts for one caption; None is a caption that failed, and states nothing."""
    stated, shown = parse(caption) if caption is not None else Facts(), facts_of(scene)
    groups_stated, groups_shown = Counter(stated.groups), Counter(shown.groups)
    true_relations = stated.relations & shown.relations
    is_pair = len(scene.objects) == 2 and bool(shown.relations)
    exact = (
        groups_stated == groups_shown
        and true_relations == stated.relations
        and (bool(true_relations) or not is_pair)
    )
    return CaptionCounts(
        said=groups_stated.total(),
        shown=groups_shown.total(),
        right=(groups_stated & groups_shown).total(),
        relations_said=len(stated.relations),
        relations_right=len(true_relations),
        pairs=int(is_pair),
        pairs_told=int(is_pair and bool(true_relations)),
        background_right=int(stated.background == shown.background),
        exact=int(exact),
        unreadable=int(not stated.groups),
    )


def caption_scores(counts: Sequence[CaptionCounts] | NDArray[np.int64]) -> CaptionScores:
    """The figures of many captions, each sum over all of them (micro averages)."""
    table = np.asarray(counts, dtype=np.int64)
    if table.ndim != 2 or not len(table):
        raise ValueError("there are no captions to score")
    total = CaptionCounts(*(int(column) for column in table.sum(axis=0)))
    relation_precision = _share(total.relations_right, total.relations_said)
    relation_recall = _share(total.pairs_told, total.pairs)
    return CaptionScores(
        precision=_share(total.right, total.said),
        recall=_share(total.right, total.shown),
        f1=float(caption_f1(np.asarray(total, dtype=np.float64))),
        relation_precision=relation_precision,
        relation_recall=relation_recall,
        relation_f1=_harmonic(relation_precision, relation_recall),
        background=total.background_right / total.captions,
        exact=total.exact / total.captions,
        unreadable=total.unreadable / total.captions,
    )


@dataclass(frozen=True)
class SceneCaptions:
    """Counts of each scene's caption, and of captions shuffled between scenes."""

    columns: Sequence[str]
    counts: Sequence[CaptionCounts]
    chance: Sequence[CaptionCounts]
    failed: Sequence[bool]


def caption_results(captions: SceneCaptions) -> dict[str, Any]:
    """Caption figures over all scenes and for each column, and by chance."""
    table = np.asarray(captions.counts, dtype=np.int64)
    columns = np.asarray(captions.columns)
    return {
        "all": _figures(table),
        "columns": {
            name: _figures(table[columns == name]) for name in COLUMNS if (columns == name).any()
        },
        "chance": caption_scores(captions.chance)._asdict(),
        "coverage": 1.0 - sum(captions.failed) / len(table),
        "num_captions": len(table),
    }


def _figures(table: NDArray[np.int64]) -> dict[str, Any]:
    figures: dict[str, Any] = caption_scores(table)._asdict()
    for name, figure in (("f1", caption_f1), ("exact", caption_exact)):
        figures[name] = bootstrap(table, range(len(table)), figure)._asdict()
    return figures


def caption_f1(sums: Floats) -> Floats:
    """(..., 11) sums of counts -> (...): 2 right / (said + shown)."""
    right, said, shown = (_column(sums, name) for name in ("right", "said", "shown"))
    return np.asarray(2 * right / np.maximum(said + shown, 1))


def caption_exact(sums: Floats) -> Floats:
    """(..., 11) sums of counts -> (...) share of exact captions."""
    return np.asarray(_column(sums, "exact") / _column(sums, "captions"))


def _column(sums: Floats, name: str) -> Floats:
    return np.asarray(sums[..., CaptionCounts._fields.index(name)])


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
