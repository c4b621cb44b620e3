"""Pictures: areas and boxes by hand, symmetry, colours, and the bytes of twenty renders."""

import hashlib
import math

import numpy as np
import pytest

from tarkit.shapes.render import render, shape_mask
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    PALETTE,
    SHAPES,
    SIDE_PX,
    Background,
    Object,
    Scene,
    bounding_box,
)

GREY = Background("plain", (140, 140, 140))

AREAS = {  # in units of r squared
    "circle": math.pi,
    "square": 1.76**2,
    "triangle": 2 * 1.85 / 2,
    "star": 10 * 0.5 * 0.45 * math.sin(math.pi / 5),  # ten triangles of sides 1 and .45
    "heart": 180 * math.pi / 17**2,  # the curve x = 16 sin^3, y = 13 cos - ... bounds 180 pi
    "ring": math.pi * (1 - 0.52**2),
    "cross": 2 * 2 * 0.68 - 0.68**2,  # two bars 2 x .68 that share a square
    "diamond": 2 * 0.78,
    "arrow": 1.1 * 0.6 + 0.9 * 1.7 / 2,  # shaft and head
    "bar": 2 * 0.68,
    "pole": 2 * 0.68,
}


@pytest.mark.parametrize("shape", AREAS)
def test_a_mask_has_the_area_of_its_shape(shape: str) -> None:
    mask = shape_mask(shape, 16.0, 31.7, 32.4, SIDE_PX)
    assert mask.sum() / 16.0**2 == pytest.approx(AREAS[shape], rel=0.01)


def test_a_crescent_is_the_disc_minus_the_ellipse() -> None:
    # Over x in [-1, 1] the disc is 2 sqrt(1 - x^2) high; the ellipse of centre .69 and half axes
    # .91 and .92 takes away what of it lies inside.
    x = (np.arange(200_000) + 0.5) / 100_000 - 1
    disc = np.sqrt(1 - x**2)
    ellipse = 0.92 * np.sqrt(np.maximum(1 - ((x - 0.69) / 0.91) ** 2, 0))
    area = 2 * np.maximum(disc - ellipse, 0).sum() / 100_000
    mask = shape_mask("crescent", 16.0, 31.7, 32.4, SIDE_PX)
    assert mask.sum() / 16.0**2 == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bounding_box_is_that_of_the_drawn_pixels(shape: str) -> None:
    mask = shape_mask(shape, 100.0, 128.0, 128.0, 256)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    drawn = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    box = bounding_box(Object(shape, "red", 128.0, 128.0, 100.0))
    # 1.5 px of 100: tips of stars and hearts are thinner than a sample.
    assert drawn == pytest.approx(box, abs=1.5)


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("arrow", "crescent")])
def test_a_mirrored_centre_gives_the_mirrored_mask(shape: str) -> None:
    mask = shape_mask(shape, 9.3, 20.25, 30.5, SIDE_PX)
    mirrored = shape_mask(shape, 9.3, SIDE_PX - 20.25, 30.5, SIDE_PX)
    np.testing.assert_allclose(mirrored[:, ::-1], mask, atol=2 / 64)  # two of 64 samples on an edge


def test_the_arrow_points_right() -> None:
    mask = shape_mask("arrow", 16.0, 32.0, 32.0, SIDE_PX)
    heights = (mask > 0.5).sum(axis=0)
    assert heights[34:38].min() >= 2 * heights[20:32].max()  # head and shaft


def test_a_mask_is_cut_off_at_the_canvas_and_covers_half_there() -> None:
    mask = shape_mask("circle", 10.0, 0.0, 32.0, SIDE_PX)
    assert mask.shape == (SIDE_PX, SIDE_PX)
    assert mask.sum() == pytest.approx(math.pi * 100 / 2, rel=0.01)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_inside_has_exactly_the_palette_s_colour_and_the_corner_the_background_s(
    colour: str,
) -> None:
    scene = Scene((Object("square", colour, 32.0, 32.0, 12.0),), GREY)
    picture = render(scene, np.random.default_rng(0))
    assert picture.dtype == np.uint8 and picture.shape == (64, 64, 3)
    assert (picture[24:40, 24:40] == PALETTE[colour]).all()
    assert (picture[:10] == 140).all()


def test_half_covered_pixels_are_half_mixed() -> None:
    # A square of half side .88 x 12.5 = 11 from x = 21.5: its first column is half covered, so a
    # white one (250) on 140 gives 195 there.
    scene = Scene((Object("square", "white", 32.5, 32.0, 12.5),), GREY)
    picture = render(scene, np.random.default_rng(0))
    assert (picture[30, 20:23] == [[140] * 3, [195] * 3, [250] * 3]).all()


@pytest.mark.parametrize(
    ("kind", "spread"), [("plain", 0.0), ("noisy", 5.0), ("striped", 5.0), ("gradient", 4.0)]
)
def test_backgrounds_vary_as_much_as_they_should(kind: str, spread: float) -> None:
    # Noise of sigma 5; stripes of +-5; a straight ramp of height 14 has sigma 14 / sqrt 12 = 4.04.
    background = Background(kind, (140, 140, 140), 90.0, 14.0, 16.0)
    picture = render(Scene((), background), np.random.default_rng(0)).astype(float)
    assert picture.mean() == pytest.approx(140, abs=0.5)
    assert picture.std() == pytest.approx(spread, abs=0.2)


def test_only_noise_uses_the_generator() -> None:
    for kind in BACKGROUNDS:
        scene = Scene((), Background(kind, (140, 140, 140), 30.0, 10.0, 12.0))
        first, second = (render(scene, np.random.default_rng(seed)) for seed in (1, 2))
        assert (first != second).any() == (kind == "noisy")


GOLDEN = """
8ae21fe1207bbdee 88a894b81b6eb0e0 022f3d16a60fee9c 89d67079a1d643e1 a310d6e01e750976
0298bee71fb80ec9 1682b860ef7de9c9 b620b408221dc6c8 861b8be38a8bd57b bd6b955cf2f69b33
24e134ca8825cc54 7eb98a204967cd38 07fae3b943ec9ea2 4ce1408b11c80c6b efd6cf0e6152eb61
82f7fd3e03ff4a04 315483a629d71a87 5504aff1b831bcad 19a2190308d6bc31 ae93bd904f73bff4
""".split()


def test_twenty_renders_have_the_bytes_they_always_had() -> None:
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, split="train" if seed < 15 else "heldout")
        found.append(hashlib.sha256(render(scene, rng).tobytes()).hexdigest()[:16])
    assert found == GOLDEN
