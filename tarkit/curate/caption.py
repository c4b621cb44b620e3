"""`tarkit curate caption`: a vision-language model writes a prompt for each picture.

Source: paper App. D.1. The instruction is the paper's: three example prompts, whose style the model
follows. One row becomes one row.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.map_rows import Todo
from tarkit.artifacts.prompt_files import read_prompts
from tarkit.config import Seed, load_config
from tarkit.curate.ask import AskConfig, AskPlan, Refused
from tarkit.curate.caption_text import caption_in
from tarkit.errors import UserError
from tarkit.llm.base import LlmQuestion
from tarkit.seeds import row_seed
from tarkit.vocab import IMAGE_MARK

INSTRUCTION = """\
Here are some text-to-image prompts:

Example 1: {}

Example 2: {}

Example 3: {}

Now generate a prompt for this image. Do not copy the above content. Just follow their prompt \
style. Do not output anything else. The image is:"""
SHORT = """\
Write a caption of this image in one sentence of at most {} words. Do not output anything else. \
The image is:"""
REWRITE = """\
Write this caption again in other words, in one sentence of at most {} words. Say nothing that it \
does not say: {}"""
REWRITTEN = (
    ("red fox in snow", "There is a red fox in snow."),
    ("two old wooden boats", "An image of two old wooden boats."),
    ("a green clock, time, hour", "A green clock that tells the time and the hour."),
)
NUM_EXAMPLES = 3
MAX_EXAMPLE_CHARS = 4_000


class CaptionConfig(AskConfig):
    """How a vision-language model is asked about pictures."""

    style: Literal["prompt", "short", "rewrite"] = "prompt"
    """`prompt`: a long prompt in the style of the examples. `short`: one sentence. `rewrite`: one
    sentence that says the same as the picture's prompt in other words; no picture is shown."""
    max_words: int = Field(default=20, ge=1)
    """Limit for short and rewritten captions; a longer answer is refused."""
    min_kept: float = Field(default=1.0, ge=0, le=1)
    """Share of the prompt's words that a rewritten caption must contain."""
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class CaptionPlan(AskPlan):
    """Writes a prompts artifact with a prompt for every picture of an images artifact, by its key.

    `examples` is a file with one prompt per line; the seed picks three of them for each row.
    """

    examples: Path | None = None

    kind = "prompts"
    input_kind = "images"

    @cached_property
    def settings(self) -> CaptionConfig:
        return load_config(CaptionConfig, self.config, self.overrides)

    @cached_property
    def example_prompts(self) -> Sequence[str]:
        """The prompts of `examples`; empty for a style without examples. Raises UserError."""
        return _read_examples(self.examples, self.settings)

    @property
    def parents(self) -> Mapping[str, Artifact | Path]:
        if self.example_prompts and self.examples:
            return {**super().parents, "examples": self.examples}
        return super().parents

    def make(self, artifact: Artifact) -> None:
        settings = self.settings
        self.map_answers(
            artifact,
            question=functools.partial(_question, settings, self.example_prompts),
            read=functools.partial(_read, settings, frozenset(self.example_prompts)),
            carry=_carry,
            name="caption",
            sees=settings.style != "rewrite",
        )


def _read_examples(path: Path | None, config: CaptionConfig) -> list[str]:
    if config.style != "prompt":
        if path is not None:
            raise UserError(f"style {config.style} takes no examples")
        return []
    if path is None:
        hint = "--examples FILE, one prompt per line"
        raise UserError("style prompt needs examples of prompts", hint=hint)
    examples = list(dict.fromkeys(" ".join(prompt.split()) for prompt in read_prompts(path)))
    if len(examples) < NUM_EXAMPLES:
        raise UserError(
            f"{path} has {len(examples)} different prompts; at least {NUM_EXAMPLES} are needed"
        )
    long = [text for text in examples if len(text) > MAX_EXAMPLE_CHARS]
    if long:
        raise UserError(f"an example of {path} has {len(long[0])} characters: {long[0][:60]} ...")
    return examples


def _carry(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("key", "parent_key", "source", "licence")}


def _question(
    config: CaptionConfig, examples: Sequence[str], todo: Todo, number: int
) -> LlmQuestion:
    seed = row_seed(config.seed, todo.row["key"], number)
    if config.style == "rewrite":
        if not todo.row["prompt"]:
            raise Refused("it has no prompt")
        instruction = functools.partial(REWRITE.format, config.max_words)
        turns = tuple((instruction(prompt), rewritten) for prompt, rewritten in REWRITTEN)
        return LlmQuestion(instruction(todo.row["prompt"]), seed=seed, examples=turns)
    if config.style == "short":
        text = SHORT.format(config.max_words)
    else:
        rng = random.Random(row_seed(config.seed, todo.row["key"], 0))
        text = INSTRUCTION.format(*rng.sample(examples, NUM_EXAMPLES))
    return LlmQuestion(text, seed=seed, blob=todo.blob, max_pixels=todo.max_pixels)


def _read(
    config: CaptionConfig, examples: frozenset[str], todo: Todo, text: str
) -> Mapping[str, Any]:
    """The caption in an answer, checked as the style wants it; raises Refused."""
    prompt = caption_in(text)
    if not any(letter.isalnum() for letter in prompt):
        raise Refused("the answer has no word")
    if IMAGE_MARK in prompt:
        raise Refused(f"the answer contains {IMAGE_MARK}")
    if prompt in examples:
        raise Refused("the answer copies an example")
    if config.style != "prompt" and len(prompt.split()) > config.max_words:
        raise Refused(f"the answer is too long: {len(prompt.split())} words")
    if config.style == "rewrite":
        _check_rewritten(todo.row["prompt"], prompt, config.min_kept)
    return {"prompt": prompt}


def _check_rewritten(prompt: str, rewritten: str, min_kept: float) -> None:
    """Raises Refused when too many words of the prompt are lost, or nothing was changed."""
    before, after = (re.findall(r"\w+", text.casefold()) for text in (prompt, rewritten))
    if before == after:
        raise Refused("the answer is the prompt itself")
    lost = [word for word in before if word not in after]
    if len(lost) > (1 - min_kept) * len(before):
        raise Refused(f"the answer loses words of the prompt: {', '.join(lost)[:80]}")
