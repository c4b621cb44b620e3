"""Caption figures by hand, and true captions against their scenes."""

import numpy as np
import pytest

from tarkit.eval.metrics.shapes_captions import (
    CaptionCounts,
    SceneCaptions,
    caption_results,
    caption_scores,
    compare_caption,
)
from tarkit.shapes.captions import caption_g1, caption_g2
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import Background, Object, Scene

PLAIN = Background("plain", (140, 140, 140))
# a red ring left of two blue bars
SCENE = Scene(
    (
        Object("ring", "red", 12, 32, 8),
        Object("bar", "blue", 48, 16, 8),
        Object("bar", "blue", 48, 48, 8),
    ),
    PLAIN,
)
PAIR = Scene((Object("ring", "red", 12, 32, 8), Object("bar", "blue", 48, 32, 8)), PLAIN)


def test_groups_are_compared_as_a_multiset_of_count_colour_and_shape() -> None:
    # said {1 red ring, 1 blue bar, 1 green star}, shown {1 red ring, 2 blue bar}: 1 in common
    counts = compare_caption("a red ring, a blue bar and a green star", SCENE)
    assert (counts.said, counts.shown, counts.right, counts.exact) == (3, 2, 1, 0)
    scores = caption_scores([counts])
    # P 1/3, R 1/2, F1 = 2 (1/6) / (5/6) = .4
    assert scores.precision == pytest.approx(1 / 3)
    assert scores.recall == pytest.approx(1 / 2)
    assert scores.f1 == pytest.approx(0.4)


def test_an_exact_caption_names_all_groups() -> None:
    assert compare_caption("a photo of two blue bars and a red ring", SCENE).exact
    assert not compare_caption("a photo of two blue bars", SCENE).exact


def test_a_pairs_relation_must_be_told_and_true() -> None:
    told = compare_caption("a photo of a red ring left of a blue bar", PAIR)
    assert (told.relations_said, told.relations_right, told.pairs_told, told.exact) == (1, 1, 1, 1)
    turned = compare_caption("a photo of a blue bar right of a red ring", PAIR)
    assert turned == told
    untold = compare_caption("a photo of a red ring and a blue bar", PAIR)
    assert (untold.right, untold.pairs, untold.pairs_told, untold.exact) == (2, 1, 0, 0)
    false = compare_caption("a photo of a red ring above a blue bar", PAIR)
    assert (false.relations_said, false.relations_right, false.exact) == (1, 0, 0)
    # 3 pairs, 1 told; 2 relations said, 1 true: R 1/3, P 1/2, F1 = 2 (1/6) / (5/6) = .4
    scores = caption_scores([told, untold, false])
    assert scores.relation_recall == pytest.approx(1 / 3)
    assert scores.relation_precision == pytest.approx(1 / 2)
    assert scores.relation_f1 == pytest.approx(0.4)


def test_captions_that_say_nothing_are_counted() -> None:
    counts = [compare_caption(text, PAIR) for text in ("", "hello there", None)]
    assert {c.unreadable for c in counts} == {1}
    assert caption_scores(counts).recall == 0
    assert caption_scores(counts).unreadable == 1


def test_the_background_has_a_share_of_its_own() -> None:
    text = "a photo of a red ring left of a blue bar on a plain background"
    assert compare_caption(text, PAIR).background_right
    wrong = compare_caption(text.replace("plain", "striped"), PAIR)
    assert (wrong.background_right, wrong.exact) == (0, 1)


def test_the_worlds_own_captions_are_exact() -> None:
    rng = np.random.default_rng(5)
    for _ in range(300):
        scene = sample_scene(rng, split="heldout")
        counts = compare_caption(caption_g1(scene, rng, split="test"), scene)
        assert counts.exact and counts.background_right, scene
        dense = compare_caption(caption_g2(scene, rng, split="test"), scene)
        assert dense.right == dense.shown == dense.said
        assert dense.relations_right == dense.relations_said


def test_captions_of_other_scenes_are_rarely_exact() -> None:
    # the chance floor: 12 shapes x 10 colours leave little to luck
    rng = np.random.default_rng(6)
    scenes = [sample_scene(rng) for _ in range(300)]
    texts = [caption_g1(scene, rng) for scene in scenes]
    counts: list[CaptionCounts] = [
        compare_caption(text, scene) for text, scene in zip(texts, scenes[1:], strict=False)
    ]
    assert caption_scores(counts).exact < 0.02
    assert caption_scores(counts).f1 < 0.05


def test_no_captions_are_an_error() -> None:
    with pytest.raises(ValueError, match="no captions"):
        caption_scores([])


def test_caption_figures_by_column() -> None:
    scene = Scene((Object("ring", "red", 20, 32, 8),), PLAIN)
    right, wrong = compare_caption("a red ring", scene), compare_caption("a red star", scene)
    found = caption_results(
        SceneCaptions(
            columns=["seen", "heldout"],
            counts=[right, wrong],
            chance=[wrong, wrong],
            failed=[False, True],
        )
    )
    assert found["all"]["exact"]["value"] == 0.5
    assert found["all"]["f1"]["value"] == 0.5  # 2 x 1 right / (2 said + 2 shown)
    assert found["columns"]["seen"]["f1"]["value"] == 1.0
    assert found["columns"]["heldout"]["recall"] == 0.0
    assert found["chance"]["exact"] == 0.0
    assert found["coverage"] == 0.5
