"""G0: GenEval's prompts and metadata records, word for word, about a scene of the drawn world.

Writes the prompt of a record and the records that are true of a scene, changes a record by one
clause, and reads the record of a prompt. Source: github.com/djghosh13/geneval,
prompts/create_prompts.py; the seventh template, `color_position`, is not GenEval's and counts in no
mean of the six.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tarkit.errors import UserError
from tarkit.shapes.grammar import NUMBER_WORDS, english_plural, parse, plural, with_article
from tarkit.shapes.heldout import COUNTS, EXTRAPOLATED_COUNT, held_out
from tarkit.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    RELATIONS,
    SHAPES,
    Object,
    Scene,
    Split,
    one_of,
    relations,
)

Metadata = dict[str, Any]

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
EXTRA_TASK = "color_position"

READ = frozenset(
    {"a", "an", "and", "are", "background", "below", "above", "image", "is", "left", "of", "on"}
    | {"photo", "right", "shows", "the", "there", *BACKGROUNDS, *COLOURS, *NUMBER_WORDS.values()}
    | {"draw", "drawing", "picture", "to"}
    | {*SHAPES, *map(plural, SHAPES), *map(english_plural, SHAPES)}
)
"""Every word that `clauses_of` knows: a prompt with another asks for what is not judged."""


OPENINGS = ("a picture of ", "an image of ", "a drawing of ", "draw ")
"""What may stand in place of "a photo of " in a reworded prompt."""


def g0_prompt(metadata: Metadata) -> str:
    """The prompt GenEval writes for a metadata record."""
    clauses = metadata["include"]
    names = [
        f"{clause['color']} {clause['class']}" if "color" in clause else clause["class"]
        for clause in clauses
    ]
    match metadata["tag"]:
        case "counting":
            return f"a photo of {NUMBER_WORDS[clauses[0]['count']]} {plural(names[0])}"
        case "position" | "color_position":  # the second clause is placed relative to the first
            relation = clauses[1]["position"][0]
            return f"a photo of {with_article(names[1])} {relation} {with_article(names[0])}"
        case _:
            return "a photo of " + " and ".join(with_article(name) for name in names)


def g0_metadata(
    tag: str,
    shapes: Sequence[str],
    *,
    colours: Sequence[str] | None = None,
    count: int = 1,
    relation: str | None = None,
) -> Metadata:
    """A GenEval record with its prompt; for positions the shapes are (subject, object)."""
    colour_of = colours if colours is not None else [None] * len(shapes)
    named = list(zip(shapes, colour_of, strict=True))
    if relation is not None:
        named.reverse()
    include: list[dict[str, Any]] = []
    for shape, colour in named:
        clause: dict[str, Any] = {"class": shape, "count": count}
        if colour is not None:
            clause["color"] = colour
        include.append(clause)
    if relation is not None:
        include[1]["position"] = [relation, 0]
    metadata: Metadata = {"tag": tag, "include": include}
    if tag == "counting":
        metadata["exclude"] = [{"class": shapes[0], "count": count + 1}]
    metadata["prompt"] = g0_prompt(metadata)
    return metadata


def held_out_kinds(metadata: Metadata) -> frozenset[str]:
    """Which of the held-out lists "a" to "d" a GenEval record states; "five" is extrapolation."""
    rules = held_out()
    kinds = set()
    clauses = metadata["include"]
    for clause in clauses:
        if (clause.get("color"), clause["class"]) in rules.colour_shape:
            kinds.add("a")
        if clause["count"] >= EXTRAPOLATED_COUNT:
            kinds.add("five")
        if (clause["class"], clause["count"]) in rules.shape_count:
            kinds.add("c")
        if "position" in clause:
            relation, target = clause["position"]
            if (clause["class"], relation, clauses[target]["class"]) in rules.relation:
                kinds.add("b")
        if any(rules.holds_pair(clause["class"], other["class"]) for other in clauses):
            kinds.add("d")
    return frozenset(kinds)


def may_state(metadata: Metadata, split: Split) -> bool:
    """True if a text of the split may state the record: "train" may state nothing held out."""
    return split != "train" or not held_out_kinds(metadata)


def edits(metadata: Metadata) -> dict[str, list[Metadata]]:
    """The records that differ from this one in a single clause, by the kind of change."""
    tag = metadata["tag"]
    clauses = metadata["include"]
    order = clauses[::-1] if "position" in clauses[-1] else clauses  # (subject, object) again
    shapes = [clause["class"] for clause in order]
    colours = [clause["color"] for clause in order] if "color" in order[0] else None
    count = clauses[0]["count"]
    relation = clauses[1]["position"][0] if "position" in clauses[-1] else None
    changes: dict[str, list[Metadata]] = {
        "reshape": [
            g0_metadata(tag, changed, colours=colours, count=count, relation=relation)
            for changed in _replacements(shapes, SHAPES)
            if len(set(changed)) == len(changed)
        ]
    }
    if colours is not None:
        changes["recolour"] = [
            g0_metadata(tag, shapes, colours=changed, relation=relation)
            for changed in _replacements(colours, COLOURS)
        ]
        if len(set(colours)) == 2:
            changes["swap_colours"] = [
                g0_metadata(tag, shapes, colours=colours[::-1], relation=relation)
            ]
    if tag == "counting":
        changes["recount"] = [
            g0_metadata(tag, shapes, count=number)
            for number in (*COUNTS, EXTRAPOLATED_COUNT)
            if number != count
        ]
    if relation is not None:
        changes["rerelate"] = [
            g0_metadata(tag, shapes, colours=colours, relation=other)
            for other in RELATIONS
            if other != relation
        ]
    return changes


def _replacements(names: Sequence[str], choices: Sequence[str]) -> list[list[str]]:
    """The names with one of them replaced by each other choice."""
    return [
        [*names[:i], choice, *names[i + 1 :]]
        for i in range(len(names))
        for choice in choices
        if choice != names[i]
    ]


def g0_captions(scene: Scene, *, split: Split = "train") -> list[Metadata]:
    """Every G0 statement that is true of the scene whichever objects a detector ranks first."""
    counts = Counter(item.shape for item in scene.objects)
    by_shape = {shape: [item for item in scene.objects if item.shape == shape] for shape in counts}
    # The one colour of all objects of a shape: only then "a red circle" cannot be disputed.
    colour_of = {
        shape: items[0].colour
        for shape, items in by_shape.items()
        if len({item.colour for item in items}) == 1
    }
    records = [g0_metadata("single_object", [shape]) for shape in counts]
    records += [g0_metadata("colors", [shape], colours=[c]) for shape, c in colour_of.items()]
    records += [
        g0_metadata("counting", [shape], count=number)
        for shape, number in counts.items()
        if number >= 2
    ]
    for one in counts:
        for other in counts:
            if one == other:
                continue
            both = [one, other]
            colours = [colour_of[name] for name in both if name in colour_of]
            known = len(colours) == 2
            records.append(g0_metadata("two_object", both))
            if known:
                records.append(g0_metadata("color_attr", both, colours=colours))
            for relation in _shared_relations(by_shape[one], by_shape[other]):
                records.append(g0_metadata("position", both, relation=relation))
                if known:
                    records.append(
                        g0_metadata("color_position", both, colours=colours, relation=relation)
                    )
    return [metadata for metadata in records if may_state(metadata, split)]


def _shared_relations(ones: Iterable[Object], others: Sequence[Object]) -> list[str]:
    """The relations that hold between every one and every other."""
    shared = [set(relations(a, b)) for a in ones for b in others]
    return [name for name in RELATIONS if all(name in held for held in shared)]


def caption_g0(
    scene: Scene, rng: np.random.Generator, *, split: Split = "train"
) -> tuple[str, Metadata]:
    """A true GenEval prompt and its record, of those that name as many objects as possible.

    The task is drawn first, so that a picture with eight true positions does not always get a
    prompt about positions. A scene always has a prompt: a single shape is never held out.
    """
    counts = Counter(item.shape for item in scene.objects)
    best: dict[str, list[Metadata]] = {}
    most = 0
    for metadata in g0_captions(scene, split=split):
        named = sum(clause["count"] for clause in metadata["include"])
        # "a photo of a ring" is true of three rings and misleads: it comes last.
        missed = any(counts[clause["class"]] > clause["count"] for clause in metadata["include"])
        rank = 0 if missed else named
        if rank > most:
            best, most = {}, rank
        if rank == most:
            best.setdefault(metadata["tag"], []).append(metadata)
    metadata = one_of(rng, best[one_of(rng, list(best))])
    return metadata["prompt"], metadata


def caption_related(
    scene: Scene, rng: np.random.Generator, *, split: Split = "train"
) -> str | None:
    """A true GenEval prompt that states a relation; None if none is true.

    It names the colours in half of the texts where all objects of a shape share theirs.
    """
    by_task: dict[str, list[Metadata]] = {}
    for metadata in g0_captions(scene, split=split):
        if metadata["tag"] in ("position", EXTRA_TASK):
            by_task.setdefault(metadata["tag"], []).append(metadata)
    return one_of(rng, by_task[one_of(rng, list(by_task))])["prompt"] if by_task else None


def caption_reworded(scene: Scene, rng: np.random.Generator, *, split: Split = "train") -> str:
    """A true GenEval prompt in the words that people use, such as "a star above two crosses".

    It has another opening or none, the English plural, and sometimes "to the left of". Half of the
    texts state a relation where one is true.
    """
    related = caption_related(scene, rng, split=split) if rng.random() < 0.5 else None
    text = (related or caption_g0(scene, rng, split=split)[0]).removeprefix("a photo of ")
    for shape in SHAPES:
        text = re.sub(rf"\b{plural(shape)}\b", english_plural(shape), text)
    if rng.random() < 0.3:
        text = re.sub(r"\b(left|right) of\b", r"to the \1 of", text)
    return (one_of(rng, OPENINGS) if rng.random() < 0.4 else "") + text


def clauses_of(prompt: str) -> Metadata:
    """GenEval's record of what a prompt of the drawn world asks for.

    A number above one must be exact, as in GenEval's counting. Raises UserError for a prompt
    without a record: one that names no shape, or a shape twice ("a red circle and a blue circle"),
    or has a word that no record can hold.
    """
    facts = parse(prompt)
    if not facts.groups:
        raise UserError("the prompt names no shape of the drawn world")
    if unread := sorted(set(re.findall(r"[^\W_]+", prompt.lower())) - READ):
        raise UserError(f"the verdict knows nothing of: {', '.join(unread)}")
    if max(Counter(shape for _, _, shape in facts.groups).values()) > 1:
        raise UserError("the prompt names a shape twice")
    place = {(colour, shape): number for number, (_, colour, shape) in enumerate(facts.groups)}
    include: list[dict[str, Any]] = [
        {"class": shape, "count": count} | ({"color": colour} if colour else {})
        for count, colour, shape in facts.groups
    ]
    # A clause's target must stand before it, so the later of the two gets the relation.
    for one, relation, other in facts.relations:
        if one not in place or other not in place:
            raise UserError("the prompt relates what it does not name")
        first, second = place[one], place[other]
        clause, target = (include[first], second) if second < first else (include[second], first)
        if "position" in clause:
            raise UserError("the prompt states two relations of one object")
        clause["position"] = [relation if second < first else INVERSE[relation], target]
    metadata: Metadata = {"include": include, "tag": "judged", "prompt": prompt}
    if any(clause["count"] > 1 for clause in include):
        metadata["exclude"] = [
            {"class": clause["class"], "count": clause["count"] + 1}
            for clause in include
            if clause["count"] > 1
        ]
        metadata["tag"] = "counting"
    if facts.background:
        metadata["background"] = facts.background
    return metadata
