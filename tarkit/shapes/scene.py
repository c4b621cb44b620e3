"""What a scene of the drawn world is: its vocabulary, its objects, and what is true of them.

Coordinates are px on the 64 x 64 canvas, x to the right and y down. Relations follow GenEval's rule
on the bounding boxes of the drawn shapes (github.com/djghosh13/geneval, evaluate_images.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np

# - vocabulary -

SIDE_PX = 64
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "ring",
    "cross",
    "diamond",
    "arrow",
    "bar",
    "crescent",
    "pole",
)
"""In order of frequency: SHAPES[0] is the commonest (sampling.SHAPE_WEIGHTS)."""
PALETTE = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 30),
    "green": (40, 160, 60),
    "blue": (35, 90, 220),
    "purple": (130, 50, 170),
    "pink": (255, 140, 195),
    "brown": (120, 72, 38),
    "black": (12, 12, 12),
    "white": (250, 250, 250),
}
"""RGB levels, [0, 255]."""
COLOURS = tuple(PALETTE)
RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
BACKGROUNDS = {"plain": 0.5, "gradient": 0.3, "noisy": 0.1, "striped": 0.1}
"""Each kind of background with its share of the pictures."""
# (left, top, right, bottom) in units of r. The crescent ends where disc and ellipse meet; the
# heart's top is the maximum of its curve.
BOXES = {
    "circle": (-1.0, -1.0, 1.0, 1.0),
    "square": (-0.88, -0.88, 0.88, 0.88),
    "triangle": (-1.0, -1.0, 1.0, 0.85),
    "star": (-math.cos(math.pi / 10), -1.0, math.cos(math.pi / 10), math.cos(math.pi / 5)),
    "heart": (-16 / 17, -0.70212, 16 / 17, 1.0),
    "ring": (-1.0, -1.0, 1.0, 1.0),
    "cross": (-1.0, -1.0, 1.0, 1.0),
    "diamond": (-0.78, -1.0, 0.78, 1.0),
    "arrow": (-1.0, -0.85, 1.0, 0.85),
    "bar": (-1.0, -0.34, 1.0, 0.34),
    "crescent": (-1.0, -1.0, 0.45716, 1.0),
    "pole": (-0.34, -1.0, 0.34, 1.0),
}

Split = Literal["train", "test", "heldout"]
Kind = Literal["single", "two", "counting", "crowded"]

# - objects and scenes -


@dataclass(frozen=True)
class Object:
    """One shape of radius r px centred at (x, y)."""

    shape: str
    colour: str
    x: float
    y: float
    r: float


@dataclass(frozen=True)
class Background:
    """`rise` is a gradient's whole change, `period_px` a stripe pair's width, 0 where unused."""

    kind: str
    colour: tuple[int, int, int]
    angle_deg: float = 0.0
    rise: float = 0.0
    period_px: float = 0.0


@dataclass(frozen=True)
class Scene:
    """All that a picture shows; objects do not overlap, and their order is that of drawing."""

    objects: tuple[Object, ...]
    background: Background


def bounding_box(item: Object) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in px of the drawn shape, not of its square of half side r."""
    left, top, right, bottom = BOXES[item.shape]
    r = item.r
    return item.x + left * r, item.y + top * r, item.x + right * r, item.y + bottom * r


def size_word(r: float) -> str:
    """ "small" up to a radius of 8.5 px, "large" from 11.5 px, "" where it could be disputed."""
    return "small" if r <= 8.5 else "large" if r >= 11.5 else ""


# - JSON -


def scene_to_json(scene: Scene) -> str:
    """One line of JSON with sorted keys; `scene_from_json` gives the same scene back."""
    return json.dumps(asdict(scene), sort_keys=True, separators=(",", ":"))


def scene_from_json(text: str) -> Scene:
    """The scene that `scene_to_json` wrote."""
    document = json.loads(text)
    background = document["background"]
    background["colour"] = tuple(background["colour"])
    return Scene(
        objects=tuple(Object(**item) for item in document["objects"]),
        background=Background(**background),
    )


# - relations and truth -


def offset(a: Object, b: Object) -> tuple[float, float]:
    """GenEval's offset of a from b: box centres, shrunk by a tenth of the sizes, over distance."""
    box_a, box_b = bounding_box(a), bounding_box(b)
    raw, shrunk = [], []
    for axis in (0, 1):
        size = box_a[axis + 2] - box_a[axis] + box_b[axis + 2] - box_b[axis]
        o = (box_a[axis] + box_a[axis + 2] - box_b[axis] - box_b[axis + 2]) / 2
        raw.append(o)
        shrunk.append(math.copysign(max(abs(o) - 0.1 * size, 0.0), o))
    distance = math.hypot(*raw)
    if distance == 0.0:
        return 0.0, 0.0
    return shrunk[0] / distance, shrunk[1] / distance


def relations(a: Object, b: Object) -> tuple[str, ...]:
    """The relations r of "a r b" that hold: none, one, or two on a diagonal."""
    dx, dy = offset(a, b)
    holds = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return tuple(name for name, true in zip(RELATIONS, holds, strict=True) if true)


def satisfies(scene: Scene, metadata: dict[str, Any]) -> bool:
    """GenEval's verdict on the symbolic scene: its objects, in their order, are the detections.

    One key is not GenEval's: "background" asks for a kind of background.
    """
    matched: list[list[Object] | None] = []
    correct = True
    for clause in metadata["include"]:
        objects = [item for item in scene.objects if item.shape == clause["class"]]
        objects = objects[: clause["count"]]
        right = len(objects) == clause["count"]
        if right and "color" in clause:
            right = all(item.colour == clause["color"] for item in objects)
        if right and "position" in clause:
            relation, target = clause["position"]
            others = matched[target]
            right = others is not None and all(
                relation in relations(item, other) for item in objects for other in others
            )
        matched.append(objects if right else None)
        correct = correct and right
    for clause in metadata.get("exclude", []):
        number = sum(item.shape == clause["class"] for item in scene.objects)
        correct = correct and number < clause["count"]
    return correct and metadata.get("background", scene.background.kind) == scene.background.kind


# - choices at random -

Option = TypeVar("Option")


def one_of(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of the options, each as likely as another."""
    return options[int(rng.integers(len(options)))]


def pick(rng: np.random.Generator, options: Sequence[Option], weights: Sequence[float]) -> Option:
    """One of the options by weight; `rng.choice` costs fifteen times as much."""
    remaining = rng.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        remaining -= weight
        if remaining < 0:
            return option
    return options[-1]
