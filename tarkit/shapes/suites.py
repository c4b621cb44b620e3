"""The test lists of the drawn world, each a pure function of its seed.

`shapes-geneval` are prompts to draw; `shapes-dpg` dense prompts with questions; the others are
pictures with questions (pope, mme, gqa, seed), captions to write, and judgements (reflect). An item
stands in the column "seen", "heldout" or, five of one shape, "extrapolation"; about a quarter is
held out. Scenes come with the seed that `shapes.render` needs for a noisy background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Literal

import numpy as np

from tarkit.shapes.captions import Proposition, describe_g2
from tarkit.shapes.grammar import Facts, facts_of
from tarkit.shapes.heldout import COUNTS, EXTRAPOLATED_COUNT, held_out, shape_pair
from tarkit.shapes.prompts import EXTRA_TASK, Metadata, caption_g0, g0_metadata, held_out_kinds
from tarkit.shapes.questions import (
    NEGATIVES,
    absent_shapes,
    counts_of,
    existence_question,
    question,
    yes_no_pair,
)
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import COLOURS, RELATIONS, SHAPES, Kind, Scene, one_of, pick
from tarkit.shapes.scene_edits import corrupt, corruptions_for, scene_for
from tarkit.vocab import judgement_question

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
    """`held_out` names the lists (a to d of heldout.py, or "five") that the prompt states."""

    id: str
    metadata: Metadata
    column: Column
    held_out: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return str(self.metadata["prompt"])

    @property
    def task(self) -> str:
        return str(self.metadata["tag"])


def column_of(metadata: Metadata) -> Column:
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
        left = Counter(columns)
        kinds: Counter[tuple[str, ...]] = Counter()
        for metadata in _candidates(task, rng):
            if not left.total():
                break
            column, way = column_of(metadata), _way(metadata)
            if not left[column] or _unit(metadata) in taken:
                continue
            # Where there are several ways of being held out, none takes more than a third.
            if column == "heldout" and task in _MIXED and kinds[way] >= -(-columns[column] // 3):
                continue
            left[column] -= 1
            kinds[way] += 1
            held = tuple(sorted(held_out_kinds(metadata)))
            items.append(PromptItem(f"{task}-{len(items):03d}", metadata, column, held))
        assert not left.total(), f"too few prompts for {task}: {left}"
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
            found = [g0_metadata(task, [shape]) for shape in SHAPES]
        case "two_object":
            for i in rng.permutation(66):
                one, other = list(combinations(SHAPES, 2))[i]
                yield g0_metadata(task, [one, other])
                yield g0_metadata(task, [other, one])
            return
        case "counting":
            numbers = (*COUNTS, EXTRAPOLATED_COUNT)
            found = [g0_metadata(task, [shape], count=n) for shape in SHAPES for n in numbers]
        case "colors":
            found = [g0_metadata(task, [s], colours=[c]) for s in SHAPES for c in COLOURS]
        case "position":
            found = [g0_metadata(task, pair, relation=rel) for pair in pairs for rel in RELATIONS]
        case _:  # too many to list: 13,200 and 52,800
            seen: set[str] = set()
            while True:
                colours = [COLOURS[i] for i in rng.permutation(len(COLOURS))[:2]]
                relation = one_of(rng, RELATIONS) if task == EXTRA_TASK else None
                metadata = g0_metadata(task, one_of(rng, pairs), colours=colours, relation=relation)
                if metadata["prompt"] not in seen:
                    seen.add(metadata["prompt"])
                    yield metadata
    yield from (found[i] for i in rng.permutation(len(found)))


@dataclass(frozen=True)
class DenseItem:
    """A dense prompt with the questions that score its picture, and a scene that it describes."""

    id: str
    prompt: str
    propositions: tuple[Proposition, ...]
    column: Column
    scene: Scene
    seed: int


def dpg_suite(seed: int = TEST_SEED, *, num_prompts: int = 200) -> list[DenseItem]:
    """Dense prompts, nine questions each on average, all of which scenes.satisfies can judge."""
    rng = np.random.default_rng([seed, 100])
    items: list[DenseItem] = []
    kinds: dict[Kind, float] = {"two": 0.4, "counting": 0.05, "crowded": 0.55}
    while len(items) < num_prompts:
        column = _column(len(items), num_prompts)
        scene = _scene(rng, column, kind=pick(rng, tuple(kinds), tuple(kinds.values())))
        dense = describe_g2(scene, rng, split="test")
        if all(fact.metadata is not None for fact in dense.propositions):
            name = f"dpg-{len(items):03d}"
            items.append(DenseItem(name, dense.text, dense.propositions, column, scene, _seed(rng)))
    return items


# - pictures to speak of -


@dataclass(frozen=True)
class QuestionItem:
    """A question on a drawn picture. Items of one `group` share a picture or a prompt."""

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
    id: str
    scene: Scene
    seed: int
    facts: Facts
    column: Column


def _column(number: int, total: int) -> Column:
    """The last quarter of a list is held out."""
    return "seen" if number < total * (1 - HELD_OUT_SHARE) else "heldout"


def _scene(rng: np.random.Generator, column: Column, kind: Kind | None = None) -> Scene:
    return sample_scene(rng, split="test" if column == "seen" else "heldout", kind=kind)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def pope_suite(seed: int = TEST_SEED, *, num_pictures: int = 300) -> list[QuestionItem]:
    """POPE: on each picture, for each kind of negative, a shape that is there and one that is not.

    3 x 600 questions, half of each kind answered yes; the kinds share pictures and yes questions.
    """
    rng = np.random.default_rng([seed, 101])
    items = []
    for number in range(num_pictures):
        column = _column(number, num_pictures)
        scene, picture = _scene(rng, column), _seed(rng)
        present = one_of(rng, sorted(counts_of(scene)))
        for kind in NEGATIVES:
            absent = one_of(rng, absent_shapes(scene, kind))
            for shape, answer in ((present, "yes"), (absent, "no")):
                group = f"{number:03d}"
                name = f"pope-{kind}-{group}-{answer}"
                asked = existence_question(shape)
                items.append(QuestionItem(name, kind, group, scene, picture, asked, answer, column))
    order: dict[str, int] = {kind: place for place, kind in enumerate(NEGATIVES)}
    return sorted(items, key=lambda item: order[item.kind])


MME_KINDS = ("existence", "count_check", "colour_check", "position_check")


def mme_suite(seed: int = TEST_SEED, *, num_pictures: int = 60) -> list[QuestionItem]:
    """MME: four kinds, each picture with a yes and a no question (accuracy and both right)."""
    rng = np.random.default_rng([seed, 102])
    items = []
    for kind in MME_KINDS:
        for number in range(num_pictures):
            column = _column(number, num_pictures)
            pair = None
            while pair is None:
                scene = _scene(rng, column)
                pair = yes_no_pair(kind, scene, rng, split="test")
            picture, group = _seed(rng), f"{kind}-{number:03d}"
            for asked, answer in zip(pair, ("yes", "no"), strict=True):
                name = f"mme-{group}-{answer}"
                items.append(QuestionItem(name, kind, group, scene, picture, asked, answer, column))
    return items


def gqa_suite(seed: int = TEST_SEED, *, num_questions: int = 400) -> list[QuestionItem]:
    """GQA: open questions whose object is named by its colour or its place."""
    return _open_suite("gqa", "composition", [seed, 103], num_questions)


def seed_suite(seed: int = TEST_SEED, *, num_questions: int = 400) -> list[QuestionItem]:
    """SEED: four options, answered by the letter."""
    return _open_suite("seed", "four_way", [seed, 104], num_questions)


def _open_suite(suite: str, kind: str, seeds: list[int], num_questions: int) -> list[QuestionItem]:
    rng = np.random.default_rng(seeds)
    items = []
    for number in range(num_questions):
        column = _column(number, num_questions)
        asked = None
        while asked is None:
            scene = _scene(rng, column)
            asked = question(scene, rng, split="test", kind=kind)
        group = f"{number:03d}"
        items.append(
            QuestionItem(f"{suite}-{group}", kind, group, scene, _seed(rng), *asked, column)
        )
    return items


def caption_suite(seed: int = TEST_SEED, *, num_pictures: int = 300) -> list[CaptionItem]:
    """Pictures to describe, with all that is true of them."""
    rng = np.random.default_rng([seed, 105])
    items = []
    for number in range(num_pictures):
        column = _column(number, num_pictures)
        scene = _scene(rng, column)
        items.append(
            CaptionItem(f"caption-{number:03d}", scene, _seed(rng), facts_of(scene), column)
        )
    return items


def reflect_suite(seed: int = TEST_SEED, *, num_prompts: int = 200) -> list[QuestionItem]:
    """Judgements: each prompt with a picture of it and one that a single change made wrong.

    `kind` is "true" or the corruption; a prompt's two items share a group.
    """
    rng = np.random.default_rng([seed, 106])
    items = []
    for number in range(num_prompts):
        column = _column(number, num_prompts)
        metadata: Metadata | None = None
        while metadata is None or column_of(metadata) != column:
            metadata = caption_g0(_scene(rng, column), rng, split="test")[1]
        scene = scene_for(metadata, rng)
        kinds = corruptions_for(metadata)
        # Every prompt can lose or change a shape; twice the weight for what only some can.
        weights = [1.0 if name in ("drop", "reshape") else 2.0 for name in kinds]
        kind = pick(rng, kinds, weights)
        pictures = (("true", "yes", scene), (kind, "no", corrupt(scene, metadata, kind, rng)))
        asked = judgement_question(metadata["prompt"])
        for name, answer, shown in pictures:
            group = f"{number:03d}"
            items.append(
                QuestionItem(
                    f"reflect-{group}-{answer}",
                    name,
                    group,
                    shown,
                    _seed(rng),
                    asked,
                    answer,
                    column,
                )
            )
    return items
