"""Proof that the drawn world's scorer is right, on fresh seeds."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from tarkit.errors import UserError
from tarkit.scoring.geneval import check
from tarkit.scoring.shapes_detector import UNKNOWN, ShapesDetector
from tarkit.shapes.render import render
from tarkit.shapes.sampling import place, sample_background
from tarkit.shapes.scene import COLOURS, SHAPES, Background, Object, Scene, bounding_box, satisfies
from tests.scoring.pictures import (
    Picture,
    blurred,
    drawn_scenes,
    facts,
    halved,
    noisy,
    random_prompt,
)

PLAIN = Background("plain", (140, 140, 140))
DETECTOR = ShapesDetector()


def seen(picture: Picture) -> list[tuple[str, str | None]]:
    return sorted((found.cls, found.colour) for found in DETECTOR.detect(picture))


def verdicts_agree(num_scenes: int, *, seed: int) -> tuple[int, int]:
    """(disagreements, true verdicts) of four random prompts a scene, symbols against pixels."""
    rng = np.random.default_rng(seed)
    wrong = true = 0
    for scene, picture in drawn_scenes(num_scenes, seed=seed):
        found = DETECTOR.detect(picture)
        for _ in range(4):
            prompt = random_prompt(scene, rng)
            truth = satisfies(scene, prompt)
            wrong += check(prompt, found).correct != truth
            true += truth
    return wrong, true


def test_every_object_of_every_render_is_found_named_and_coloured() -> None:
    for scene, picture in drawn_scenes(300, seed=101):
        assert seen(picture) == facts(scene), scene


def test_symbolic_and_pixel_verdicts_are_the_same() -> None:
    wrong, true = verdicts_agree(300, seed=102)
    assert wrong == 0
    assert 300 < true < 900  # of 1,200: neither verdict is rare, so agreement says something


@pytest.mark.slow
def test_symbolic_and_pixel_verdicts_are_the_same_on_5000_scenes() -> None:
    wrong, true = verdicts_agree(5000, seed=103)
    assert wrong == 0
    assert 5000 < true < 15000


def test_boxes_are_those_of_the_drawn_shapes() -> None:
    # relations are judged on boxes: half a pixel of 16 is .03 of a direction, under their margin
    errors = []
    for scene, picture in drawn_scenes(100, seed=104):
        found = DETECTOR.detect(picture)
        for item in scene.objects:
            truth = np.array(bounding_box(item))
            errors.append(min(np.abs(np.array(each.box) - truth).max() for each in found))
    assert np.mean(errors) < 0.15
    assert np.max(errors) < 1.0


def test_the_confusion_matrix_of_12_shapes_and_10_colours_is_diagonal() -> None:
    rng = np.random.default_rng(105)
    for shape, colour in product(SHAPES, COLOURS):
        scene = Scene(place(rng, [shape], [colour]), sample_background(rng))
        assert seen(render(scene, rng)) == [(shape, colour)], scene


def test_the_smallest_objects_are_named_in_every_colour() -> None:
    rng = np.random.default_rng(106)
    for shape, colour in product(SHAPES, COLOURS):
        x, y = rng.uniform(20, 40, 2)
        scene = Scene((Object(shape, colour, x, y, 6.6),), sample_background(rng))
        assert seen(render(scene, rng)) == [(shape, colour)], scene


def test_a_flip_maps_left_to_right() -> None:
    mirror = {"left of": "right of", "right of": "left of"}
    rng = np.random.default_rng(107)
    asked = 0
    for scene, picture in drawn_scenes(150, seed=107):
        prompt = random_prompt(scene, rng)
        if "position" not in prompt["include"][-1]:
            continue
        # arrows and crescents turn round under a flip and fit no upright template
        if {item.shape for item in scene.objects} & {"arrow", "crescent"}:
            continue
        relation, target = prompt["include"][-1]["position"]
        other = {**prompt["include"][-1], "position": [mirror.get(relation, relation), target]}
        flipped = {**prompt, "include": [prompt["include"][0], other]}
        before = check(prompt, DETECTOR.detect(picture)).correct
        after = check(flipped, DETECTOR.detect(picture[:, ::-1].copy())).correct
        assert before == after
        asked += relation in mirror
    assert asked > 5


def test_adding_an_unmentioned_shape_changes_no_verdict_but_counting() -> None:
    rng = np.random.default_rng(108)
    for scene, picture in drawn_scenes(100, seed=108):
        if len(scene.objects) > 2:
            continue
        prompts = [random_prompt(scene, rng) for _ in range(4)]
        named = {clause["class"] for prompt in prompts for clause in prompt["include"]}
        shape = next(name for name in SHAPES if name not in named | {s for s, _ in facts(scene)})
        spot = free_spot(scene, rng)
        if spot is None:
            continue
        added = Scene((*scene.objects, Object(shape, "white", *spot, 6.6)), scene.background)
        before, after = DETECTOR.detect(picture), DETECTOR.detect(render(added, rng))
        for prompt in prompts:
            assert check(prompt, before).correct == check(prompt, after).correct
        at_least_one = {"class": shape, "count": 1}
        none_of_it = {"tag": "counting", "include": [], "exclude": [at_least_one]}
        assert check(none_of_it, before).correct
        assert not check(none_of_it, after).correct


def free_spot(scene: Scene, rng: np.random.Generator) -> tuple[float, float] | None:
    for x, y in rng.uniform(9.2, 54.8, (200, 2)).tolist():
        if all(max(abs(x - o.x), abs(y - o.y)) >= 6.6 + o.r + 2.5 for o in scene.objects):
            return x, y
    return None


def test_blank_and_noise_pictures_hold_nothing() -> None:
    rng = np.random.default_rng(109)
    for background in (sample_background(rng) for _ in range(60)):
        assert seen(render(Scene((), background), rng)) == []
    for grey in (0, 12, 128, 255):
        assert seen(np.full((64, 64, 3), grey, dtype=np.uint8)) == []
    for _ in range(20):
        picture = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
        assert all(cls == UNKNOWN for cls, _ in seen(picture))


def share_found(pictures: list[Picture], truths: list[list[tuple[str, str]]]) -> float:
    """Of the drawn objects, those that are found with their shape and colour."""
    found = sum(
        sum((Counter(seen(picture)) & Counter(truth)).values())
        for picture, truth in zip(pictures, truths, strict=True)
    )
    return found / sum(map(len, truths))


def degradation(num_scenes: int, *, seed: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    scenes = drawn_scenes(num_scenes, seed=seed)
    pictures, truths = [p for _, p in scenes], [facts(s) for s, _ in scenes]

    def shares(*spoilt: list[Picture]) -> list[float]:
        return [share_found(each, truths) for each in (pictures, *spoilt)]

    return {
        "blur": shares(*([blurred(p, sigma) for p in pictures] for sigma in (1.0, 2.0, 3.0))),
        "noise": shares(*([noisy(p, sigma, rng) for p in pictures] for sigma in (15, 25, 35))),
        "halved": shares([halved(p) for p in pictures]),
    }


def assert_degrades(shares: dict[str, list[float]]) -> None:
    for kind, levels in shares.items():
        assert levels == sorted(levels, reverse=True), (kind, levels)
    assert shares["blur"][1] >= 0.99
    assert shares["noise"][1] >= 0.99
    assert shares["halved"][1] >= 0.99


def test_degradation_is_monotone_and_mild_damage_costs_nothing() -> None:
    shares = degradation(25, seed=110)
    assert_degrades(shares)
    assert shares["blur"][3] < 0.8 and shares["noise"][3] < 0.8  # and heavy damage is seen


@pytest.mark.slow
def test_degradation_is_monotone_on_1000_scenes() -> None:
    assert_degrades(degradation(1000, seed=111))


@pytest.mark.parametrize("factor", [2, 4])
def test_multiples_of_64_px_are_averaged_and_boxes_are_in_their_own_pixels(factor: int) -> None:
    (scene, picture), *_ = drawn_scenes(1, seed=112)
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    small, found = DETECTOR.detect(picture), DETECTOR.detect(large)
    assert [each.cls for each in found] == [each.cls for each in small]
    assert found[0].box == pytest.approx([factor * edge for edge in small[0].box])


def test_touching_objects_of_two_colours_are_two() -> None:
    # two squares, half side 8.8 px, side by side: they share the edge x = 32
    left, right = Object("square", "red", 23.2, 32, 10), Object("square", "blue", 40.8, 32, 10)
    picture = render(Scene((left, right), PLAIN), np.random.default_rng(0))
    assert seen(picture) == [("square", "blue"), ("square", "red")]


def test_a_soft_edge_is_no_second_colour() -> None:
    # halfway between red and grey lies a brown: the blurred edge must stay part of the red
    picture = render(Scene((Object("bar", "red", 32, 32, 9),), PLAIN), np.random.default_rng(0))
    assert seen(blurred(picture, 1.5)) == [("bar", "red")]


def test_a_blob_that_fits_no_template_is_unknown() -> None:
    # an L of two 5 px strokes, 30 px long
    picture = np.full((64, 64, 3), 140, dtype=np.uint8)
    picture[15:45, 15:20] = (214, 39, 40)
    picture[40:45, 15:45] = (214, 39, 40)
    assert seen(picture) == [(UNKNOWN, "red")]


def test_an_object_at_the_border_does_not_become_background() -> None:
    # the square covers 30 of the 64 px of the upper border; it is cut to 26 px of height
    scene = Scene((Object("square", "green", 32, 8.8, 17),), PLAIN)
    (found,) = DETECTOR.detect(render(scene, np.random.default_rng(0)))
    assert found.colour == "green"


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 4), (64, 128, 3), (96, 96, 3), (0, 0, 3)])
def test_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError):
        DETECTOR.detect(np.zeros(shape, dtype=np.uint8))


def test_pictures_in_floats_are_refused() -> None:
    with pytest.raises(UserError, match="float64"):
        DETECTOR.detect(np.zeros((64, 64, 3)))  # type: ignore[arg-type]
