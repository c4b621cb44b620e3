"""What is said of a scene: G0 and the parser (from their files), G1, G2 and TI2I.

G1 is the whole scene in one sentence; G2 is dense, in the manner of DPG-Bench, made from
propositions with questions and parents. Training text states no held-out composition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tarkit.shapes.grammar import (
    NUMBER_WORDS,
    Facts,
    Group,
    Relation,
    canonical,
    groups_of,
    name_of,
    plural,
    with_article,
)
from tarkit.shapes.grammar import facts_of as facts_of
from tarkit.shapes.grammar import parse as parse
from tarkit.shapes.heldout import EXTRAPOLATED_COUNT, held_out
from tarkit.shapes.prompts import Metadata
from tarkit.shapes.prompts import caption_g0 as caption_g0
from tarkit.shapes.prompts import caption_related as caption_related
from tarkit.shapes.prompts import g0_captions as g0_captions
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
    """The objects that one text of the split may name together: all, unless in training.

    Training scenes are drawn so that it is all of them there too; this guards other scenes.
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


def stated_relation(
    a: Object, b: Object, rng: np.random.Generator, *, split: Split
) -> tuple[Object, str, Object] | None:
    """A true relation of two objects that the split's language may state, either way round."""
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
    relation puts first. Colours are told in half of the texts. None where no object stands
    clearly off the middle, or where the places would state a held-out relation.
    """
    counts = Counter(item.shape for item in scene.objects)
    objects = [item for item in speakable(scene, split) if counts[item.shape] == 1]
    ways = [(item, sides(item)) for item in objects]
    placed = [(item, one_of(rng, names)) for item, names in ways if names]
    if not placed or len(placed) > 2:
        return None
    if split == "train" and len(placed) == 2 and _implies_held_out(*placed):
        return None
    told = rng.random() < 0.5
    names = [f"{item.colour} {item.shape}" if told else item.shape for item, _ in placed]
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
    """Whether "a left of the middle and b right of it" says a held-out "a left of b"."""
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
    objects = speakable(scene, split)
    groups = groups_of(objects)
    kind = scene.background.kind
    if len(objects) == 2 and len(groups) == 2:
        stated = stated_relation(*objects, rng, split=split)
        if stated is not None:
            one, relation, other = stated
            names = [with_article(f"{item.colour} {item.shape}") for item in (one, other)]
            told = frozenset([canonical(name_of(one), relation, name_of(other))])
            return f"a photo of {names[0]} {relation} {names[1]}", Facts(groups, told, kind)
    phrases = [_group_phrase(*groups[i]) for i in rng.permutation(len(groups))]
    body = "a photo of " + _join(phrases) if phrases else ""
    return body, Facts(groups, frozenset(), kind)


# - G2 -


@dataclass(frozen=True)
class Proposition:
    """One fact of a dense prompt, with the yes/no question that asks for it.

    `parents` are the ids that must be true for the question to be asked (DSG's dependencies).
    `metadata` is what scenes.satisfies judges: a GenEval record, for sizes and backgrounds with
    keys GenEval lacks; None where no such record can say it.
    """

    id: int
    category: str  # entity, attribute, count, relation, background
    text: str
    question: str
    parents: tuple[int, ...]
    metadata: Metadata | None


@dataclass(frozen=True)
class Dense:
    text: str
    facts: Facts
    propositions: tuple[Proposition, ...]


def caption_g2(scene: Scene, rng: np.random.Generator, *, split: Split = "train") -> str:
    """Several sentences: every group with its size, relations of lone objects, the background."""
    return describe_g2(scene, rng, split=split).text


def propositions(
    scene: Scene, rng: np.random.Generator, *, split: Split = "train"
) -> tuple[Proposition, ...]:
    """The proposition graph of one G2 description."""
    return describe_g2(scene, rng, split=split).propositions


def describe_g2(scene: Scene, rng: np.random.Generator, *, split: Split = "train") -> Dense:
    """A dense text, the facts it states, and its propositions in reading order.

    "the image shows a large red circle and two blue squares. the red circle ... "
    Sizes and relations are told of objects alone of their shape, so that each can be checked.
    """
    objects = speakable(scene, split)
    groups = groups_of(objects)
    groups = tuple(groups[i] for i in rng.permutation(len(groups)))
    alone = Counter(item.shape for item in objects)
    graph = _Graph(alone)
    phrases = []
    for group in groups:
        number, colour, shape = group
        size = ""
        if alone[shape] == 1:
            size = size_word(next(item.r for item in objects if item.shape == shape))
        phrases.append(_group_phrase(number, f"{size} {colour}".strip(), shape))
        graph.add_group(group, size)
    sentences = []
    if phrases:
        verb = "are" if groups[0][0] > 1 else "is"
        opening = one_of(rng, ("the image shows", f"there {verb}"))
        sentences.append(f"{opening} {_join(phrases)}")

    told: set[Relation] = set()
    lone = [item for item in objects if alone[item.shape] == 1]
    for a, b in zip(lone, lone[1:], strict=False):
        stated = stated_relation(a, b, rng, split=split)
        if stated is not None:
            one, relation, other = stated
            told.add(canonical(name_of(one), relation, name_of(other)))
            graph.add_relation(one, relation, other)
            sentences.append(
                f"the {one.colour} {one.shape} is {relation} the {other.colour} {other.shape}"
            )
    kind = scene.background.kind
    graph.add_background(kind)
    sentences.append(f"the background is {kind}")
    text = ". ".join(sentences) + "."
    return Dense(text, Facts(groups_of(objects), frozenset(told), kind), tuple(graph.found))


class _Graph:
    """Collects propositions; ids count from 1 in reading order, as in the DPG csv."""

    def __init__(self, per_shape: Counter[str]) -> None:
        self.found: list[Proposition] = []
        self._per_shape = per_shape
        self._entities: dict[str, int] = {}

    def _add(
        self,
        category: str,
        text: str,
        question: str,
        parents: tuple[int, ...],
        metadata: Metadata | None,
    ) -> int:
        number = len(self.found) + 1
        self.found.append(Proposition(number, category, text, f"{question}?", parents, metadata))
        return number

    def add_group(self, group: Group, size: str) -> None:
        number, colour, shape = group
        total = self._per_shape[shape]
        if shape not in self._entities:
            self._entities[shape] = self._add(
                "entity",
                shape,
                f"is there {with_article(shape)} in the image",
                (),
                {"tag": "entity", "include": [{"class": shape, "count": 1}]},
            )
            if total > 1:
                words = f"{NUMBER_WORDS[total]} {plural(shape)}"
                self._add(
                    "count",
                    words,
                    f"are there {words} in the image",
                    (self._entities[shape],),
                    {
                        "tag": "count",
                        "include": [{"class": shape, "count": total}],
                        "exclude": [{"class": shape, "count": total + 1}],
                    },
                )
        entity = self._entities[shape]
        clause = {"class": shape, "count": number}
        names = f"the {shape} is" if total == 1 else f"the {plural(shape)} are"
        question = f"is the {shape}" if total == 1 else f"are the {plural(shape)}"
        if number == total:
            metadata = {"tag": "colour", "include": [{**clause, "color": colour}]}
            self._add("attribute", f"{names} {colour}", f"{question} {colour}", (entity,), metadata)
        else:  # GenEval cannot ask for one colour among several of a class
            phrase = _group_phrase(number, colour, shape)
            verb = "are" if number > 1 else "is"
            asked = f"{verb} there {phrase} in the image"
            self._add("attribute", phrase, asked, (entity,), None)
        if size:
            metadata = {"tag": "size", "include": [{**clause, "size": size}]}
            self._add("attribute", f"{names} {size}", f"{question} {size}", (entity,), metadata)

    def add_relation(self, one: Object, relation: str, other: Object) -> None:
        parents = (self._entities[one.shape], self._entities[other.shape])
        include = [
            {"class": other.shape, "count": 1},
            {"class": one.shape, "count": 1, "position": [relation, 0]},
        ]
        self._add(
            "relation",
            f"the {one.shape} is {relation} the {other.shape}",
            f"is the {one.shape} {relation} the {other.shape}",
            parents,
            {"tag": "relation", "include": include},
        )

    def add_background(self, kind: str) -> None:
        metadata = {"tag": "background", "include": [], "background": kind}
        self._add(
            "background", f"the background is {kind}", f"is the background {kind}", (), metadata
        )


# - TI2I -


def ti2i(
    scene: Scene, rng: np.random.Generator, *, split: Split = "train"
) -> tuple[str, str, Object] | None:
    """A caption with one noun phrase replaced by `<image>`: (template, phrase, object).

    ("a photo of <image> left of a blue square", "a red circle", the red circle). The reference
    picture shows that object alone (clauses.alone). None if no object is the only one of its name.
    """
    body, facts = _one_phrase(scene, rng, split)
    lone = [(colour, shape) for number, colour, shape in facts.groups if number == 1]
    if not lone:
        return None
    name = one_of(rng, lone)
    phrase = with_article(" ".join(name))
    item = next(item for item in scene.objects if name_of(item) == name)
    return body.replace(phrase, IMAGE, 1), phrase, item
