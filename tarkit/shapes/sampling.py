"""Scenes at random: which shapes and colours, on what background, at which places.

A scene of the split "train" holds no held-out composition (heldout.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from tarkit.shapes.heldout import COUNTS, EXTRAPOLATED_COUNT, held_out, shape_pair
from tarkit.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE_PX,
    Background,
    Kind,
    Object,
    Scene,
    Split,
    offset,
    one_of,
    pick,
    relations,
)

KINDS: dict[Kind, float] = {"single": 0.22, "two": 0.48, "counting": 0.22, "crowded": 0.08}
GAP_PX = 2.5
MARGIN = 0.05  # no relation within this of its threshold .5: pixel boxes are half a pixel coarse
SHAPE_WEIGHTS = {shape: (rank + 1) ** -0.5 for rank, shape in enumerate(SHAPES)}  # Zipf
SAME_COLOUR_SHARE = 0.7  # of the pictures that show several of one shape


def holds_held_out_picture(scene: Scene) -> bool:
    """True if no training picture may look like this: (a), (c), (d), or (b) with two objects."""
    rules = held_out()
    if any((item.colour, item.shape) in rules.colour_shape for item in scene.objects):
        return True
    counts = Counter(item.shape for item in scene.objects)
    if any(cell in rules.shape_count for cell in counts.items()):
        return True
    if len(scene.objects) >= EXTRAPOLATED_COUNT:
        return True
    if any(rules.holds_pair(a, b) for a in counts for b in counts if a != b):
        return True
    if len(scene.objects) == 2 and len(counts) == 2:
        a, b = scene.objects
        return any(rules.holds_both_forms(a.shape, rel, b.shape) for rel in relations(a, b))
    return False


def radius_range(num_objects: int) -> tuple[float, float]:
    """The smallest and the largest radius, in px, of objects in a picture of so many."""
    return {1: (7.0, 16.8), 2: (7.0, 13.0), 3: (7.0, 10.5)}.get(num_objects, (6.6, 8.2))


def sample_background(rng: np.random.Generator) -> Background:
    """A background by the shares of BACKGROUNDS, at a grey level of 118 to 165, tinted by 5."""
    kind = pick(rng, tuple(BACKGROUNDS), tuple(BACKGROUNDS.values()))
    grey = rng.uniform(118, 165)
    tint = rng.uniform(-5, 5, 3)
    red, green, blue = (int(round(grey + shift)) for shift in tint)
    angle = round(float(rng.uniform(0, 360)), 1) if kind in ("gradient", "striped") else 0.0
    rise = period = 0.0
    if kind == "gradient":  # both ends stay grey levels of the world
        reach = min(grey - 118, 165 - grey)
        rise = round(float(2 * reach * rng.uniform(0.4, 1.0)), 1)
    elif kind == "striped":
        period = round(float(rng.uniform(8, 20)), 1)
    return Background(kind, (red, green, blue), angle, rise, period)


def affinity(one: str, other: str) -> float:
    """How much likelier than chance two shapes share a picture."""
    return 1.0 if one == other else held_out().affinity[shape_pair(one, other)]


@lru_cache(maxsize=4)
def _pairs(train: bool) -> tuple[tuple[tuple[str, str], ...], tuple[float, ...]]:
    names = [(a, b) for i, a in enumerate(SHAPES) for b in SHAPES[i + 1 :]]
    names = [pair for pair in names if not (train and pair in held_out().pair)]
    weights = [SHAPE_WEIGHTS[a] * SHAPE_WEIGHTS[b] * affinity(a, b) for a, b in names]
    return tuple(names), tuple(weights)


@lru_cache(maxsize=4)
def _cells(train: bool) -> tuple[tuple[tuple[str, int], ...], tuple[float, ...]]:
    cells = [(shape, count) for shape in SHAPES for count in COUNTS]
    cells = [cell for cell in cells if not (train and cell in held_out().shape_count)]
    return tuple(cells), tuple(SHAPE_WEIGHTS[shape] for shape, _ in cells)


@lru_cache(maxsize=64)
def _allowed_colours(shape: str, train: bool) -> tuple[str, ...]:
    """All ten, or the ones training pictures show this shape in."""
    held = held_out().colour_shape
    return tuple(name for name in COLOURS if not (train and (name, shape) in held))


def _sample_shapes(rng: np.random.Generator, kind: Kind, train: bool) -> list[str]:
    if kind == "single":
        return [pick(rng, SHAPES, tuple(SHAPE_WEIGHTS.values()))]
    if kind == "two":
        pair = list(pick(rng, *_pairs(train)))
        return pair[::-1] if rng.random() < 0.5 else pair
    if kind == "counting":
        shape, count = pick(rng, *_cells(train))
        return [shape] * count
    number = 3 + int(rng.integers(2))
    first = pick(rng, SHAPES, tuple(SHAPE_WEIGHTS.values()))
    weights = tuple(SHAPE_WEIGHTS[shape] * affinity(first, shape) for shape in SHAPES)
    return [first, *(pick(rng, SHAPES, weights) for _ in range(number - 1))]


def _shapes_allowed(shapes: Sequence[str], kind: Kind, train: bool) -> bool:
    counts = Counter(shapes)
    if kind == "crowded" and len(counts) < 2:
        return False
    if not train:
        return True
    rules = held_out()
    return not any(cell in rules.shape_count for cell in counts.items()) and not any(
        rules.holds_pair(a, b) for a in counts for b in counts if a != b
    )


def sample_colours(rng: np.random.Generator, shapes: Sequence[str], *, train: bool) -> list[str]:
    """A colour for each object; several of one shape, alone in a picture, mostly share theirs."""
    if len(shapes) > 1 and len(set(shapes)) == 1 and rng.random() < SAME_COLOUR_SHARE:
        return [one_of(rng, _allowed_colours(shapes[0], train))] * len(shapes)
    return [one_of(rng, _allowed_colours(shape, train)) for shape in shapes]


def place(
    rng: np.random.Generator,
    shapes: Sequence[str],
    colours: Sequence[str],
    accepts: Callable[[tuple[Object, ...]], bool] = lambda objects: True,
) -> tuple[Object, ...]:
    """Objects at random places with the world's gaps and radii, none at a relation's threshold.

    `accepts` may refuse a whole placement. Raises RuntimeError after 20,000 refusals: the caller
    asks for something impossible.
    """
    low, high = radius_range(len(shapes))
    for _ in range(20_000):
        radii = rng.uniform(low, high, len(shapes)).round(2).tolist()
        spots: list[tuple[float, float, float]] = []
        for r in radii:
            edge = r + GAP_PX
            for x, y in rng.uniform(edge, SIDE_PX - edge, (12, 2)).round(2).tolist():
                if all(max(abs(x - u), abs(y - v)) >= r + s + GAP_PX for u, v, s in spots):
                    spots.append((x, y, r))
                    break
            else:
                break
        if len(spots) < len(shapes):
            continue
        objects = tuple(
            Object(shape, colour, x, y, r)
            for shape, colour, (x, y, r) in zip(shapes, colours, spots, strict=True)
        )
        if _clear_of_thresholds(objects) and accepts(objects):
            return objects
    raise RuntimeError(f"no placement of {list(shapes)} is accepted")


def _clear_of_thresholds(objects: Sequence[Object]) -> bool:
    return all(
        abs(abs(part) - 0.5) >= MARGIN
        for i, a in enumerate(objects)
        for b in objects[:i]
        if a.shape != b.shape
        for part in offset(a, b)
    )


def sample_scene(
    rng: np.random.Generator, *, split: Split = "train", kind: Kind | None = None
) -> Scene:
    """A scene: 22 % one object, 48 % two, 22 % 2-4 of one shape, 8 % 3-4 mixed (KINDS).

    Scenes of `train` hold no held-out composition; those of `test` are drawn in the same way (use
    other seeds); those of `heldout` hold at least one.
    """
    train = split != "heldout"
    # Drawn once: drawn again after a refusal, kinds that are often refused would be rarer.
    chosen = kind if kind else pick(rng, tuple(KINDS), tuple(KINDS.values()))
    while True:
        shapes = _sample_shapes(rng, chosen, train)
        if not _shapes_allowed(shapes, chosen, train):
            continue
        colours = sample_colours(rng, shapes, train=train)
        background = sample_background(rng)

        def accepts(objects: tuple[Object, ...], background: Background = background) -> bool:
            return not (train and holds_held_out_picture(Scene(objects, background)))

        scene = Scene(place(rng, shapes, colours, accepts), background)
        if train or holds_held_out_picture(scene):
            return scene
