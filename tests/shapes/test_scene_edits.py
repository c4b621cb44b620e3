"""Scenes to order: each satisfies its prompt, each corruption breaks it by one change."""

from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest

from tarkit.shapes.grammar import facts_of
from tarkit.shapes.heldout import held_out
from tarkit.shapes.prompts import caption_g0, g0_metadata, held_out_kinds
from tarkit.shapes.sampling import holds_held_out_picture, sample_scene
from tarkit.shapes.scene import Background, Object, Scene, satisfies
from tarkit.shapes.scene_edits import (
    Corruption,
    alone,
    always_satisfies,
    corrupt,
    corruptions_for,
    false_caption,
    never_satisfies,
    scene_for,
    similar,
)


def named(scene: Scene) -> Counter[tuple[str, str]]:
    return Counter((item.colour, item.shape) for item in scene.objects)


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    splits = ["train", "heldout"] * 150
    return [caption_g0(sample_scene(rng, split=s), rng, split=s)[1] for s in splits]  # type: ignore[arg-type]


def test_a_scene_for_a_prompt_satisfies_it_and_shows_nothing_else(
    records: list[dict[str, Any]],
) -> None:
    rng = np.random.default_rng(1)
    for metadata in records:
        scene = scene_for(metadata, rng)
        assert always_satisfies(scene, metadata)
        assert len(scene.objects) == sum(clause["count"] for clause in metadata["include"])


def test_five_of_a_shape_can_be_drawn() -> None:
    rng = np.random.default_rng(2)
    five = g0_metadata("counting", ["circle"], count=5)
    assert len(scene_for(five, rng).objects) == 5


def test_every_corruption_breaks_its_prompt(records: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(4)
    done: Counter[str] = Counter()
    for metadata in records:
        scene = scene_for(metadata, rng)
        for kind in corruptions_for(metadata):
            broken = corrupt(scene, metadata, kind, rng)
            assert never_satisfies(broken, metadata) and not satisfies(broken, metadata)
            done[kind] += 1
    assert set(done) == set(get_args(Corruption))
    assert min(done.values()) > 30


def test_a_corruption_is_one_change() -> None:
    rng = np.random.default_rng(5)
    metadata = g0_metadata(
        "color_position", ["circle", "square"], colours=["green", "blue"], relation="left of"
    )
    scene = scene_for(metadata, rng)
    before = named(scene)

    def changed(kind: str) -> Counter[tuple[str, str]]:
        return named(corrupt(scene, metadata, kind, rng))  # type: ignore[arg-type]

    assert changed("drop") < before
    for kind in ("reshape", "recolour"):  # one name went and another came
        assert (before - changed(kind)).total() == (changed(kind) - before).total() == 1
    assert changed("swap_colours") == Counter([("blue", "circle"), ("green", "square")])
    assert changed("swap_positions") == before
    counting = g0_metadata("counting", ["ring"], count=4)
    assert len(corrupt(scene_for(counting, rng), counting, "add", rng).objects) == 5
    with pytest.raises(ValueError, match="'add' cannot break"):
        corrupt(scene, metadata, "add", rng)


def test_false_captions_are_false_and_training_ones_state_nothing_held_out() -> None:
    rng = np.random.default_rng(6)
    for _ in range(500):
        scene = sample_scene(rng)
        _, metadata = caption_g0(scene, rng)
        false = false_caption(scene, metadata, rng)
        assert false is not None
        assert never_satisfies(scene, false) and not held_out_kinds(false)
        assert false["tag"] == metadata["tag"]


def test_a_ranking_that_matters_is_neither_always_nor_never_right() -> None:
    objects = (Object("ring", "blue", 11.0, 32.0, 8.0), Object("ring", "red", 50.0, 32.0, 8.0))
    scene = Scene(objects, Background("plain", (140, 140, 140)))
    metadata = g0_metadata("colors", ["ring"], colours=["red"])
    assert not always_satisfies(scene, metadata) and not never_satisfies(scene, metadata)


def test_a_similar_scene_says_the_same_at_other_places() -> None:
    rng = np.random.default_rng(7)
    for _ in range(300):
        scene = sample_scene(rng)
        other = similar(scene, rng)
        assert named(other) == named(scene) and other.objects != scene.objects
        assert other.background.kind == scene.background.kind
        assert not holds_held_out_picture(other)
        if len(scene.objects) == 2:
            assert facts_of(other) == facts_of(scene)


def test_a_reference_shows_its_object_alone() -> None:
    rng = np.random.default_rng(8)
    item = sample_scene(rng, kind="two").objects[0]
    assert named(alone(item, rng)) == {(item.colour, item.shape): 1}
    assert (item.colour, item.shape) not in held_out().colour_shape
