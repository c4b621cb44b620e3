"""Scenes for a prompt, scenes and records that break it by one change, and variants of a scene.

Ground truth, its corruptions, and the pairs and references of I2I and TI2I.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import Literal

import numpy as np

from tarkit.shapes.prompts import Metadata, edits, may_state
from tarkit.shapes.sampling import holds_held_out_picture, place, sample_background, sample_colours
from tarkit.shapes.scene import (
    COLOURS,
    SHAPES,
    SIDE_PX,
    Object,
    Scene,
    Split,
    one_of,
    relations,
    satisfies,
)

Corruption = Literal["drop", "reshape", "add", "recolour", "swap_colours", "swap_positions"]

# - for a prompt -


def always_satisfies(scene: Scene, metadata: Metadata) -> bool:
    """True if the verdict is right whichever objects of a class a detector ranks first."""
    return all(satisfies(other, metadata) for other in _orders(scene, metadata))


def never_satisfies(scene: Scene, metadata: Metadata) -> bool:
    """True if the verdict is wrong whichever objects of a class a detector ranks first."""
    return not any(satisfies(other, metadata) for other in _orders(scene, metadata))


def _orders(scene: Scene, metadata: Metadata) -> list[Scene]:
    """The scene in every order that can matter: one, if no class of the record occurs twice."""
    counts = Counter(item.shape for item in scene.objects)
    if not _order_matters(metadata) or all(counts[c["class"]] <= 1 for c in metadata["include"]):
        return [scene]
    return [replace(scene, objects=order) for order in permutations(scene.objects)]


def _order_matters(metadata: Metadata) -> bool:
    """True if a clause asks for more than a number, so that the order of objects can matter."""
    return any(clause.keys() - {"class", "count"} for clause in metadata["include"])


def scene_for(metadata: Metadata, rng: np.random.Generator) -> Scene:
    """A scene that satisfies a GenEval record and shows nothing else.

    What the record leaves open (colours, places) is drawn as training draws it. The record may ask
    for a held-out composition.
    """
    shapes: list[str] = []
    fixed: list[str | None] = []
    for clause in metadata["include"]:
        shapes += [clause["class"]] * clause["count"]
        fixed += [clause.get("color")] * clause["count"]
    sampled = sample_colours(rng, shapes, train=True)
    colours = [colour or other for colour, other in zip(fixed, sampled, strict=True)]
    background = sample_background(rng)

    def accepts(objects: tuple[Object, ...]) -> bool:
        return always_satisfies(Scene(objects, background), metadata)

    return Scene(place(rng, shapes, colours, accepts), background)


# - variants of a scene -


def similar(scene: Scene, rng: np.random.Generator, *, split: Split = "train") -> Scene:
    """The same objects and kind of background in another layout: I2I's second picture.

    Two objects keep their relations. With more, where no one-sentence caption states a relation,
    the places are free.
    """
    shapes = [item.shape for item in scene.objects]
    colours = [item.colour for item in scene.objects]
    background = sample_background(rng)
    while background.kind != scene.background.kind:
        background = sample_background(rng)
    free = split == "train" and not holds_held_out_picture(scene)

    def accepts(objects: tuple[Object, ...]) -> bool:
        if free and holds_held_out_picture(Scene(objects, background)):
            return False
        return len(objects) != 2 or relations(*objects) == relations(*scene.objects)

    return Scene(place(rng, shapes, colours, accepts), background)


def alone(item: Object, rng: np.random.Generator) -> Scene:
    """That shape in that colour, alone, elsewhere and of another size: TI2I's reference."""
    return Scene(place(rng, [item.shape], [item.colour]), sample_background(rng))


# - against a prompt -


def corruptions_for(metadata: Metadata) -> tuple[Corruption, ...]:
    """The single-clause corruptions that can break this record."""
    clauses = metadata["include"]
    coloured = [clause["color"] for clause in clauses if "color" in clause]
    kinds: list[Corruption] = ["drop", "reshape"]
    if metadata.get("exclude"):
        kinds.append("add")
    if coloured:
        kinds.append("recolour")
    if len(set(coloured)) == 2:
        kinds.append("swap_colours")
    if any("position" in clause for clause in clauses):
        kinds.append("swap_positions")
    return tuple(kinds)


def corrupt(scene: Scene, metadata: Metadata, kind: Corruption, rng: np.random.Generator) -> Scene:
    """A scene that breaks the record by one change to a scene that satisfies it.

    Raises ValueError where the record has no such clause (see corruptions_for).
    """
    if kind not in corruptions_for(metadata):
        raise ValueError(f"{kind!r} cannot break {metadata['prompt']!r}")
    for _ in range(1000):
        changed = _change(scene, metadata, kind, rng)
        if never_satisfies(changed, metadata):
            return changed
    raise RuntimeError(f"no {kind!r} breaks {metadata['prompt']!r} on {scene}")


def _change(scene: Scene, metadata: Metadata, kind: Corruption, rng: np.random.Generator) -> Scene:
    objects = list(scene.objects)
    classes = {clause["class"] for clause in metadata["include"]}
    named = [i for i, item in enumerate(objects) if item.shape in classes]
    i = one_of(rng, named)
    item = objects[i]
    match kind:
        case "drop":
            del objects[i]
        case "reshape":
            objects[i] = replace(item, shape=_other(rng, SHAPES, item.shape))
        case "recolour":
            objects[i] = replace(item, colour=_other(rng, COLOURS, item.colour))
        case "swap_colours":
            first, second = [clause["color"] for clause in metadata["include"]]
            swap = {first: second, second: first}
            objects = [
                replace(one, colour=swap.get(one.colour, one.colour))
                if one.shape in classes
                else one
                for one in objects
            ]
        case "swap_positions":  # the mirrored places keep every gap
            relation = next(c["position"][0] for c in metadata["include"] if "position" in c)
            objects = [_mirrored(one, relation in ("left of", "right of")) for one in objects]
        case "add":
            shapes = [one.shape for one in objects] + [item.shape]
            colours = [one.colour for one in objects] + [item.colour]
            objects = list(place(rng, shapes, colours))
    return replace(scene, objects=tuple(objects))


def _mirrored(item: Object, left_to_right: bool) -> Object:
    """The object at the mirrored place of the canvas; its shape is not mirrored."""
    if left_to_right:
        return replace(item, x=round(SIDE_PX - item.x, 2))
    return replace(item, y=round(SIDE_PX - item.y, 2))


def _other(rng: np.random.Generator, names: tuple[str, ...], name: str) -> str:
    return one_of(rng, [other for other in names if other != name])


def false_caption(
    scene: Scene, metadata: Metadata, rng: np.random.Generator, *, split: Split = "train"
) -> Metadata | None:
    """A record one clause away from a true one, and false of the scene; None if there is none.

    The kind of change is drawn first. In split "train" it states no held-out composition.
    """
    by_change = [
        [other for other in records if may_state(other, split) and never_satisfies(scene, other)]
        for records in edits(metadata).values()
    ]
    by_change = [records for records in by_change if records]
    if not by_change:
        return None
    return one_of(rng, one_of(rng, by_change))
