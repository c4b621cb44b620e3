"""G1, G2, TI2I and the parser: what is described is read back, and it is true."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from tarkit.shapes.captions import (
    IMAGE,
    caption_g1,
    caption_g2,
    caption_placed,
    describe_g1,
    describe_g2,
    speakable,
    ti2i,
)
from tarkit.shapes.grammar import NUMBER_WORDS, SIZE_WORDS, Facts, facts_of, parse
from tarkit.shapes.heldout import held_out, shape_pair
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIDE_PX,
    Background,
    Object,
    Scene,
    Split,
)

GREY = Background("striped", (140, 140, 140))
PAIR = Scene(
    (Object("circle", "orange", 16.0, 32.0, 12.0), Object("heart", "blue", 48.0, 32.0, 8.0)), GREY
)


def statements(text: str) -> tuple[set[tuple[str, str, str]], set[str]]:
    """The (shape, relation, shape) in the words' order, and the shapes; not by the parser."""
    shape = rf"(?:\w+ )??({'|'.join(SHAPES)})"
    triple = rf"(?:a|an|the) {shape} (?:is )?({'|'.join(RELATIONS)}) (?:a|an|the) {shape}\b"
    return set(re.findall(triple, text)), set(re.findall(rf"\b({'|'.join(SHAPES)})s?\b", text))


def test_g1_says_everything_in_one_sentence() -> None:
    rng = np.random.default_rng(0)
    assert {caption_g1(PAIR, rng, split="test") for _ in range(20)} == {
        "a photo of an orange circle left of a blue heart on a striped background",
        "a photo of a blue heart right of an orange circle on a striped background",
    }


def test_g2_says_it_in_several_with_sizes() -> None:
    text = caption_g2(PAIR, np.random.default_rng(1), split="test")
    assert text.startswith(("the image shows a ", "there is a "))
    assert "a large orange circle" in text and "a small blue heart" in text
    assert text.endswith(" the background is striped.")
    assert text.count(".") == 3  # what is there, one relation, the background


def test_what_is_described_is_read_back_and_true() -> None:
    rng = np.random.default_rng(0)
    for number in range(1500):
        split: Split = "train" if number % 2 else "heldout"
        scene = sample_scene(rng, split=split)
        everything = facts_of(scene)
        for describe in (describe_g1, describe_g2):
            text, stated = describe(scene, rng, split=split)
            assert parse(text) == stated
            assert stated.groups == everything.groups
            assert stated.relations <= everything.relations
            assert stated.background == scene.background.kind
        assert speakable(scene, split) == scene.objects


def test_training_text_states_no_held_out_pair_or_relation_even_of_held_out_scenes() -> None:
    rng = np.random.default_rng(1)
    rules = held_out()
    silenced = 0
    for number in range(1500):
        scene = sample_scene(rng, split="heldout" if number % 3 == 0 else "train")
        texts = [describe(scene, rng, split="train") for describe in (caption_g1, caption_g2)]
        composed = ti2i(scene, rng, split="train")
        texts += [composed[0].replace(IMAGE, composed[1])] if composed else []
        for text in texts:
            triples, shapes = statements(text)
            assert not triples & rules.relation
            assert not {shape_pair(a, b) for a in shapes for b in shapes} & rules.pair
            groups = parse(text).groups
            assert not {(colour, shape) for _, colour, shape in groups} & rules.colour_shape
            totals: Counter[str] = Counter()
            for count, _, shape in groups:
                totals[shape] += count
            assert not set(totals.items()) & rules.shape_count
        silenced += speakable(scene, "train") != scene.objects
    assert silenced > 200  # of the 500 held-out scenes, those not held by (b) alone


def test_the_checker_of_the_last_test_sees_a_held_out_relation() -> None:
    assert statements("a photo of a red circle left of a blue square on a plain background") == (
        {("circle", "left of", "square")},
        {"circle", "square"},
    )
    assert statements("the ring is above the black bar.")[0] == {("ring", "above", "bar")}


# - placed -


def test_places_are_true_beside_their_own_noun() -> None:
    rng = np.random.default_rng(2)
    middle = SIDE_PX / 2
    said = 0
    for _ in range(400):
        scene = sample_scene(rng)
        text = caption_placed(scene, rng)
        for phrase in (text or "").removeprefix("a photo of ").split(" and "):
            if not phrase:
                continue
            name, side = re.fullmatch(
                rf"an? ([\w ]+?) ({'|'.join(RELATIONS)}) the middle", phrase
            ).groups()  # type: ignore[union-attr]
            (item,) = [item for item in scene.objects if item.shape == name.split()[-1]]
            assert name in (item.shape, f"{item.colour} {item.shape}")
            off = {"left of": middle - item.x, "above": middle - item.y}
            off |= {"right of": -off["left of"], "below": -off["above"]}
            assert off[side] > 0
            said += 1
    assert said > 200


def test_places_imply_no_held_out_relation_in_training() -> None:
    shape, relation, other = next(
        rule for rule in sorted(held_out().relation) if rule[1] == "left of"
    )
    scene = Scene(
        (Object(shape, "blue", 16.0, 32.0, 8.0), Object(other, "blue", 48.0, 32.0, 8.0)), GREY
    )
    rng = np.random.default_rng(0)
    assert caption_placed(scene, rng, split="train") is None
    assert "left of the middle" in (caption_placed(scene, rng, split="test") or "")


# - the parser -


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("a photo of three rings", Facts(((3, "", "ring"),))),
        ("A Photo of TWO crosss.", Facts(((2, "", "cross"),))),
        (
            "a photo of a ring below a red heart",
            Facts(
                ((1, "", "ring"), (1, "red", "heart")),
                frozenset([(("red", "heart"), "above", ("", "ring"))]),
            ),
        ),
        ("a red circle and a red circle", Facts(((2, "red", "circle"),))),
        ("a red circle. the red circle is large", Facts(((1, "red", "circle"),))),
        ("the red circle", Facts(((1, "red", "circle"),))),
        ("a red circle left of", Facts(((1, "red", "circle"),))),
        ("left of a red circle", Facts(((1, "red", "circle"),))),
        ("a red circle is nicely left of a bar", Facts(((1, "", "bar"), (1, "red", "circle")))),
        ("red red circle on a noisy background", Facts((), background="noisy")),
        ("", Facts()),
    ],
)
def test_parts_of_a_sentence_are_read(text: str, facts: Facts) -> None:
    assert parse(text) == facts


def test_any_text_is_read_without_raising() -> None:
    rng = random.Random(0)
    words = [*SHAPES, *COLOURS, *SIZE_WORDS, *NUMBER_WORDS.values()]
    words += [*RELATIONS, "a", "an", "the", "is", "background", ".", ",", "and", "\n"]
    for _ in range(2000):
        salad = " ".join(rng.choices(words, k=rng.randrange(30)))
        noise = "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(60)))
        for text in (salad, noise, salad + noise):
            found = parse(text)
            assert all(count >= 1 and shape in SHAPES for count, _, shape in found.groups)
            assert all(relation in ("left of", "above") for _, relation, _ in found.relations)
    assert parse("a red circle " * 10_000).groups == ((10_000, "red", "circle"),)


# - TI2I -


def test_ti2i_replaces_one_noun_phrase_by_a_picture_of_its_object() -> None:
    rng = np.random.default_rng(3)
    made = 0
    for _ in range(500):
        scene = sample_scene(rng)
        composed = ti2i(scene, rng)
        lone = [group for group in facts_of(scene).groups if group[0] == 1]
        assert (composed is None) == (not lone)
        if composed is not None:
            template, phrase, item = composed
            made += 1
            assert template.count(IMAGE) == 1 and item in scene.objects
            assert phrase.split()[1:] == [item.colour, item.shape]
            assert parse(template.replace(IMAGE, phrase)).groups == facts_of(scene).groups
    assert made > 350
