"""`tarkit curate judge`: whether pictures show their prompts, as data for self-reflect.

Source: paper Sec. 4.3 (Self-Reflect-340K: prompts in the style of GenEval and DPG-Bench, judged by
Qwen2.5-VL-7B). The paper publishes neither the question nor the form of the answer; here the judge
says yes or no and then the reason. Pictures that a model drew badly are the hard cases of no. The
easy cases are `mismatched` pictures, which are judged against the prompt of another picture. One
row becomes one row; `curate chats --judgements` takes as many yes as no.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.map_rows import Make, Result, Todo, map_rows
from tarkit.artifacts.plan import RowPlan
from tarkit.config import Config, Seed, load_config
from tarkit.curate.ask import LOG, LanguageModel, Refused, ask
from tarkit.llm.base import AssistantConfig, LlmQuestion
from tarkit.seeds import row_seed

INSTRUCTION = """\
This picture was made from the prompt: {}

Does the picture show what the prompt says: every object, the number of each, their colours and \
where they are? Begin with the word yes or no, and then give the reason in one sentence."""
MAX_REASON_CHARS = 400


class JudgeConfig(Config):
    """How pictures are judged."""

    seed: Seed = 0
    mismatched: float = Field(default=0.0, ge=0, le=1)
    """Share of pictures that are judged against the prompt of another picture of their shard."""
    assistant: AssistantConfig = AssistantConfig(temperature=0.0, tries=1, max_tokens=128)


class Judge(Protocol):
    """Decides whether pictures show their prompts."""

    @property
    def name(self) -> str:
        """The judge's name in the manifest."""

    def assistant_settings(self, config: AssistantConfig) -> dict[str, Any] | None:
        """The settings of `config` that verdicts depend on; None for a judge without a model."""

    def max_tries(self, config: AssistantConfig) -> int | None:
        """The most questions to a model about one picture; None for a judge without a model."""

    def judge(
        self, rows: Iterator[Todo], *, config: AssistantConfig, seed: int, log: Path
    ) -> Iterator[tuple[int, Result]]:
        """(place, verdict and reason, or why there is no verdict) of every row.

        A row's `prompt` is the prompt that its picture is judged against.
        """


@dataclass(frozen=True)
class LanguageModelJudge:
    """A vision-language model as the judge."""

    llm: LanguageModel

    @property
    def name(self) -> str:
        return self.llm.name

    def assistant_settings(self, config: AssistantConfig) -> dict[str, Any]:
        return self.llm.identity(config)

    def max_tries(self, config: AssistantConfig) -> int:
        return config.tries

    def judge(
        self, rows: Iterator[Todo], *, config: AssistantConfig, seed: int, log: Path
    ) -> Iterator[tuple[int, Result]]:
        return ask(
            rows,
            assistant=self.llm.assistant(config, sees=True),
            config=config,
            question=functools.partial(_question, seed),
            read=_read,
            log=log,
        )


@dataclass(frozen=True, kw_only=True)
class JudgePlan(RowPlan):
    """Writes a judgements artifact with a verdict for every picture, by its key."""

    judge: Judge

    kind = "judgements"
    input_kind = "images"

    @cached_property
    def settings(self) -> JudgeConfig:
        return load_config(JudgeConfig, self.config, self.overrides)

    @property
    def recorded(self) -> Mapping[str, Any]:
        return {
            **self.settings.model_dump(mode="json"),
            "assistant": self.judge.assistant_settings(self.settings.assistant),
            "limit": self.limit,
            "judge": self.judge.name,
        }

    @property
    def max_tries(self) -> int | None:
        return self.judge.max_tries(self.settings.assistant)

    def make(self, artifact: Artifact) -> None:
        verdicts = functools.partial(
            self.judge.judge,
            config=self.settings.assistant,
            seed=self.settings.seed,
            log=self.out / LOG,
        )
        prompts = _JudgedPrompts(self.source, list(self.rows_of), self.settings)
        map_rows(
            artifact,
            self.source,
            self.rows_of,
            functools.partial(_judgements, verdicts, prompts),
            carry=lambda row: {name: row[name] for name in ("key", "licence")},
            name="judge",
            retry_failed=self.retry_failed,
        )


# ---- the prompt that a picture is judged against ------------------------------------------------


class _JudgedPrompts:
    """Gives the prompt that each picture is judged against; rows must come shard by shard."""

    def __init__(self, source: Artifact, shards: Sequence[str], config: JudgeConfig) -> None:
        self._source, self._config = source, config
        self._shards = iter(shards)
        self._shard_prompts: dict[str, str] = {}
        """The prompts of the current shard, by key."""

    def prompt_for(self, row: Mapping[str, Any]) -> str | None:
        """The prompt of the row, or for a share of the rows that of another; None without one."""
        own: str | None = row["prompt"]
        rng = random.Random(row_seed(self._config.seed, row["key"], 0))
        if not own or rng.random() >= self._config.mismatched:
            return own
        while row["key"] not in self._shard_prompts:
            rows = self._source.rows(next(self._shards), ["key", "prompt"])
            self._shard_prompts = {each["key"]: each["prompt"] for each in rows}
        others = sorted({text for text in self._shard_prompts.values() if text and text != own})
        return rng.choice(others) if others else own


def _judgements(
    judge: Make, prompts: _JudgedPrompts, rows: Iterator[Todo]
) -> Iterator[tuple[int, Result]]:
    """The verdicts of `judge` together with the prompts that it judged against."""
    prompt_of: dict[int, str] = {}
    without_prompt: list[int] = []

    def rows_to_judge() -> Iterator[Todo]:
        for row in rows:
            prompt = prompts.prompt_for(row.row)
            if prompt:
                prompt_of[row.place] = prompt
                yield replace(row, row={**row.row, "prompt": prompt})
            else:
                without_prompt.append(row.place)

    for place, result in judge(rows_to_judge()):
        yield place, result if isinstance(result, str) else {**result, "prompt": prompt_of[place]}
    for place in without_prompt:
        yield place, "it has no prompt to be judged against"


# ---- asking a vision-language model -------------------------------------------------------------


def _question(seed: int, todo: Todo, number: int) -> LlmQuestion:
    text = INSTRUCTION.format(todo.row["prompt"])
    return LlmQuestion(
        text,
        seed=row_seed(seed, todo.row["key"], number),
        blob=todo.blob,
        max_pixels=todo.max_pixels,
    )


def _read(todo: Todo, text: str) -> Mapping[str, Any]:
    """The verdict, which is the answer's first word, and the reason after it; raises Refused."""
    match = re.match(r"\W*(?:(?:answer|verdict)\W+)?(yes|no)\b\W*", text, re.IGNORECASE)
    if not match:
        raise Refused("the answer does not begin with yes or no")
    reason = " ".join(text[match.end() :].split())
    if len(reason) > MAX_REASON_CHARS:
        raise Refused(f"the reason is too long: {len(reason)} characters")
    return {"verdict": match[1].lower(), "reason": reason or None}
