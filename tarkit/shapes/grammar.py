"""The facts of a scene, the words for them, and the parser that reads them back from text.

prompts.py and captions.py write texts, this file reads them. `parse` gives all that a text of
theirs states, and of any other text what it can read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tarkit.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    RELATIONS,
    SHAPES,
    Object,
    Scene,
    relations,
)

NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
SIZE_WORDS = ("small", "large")

Name = tuple[str, str]
Relation = tuple[Name, str, Name]
Group = tuple[int, str, str]


@dataclass(frozen=True)
class Facts:
    """What a text states, or what is true of a scene.

    `groups` are sorted (count, colour, shape), the colour "" where a text leaves it out. A relation
    is ((colour, shape), relation, (colour, shape)) and stands once, as "left of" or "above".
    `background` is the kind, None where a text does not state it.
    """

    groups: tuple[Group, ...] = ()
    relations: frozenset[Relation] = frozenset()
    background: str | None = None


def with_article(phrase: str) -> str:
    """ "an orange circle", "a circle": the article goes by the first letter, as in GenEval."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(shape: str) -> str:
    """GenEval's rule, word for word: the class and an s, so "two crosss"."""
    return shape + "s"


def english_plural(shape: str) -> str:
    """ "circles", "crosses"."""
    return shape + ("es" if shape.endswith("s") else "s")


def name_of(item: Object) -> Name:
    """(colour, shape)."""
    return item.colour, item.shape


def groups_of(objects: Iterable[Object]) -> tuple[Group, ...]:
    """Objects of one colour and shape are a group: sorted (count, colour, shape)."""
    counts = Counter(name_of(item) for item in objects)
    return tuple(sorted((number, colour, shape) for (colour, shape), number in counts.items()))


def canonical(one: Name, relation: str, other: Name) -> Relation:
    """ "a right of b" is stored as "b left of a", "below" as "above"."""
    if relation in ("left of", "above"):
        return one, relation, other
    return other, INVERSE[relation], one


def facts_of(scene: Scene) -> Facts:
    """All that is true of a scene; relations of objects that are the only ones of their name."""
    counts = Counter(name_of(item) for item in scene.objects)
    lone = [item for item in scene.objects if counts[name_of(item)] == 1]
    stated = {
        canonical(name_of(a), relation, name_of(b))
        for i, a in enumerate(lone)
        for b in lone[:i]
        for relation in relations(a, b)
    }
    return Facts(groups_of(scene.objects), frozenset(stated), scene.background.kind)


# - reading -

_NUMBERS = {word: number for number, word in NUMBER_WORDS.items()} | {"a": 1, "an": 1}
_PHRASE = (
    rf"\b(?P<first>a|an|the|{'|'.join(NUMBER_WORDS.values())})\s+"
    rf"(?:(?:{'|'.join(SIZE_WORDS)})\s+)?"
    rf"(?:(?P<colour>{'|'.join(COLOURS)})\s+)?"
    rf"(?P<shape>{'|'.join(SHAPES)})(?:s|es)?\b"
)
_TOKEN = re.compile(
    rf"{_PHRASE}|\b(?:to\s+the\s+)?(?P<relation>{'|'.join(RELATIONS)})\b"
    rf"|\b(?P<kind>{'|'.join(BACKGROUNDS)})\s+background\b"
    rf"|\bbackground\s+is\s+(?P<predicate>{'|'.join(BACKGROUNDS)})\b"
    r"|\bis\b|(?P<other>[^\W_]+|[^\w\s])"
)


def parse(text: str) -> Facts:
    """The facts that a text states; it never raises, and leaves out what it cannot read.

    "a red circle" introduces an object, "the red circle" refers to one and introduces it only if
    nothing of that name came before. A relation needs a noun phrase right before it and after it.
    """
    counts: Counter[Name] = Counter()
    stated: set[Relation] = set()
    background: str | None = None
    before: Name | None = None  # the noun phrase that ends where the next token starts
    waiting: tuple[Name, str] | None = None
    for token in _TOKEN.finditer(" ".join(text.lower().split())):
        if token["shape"]:
            name = (token["colour"] or "", token["shape"])
            if token["first"] != "the":
                counts[name] += _NUMBERS[token["first"]]
            elif not counts[name]:
                counts[name] = 1
            if waiting is not None and waiting[0] != name:
                stated.add(canonical(waiting[0], waiting[1], name))
            before, waiting = name, None
        elif token["relation"]:
            waiting = (before, token["relation"]) if before is not None else None
            before = None
        elif token["kind"] or token["predicate"]:
            background = background or token["kind"] or token["predicate"]
            before = waiting = None
        elif token["other"]:
            before = waiting = None
    groups = sorted((number, colour, shape) for (colour, shape), number in counts.items())
    return Facts(tuple(groups), frozenset(stated), background)
