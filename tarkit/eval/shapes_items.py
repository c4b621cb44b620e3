"""The plan of an evaluation on the drawn world: its items in order, their seeds, their files.

A plan is a pure function of its settings, so that samples can be scored again from the manifest
alone. Names of ceilings: a true picture (`truth`), the same through the image VQ (`pixel_vq`) and
through the codes of a scale (`semantic_1`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from tarkit.eval.run import MAX_N
from tarkit.seeds import sample_seed
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import Scene, scene_to_json
from tarkit.shapes.scene_edits import scene_for
from tarkit.shapes.suites import (
    TEST_SEED,
    VALIDATION_SEED,
    CaptionItem,
    PromptItem,
    QuestionItem,
    caption_suite,
    geneval_suite,
    geneval_validation,
    pope_suite,
)
from tarkit.vocab import Scale

SUITES = ("geneval", "pope", "caption", "ceilings", "codes")
TRUTH, PIXEL_VQ = "truth", "pixel_vq"

EvalSplit = Literal["test", "validation"]
ItemT = TypeVar("ItemT", PromptItem, QuestionItem, CaptionItem)


def semantic(scale: Scale) -> str:
    """The name of a scale's ceiling."""
    return f"semantic_{int(scale)}"


PIXEL_CEILINGS = (TRUTH, PIXEL_VQ)
"""Of a model that draws with pixel codes."""
CEILINGS = (*PIXEL_CEILINGS, *map(semantic, Scale))


@lru_cache(maxsize=2)
def _prompts(split: EvalSplit) -> list[PromptItem]:
    return geneval_suite() if split == "test" else geneval_validation()


@lru_cache(maxsize=2)
def _questions(split: EvalSplit) -> list[QuestionItem]:
    return pope_suite(TEST_SEED if split == "test" else VALIDATION_SEED)


@lru_cache(maxsize=2)
def _captions(split: EvalSplit) -> list[CaptionItem]:
    return caption_suite(TEST_SEED if split == "test" else VALIDATION_SEED)


class ShapesPicture(NamedTuple):
    """One picture of the plan: its prompt, its number among the prompt's pictures, its seed."""

    item: PromptItem
    sample: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class ShapesPlan:
    """`limit` takes the first items of each suite; `n` pictures are drawn of a geneval prompt."""

    suites: tuple[str, ...]
    split: EvalSplit
    n: Annotated[int, Field(ge=1, le=MAX_N)]
    seed: int
    limit: int | None

    def prompts(self) -> list[PromptItem]:
        """The prompts of the suites geneval and ceilings."""
        return self._first(_prompts(self.split), key=lambda item: item.task)

    def questions(self) -> list[QuestionItem]:
        """The questions of the suite pope."""
        return self._first(_questions(self.split), key=lambda item: item.kind)

    def captions(self) -> list[CaptionItem]:
        """The pictures to describe of the suite caption."""
        return self._first(_captions(self.split), key=lambda item: "")

    def _first(self, items: Sequence[ItemT], *, key: Callable[[ItemT], str]) -> list[ItemT]:
        """The first `limit` items, in an order in which tasks and columns are evenly spread."""
        groups: dict[tuple[str, str], list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault((key(item), item.column), []).append(index)
        order = sorted(
            ((rank + 0.5) / len(group), index)
            for group in groups.values()
            for rank, index in enumerate(group)
        )
        return [items[index] for _, index in order][: self.limit]

    def seed_of(self, bench: str, item: str, sample: int = 0) -> int:
        """A seed that depends on nothing but the run's seed and what the sample is."""
        return sample_seed(self.seed, bench, item, sample)

    def truth(self, item: PromptItem) -> tuple[Scene, int]:
        """A scene that fulfils the prompt, and the seed of its background."""
        seed = self.seed_of(TRUTH, item.id)
        return scene_for(item.metadata, np.random.default_rng(seed)), seed

    def lone_objects(self) -> list[tuple[Scene, int]]:
        """Scenes of one object and their seeds, to probe codes: 2,000, or 200 with a limit."""
        count = 2000 if self.limit is None else 200
        seeds = [self.seed_of("codes", str(index)) for index in range(count)]
        return [
            (sample_scene(np.random.default_rng(seed), split="test", kind="single"), seed)
            for seed in seeds
        ]

    def picture_files(self, out: Path) -> list[tuple[Path, ShapesPicture]]:
        """The pictures of the geneval suite, `samples/00000/0000.png`: prompt row, sample."""
        return [
            (
                out / "samples" / f"{row:05d}" / f"{sample:04d}.png",
                ShapesPicture(item, sample, self.seed_of("geneval", item.id, sample)),
            )
            for row, item in enumerate(self.prompts())
            for sample in range(self.n)
        ]

    def ceiling_files(self, out: Path, name: str) -> list[tuple[Path, ShapesPicture]]:
        """One picture a prompt for a ceiling, `ceilings/NAME/00000.png`."""
        return [
            (
                out / "ceilings" / name / f"{row:05d}.png",
                ShapesPicture(item, 0, self.seed_of(name, item.id)),
            )
            for row, item in enumerate(self.prompts())
        ]

    def fingerprints(self) -> dict[str, str]:
        """sha256 of the items, so that a change of the lists cannot pass for one of a model."""
        texts: dict[str, list[str]] = {}
        if {"geneval", "ceilings"} & set(self.suites):
            texts["geneval"] = [
                json.dumps(item.metadata, sort_keys=True) for item in self.prompts()
            ]
        if "pope" in self.suites:
            texts["pope"] = [
                f"{scene_to_json(item.scene)} {item.question} {item.answer}"
                for item in self.questions()
            ]
        if "caption" in self.suites:
            texts["caption"] = [scene_to_json(item.scene) for item in self.captions()]
        digests = {name: _sha256("\n".join(lines).encode()) for name, lines in texts.items()}
        held_out = resources.files("tarkit.shapes").joinpath("heldout.json").read_bytes()
        return {**digests, "heldout.json": _sha256(held_out)}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
