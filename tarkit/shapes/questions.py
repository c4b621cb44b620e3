"""Questions about a scene with short exact answers, in the forms of the benchmarks.

Yes and no: existence (POPE), pairs with either answer (MME), judgements of a prompt. Open: counts,
colours, places, composition (GQA), four options (SEED), captions. Yes and no are equally frequent
within each kind, and a question for the split "train" states no held-out composition, be it true
or false. Each kind of question is one function of a scene, a generator and a split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from tarkit.shapes.captions import caption_g1, sides
from tarkit.shapes.grammar import NUMBER_WORDS, plural, with_article
from tarkit.shapes.heldout import COUNTS, held_out
from tarkit.shapes.prompts import caption_g0
from tarkit.shapes.sampling import SHAPE_WEIGHTS, affinity, sample_scene
from tarkit.shapes.scene import (
    COLOURS,
    INVERSE,
    RELATIONS,
    SHAPES,
    Object,
    Scene,
    Split,
    one_of,
    pick,
    relations,
)
from tarkit.shapes.scene_edits import false_caption, never_satisfies
from tarkit.vocab import judgement_question

QuestionAnswer = tuple[str, str]
YesNoQuestions = tuple[list[str], list[str]]
"""The questions whose answer is yes, and those whose answer is no."""
Negative = Literal["random", "popular", "adversarial"]
NEGATIVES: tuple[Negative, ...] = ("random", "popular", "adversarial")
PLACES = {"left of": "left", "right of": "right", "above": "above", "below": "below"}
DESCRIBE = "Describe the image."
LETTERS = "abcd"
EASY_SHARE = 0.3  # of the false judgements: a judge learns from these first


def counts_of(scene: Scene) -> Counter[str]:
    """How many objects of each shape the scene has."""
    return Counter(item.shape for item in scene.objects)


def lone_objects(scene: Scene) -> list[Object]:
    """The objects that are the only ones of their shape, so that "the circle" names one."""
    counts = counts_of(scene)
    return [item for item in scene.objects if counts[item.shape] == 1]


def _may_state(one: str, relation: str, other: str, split: Split) -> bool:
    """True if a text of the split may state this relation."""
    return split != "train" or not held_out().holds_relation(one, relation, other)


def _colours_for(shape: str, split: Split) -> list[str]:
    """The colours that a text of the split may give a shape."""
    held = held_out().colour_shape if split == "train" else frozenset()
    return [colour for colour in COLOURS if (colour, shape) not in held]


def _numbers_for(shape: str, split: Split, numbers: Sequence[int]) -> list[int]:
    """Those of the numbers that a text of the split may state of a shape."""
    held = held_out().shape_count if split == "train" else frozenset()
    return [n for n in numbers if (shape, n) not in held]


# - yes and no -


def absent_shapes(scene: Scene, kind: Negative) -> list[str]:
    """Shapes that are not there, for questions with the answer no, by POPE's kinds of negatives.

    `random`: all of them; `popular`: the three commonest; `adversarial`: the three likeliest in the
    company of the scene's shapes.
    """
    counts = counts_of(scene)
    absent = [shape for shape in SHAPES if shape not in counts]
    if kind == "random":
        return absent

    def frequency(shape: str) -> float:
        return SHAPE_WEIGHTS[shape]

    def company(shape: str) -> float:
        return SHAPE_WEIGHTS[shape] * sum(affinity(shape, other) for other in counts)

    return sorted(absent, key=frequency if kind == "popular" else company, reverse=True)[:3]


def existence_question(phrase: str) -> str:
    """POPE's question about a noun phrase without its article."""
    return f"is there {with_article(phrase)} in the image?"


def _negatives(scene: Scene, rng: np.random.Generator, split: Split) -> list[str]:
    """Absent shapes to ask for: of one of POPE's kinds; in training one, by the scenes' weights.

    With POPE's kinds, most questions for a rare shape have the answer yes, which could be given
    without a look at the picture.
    """
    if split != "train":
        return absent_shapes(scene, one_of(rng, NEGATIVES))
    absent = absent_shapes(scene, "random")
    return [pick(rng, absent, [SHAPE_WEIGHTS[shape] for shape in absent])]


def existence(scene: Scene, rng: np.random.Generator, split: Split) -> YesNoQuestions:
    """Whether a shape, or a shape of one colour, is in the picture."""
    counts = counts_of(scene)
    negatives = _negatives(scene, rng, split)
    if rng.random() < 0.5:
        present, absent = list(counts), negatives
    else:
        names = sorted({(item.colour, item.shape) for item in scene.objects})
        mode = int(rng.integers(3))
        if mode == 0:  # the shape is there in another colour
            shapes, colours = list(counts), list(COLOURS)
        elif mode == 1:  # the colour is there on another shape
            shapes, colours = negatives, [colour for colour, _ in names]
        else:
            shapes, colours = negatives, list(COLOURS)
        present = [f"{c} {s}" for c, s in names if c in _colours_for(s, split)]
        absent = [
            f"{colour} {shape}"
            for shape in shapes
            for colour in colours
            if (colour, shape) not in names and colour in _colours_for(shape, split)
        ]
    return [existence_question(p) for p in present], [existence_question(p) for p in absent]


def count_check(scene: Scene, rng: np.random.Generator, split: Split) -> YesNoQuestions:
    """Whether a shape that is there more than once is there so many times."""
    several = [(shape, number) for shape, number in counts_of(scene).items() if number > 1]
    if not several:
        return [], []
    shape, number = one_of(rng, several)
    text_of = {
        n: f"are there {NUMBER_WORDS[n]} {plural(shape)} in the image?"
        for n in _numbers_for(shape, split, sorted({*COUNTS, number}))
    }
    return [text_of[n] for n in text_of if n == number], [
        text_of[n] for n in text_of if n != number
    ]


def colour_check(scene: Scene, rng: np.random.Generator, split: Split) -> YesNoQuestions:
    """Whether the only object of its shape has a colour."""
    lone = lone_objects(scene)
    if not lone:
        return [], []
    item = one_of(rng, lone)
    names = _colours_for(item.shape, split)
    return (
        [f"is the {item.shape} {colour}?" for colour in names if colour == item.colour],
        [f"is the {item.shape} {colour}?" for colour in names if colour != item.colour],
    )


def position_check(scene: Scene, rng: np.random.Generator, split: Split) -> YesNoQuestions:
    """Whether a relation holds between two objects that are the only ones of their shapes."""
    lone = lone_objects(scene)
    if len(lone) < 2:
        return [], []
    i, j = rng.permutation(len(lone))[:2]
    yes: list[str] = []
    no: list[str] = []
    for one, other in ((lone[i], lone[j]), (lone[j], lone[i])):
        true = relations(one, other)
        for relation in RELATIONS:
            if _may_state(one.shape, relation, other.shape, split):
                question = f"is the {one.shape} {relation} the {other.shape}?"
                (yes if relation in true else no).append(question)
    return yes, no


def side_check(scene: Scene, rng: np.random.Generator, split: Split) -> YesNoQuestions:
    """Whether a shape lies on a side of the middle; only where it clearly does or does not."""
    placed = [(item, sides(item)) for item in lone_objects(scene)]
    placed = [(item, true) for item, true in placed if true]
    if not placed:
        return [], []
    item, true = one_of(rng, placed)
    text_of = {side: f"is the {item.shape} {side} the middle?" for side in RELATIONS}
    return [text_of[side] for side in true], [text_of[INVERSE[side]] for side in true]


def judgement(scene: Scene, rng: np.random.Generator, split: Split) -> YesNoQuestions:
    """A true prompt and a false one: one clause away, or, three times in ten, of another scene."""
    prompt, metadata = caption_g0(scene, rng, split=split)
    false = None
    if rng.random() < EASY_SHARE:
        other = caption_g0(sample_scene(rng, split=split), rng, split=split)[1]
        false = other if never_satisfies(scene, other) else None
    false = false or false_caption(scene, metadata, rng, split=split)
    return [judgement_question(prompt)], [judgement_question(false["prompt"])] if false else []


YES_NO: dict[str, Callable[[Scene, np.random.Generator, Split], YesNoQuestions]] = {
    "existence": existence,
    "count_check": count_check,
    "colour_check": colour_check,
    "position_check": position_check,
    "side_check": side_check,
    "judgement": judgement,
}


def yes_no_pair(
    kind: str, scene: Scene, rng: np.random.Generator, *, split: Split = "train"
) -> tuple[str, str] | None:
    """One question of a kind with the answer yes and one with no; None if a side is empty."""
    yes, no = YES_NO[kind](scene, rng, split)
    if not yes or not no:
        return None
    return one_of(rng, yes), one_of(rng, no)


# - open questions -


def count(scene: Scene, rng: np.random.Generator, split: Split) -> QuestionAnswer | None:
    """How many of a shape, or of a colour and shape; sometimes of a shape that is not there.

    Most objects are the only ones of their shape. Two in three of these give no question, so that
    "one" is not the answer to most of them.
    """
    if rng.random() < 0.06:
        shape = one_of(rng, absent_shapes(scene, "random"))
        return f"how many {plural(shape)} are in the image?", "zero"
    item = one_of(rng, scene.objects)
    if rng.random() < 0.3:
        if item.colour not in _colours_for(item.shape, split):
            return None
        number = sum(o.shape == item.shape and o.colour == item.colour for o in scene.objects)
        phrase = f"{item.colour} {plural(item.shape)}"
    else:
        number = counts_of(scene)[item.shape]
        phrase = plural(item.shape)
        if not _numbers_for(item.shape, split, [number]):
            return None
    if number == 1 and rng.random() < 2 / 3:
        return None
    return f"how many {phrase} are in the image?", NUMBER_WORDS[number]


def colour(scene: Scene, rng: np.random.Generator, split: Split) -> QuestionAnswer | None:
    """The colour of an object that is the only one of its shape."""
    lone = [o for o in lone_objects(scene) if o.colour in _colours_for(o.shape, split)]
    if not lone:
        return None
    item = one_of(rng, lone)
    return f"what color is the {item.shape}?", item.colour


def position(scene: Scene, rng: np.random.Generator, split: Split) -> QuestionAnswer | None:
    """Where one shape lies relative to another; only where exactly one relation holds."""
    lone = lone_objects(scene)
    if len(lone) < 2:
        return None
    i, j = rng.permutation(len(lone))[:2]
    one, other = lone[i], lone[j]
    true = relations(one, other)
    if len(true) != 1 or not _may_state(one.shape, true[0], other.shape, split):
        return None
    return f"where is the {one.shape} relative to the {other.shape}?", PLACES[true[0]]


def composition(scene: Scene, rng: np.random.Generator, split: Split) -> QuestionAnswer | None:
    """GQA's kind: the shape or colour of the one object that a colour or a relation names."""
    if rng.random() < 0.3:
        colours = Counter(item.colour for item in scene.objects)
        lone = [
            item
            for item in scene.objects
            if colours[item.colour] == 1 and item.colour in _colours_for(item.shape, split)
        ]
        if not lone:
            return None
        item = one_of(rng, lone)
        return f"what shape is the {item.colour} object?", item.shape
    candidates = []
    for other in lone_objects(scene):
        for relation in RELATIONS:
            there = [o for o in scene.objects if relation in relations(o, other)]
            if len(there) == 1 and _may_state(there[0].shape, relation, other.shape, split):
                candidates.append((there[0], relation, other))
    if not candidates:
        return None
    item, relation, other = one_of(rng, candidates)
    if rng.random() < 0.5 and item.colour in _colours_for(item.shape, split):
        return f"what color is the object {relation} the {other.shape}?", item.colour
    return f"what shape is {relation} the {other.shape}?", item.shape


def four_way(scene: Scene, rng: np.random.Generator, split: Split) -> QuestionAnswer | None:
    """SEED's kind: colour, shape, number or place with four options, answered by the letter.

    The options too state nothing held out: training asks for a place only where the split may
    state all four relations.
    """
    kind = one_of(rng, ("colour", "shape", "count", "position"))
    others: list[str]
    if kind == "colour":
        open_question = colour(scene, rng, split)
        if open_question is None:
            return None
        shape = open_question[0].removesuffix("?").split()[-1]
        others = [name for name in _colours_for(shape, split) if name != open_question[1]]
    elif kind == "shape":
        open_question = "which shape is in the image?", one_of(rng, scene.objects).shape
        others = absent_shapes(scene, "random")
    elif kind == "count":
        shape = one_of(rng, scene.objects).shape
        number = counts_of(scene)[shape]
        numbers = _numbers_for(shape, split, range(1, 6))
        if number not in numbers:
            return None
        open_question = f"how many {plural(shape)} are in the image?", NUMBER_WORDS[number]
        others = [NUMBER_WORDS[n] for n in numbers if n != number]
    else:
        open_question = position(scene, rng, split)
        if open_question is None:
            return None
        words = open_question[0].removesuffix("?").split()
        if not all(_may_state(words[3], relation, words[-1], split) for relation in RELATIONS):
            return None
        others = [place for place in PLACES.values() if place != open_question[1]]
    options = [open_question[1], *(others[i] for i in rng.permutation(len(others))[:3])]
    order = rng.permutation(4)
    listed = " ".join(f"({letter}) {options[i]}" for letter, i in zip(LETTERS, order, strict=True))
    return f"{open_question[0]} {listed}", LETTERS[list(order).index(0)]


def caption(scene: Scene, rng: np.random.Generator, split: Split) -> QuestionAnswer | None:
    """A request to describe the picture, answered by a G1 caption (captions.py)."""
    return DESCRIBE, caption_g1(scene, rng, split=split)


OPEN: dict[str, Callable[[Scene, np.random.Generator, Split], QuestionAnswer | None]] = {
    "count": count,
    "colour": colour,
    "position": position,
    "composition": composition,
    "four_way": four_way,
    "caption": caption,
}

# The default share of each kind of question in a list; any scale.
SHARES = {
    "existence": 0.20,
    "count": 0.12,
    "colour": 0.10,
    "position": 0.10,
    "composition": 0.10,
    "four_way": 0.10,
    "count_check": 0.05,
    "colour_check": 0.05,
    "position_check": 0.05,
    "side_check": 0.0,
    "judgement": 0.10,
    "caption": 0.03,
}


def questions(
    scene: Scene,
    rng: np.random.Generator,
    *,
    split: Split = "train",
    n: int = 4,
    shares: Mapping[str, float] = SHARES,
) -> list[QuestionAnswer]:
    """n different questions with their answers; kinds are drawn by `shares`, at any scale.

    Raises ValueError for a scene without objects, and where 200 draws give no new question with the
    answer that was drawn and 200 more none of the other sort (open, or yes and no).
    """
    if not scene.objects:
        raise ValueError("a scene without objects has no questions")
    answers: dict[str, str] = {}
    yes_no_share = sum(shares.get(kind, 0.0) for kind in YES_NO) / sum(shares.values())
    for _ in range(n):
        # The answer is drawn before the question and kept: a scene gives fewer truths than
        # falsehoods, so if a repeated question were drawn again with either answer, most answers
        # would be no.
        answer = None
        if rng.random() < yes_no_share:
            answer = one_of(rng, ("yes", "no"))
        new = _new_question(scene, rng, split, shares, answer, answers)
        if new is None:
            other = None if answer is not None else one_of(rng, ("yes", "no"))
            new = _new_question(scene, rng, split, shares, other, answers)
        if new is None:
            raise ValueError(f"only {len(answers)} of {n} questions found for {scene}")
        answers[new[0]] = new[1]
    return list(answers.items())


def _new_question(
    scene: Scene,
    rng: np.random.Generator,
    split: Split,
    shares: Mapping[str, float],
    answer: str | None,
    known: Mapping[str, str],
) -> QuestionAnswer | None:
    """A question that is not `known`: open for the answer None, else yes or no with that answer.

    None where 200 draws give none.
    """
    kinds = [k for k, share in shares.items() if share and (k in YES_NO) == (answer is not None)]
    for _ in range(200 if kinds else 0):
        kind = pick(rng, kinds, [shares[kind] for kind in kinds])
        if answer is None:
            new = OPEN[kind](scene, rng, split)
        else:
            pair = yes_no_pair(kind, scene, rng, split=split)
            new = None if pair is None else (pair[("yes", "no").index(answer)], answer)
        if new is not None and new[0] not in known:
            return new
    return None
