"""Captions of a scene in three lengths, with places, and with a picture in place of a phrase.

G0, GenEval's short prompts, stand in prompts.py. G1 is the whole scene in one sentence; G2 is
several, in the manner of DPG-Bench, with sizes and relations. A placed caption names the sides of
the picture; a TI2I caption has `<image>` for one phrase. Captions of the split "train" state no
held-out composition (heldout.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tarkit.shapes.grammar import (
    NUMBER_WORDS,
    Facts,
    Relation,
    canonical,
    groups_of,
    name_of,
    plural,
    with_article,
)
from tarkit.shapes.heldout import EXTRAPOLATED_COUNT, held_out
from tarkit.shapes.scene import (
    INVERSE,
    RELATIONS,
    SIDE_PX,
    Object,
    Scene,
    Split,
    one_of,
    relations,
    size_word,
)

IMAGE = "<image>"


def speakable(scene: Scene, split: Split) -> tuple[Object, ...]:
    """The objects that one text of the split may name together.

    All of them but for texts of the split "train" on scenes of another split: training scenes are
    drawn so that a text may name everything.
    """
    if split != "train":
        return scene.objects
    rules = held_out()
    named: list[str] = []
    for shape, number in Counter(item.shape for item in scene.objects).items():
        seen = number < EXTRAPOLATED_COUNT and (shape, number) not in rules.shape_count
        seen = seen and not any(
            (item.colour, shape) in rules.colour_shape
            for item in scene.objects
            if item.shape == shape
        )
        if seen and not any(rules.holds_pair(shape, other) for other in named):
            named.append(shape)
    return tuple(item for item in scene.objects if item.shape in named)


def _group_phrase(number: int, adjectives: str, shape: str) -> str:
    if number == 1:
        return with_article(f"{adjectives} {shape}")
    return f"{NUMBER_WORDS[number]} {adjectives} {plural(shape)}"


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _true_relation(
    a: Object, b: Object, rng: np.random.Generator, split: Split
) -> tuple[Object, str, Object] | None:
    """A true relation of two objects that a text of the split may state, either way round."""
    ways = [(one, name, other) for one, other in ((a, b), (b, a)) for name in relations(one, other)]
    if split == "train":
        ways = [w for w in ways if not held_out().holds_relation(w[0].shape, w[1], w[2].shape)]
    return one_of(rng, ways) if ways else None


# - placed -

_MIDDLE_CLEAR_PX = 3.0
"""An object's centre is this far from the middle before a text says on which side it is."""


def caption_placed(scene: Scene, rng: np.random.Generator, *, split: Split = "train") -> str | None:
    """Where single objects are in the picture: "a photo of a red circle above the middle".

    Each noun is followed by its own place, which is learned far sooner than which of two nouns a
    relation puts first. Half of the texts name the colours. None where no object stands clearly
    off the middle, where more than two do, or where the places would state a held-out relation.
    """
    counts = Counter(item.shape for item in scene.objects)
    objects = [item for item in speakable(scene, split) if counts[item.shape] == 1]
    sides_of = [(item, sides(item)) for item in objects]
    placed = [(item, one_of(rng, names)) for item, names in sides_of if names]
    if not placed or len(placed) > 2:
        return None
    if split == "train" and len(placed) == 2 and _implies_held_out(*placed):
        return None
    coloured = rng.random() < 0.5
    names = [f"{item.colour} {item.shape}" if coloured else item.shape for item, _ in placed]
    parts = [
        f"{with_article(name)} {side} the middle"
        for name, (_, side) in zip(names, placed, strict=True)
    ]
    return "a photo of " + _join([parts[i] for i in rng.permutation(len(parts))])


def sides(item: Object) -> list[str]:
    """On which sides of the picture's middle an object clearly lies: none, one, or two."""
    x, y, clear = item.x - SIDE_PX / 2, item.y - SIDE_PX / 2, _MIDDLE_CLEAR_PX
    holds = (x < -clear, x > clear, y < -clear, y > clear)
    return [name for name, true in zip(RELATIONS, holds, strict=True) if true]


def _implies_held_out(one: tuple[Object, str], other: tuple[Object, str]) -> bool:
    """True if two places imply a held-out relation: a left and b right of the middle."""
    (a, side), (b, opposite) = one, other
    if opposite != INVERSE[side]:
        return False
    holds = held_out().holds_relation
    return holds(a.shape, side, b.shape) or holds(b.shape, opposite, a.shape)


# - G1 -


def caption_g1(scene: Scene, rng: np.random.Generator, *, split: Split = "train") -> str:
    """The whole scene in one sentence: counts, colours, the relation of two, the background.

    "a photo of a red circle above a blue square on a striped background"
    """
    return describe_g1(scene, rng, split=split)[0]


def describe_g1(
    scene: Scene, rng: np.random.Generator, *, split: Split = "train"
) -> tuple[str, Facts]:
    """A G1 sentence and the facts it states."""
    body, facts = _one_phrase(scene, rng, split)
    kind = scene.background.kind
    text = f"{body} on a {kind} background" if facts.groups else f"a photo of a {kind} background"
    return text, facts


def _one_phrase(scene: Scene, rng: np.random.Generator, split: Split) -> tuple[str, Facts]:
    """A G1 sentence without its background, and the facts of the whole sentence."""
    objects = speakable(scene, split)
    groups = groups_of(objects)
    kind = scene.background.kind
    if len(objects) == 2 and len(groups) == 2:
        triple = _true_relation(*objects, rng, split)
        if triple is not None:
            one, relation, other = triple
            names = [with_article(f"{item.colour} {item.shape}") for item in (one, other)]
            stated = frozenset([canonical(name_of(one), relation, name_of(other))])
            return f"a photo of {names[0]} {relation} {names[1]}", Facts(groups, stated, kind)
    phrases = [_group_phrase(*groups[i]) for i in rng.permutation(len(groups))]
    body = "a photo of " + _join(phrases) if phrases else ""
    return body, Facts(groups, frozenset(), kind)


# - G2 -


def caption_g2(scene: Scene, rng: np.random.Generator, *, split: Split = "train") -> str:
    """Several sentences: every group with its size, relations of lone objects, the background.

    "the image shows a large red circle and two blue squares. the red circle ... "
    """
    return describe_g2(scene, rng, split=split)[0]


def describe_g2(
    scene: Scene, rng: np.random.Generator, *, split: Split = "train"
) -> tuple[str, Facts]:
    """A G2 text and the facts it states.

    Only an object that is the only one of its shape has a size and relations, so that each of them
    can be checked.
    """
    objects = speakable(scene, split)
    groups = groups_of(objects)
    groups = tuple(groups[i] for i in rng.permutation(len(groups)))
    counts = Counter(item.shape for item in objects)
    phrases = []
    for number, colour, shape in groups:
        size = ""
        if counts[shape] == 1:
            size = size_word(next(item.r for item in objects if item.shape == shape))
        phrases.append(_group_phrase(number, f"{size} {colour}".strip(), shape))
    sentences = []
    if phrases:
        verb = "are" if groups[0][0] > 1 else "is"
        opening = one_of(rng, ("the image shows", f"there {verb}"))
        sentences.append(f"{opening} {_join(phrases)}")

    stated: set[Relation] = set()
    lone = [item for item in objects if counts[item.shape] == 1]
    for a, b in zip(lone, lone[1:], strict=False):
        triple = _true_relation(a, b, rng, split)
        if triple is not None:
            one, relation, other = triple
            stated.add(canonical(name_of(one), relation, name_of(other)))
            sentences.append(
                f"the {one.colour} {one.shape} is {relation} the {other.colour} {other.shape}"
            )
    kind = scene.background.kind
    sentences.append(f"the background is {kind}")
    text = ". ".join(sentences) + "."
    return text, Facts(groups_of(objects), frozenset(stated), kind)


# - TI2I -


def ti2i(
    scene: Scene, rng: np.random.Generator, *, split: Split = "train"
) -> tuple[str, str, Object] | None:
    """A caption with one noun phrase replaced by `<image>`: (template, phrase, object).

    ("a photo of <image> left of a blue square", "a red circle", the red circle). The reference
    picture shows that object alone (scene_edits.alone). None if no object is the only one of its
    colour and shape.
    """
    body, facts = _one_phrase(scene, rng, split)
    lone = [(colour, shape) for number, colour, shape in facts.groups if number == 1]
    if not lone:
        return None
    name = one_of(rng, lone)
    phrase = with_article(" ".join(name))
    item = next(item for item in scene.objects if name_of(item) == name)
    return body.replace(phrase, IMAGE, 1), phrase, item
