"""Prompts in the style of GenEval and of DPG-Bench, made by rule, for self-reflect data.

Source: paper Sec. 4.3. Its Self-Reflect-340K has "prompts in the style of GenEval and DPG Bench";
the paper does not say how they were made. Here GenEval's style uses GenEval's own templates with
other random choices. DPG's style writes dense paragraphs about several objects with attributes and
positions. The benchmarks' own prompts are removed later (`tarkit curate prompts --exclude`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tarkit.errors import UserError
from tarkit.scoring.geneval_prompts import CLASSES, COLOURS, geneval_prompts

MATERIALS = (
    *("wooden", "ceramic", "glass", "metal", "leather", "plastic", "woven", "marble", "paper"),
    *("velvet", "rusted", "polished", "hand-painted", "knitted", "bronze", "porcelain"),
)
SIZES = ("tiny", "small", "large", "oversized", "slender", "stout", "narrow", "bulky")
STATES = (
    *("slightly tilted", "covered with a thin layer of dust", "catching the light"),
    *("with a small crack along its edge", "casting a long shadow", "wet from recent rain"),
    *("decorated with a fine geometric pattern", "half hidden behind a curtain of leaves"),
)
PLACES = (
    *("on a weathered wooden table", "beside a tall window", "in the middle of a quiet street"),
    *("on a mossy stone wall", "at the edge of a shallow pond", "inside a dim workshop"),
    *("on a checkered tablecloth", "in front of a brick wall", "on a sandy beach at dusk"),
)
RELATIONS = (
    *("to the left of", "to the right of", "just behind", "directly in front of", "above"),
    *("underneath", "leaning against", "a short distance away from"),
)
LIGHTS = (
    *("Soft morning light falls over the whole scene", "The scene is lit by a single warm lamp"),
    *("An overcast sky makes the colors look muted", "Bright midday sun sharpens every outline"),
    *("A faint mist softens the background", "Neon signs tint everything in blue and pink"),
)
LOOKS = (
    *("a photograph with a shallow depth of field", "an oil painting with visible brush strokes"),
    *("a watercolor on rough paper", "a detailed pencil drawing", "a frame of an animated film"),
)
MOST_GENEVAL = 200_000  # of 600,000 in all; near that number most random draws are repeats
NUMBERS = ("two", "three", "four", "five")
OBJECTS = tuple(name for name in CLASSES if name not in ("person", "skis", "scissors"))


def geneval_style(count: int, seed: int) -> Iterator[str]:
    """`count` different prompts of GenEval's templates, in random order.

    There are only 80 prompts with one class, 240 with a count and 790 with a colour, so in a large
    set most prompts are of the other three tasks. Raises UserError above MOST_GENEVAL.
    """
    if count > MOST_GENEVAL:
        raise UserError(f"{count} prompts of GenEval's templates: at most {MOST_GENEVAL}")
    per_task = -(-count // 5)
    records = geneval_prompts(seed, per_task=per_task)
    while len(records) < count:
        per_task *= 2
        records = geneval_prompts(seed, per_task=per_task)
    rng = np.random.default_rng(seed)
    for index in rng.permutation(len(records))[:count]:
        yield str(records[index]["prompt"])


def dpg_style(count: int, seed: int) -> Iterator[str]:
    """`count` paragraphs of three to five objects, 40 to 110 words."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield _paragraph(rng)


def _paragraph(rng: np.random.Generator) -> str:
    names = [OBJECTS[i] for i in rng.choice(len(OBJECTS), rng.integers(3, 6), replace=False)]
    first = _described(names[0], rng)
    sentences = [f"{_capital(_a(first))} stands {_one(PLACES, rng)}, {_one(STATES, rng)}."]
    for name, other in zip(names[1:], names, strict=False):
        relation = _one(RELATIONS, rng)
        if rng.random() < 0.35:
            plural = f"{_one(NUMBERS, rng)} {_one(COLOURS, rng)} {name}"
            plural += "es" if name.endswith(("s", "ch", "sh", "x")) else "s"
            sentences.append(f"{_capital(plural)} are placed {relation} the {other}.")
        else:
            thing = _a(_described(name, rng))
            sentences.append(
                f"{_capital(relation)} the {other} there is {thing}, {_one(STATES, rng)}."
            )
    sentences.append(f"{_one(LIGHTS, rng)}.")
    if rng.random() < 0.5:
        sentences.append(f"The whole is shown as {_one(LOOKS, rng)}.")
    return " ".join(sentences)


def _described(name: str, rng: np.random.Generator) -> str:
    """A noun with one to three attributes in their usual order."""
    kinds = [SIZES, COLOURS, MATERIALS]
    chosen = sorted(rng.choice(3, size=rng.integers(1, 4), replace=False))
    return " ".join([*(_one(kinds[kind], rng) for kind in chosen), name])


def _one(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


STYLES: Mapping[str, Callable[[int, int], Iterator[str]]] = {
    "geneval": geneval_style,
    "dpg": dpg_style,
}
