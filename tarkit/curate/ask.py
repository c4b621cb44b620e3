"""Asks a language model about rows and checks its answers.

Each verb has its own function that reads an answer. A question whose answer cannot be used is asked
again; after the last try the row fails with the last reason. The cost of every row goes to a log in
the artifact's folder and never into its shards, because the cost differs between runs.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.map_rows import Result, Todo, map_rows
from tarkit.artifacts.plan import RowPlan
from tarkit.artifacts.schema import Row
from tarkit.config import Config
from tarkit.llm.base import Assistant, AssistantConfig, LlmAnswer, LlmQuestion
from tarkit.llm.load import load

LOG = "answers.jsonl"
WINDOW = 8
"""Batches whose questions are sent together; a server's slowest answer delays all of them."""


@dataclass(frozen=True)
class LanguageModel:
    """The language model to ask, and where it runs.

    `name` is a folder or hub id; with `server`, the URL of an OpenAI-compatible server, it is the
    model's name there.
    """

    name: str
    server: str | None = None
    device: str = "cpu"
    precision: str = "float32"

    def identity(self, config: AssistantConfig) -> dict[str, Any]:
        """The settings of `config` that the answers depend on, for the manifest."""
        return config.identity(served=self.server is not None)

    def assistant(self, config: AssistantConfig, *, sees: bool = False) -> LazyAssistant:
        """The model, loaded at its first question; with `sees` it is asked about pictures."""
        return LazyAssistant(
            lambda: load(
                self.name,
                config=config,
                server=self.server,
                sees=sees,
                device=self.device,
                precision=self.precision,
            )
        )


class LazyAssistant:
    """An assistant that is loaded at its first question: a finished artifact needs no model."""

    def __init__(self, make: Callable[[], Assistant]) -> None:
        self._make = make

    def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        return self._assistant.answer(questions)

    @functools.cached_property
    def _assistant(self) -> Assistant:
        return self._make()


class Refused(Exception):
    """An answer that cannot be used; the text is the reason, with details after a colon."""


Question = Callable[[Todo, int], LlmQuestion]
"""From a row and the number of the try, the question; raises Refused."""
Read = Callable[[Todo, str], Mapping[str, Any]]
"""From a row and the answer's text, the columns of the result; raises Refused."""


class AskConfig(Config):
    """The settings of a verb whose rows are answers of a language model."""

    assistant: AssistantConfig = AssistantConfig()


@dataclass(frozen=True, kw_only=True)
class AskPlan(RowPlan):
    """A plan whose rows are answers of a language model to questions about the input rows."""

    llm: LanguageModel

    @property
    @abstractmethod
    def settings(self) -> AskConfig:
        """The verb's settings, from `config` and `overrides`."""

    @property
    def recorded(self) -> Mapping[str, Any]:
        return {
            **self.settings.model_dump(mode="json"),
            "assistant": self.llm.identity(self.settings.assistant),
            "limit": self.limit,
            "llm": self.llm.name,
        }

    @property
    def max_tries(self) -> int:
        return self.settings.assistant.tries

    def map_answers(
        self,
        artifact: Artifact,
        *,
        question: Question,
        read: Read,
        carry: Callable[[Row], Row],
        name: str,
        sees: bool = False,
    ) -> None:
        """Write the model's answers to `question` as rows; with `sees` it is shown the pictures.

        `carry` and `name` are those of `map_rows`.
        """
        config = self.settings.assistant
        map_rows(
            artifact,
            self.source,
            self.rows_of,
            functools.partial(
                ask,
                assistant=self.llm.assistant(config, sees=sees),
                config=config,
                question=question,
                read=read,
                log=self.out / LOG,
            ),
            carry=carry,
            name=name,
            retry_failed=self.retry_failed,
        )


def ask(
    todo: Iterable[Todo],
    *,
    assistant: Assistant,
    config: AssistantConfig,
    question: Question,
    read: Read,
    log: Path,
) -> Iterator[tuple[int, Result]]:
    """(place, result) of every row: its first usable answer to `question(row, try)`, by `read`.

    The model is not asked about a row for which `question` raises Refused.
    """
    waiting = iter(todo)
    while window := list(itertools.islice(waiting, WINDOW * config.batch_size)):
        yield from _ask_window(window, assistant, config, question, read, log)


def _ask_window(
    window: Sequence[Todo],
    assistant: Assistant,
    config: AssistantConfig,
    question: Question,
    read: Read,
    log: Path,
) -> Iterator[tuple[int, Result]]:
    remaining = list(window)
    reasons: dict[int, str] = {}
    costs: dict[int, collections.Counter[str]] = {t.place: collections.Counter() for t in window}
    for number in range(config.tries):
        questions: list[tuple[Todo, LlmQuestion]] = []
        for item in remaining:
            try:
                questions.append((item, question(item, number)))
            except Refused as error:  # a later try would have no question either
                _log(log, item, costs[item.place], str(error))
                yield item.place, str(error)
        if not questions:
            return
        answers = assistant.answer([text for _, text in questions])
        remaining = []
        for (item, _), answer in zip(questions, answers, strict=True):
            cost = costs[item.place]
            cost.update(tries=1, prompt_tokens=answer.num_prompt_tokens, tokens=answer.num_tokens)
            try:
                if answer.error is not None:
                    raise Refused(answer.error)
                result = read(item, answer.text)
            except Refused as error:
                reasons[item.place] = str(error)
                remaining.append(item)
                continue
            _log(log, item, cost, None)
            yield item.place, result
        if not remaining:
            return
    for item in remaining:
        _log(log, item, costs[item.place], reasons[item.place])
        yield item.place, reasons[item.place]


def _log(log: Path, item: Todo, cost: Mapping[str, int], error: str | None) -> None:
    line = {"key": item.row["key"], **cost, "error": error}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
