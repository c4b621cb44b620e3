"""GenEval's 553 prompts, generated here with the same bytes as the published file.

Source: djghosh13/geneval, `prompts/evaluation_metadata.jsonl` (MIT). The published list comes from
numpy's default generator with seed 43: every class once, then 100 prompts of each other task,
without repetitions. Prompts stay as ungrammatical as published ("four benchs", "a red skis"),
because corrected prompts would be another benchmark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

SEED = 43
PROMPTS_PER_TASK = 100

# COCO's 80 things in COCO's order, under GenEval's names.
CLASSES = tuple(
    "person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|"
    "stop sign|parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|"
    "backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat|"
    "baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl|"
    "banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|"
    "potted plant|bed|dining table|toilet|tv|laptop|computer mouse|tv remote|computer keyboard|"
    "cell phone|microwave|oven|toaster|sink|refrigerator|book|clock|vase|scissors|teddy bear|"
    "hair drier|toothbrush".split("|")
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
_RELATIONS = ("left of", "right of", "above", "below")
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_UNCOLOURED = 1  # "person", the first class, is in no prompt with a colour

PromptMetadata = dict[str, Any]


def geneval_prompts(seed: int = SEED, per_task: int = PROMPTS_PER_TASK) -> list[PromptMetadata]:
    """Prompts with their metadata, in GenEval's schema and order; the defaults give its 553."""
    rng = np.random.default_rng(seed)
    unique = {json.dumps(one): one for one in _draws(rng, per_task)}
    return list(unique.values())


def geneval_jsonl(seed: int = SEED) -> str:
    """The text of `evaluation_metadata.jsonl`."""
    return "".join(json.dumps(one) + "\n" for one in geneval_prompts(seed))


def _draws(rng: np.random.Generator, per_task: int) -> Iterator[PromptMetadata]:
    """Prompts in the published order of draws: another order would give other prompts."""
    for index in rng.choice(len(CLASSES), size=len(CLASSES), replace=False):
        yield _prompt("single_object", [_clause(CLASSES[index])], _a(CLASSES[index]))
    for _ in range(per_task):
        one, other = (CLASSES[index] for index in rng.choice(len(CLASSES), size=2, replace=False))
        yield _prompt("two_object", [_clause(one), _clause(other)], f"{_a(one)} and {_a(other)}")
    for _ in range(per_task):
        name, count = CLASSES[rng.choice(len(CLASSES))], int(rng.integers(2, 4, endpoint=True))
        plural = name + ("es" if name.endswith("s") else "s")
        more = {"exclude": [_clause(name, count + 1)]}
        yield _prompt("counting", [_clause(name, count)], f"{_NUMBERS[count]} {plural}", **more)
    for _ in range(per_task):
        name = CLASSES[rng.choice(len(CLASSES) - _UNCOLOURED) + _UNCOLOURED]
        colour = COLOURS[rng.choice(len(COLOURS))]
        yield _prompt("colors", [_clause(name, color=colour)], f"{_a(colour)} {name}")
    for _ in range(per_task):
        one, other = (CLASSES[index] for index in rng.choice(len(CLASSES), size=2, replace=False))
        relation = _RELATIONS[rng.choice(len(_RELATIONS))]
        include = [_clause(other), _clause(one, position=[relation, 0])]
        yield _prompt("position", include, f"{_a(one)} {relation} {_a(other)}")
    for _ in range(per_task):
        indices = rng.choice(len(CLASSES) - _UNCOLOURED, size=2, replace=False) + _UNCOLOURED
        one, other = (CLASSES[index] for index in indices)
        hue, tint = (COLOURS[n] for n in rng.choice(len(COLOURS), size=2, replace=False))
        include = [_clause(one, color=hue), _clause(other, color=tint)]
        yield _prompt("color_attr", include, f"{_a(hue)} {one} and {_a(tint)} {other}")


def _clause(name: str, count: int = 1, **more: Any) -> PromptMetadata:
    return {"class": name, "count": count, **more}


def _prompt(tag: str, include: list[PromptMetadata], text: str, **more: Any) -> PromptMetadata:
    return {"tag": tag, "include": include, **more, "prompt": f"a photo of {text}"}


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
