"""The test lists of the drawn world, each a pure function of its seed.

`geneval` are prompts to draw, `pope` pictures with questions, `caption` pictures to describe. An
item stands in the column "seen", "heldout" or, for five of one shape, "extrapolation"; about a
quarter is held out. Scenes come with the seed that `shapes.render` needs for a noisy background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal

import numpy as np

from tarkit.shapes.heldout import COUNTS, EXTRAPOLATED_COUNT, held_out, shape_pair
from tarkit.shapes.prompts import EXTRA_TASK, Metadata, g0_metadata, held_out_kinds
from tarkit.shapes.questions import NEGATIVES, absent_shapes, counts_of, existence_question
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import COLOURS, RELATIONS, SHAPES, Scene, one_of

Column = Literal["seen", "heldout", "extrapolation"]
Quota = dict[str, dict[Column, int]]

TEST_SEED = 0
VALIDATION_SEED = 1
HELD_OUT_SHARE = 0.25

# Prompts a task and column. There are only 12 shapes, 66 pairs, 48 cells and 120 colour pairs, so
# the test list takes about two thirds of what exists and the validation list the rest.
TEST_QUOTA: Quota = {
    "single_object": {"seen": 12},
    "two_object": {"seen": 66, "heldout": 22},
    "counting": {"seen": 20, "heldout": 6, "extrapolation": 10},
    "colors": {"seen": 78, "heldout": 16},
    "position": {"seen": 70, "heldout": 30},
    "color_attr": {"seen": 67, "heldout": 33},
    EXTRA_TASK: {"seen": 45, "heldout": 15},
}
VALIDATION_QUOTA: Quota = {
    "single_object": {"seen": 12},
    "two_object": {"seen": 18, "heldout": 4},
    "counting": {"seen": 8, "heldout": 2, "extrapolation": 2},
    "colors": {"seen": 20, "heldout": 4},
    "position": {"seen": 22, "heldout": 8},
    "color_attr": {"seen": 22, "heldout": 8},
    EXTRA_TASK: {"seen": 15, "heldout": 5},
}


# - prompts to draw -


@dataclass(frozen=True)
class PromptItem:
    """A prompt to draw, with GenEval's record of it and the column of its results."""

    id: str
    metadata: Metadata
    column: Column

    @property
    def prompt(self) -> str:
        return str(self.metadata["prompt"])

    @property
    def task(self) -> str:
        return str(self.metadata["tag"])


def column_of(metadata: Metadata) -> Column:
    """The column of a prompt, by what its GenEval record states."""
    kinds = held_out_kinds(metadata)
    return "extrapolation" if "five" in kinds else "heldout" if kinds else "seen"


def geneval_suite(seed: int = TEST_SEED) -> list[PromptItem]:
    """430 prompts of GenEval's six tasks and 60 of color_position, which no mean includes."""
    return _prompt_items(seed, TEST_QUOTA, avoid=())


def geneval_validation(
    seed: int = VALIDATION_SEED, *, test_seed: int = TEST_SEED
) -> list[PromptItem]:
    """130 and 20 other prompts, to choose settings by.

    None is in the test list, nor a pair of shapes of its two_object task the other way round; only
    the twelve single_object prompts, all there are, stand in both.
    """
    return _prompt_items(seed, VALIDATION_QUOTA, avoid=geneval_suite(test_seed))


def _prompt_items(seed: int, quota: Quota, avoid: Collection[PromptItem]) -> list[PromptItem]:
    taken = {_unit(item.metadata) for item in avoid if item.task != "single_object"}
    items: list[PromptItem] = []
    for number, (task, columns) in enumerate(quota.items()):
        rng = np.random.default_rng([seed, number])
        remaining = Counter(columns)
        kinds: Counter[tuple[str, ...]] = Counter()
        for metadata in _candidates(task, rng):
            if not remaining.total():
                break
            column, way = column_of(metadata), _way(metadata)
            if not remaining[column] or _unit(metadata) in taken:
                continue
            # Where there are several ways of being held out, none takes more than a third.
            if column == "heldout" and task in _MIXED and kinds[way] >= -(-columns[column] // 3):
                continue
            remaining[column] -= 1
            kinds[way] += 1
            items.append(PromptItem(f"{task}-{len(items):03d}", metadata, column))
        assert not remaining.total(), f"too few prompts for {task}: {remaining}"
    return items


_MIXED = ("position", "color_attr", EXTRA_TASK)


def _way(metadata: Metadata) -> tuple[str, ...]:
    """How a prompt is held out; of relations, whether its mirrored form is seen."""
    kinds = held_out_kinds(metadata)
    if "b" not in kinds:
        return tuple(sorted(kinds))
    clauses = metadata["include"]
    both = held_out().holds_both_forms(
        clauses[1]["class"], clauses[1]["position"][0], clauses[0]["class"]
    )
    return (*sorted(kinds), "both forms" if both else "one form")


def _unit(metadata: Metadata) -> object:
    """What the test and the validation list may not share."""
    if metadata["tag"] == "two_object":
        return shape_pair(*(clause["class"] for clause in metadata["include"]))
    return metadata["prompt"]


def _candidates(task: str, rng: np.random.Generator) -> Iterator[Metadata]:
    """The prompts of a task in random order, none twice; two_object in both orders at once."""
    pairs = list(permutations(SHAPES, 2))
    match task:
        case "single_object":
            prompts = [g0_metadata(task, [shape]) for shape in SHAPES]
        case "two_object":
            for i in rng.permutation(66):
                one, other = list(combinations(SHAPES, 2))[i]
                yield g0_metadata(task, [one, other])
                yield g0_metadata(task, [other, one])
            return
        case "counting":
            numbers = (*COUNTS, EXTRAPOLATED_COUNT)
            prompts = [g0_metadata(task, [shape], count=n) for shape in SHAPES for n in numbers]
        case "colors":
            prompts = [g0_metadata(task, [s], colours=[c]) for s in SHAPES for c in COLOURS]
        case "position":
            prompts = [g0_metadata(task, pair, relation=rel) for pair in pairs for rel in RELATIONS]
        case _:  # too many to list: 13,200 and 52,800
            seen: set[str] = set()
            while True:
                colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))[:2]]
                relation = one_of(rng, RELATIONS) if task == EXTRA_TASK else None
                metadata = g0_metadata(task, one_of(rng, pairs), colours=colours, relation=relation)
                if metadata["prompt"] not in seen:
                    seen.add(metadata["prompt"])
                    yield metadata
    yield from (prompts[i] for i in rng.permutation(len(prompts)))


# - pictures with questions, and to describe -


@dataclass(frozen=True)
class QuestionItem:
    """A question on a drawn picture. Items of one `group` share a picture."""

    id: str
    kind: str
    group: str
    scene: Scene
    seed: int
    question: str
    answer: str
    column: Column


@dataclass(frozen=True)
class CaptionItem:
    """A drawn picture to describe."""

    id: str
    scene: Scene
    seed: int
    column: Column


def _column(number: int, total: int) -> Column:
    """The last quarter of a list is held out."""
    return "seen" if number < total * (1 - HELD_OUT_SHARE) else "heldout"


def _scene(rng: np.random.Generator, column: Column) -> Scene:
    return sample_scene(rng, split="test" if column == "seen" else "heldout")


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def pope_suite(seed: int = TEST_SEED, *, num_pictures: int = 300) -> list[QuestionItem]:
    """POPE: for each picture and kind of negative, a shape that is there and one that is not.

    3 x 600 questions, half of each kind with the answer yes; the kinds share pictures and the
    questions with the answer yes.
    """
    rng = np.random.default_rng([seed, 101])
    items = []
    for number in range(num_pictures):
        column = _column(number, num_pictures)
        scene, picture_seed = _scene(rng, column), _seed(rng)
        present = one_of(rng, sorted(counts_of(scene)))
        for kind in NEGATIVES:
            absent = one_of(rng, absent_shapes(scene, kind))
            for shape, answer in ((present, "yes"), (absent, "no")):
                group = f"{number:03d}"
                name = f"pope-{kind}-{group}-{answer}"
                question = existence_question(shape)
                items.append(
                    QuestionItem(name, kind, group, scene, picture_seed, question, answer, column)
                )
    order: dict[str, int] = {kind: place for place, kind in enumerate(NEGATIVES)}
    return sorted(items, key=lambda item: order[item.kind])


def caption_suite(seed: int = TEST_SEED, *, num_pictures: int = 300) -> list[CaptionItem]:
    """Pictures to describe."""
    rng = np.random.default_rng([seed, 105])
    items = []
    for number in range(num_pictures):
        column = _column(number, num_pictures)
        scene = _scene(rng, column)
        items.append(CaptionItem(f"caption-{number:03d}", scene, _seed(rng), column))
    return items
