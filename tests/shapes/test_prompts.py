"""G0: GenEval's words and metadata, true of the scene, and silent on what is held out."""

import re
from collections import Counter

import numpy as np
import pytest

from tarkit.shapes.heldout import held_out
from tarkit.shapes.prompts import (
    EXTRA_TASK,
    TASKS,
    caption_g0,
    caption_related,
    caption_reworded,
    clauses_of,
    edits,
    g0_captions,
    g0_metadata,
    held_out_kinds,
    may_state,
)
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import Background, Object, Scene, Split, satisfies
from tarkit.shapes.scene_edits import always_satisfies


@pytest.mark.parametrize(
    ("metadata", "prompt"),
    [
        (g0_metadata("single_object", ["arrow"]), "a photo of an arrow"),
        (g0_metadata("colors", ["star"], colours=["green"]), "a photo of a green star"),
        (g0_metadata("colors", ["circle"], colours=["orange"]), "a photo of an orange circle"),
        (g0_metadata("two_object", ["circle", "square"]), "a photo of a circle and a square"),
        (g0_metadata("counting", ["ring"], count=3), "a photo of three rings"),
        (g0_metadata("counting", ["cross"], count=2), "a photo of two crosss"),
        (
            g0_metadata("position", ["ring", "heart"], relation="above"),
            "a photo of a ring above a heart",
        ),
        (
            g0_metadata("color_attr", ["circle", "square"], colours=["red", "blue"]),
            "a photo of a red circle and a blue square",
        ),
        (
            g0_metadata(
                EXTRA_TASK, ["circle", "square"], colours=["red", "blue"], relation="left of"
            ),
            "a photo of a red circle left of a blue square",
        ),
    ],
)
def test_prompts_are_geneval_s_word_for_word(metadata: dict[str, object], prompt: str) -> None:
    assert metadata["prompt"] == prompt


def test_metadata_has_geneval_s_schema() -> None:
    # As in evaluation_metadata.jsonl: the first clause is the one that the second refers to.
    assert g0_metadata("position", ["ring", "heart"], relation="above") == {
        "tag": "position",
        "include": [
            {"class": "heart", "count": 1},
            {"class": "ring", "count": 1, "position": ["above", 0]},
        ],
        "prompt": "a photo of a ring above a heart",
    }
    assert g0_metadata("counting", ["ring"], count=3) == {
        "tag": "counting",
        "include": [{"class": "ring", "count": 3}],
        "exclude": [{"class": "ring", "count": 4}],
        "prompt": "a photo of three rings",
    }


def test_every_caption_of_2000_scenes_is_true_in_any_order_and_training_states_nothing_held() -> (
    None
):
    rng = np.random.default_rng(0)
    tags: Counter[str] = Counter()
    for number in range(2000):
        split: Split = "train" if number % 2 else "heldout"
        scene = sample_scene(rng, split=split)
        prompt, metadata = caption_g0(scene, rng, split=split)
        assert prompt == metadata["prompt"]
        tags[metadata["tag"]] += 1
        for told in (metadata, *g0_captions(scene, split=split)):
            assert satisfies(scene, told) and always_satisfies(scene, told)
            assert split != "train" or not held_out_kinds(told)
    assert set(tags) == {*TASKS, EXTRA_TASK}
    assert min(tags.values()) > 100


def test_a_related_caption_states_a_relation_that_is_true_and_not_held_out() -> None:
    rng = np.random.default_rng(1)
    told: Counter[bool] = Counter()
    for number in range(400):
        split: Split = "train" if number % 2 else "heldout"
        scene = sample_scene(rng, split=split, kind="two")
        stated = [m for m in g0_captions(scene, split=split) if "position" in m["include"][-1]]
        prompt = caption_related(scene, rng, split=split)
        assert (prompt is None) == (not stated)
        if prompt is not None:
            asked = next(m for m in stated if m["prompt"] == prompt)
            assert satisfies(scene, asked)
            told["color" in asked["include"][0]] += 1
    assert min(told.values()) > 100  # with colours and without, half each
    lone = sample_scene(rng, kind="single")
    assert caption_related(lone, rng) is None


def test_a_reworded_caption_is_true_not_held_out_and_read_by_the_judge() -> None:
    rng = np.random.default_rng(2)
    told: Counter[str] = Counter()
    for number in range(600):
        split: Split = "train" if number % 2 else "heldout"
        scene = sample_scene(rng, split=split)
        prompt = caption_reworded(scene, rng, split=split)
        assert satisfies(scene, clauses_of(prompt)), prompt
        assert "a photo of" not in prompt
        plain = re.sub("^(a picture of|an image of|a drawing of|draw) ", "", prompt)
        plain = plain.replace("to the ", "").replace("crosses", "crosss")
        assert f"a photo of {plain}" in {m["prompt"] for m in g0_captions(scene, split=split)}
        assert "crosss" not in prompt
        told[prompt.split()[0]] += 1
        told["crosses"] += "crosses" in prompt
        told["to the"] += "to the" in prompt
    assert min(told[word] for word in ("a", "an", "two", "draw", "crosses", "to the")) >= 5, told


def test_of_a_picture_with_three_rings_no_caption_speaks_of_one() -> None:
    objects = tuple(Object("ring", "blue", x, 32.0, 8.0) for x in (11.0, 31.0, 52.0))
    scene = Scene(objects, Background("plain", (140, 140, 140)))
    rng = np.random.default_rng(0)
    prompts = {caption_g0(scene, rng)[0] for _ in range(20)}
    assert prompts == {"a photo of three rings"}


def test_a_disputable_colour_is_not_told() -> None:
    objects = (Object("ring", "blue", 11.0, 32.0, 8.0), Object("ring", "red", 50.0, 32.0, 8.0))
    scene = Scene(objects, Background("plain", (140, 140, 140)))
    told = {metadata["prompt"] for metadata in g0_captions(scene, split="test")}
    assert told == {"a photo of a ring", "a photo of two rings"}


def test_held_out_statements_are_recognised_by_kind() -> None:
    rules = held_out()
    colour, shape = min(rules.colour_shape)
    assert held_out_kinds(g0_metadata("colors", [shape], colours=[colour])) == {"a"}
    one, relation, other = min(rules.relation)
    assert held_out_kinds(g0_metadata("position", [one, other], relation=relation)) == {"b"}
    name, count = min(rules.shape_count)
    held = g0_metadata("counting", [name], count=count)
    assert held_out_kinds(held) == {"c"}
    assert held_out_kinds(g0_metadata("two_object", min(rules.pair)[::-1])) == {"d"}
    assert held_out_kinds(g0_metadata("counting", ["circle"], count=5)) == {"five"}
    assert may_state(held, "test") and not may_state(held, "train")


def test_a_mirrored_form_that_is_seen_may_be_said() -> None:
    rules = held_out()
    one, relation, other = next(
        triple for triple in sorted(rules.relation) if not rules.holds_both_forms(*triple)
    )
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    held = g0_metadata("position", [one, other], relation=relation)
    seen = g0_metadata("position", [other, one], relation=mirror[relation])
    assert not may_state(held, "train") and may_state(seen, "train")


def test_edits_change_one_clause_each() -> None:
    metadata = g0_metadata(
        EXTRA_TASK, ["circle", "square"], colours=["red", "blue"], relation="left of"
    )
    found = edits(metadata)
    # Either shape to ten others (not to its neighbour's), either colour to nine, one swap, three
    # other relations.
    assert {kind: len(options) for kind, options in found.items()} == {
        "reshape": 20,
        "recolour": 18,
        "swap_colours": 1,
        "rerelate": 3,
    }
    assert found["swap_colours"][0]["prompt"] == "a photo of a blue circle left of a red square"
    counting = edits(g0_metadata("counting", ["ring"], count=3))
    assert [other["prompt"] for other in counting["recount"]] == [
        "a photo of two rings",
        "a photo of four rings",
        "a photo of five rings",
    ]
