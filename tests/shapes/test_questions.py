"""Questions: true answers, as many yes as no, and nothing held out in training."""

import os
import re
import subprocess
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest

from tarkit.shapes.grammar import NUMBER_WORDS
from tarkit.shapes.heldout import held_out, shape_pair
from tarkit.shapes.questions import (
    DESCRIBE,
    NEGATIVES,
    OPEN,
    SHARES,
    YES_NO,
    QuestionAnswer,
    absent_shapes,
    questions,
    yes_no_pair,
)
from tarkit.shapes.sampling import SHAPE_WEIGHTS, affinity, sample_scene
from tarkit.shapes.scene import (
    COLOURS,
    RELATIONS,
    SHAPES,
    Background,
    Object,
    Scene,
    Split,
    relations,
)

SHAPE = rf"\b({'|'.join(SHAPES)})s?\b"
GREY = Background("plain", (140, 140, 140))
PAIR = Scene(
    (Object("circle", "green", 16.0, 32.0, 8.0), Object("square", "blue", 48.0, 32.0, 8.0)), GREY
)


def question(
    scene: Scene, rng: np.random.Generator, *, split: Split = "train", kind: str
) -> QuestionAnswer | None:
    """One question of a kind and its answer; None where the scene gives no such question."""
    if kind in OPEN:
        return OPEN[kind](scene, rng, split)
    answer = int(rng.integers(2))
    pair = yes_no_pair(kind, scene, rng, split=split)
    return None if pair is None else (pair[answer], ("yes", "no")[answer])


def asked_of(scene: Scene, kind: str, *, tries: int = 60) -> dict[str, str]:
    rng = np.random.default_rng(0)
    found = (question(scene, rng, split="test", kind=kind) for _ in range(tries))
    return dict(pair for pair in found if pair is not None)


def test_the_questions_on_a_pair_by_hand() -> None:
    assert asked_of(PAIR, "position") == {
        "where is the circle relative to the square?": "left",
        "where is the square relative to the circle?": "right",
    }
    assert asked_of(PAIR, "colour") == {
        "what color is the circle?": "green",
        "what color is the square?": "blue",
    }
    assert asked_of(PAIR, "composition") == {
        "what shape is left of the square?": "circle",
        "what shape is right of the circle?": "square",
        "what color is the object left of the square?": "green",
        "what color is the object right of the circle?": "blue",
        "what shape is the green object?": "circle",
        "what shape is the blue object?": "square",
    }
    assert asked_of(PAIR, "count")["how many circles are in the image?"] == "one"
    assert asked_of(PAIR, "count_check") == {}
    existence = asked_of(PAIR, "existence", tries=600)
    yes = {asked for asked, answer in existence.items() if answer == "yes"}
    assert yes == {
        "is there a circle in the image?",
        "is there a square in the image?",
        "is there a green circle in the image?",
        "is there a blue square in the image?",
    }
    assert existence["is there a blue circle in the image?"] == "no"  # the pair's own colours mixed
    position = asked_of(PAIR, "position_check")
    assert position["is the circle left of the square?"] == "yes"
    assert position["is the square above the circle?"] == "no"
    assert len(position) == 8 and list(position.values()).count("yes") == 2


def test_a_side_of_the_middle_is_asked_of_where_the_shape_clearly_lies() -> None:
    # The circle 10 px to the left and 2 px above: nothing is said of above and below.
    scene = Scene((Object("circle", "red", 22.0, 30.0, 8.0),), GREY)
    assert asked_of(scene, "side_check") == {
        "is the circle left of the middle?": "yes",
        "is the circle right of the middle?": "no",
    }
    middle = Scene((Object("circle", "red", 31.0, 30.0, 8.0),), GREY)
    assert asked_of(middle, "side_check") == {}


def test_four_options_are_different_and_the_letter_is_right() -> None:
    rng = np.random.default_rng(1)
    letters: Counter[str] = Counter()
    for _ in range(800):
        scene = sample_scene(rng, split="test")
        asked = question(scene, rng, split="test", kind="four_way")
        if asked is None:
            continue
        text, letter = asked
        options = dict(re.findall(r"\((\w)\) (\w+)", text))
        assert list(options) == list("abcd") and len(set(options.values())) == 4
        letters[letter] += 1
        chosen = options[letter]
        counts = Counter(item.shape for item in scene.objects)
        stem = text.split(" (a)")[0]
        named = re.findall(SHAPE, stem)
        if stem == "which shape is in the image?":
            assert [shape in counts for shape in options.values()].count(True) == 1
            assert chosen in counts
        elif stem.startswith("how many"):
            assert chosen == NUMBER_WORDS[counts[named[0]]]
        elif stem.startswith("what color"):
            assert chosen == next(o.colour for o in scene.objects if o.shape == named[0])
        else:
            one, other = (next(o for o in scene.objects if o.shape == s) for s in named)
            assert [name.split()[0] for name in relations(one, other)] == [chosen]
    # A quarter of about 580 is 145; four standard errors are 4 sqrt(580 x .25 x .75) = 42.
    assert max(letters.values()) - min(letters.values()) < 84


@pytest.mark.parametrize("kind", YES_NO)
def test_each_kind_is_answered_yes_as_often_as_no(kind: str) -> None:
    rng = np.random.default_rng(2)
    answers: Counter[str] = Counter()
    while answers.total() < 1000:
        asked = question(sample_scene(rng), rng, kind=kind)
        if asked is not None:
            answers[asked[1]] += 1
    assert abs(answers["yes"] - 500) < 63  # four standard errors: 4 sqrt(1000 / 4) = 63.2


def test_a_list_of_questions_is_balanced_though_a_scene_has_fewer_truths() -> None:
    # Of one object five things can be affirmed and hundreds denied: were a repeated question drawn
    # anew with either answer, eight questions would hold 20 % more no than yes.
    rng = np.random.default_rng(3)
    answers: Counter[str] = Counter()
    for _ in range(600):
        found = questions(sample_scene(rng, kind="single"), rng, n=8)
        assert len(dict(found)) == 8
        answers.update(answer for _, answer in found)
    number = answers["yes"] + answers["no"]
    assert 1500 < number < 3000
    assert abs(answers["yes"] - answers["no"]) < 3 * number**0.5  # three standard errors


def test_answers_are_short_and_lower_case_but_for_captions() -> None:
    rng = np.random.default_rng(4)
    allowed = {"yes", "no", "zero", "left", "right", "above", "below", *"abcd"}
    allowed |= {*NUMBER_WORDS.values(), *COLOURS, *SHAPES}
    for _ in range(200):
        for text, answer in questions(sample_scene(rng), rng, n=5):
            if text == DESCRIBE:
                assert answer.startswith("a photo of ")
            else:
                assert answer in allowed and text == text.lower()


def test_training_questions_state_nothing_held_out() -> None:
    rng = np.random.default_rng(5)
    rules = held_out()
    checked: Counter[str] = Counter()
    for number, kind in product(range(250), SHARES):
        scene = sample_scene(rng, split="heldout" if number % 4 == 0 else "train")
        asked = question(scene, rng, kind=kind)
        if asked is None:
            continue
        text, answer = asked
        if kind == "caption":
            text, answer = answer, ""
        # A question for a shape states what its answer fills in.
        text = text.replace("what shape is the", f"{answer}, the").replace("what shape", answer)
        if text.startswith("what color is the object"):
            relation = next(name for name in RELATIONS if name in text)
            other = next(o for o in scene.objects if o.shape == re.findall(SHAPE, text)[-1])
            item = next(o for o in scene.objects if relation in relations(o, other))
            text = text.replace("the object", f"the {answer} {item.shape}")
        elif text.startswith("what color is the"):
            text = text.replace("the ", f"the {answer} ")
        if text.startswith("where is"):
            one, other_shape = re.findall(SHAPE, text)[:2]
            listed = re.findall(r"\) (\w+)", text) or [answer]
            for place in listed:
                relation = next(name for name in RELATIONS if name.startswith(place))
                assert not rules.holds_relation(one, relation, other_shape)
            checked["where"] += 1
        stem = text.split(" (a)")[0]
        shapes = set(re.findall(SHAPE, stem))
        assert not {shape_pair(a, b) for a in shapes for b in shapes} & rules.pair
        gap = rf" (?:is )?({'|'.join(RELATIONS)}) (?:an? |the )?(?:(?:{'|'.join(COLOURS)}) )?"
        for one, relation, other_shape in re.findall(SHAPE + gap + SHAPE, stem):
            assert (one, relation, other_shape) not in rules.relation
            checked["relation"] += 1
        for colour, shape in re.findall(rf"\b({'|'.join(COLOURS)}) {SHAPE}", stem):
            assert (colour, shape) not in rules.colour_shape
            checked["colour"] += 1
        for word, shape in re.findall(rf"\b(two|three|four|five) {SHAPE}", stem):
            count = {"two": 2, "three": 3, "four": 4, "five": 5}[word]
            assert (shape, count) not in rules.shape_count and count < 5
            checked["count"] += 1
    assert min(checked[name] for name in ("where", "relation", "colour", "count")) > 50


def test_popular_and_adversarial_negatives_are_the_commonest_and_the_closest() -> None:
    assert set(absent_shapes(PAIR, "random")) == set(SHAPES) - {"circle", "square"}
    # Commonest first: SHAPES is in order of frequency.
    assert (
        absent_shapes(PAIR, "popular") == [s for s in SHAPES if s not in ("circle", "square")][:3]
    )
    company = {
        shape: SHAPE_WEIGHTS[shape] * (affinity("circle", shape) + affinity("square", shape))
        for shape in absent_shapes(PAIR, "random")
    }
    adversarial = absent_shapes(PAIR, "adversarial")
    assert adversarial == sorted(company, key=lambda shape: -company[shape])[:3]
    assert set(NEGATIVES) == {"random", "popular", "adversarial"}


def test_in_training_a_shape_is_asked_for_in_vain_as_often_as_scenes_show_it() -> None:
    rng = np.random.default_rng(7)
    asked: Counter[str] = Counter()
    for _ in range(6000):
        pair = yes_no_pair("existence", PAIR, rng)
        assert pair is not None
        words = pair[1].removesuffix(" in the image?").split()[3:]
        asked[words[0]] += len(words) == 1
    absent = [shape for shape in SHAPES if shape not in ("circle", "square")]
    assert {word for word, number in asked.items() if number} == set(absent)
    total, weight = asked.total(), sum(SHAPE_WEIGHTS[shape] for shape in absent)
    for shape in absent:
        expected = SHAPE_WEIGHTS[shape] / weight
        error = (expected * (1 - expected) / total) ** 0.5
        assert abs(asked[shape] / total - expected) < 4 * error


def test_every_kind_of_question_is_asked_and_a_pair_has_one_of_each_answer() -> None:
    assert set(SHARES) == {*YES_NO, *OPEN}
    assert sum(SHARES.values()) == pytest.approx(1.0)
    rng = np.random.default_rng(6)
    assert yes_no_pair("colour_check", PAIR, rng, split="test") is not None
    crowd = tuple(Object("ring", "blue", x, 32.0, 8.0) for x in (11.0, 31.0, 52.0))
    assert yes_no_pair("colour_check", Scene(crowd, GREY), rng) is None


def test_an_empty_scene_and_a_list_that_cannot_be_filled_are_errors() -> None:
    rng = np.random.default_rng(7)
    with pytest.raises(ValueError, match="without objects"):
        questions(Scene((), GREY), rng)
    alone = {"colour": 1.0}
    assert len(questions(PAIR, rng, n=2, shares=alone)) == 2  # the circle's and the square's
    with pytest.raises(ValueError, match="only 2 of 3 questions found"):
        questions(PAIR, rng, n=3, shares=alone)


DRAWS = """
import numpy as np
from tarkit.shapes.captions import caption_g2, ti2i
from tarkit.shapes.prompts import caption_g0
from tarkit.shapes.questions import questions
from tarkit.shapes.sampling import sample_scene

rng = np.random.default_rng(0)
for number in range(150):
    split = "train" if number % 2 else "heldout"
    scene = sample_scene(rng, split=split)
    print(scene, questions(scene, rng, split=split, n=5), caption_g0(scene, rng, split=split))
    print(caption_g2(scene, rng, split=split), ti2i(scene, rng, split=split))
"""


def test_what_is_drawn_and_asked_does_not_depend_on_the_order_of_sets() -> None:
    # The order of a set of words is another in every process, unless the hash seed is given.
    outputs = [
        subprocess.run(
            [sys.executable, "-c", DRAWS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and outputs[0].count(b"Scene(") == 150
