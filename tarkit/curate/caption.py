"""`tarkit curate caption`: a vision-language model writes a prompt for each picture.

Source: paper App. D.1 (the instruction is the paper's: three example prompts, whose style is to be
followed). Only the words are wanted, whatever the picture is like. A row in, a row out.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tarkit.artifacts.artifact import Artifact, begin_artifact, open_artifact
from tarkit.artifacts.map_rows import Todo, map_rows
from tarkit.artifacts.preview import first_rows
from tarkit.artifacts.prompt_files import read_prompts
from tarkit.config import Config, load_config
from tarkit.curate.ask import LOG, Lazy, Refused, ask
from tarkit.errors import UserError
from tarkit.llm.base import AssistantConfig, LlmQuestion
from tarkit.llm.load import load
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


class CaptionConfig(Config):
    """How a vision-language model is asked about pictures."""

    style: Literal["prompt", "short", "rewrite"] = "prompt"
    """A long prompt in the style of the examples, one sentence, or one sentence that says in other
    words what the picture's own prompt says, for which no picture is shown."""
    max_words: int = Field(default=20, ge=1)
    """Of a short or rewritten caption; a longer answer is refused."""
    min_kept: float = Field(default=1.0, ge=0, le=1)
    """Share of the prompt's words that a rewritten caption has to keep."""
    seed: int = 0
    assistant: AssistantConfig = AssistantConfig()


def run(
    images: Path,
    *,
    out: Path,
    llm: str,
    examples: Path | None = None,
    server: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> Artifact:
    """Write the prompts artifact `out`, a prompt for every picture of `images`, by the same key.

    `examples` holds a prompt a line; three are drawn for each row by the seed. `llm` is a folder or
    hub id, with `server` (the URL of an OpenAI-compatible one) the name that it serves.
    """
    settings = load_config(CaptionConfig, config, overrides)
    source = open_artifact(images, "images")
    rows_of = first_rows(source, limit)
    prompts = _examples(examples, settings)
    artifact = begin_artifact(
        out,
        "prompts",
        settings={
            **settings.model_dump(mode="json"),
            "assistant": settings.assistant.identity(served=server is not None),
            "limit": limit,
            "llm": llm,
        },
        shards=list(rows_of),
        parents={"images": source} | ({"examples": examples} if examples else {}),
    )
    assistant = Lazy(
        lambda: load(
            llm,
            config=settings.assistant,
            server=server,
            sees=settings.style != "rewrite",
            device=device,
            precision=precision,
        )
    )
    map_rows(
        artifact,
        source,
        rows_of,
        functools.partial(
            ask,
            assistant=assistant,
            config=settings.assistant,
            question=functools.partial(_question, settings, prompts),
            read=functools.partial(_read, settings, frozenset(prompts)),
            log=out / LOG,
        ),
        carry=_carry,
        name="caption",
        retry_failed=retry_failed,
    )
    return artifact


def _examples(path: Path | None, config: CaptionConfig) -> list[str]:
    if config.style != "prompt":
        if path is not None:
            raise UserError(f"style {config.style} follows no examples of yours")
        return []
    if path is None:
        hint = "--examples FILE, a prompt a line"
        raise UserError("prompts are written after examples", hint=hint)
    found = list(dict.fromkeys(" ".join(prompt.split()) for prompt in read_prompts(path)))
    if len(found) < NUM_EXAMPLES:
        raise UserError(
            f"{path} holds {len(found)} prompts, and {NUM_EXAMPLES} are shown at a time"
        )
    long = [text for text in found if len(text) > MAX_EXAMPLE_CHARS]
    if long:
        raise UserError(f"an example of {path} has {len(long[0])} characters: {long[0][:60]} ...")
    return found


def _carry(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("key", "parent_key", "source", "licence")}


def _question(
    config: CaptionConfig, examples: Sequence[str], todo: Todo, number: int
) -> LlmQuestion:
    seed = row_seed(config.seed, todo.row["key"], number)
    if config.style == "rewrite":
        if not todo.row["prompt"]:
            raise Refused("it has no prompt")
        told = functools.partial(REWRITE.format, config.max_words)
        shown_turns = tuple((told(asked), said) for asked, said in REWRITTEN)
        return LlmQuestion(told(todo.row["prompt"]), seed=seed, examples=shown_turns)
    if config.style == "short":
        text = SHORT.format(config.max_words)
    else:
        shown = random.Random(row_seed(config.seed, todo.row["key"], 0)).sample(
            examples, NUM_EXAMPLES
        )
        text = INSTRUCTION.format(*shown)
    return LlmQuestion(text, seed=seed, blob=todo.blob)


def _read(
    config: CaptionConfig, examples: frozenset[str], todo: Todo, text: str
) -> Mapping[str, Any]:
    """The answer as one line without quotes around it; raises Refused."""
    said = " ".join(text.split()).strip().strip('"“”').strip()
    if not any(letter.isalnum() for letter in said):
        raise Refused("the answer has no word")
    if IMAGE_MARK in said:
        raise Refused(f"the answer contains {IMAGE_MARK}")
    if said in examples:
        raise Refused("the answer copies an example")
    if config.style != "prompt" and len(said.split()) > config.max_words:
        raise Refused(f"the answer is too long: {len(said.split())} words")
    if config.style == "rewrite":
        _check_rewritten(todo.row["prompt"], said, config.min_kept)
    return {"prompt": said}


def _check_rewritten(prompt: str, said: str, min_kept: float) -> None:
    """Raises Refused where words of the prompt are lost, or nothing was changed."""
    before, after = (re.findall(r"\w+", text.casefold()) for text in (prompt, said))
    if before == after:
        raise Refused("the answer is the prompt itself")
    lost = [word for word in before if word not in after]
    if len(lost) > (1 - min_kept) * len(before):
        raise Refused(f"the answer loses words of the prompt: {', '.join(lost)[:80]}")
