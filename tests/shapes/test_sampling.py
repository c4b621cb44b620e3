"""Scenes: GenEval's relations by hand, the shares of what is drawn, and what training never has."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tarkit.shapes.heldout import held_out
from tarkit.shapes.sampling import (
    GAP_PX,
    KINDS,
    MARGIN,
    SHAPE_WEIGHTS,
    affinity,
    holds_held_out_picture,
    place,
    radius_range,
    sample_scene,
)
from tarkit.shapes.scene import (
    RELATIONS,
    SHAPES,
    SIDE_PX,
    Background,
    Object,
    Scene,
    bounding_box,
    offset,
    relations,
    satisfies,
    scene_from_json,
    scene_to_json,
    size_word,
)

GREY = Background("plain", (140, 140, 140))


def circle(x: float, y: float, *, shape: str = "circle", colour: str = "blue") -> Object:
    return Object(shape, colour, x, y, 8.0)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(3000)]


# - facts -


def test_an_offset_is_shrunk_by_a_tenth_of_both_sizes() -> None:
    # Centres 32 apart, each circle 16 wide: 32 - .1 x (16 + 16) = 28.8, over 32 = .9.
    assert offset(circle(16, 32), circle(48, 32)) == pytest.approx((-0.9, 0.0))
    # 24 right and 18 down is 30 away: (24 - 3.2) / 30 and (18 - 3.2) / 30.
    assert offset(circle(40, 40), circle(16, 22)) == pytest.approx((20.8 / 30, 14.8 / 30))


def test_relations_need_more_than_half() -> None:
    assert relations(circle(16, 32), circle(48, 32)) == ("left of",)
    assert relations(circle(40, 40), circle(16, 22)) == ("right of",)  # .693 and .493
    assert relations(circle(40, 40), circle(16, 16)) == ("right of", "below")  # 20.8 / 33.9 = .61
    assert relations(circle(20, 20), circle(20, 20)) == ()


def test_the_box_that_counts_is_that_of_the_drawn_shape() -> None:
    # A crescent's box reaches from -1 to .457 of r: its centre lies .271 r left of the object's.
    left, _, right, _ = bounding_box(circle(30, 30, shape="crescent"))
    assert (left + right) / 2 == pytest.approx(30 - 0.2714 * 8, abs=0.01)


def test_satisfies_follows_geneval_clause_by_clause() -> None:
    scene = Scene((circle(16, 32), circle(48, 32, shape="ring", colour="red")), GREY)
    one = {"class": "circle", "count": 1}
    two = {"class": "ring", "count": 1}

    def holds(*include: dict[str, object], exclude: list[dict[str, object]] | None = None) -> bool:
        return satisfies(scene, {"include": list(include), "exclude": exclude or []})

    assert holds(one) and holds(one, two) and not holds({"class": "star", "count": 1})
    assert holds({**one, "color": "blue"}) and not holds({**one, "color": "red"})
    assert holds(two, {**one, "position": ["left of", 0]})
    assert not holds(two, {**one, "position": ["right of", 0]})
    assert not holds({"class": "circle", "count": 2})
    assert holds(one, exclude=[{"class": "circle", "count": 2}])
    assert not holds(one, exclude=[{"class": "circle", "count": 1}])
    # A clause whose target failed fails too.
    assert not holds({**two, "color": "blue"}, {**one, "position": ["left of", 0]})


def test_of_several_in_a_class_the_first_ones_are_judged() -> None:
    scene = Scene((circle(16, 32), circle(48, 32, colour="red")), GREY)
    blue = {"include": [{"class": "circle", "count": 1, "color": "blue"}]}
    assert satisfies(scene, blue)
    assert not satisfies(replace(scene, objects=scene.objects[::-1]), blue)


def test_an_unmentioned_object_changes_no_verdict_but_counting() -> None:
    one = {"include": [{"class": "circle", "count": 1}]}
    exactly_one = {**one, "exclude": [{"class": "circle", "count": 2}]}
    scene = Scene((circle(16, 32),), GREY)
    with_star = Scene((*scene.objects, circle(48, 32, shape="star")), GREY)
    with_circle = Scene((*scene.objects, circle(48, 32)), GREY)
    assert [satisfies(s, one) for s in (scene, with_star, with_circle)] == [True, True, True]
    assert [satisfies(s, exactly_one) for s in (scene, with_star, with_circle)] == [
        True,
        True,
        False,
    ]


def test_a_horizontal_flip_maps_left_to_right_and_keeps_above(scenes: list[Scene]) -> None:
    other = {"left of": "right of", "right of": "left of", "above": "above", "below": "below"}
    seen: Counter[str] = Counter()
    for scene in scenes:
        if len(scene.objects) != 2 or any(item.shape == "crescent" for item in scene.objects):
            continue  # a crescent's own box is not symmetric
        a, b = scene.objects
        flipped = [replace(item, x=SIDE_PX - item.x) for item in (a, b)]
        assert set(relations(*flipped)) == {other[name] for name in relations(a, b)}
        seen.update(relations(a, b))
    assert min(seen[name] for name in RELATIONS) > 100


def test_a_size_between_small_and_large_has_no_word() -> None:
    assert [size_word(r) for r in (7.0, 8.6, 11.4, 11.5)] == ["small", "", "", "large"]


# - drawing -


def test_a_scene_survives_its_json(scenes: list[Scene]) -> None:
    assert all(scene_from_json(scene_to_json(scene)) == scene for scene in scenes[:300])


def test_the_same_seed_draws_the_same_scene_and_another_seed_another() -> None:
    first, again, other = (sample_scene(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert first == again != other


def test_radii_gaps_and_borders_hold(scenes: list[Scene]) -> None:
    for scene in scenes:
        low, high = radius_range(len(scene.objects))
        for i, a in enumerate(scene.objects):
            assert low - 0.005 <= a.r <= high + 0.005
            for centre in (a.x, a.y):
                assert a.r + GAP_PX - 0.011 <= centre <= SIDE_PX - a.r - GAP_PX + 0.011
            for b in scene.objects[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= a.r + b.r + GAP_PX - 1e-9


def test_no_relation_of_two_shapes_is_near_its_threshold(scenes: list[Scene]) -> None:
    parts = [
        abs(part)
        for scene in scenes
        for i, a in enumerate(scene.objects)
        for b in scene.objects[:i]
        if a.shape != b.shape
        for part in offset(a, b)
    ]
    assert min(abs(part - 0.5) for part in parts) >= MARGIN


def test_kinds_and_backgrounds_have_their_shares(scenes: list[Scene]) -> None:
    def kind(scene: Scene) -> str:
        names = {item.shape for item in scene.objects}
        number = len(scene.objects)
        if number == 1:
            return "single"
        return "counting" if len(names) == 1 else "two" if number == 2 else "crowded"

    found = Counter(kind(scene) for scene in scenes)
    for name, share in KINDS.items():  # four standard errors: 4 sqrt(.5 x .5 / 3000) = .037
        assert found[name] / 3000 == pytest.approx(share, abs=0.037)
    plain = sum(scene.background.kind == "plain" for scene in scenes)
    assert plain / 3000 == pytest.approx(0.5, abs=0.037)
    assert max(len(scene.objects) for scene in scenes) == 4  # five is extrapolation


def test_several_of_one_shape_mostly_share_a_colour() -> None:
    rng = np.random.default_rng(1)
    several = [sample_scene(rng, kind="counting").objects for _ in range(600)]
    same = sum(len({item.colour for item in objects}) == 1 for objects in several) / 600
    # .7, and of the other .3 a few by chance: at two objects in nine colours .3 / 9 = .03 more.
    assert same == pytest.approx(0.72, abs=0.075)


def test_shapes_are_zipfian_and_company_follows_affinity() -> None:
    rng = np.random.default_rng(2)
    single = Counter(sample_scene(rng, kind="single").objects[0].shape for _ in range(3000))
    total = sum(SHAPE_WEIGHTS.values())  # 1 + 1 / sqrt 2 + ... + 1 / sqrt 12 = 5.61
    assert total == pytest.approx(5.61, abs=0.005)
    assert single["circle"] / 3000 == pytest.approx(1 / total, abs=0.029)
    assert single["pole"] / 3000 == pytest.approx(12**-0.5 / total, abs=0.017)

    pairs: Counter[tuple[str, ...]] = Counter()
    for _ in range(3000):
        objects = sample_scene(rng, kind="two").objects
        pairs[tuple(sorted((item.shape for item in objects), key=SHAPES.index))] += 1
    close = [p for p in held_out().affinity if affinity(*p) > 1.5 and p not in held_out().pair]
    far = [p for p in held_out().affinity if affinity(*p) < 0.67 and p not in held_out().pair]

    def excess(chosen: list[tuple[str, str]]) -> float:
        expected = sum(SHAPE_WEIGHTS[a] * SHAPE_WEIGHTS[b] for a, b in chosen)
        return sum(pairs[pair] for pair in chosen) / expected

    assert excess(close) > 2 * excess(far)  # 1.5 / .67 = 2.2 at least


def test_training_scenes_hold_no_held_out_composition(scenes: list[Scene]) -> None:
    rules = held_out()
    for scene in scenes:
        counts = Counter(item.shape for item in scene.objects)
        assert not {(item.colour, item.shape) for item in scene.objects} & rules.colour_shape
        assert not set(counts.items()) & rules.shape_count
        assert not {(a, b) for a in counts for b in counts} & rules.pair
        if len(scene.objects) == 2 and len(counts) == 2:
            a, b = scene.objects
            for relation in relations(a, b):
                assert not rules.holds_both_forms(a.shape, relation, b.shape)


def test_held_out_scenes_hold_one_and_all_four_kinds_of_them_occur() -> None:
    rules = held_out()
    rng = np.random.default_rng(3)
    kinds: Counter[str] = Counter()
    for _ in range(400):
        scene = sample_scene(rng, split="heldout")
        assert holds_held_out_picture(scene)
        counts = Counter(item.shape for item in scene.objects)
        kinds["a"] += any((o.colour, o.shape) in rules.colour_shape for o in scene.objects)
        kinds["c"] += bool(set(counts.items()) & rules.shape_count)
        kinds["d"] += any(rules.holds_pair(a, b) for a in counts for b in counts if a != b)
        if len(scene.objects) == 2 and len(counts) == 2:
            one, other = scene.objects
            kinds["b"] += any(
                rules.holds_both_forms(one.shape, rel, other.shape)
                and not rules.holds_pair(one.shape, other.shape)
                for rel in relations(one, other)
            )
    assert min(kinds[name] for name in "abcd") >= 10


def test_an_impossible_placement_is_an_error() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(RuntimeError, match="no placement"):
        place(rng, ["circle"], ["red"], lambda objects: False)
