"""The compositions that training never shows or states, drawn once and frozen in heldout.json.

No training picture shows and no training text states (a), pairs of colour and shape, (c), cells of
shape and count, or (d), unordered pairs of shapes. No training text states (b), ordered triples of
shape, relation and shape; a training picture of two objects shows none of which both forms ("a left
of b", "b right of a") are held out. The draw orders candidates by the sha256 of their names, so it
depends on no library's generator; `python -m tarkit.shapes.heldout` prints the file again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import combinations, product
from typing import Any

from tarkit.shapes.scene import COLOURS, INVERSE, RELATIONS, SHAPES

SEED = 7
COUNTS = (2, 3, 4)
EXTRAPOLATED_COUNT = 5

Triple = tuple[str, str, str]


@dataclass(frozen=True)
class HeldOut:
    """The four sets, and the affinity of shape pairs; pairs are in the order of SHAPES."""

    colour_shape: frozenset[tuple[str, str]]
    relation: frozenset[Triple]
    shape_count: frozenset[tuple[str, int]]
    pair: frozenset[tuple[str, str]]
    affinity: dict[tuple[str, str], float]

    def holds_pair(self, one: str, other: str) -> bool:
        """True if (d) holds the pair, in either order."""
        return shape_pair(one, other) in self.pair

    def holds_relation(self, one: str, relation: str, other: str) -> bool:
        """True if no training text may state this; (d) forbids every relation of its pairs."""
        return (one, relation, other) in self.relation or self.holds_pair(one, other)

    def holds_both_forms(self, one: str, relation: str, other: str) -> bool:
        """True if no training text may state this relation in either of its two forms."""
        return self.holds_relation(one, relation, other) and self.holds_relation(
            other, INVERSE[relation], one
        )


def shape_pair(one: str, other: str) -> tuple[str, str]:
    """The unordered pair, in the order of SHAPES."""
    return (one, other) if SHAPES.index(one) <= SHAPES.index(other) else (other, one)


def _fraction(seed: int, *names: object) -> float:
    """A number in [0, 1) that depends on the names and the seed alone."""
    text = "|".join(str(part) for part in (seed, *names))
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def _shuffled(seed: int, tag: str, items: Iterable[Any]) -> list[Any]:
    return sorted(items, key=lambda item: _fraction(seed, tag, item))


def draw(seed: int = SEED) -> dict[str, Any]:
    """Draw the four held-out lists and the affinity table, as the JSON document."""
    colour_shape = []
    lost: Counter[str] = Counter()
    for colour in COLOURS:
        free = [shape for shape in SHAPES if lost[shape] < 2]  # each shape keeps >= 8 colours
        for shape in _shuffled(seed, colour, free)[:2]:
            colour_shape.append([colour, shape])
            lost[shape] += 1

    shape_count: list[list[Any]] = []
    for shape, count in _shuffled(seed, "count", product(SHAPES, COUNTS)):
        one_a_shape = all(shape != other for other, _ in shape_count)
        if one_a_shape and sum(count == other for _, other in shape_count) < 3:
            shape_count.append([shape, count])
    shape_count = shape_count[:8]

    pair: list[tuple[str, str]] = []
    for candidate in _shuffled(seed, "pair", combinations(SHAPES, 2)):
        if all(sum(shape in other for other in pair) < 3 for shape in candidate):
            pair.append(candidate)
    pair = pair[:13]  # 20 % of 66

    # 20 % of 12 x 11 x 4 = 528 triples is 105.6; 104 is the nearest that splits into 26 pictures
    # held in both forms (52 triples) and 52 pictures held in one form, the mirrored one being seen.
    relation = []
    whole: set[tuple[str, str]] = set()
    sides = [
        (one, rel, other)
        for one, other in combinations(SHAPES, 2)
        if (one, other) not in pair
        for rel in RELATIONS
    ]
    single = 0
    for one, rel, other in _shuffled(seed, "relation", sides):
        forms = [[one, rel, other], [other, INVERSE[rel], one]]
        if len(whole) < 26 and (one, other) not in whole:
            whole.add((one, other))
            relation += forms
        elif single < 52:
            single += 1
            relation.append(_shuffled(seed, "form", forms)[0])

    affinity = [
        [one, other, round(2 ** (2.6 * _fraction(seed, "affinity", one, other) - 1.3), 3)]
        for one, other in combinations(SHAPES, 2)
    ]
    return {
        "seed": seed,
        "colour_shape": sorted(colour_shape),
        "relation": sorted(relation),
        "shape_count": sorted(shape_count),
        "pair": sorted(list(names) for names in pair),
        "affinity": affinity,
    }


def to_text(document: dict[str, Any]) -> str:
    """The bytes of heldout.json: one row a line, so that a difference can be read."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            parts.append(f' "{key}": [\n{rows}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


@lru_cache(maxsize=1)
def held_out() -> HeldOut:
    """The compositions and the affinities of heldout.json."""
    text = resources.files("tarkit.shapes").joinpath("heldout.json").read_text("utf-8")
    document = json.loads(text)
    return HeldOut(
        colour_shape=frozenset((a, b) for a, b in document["colour_shape"]),
        relation=frozenset((a, rel, b) for a, rel, b in document["relation"]),
        shape_count=frozenset((shape, count) for shape, count in document["shape_count"]),
        pair=frozenset((a, b) for a, b in document["pair"]),
        affinity={(a, b): value for a, b, value in document["affinity"]},
    )


if __name__ == "__main__":
    print(to_text(draw()), end="")
