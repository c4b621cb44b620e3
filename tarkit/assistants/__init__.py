"""Models that write for us: a question with or without a picture in, text out, none of it trusted.

Whoever asks says how an answer is read; an answer that cannot be used is asked for again, and after
the last try the row fails with the last reason. What each row cost goes to a log beside the
artifact, never into it, as it differs from run to run.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from tarkit.config import Config
from tarkit.mapping import Result, Todo

LOG = "answers.jsonl"
WINDOW = 8
"""Questions that wait together, in batches: what a server's slowest answer holds up."""


class AssistantConfig(Config):
    """How a writing model is asked. An answer that is cut off by `max_tokens` is refused."""

    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    """Of the first try as of the others; 0 is greedy, and then every try says the same."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    tries: int = Field(default=3, ge=1)
    """Questions a row, the first included, until an answer can be used."""
    batch_size: int = Field(default=8, ge=1)
    """Questions at a time: rows of a batch here, open requests to a server."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Of one answer of a server, all its retries together."""
    retries: int = Field(default=5, ge=0)
    """After a server's 408, 429, 5xx or a broken connection, at growing distances."""

    def identity(self, *, served: bool) -> dict[str, Any]:
        """The numbers that answers depend on: with others a run cannot go on."""
        # A batch here is padded to its longest row; a server's batches are its own affair.
        patience = {"timeout_s", "retries"} | ({"batch_size"} if served else set())
        return self.model_dump(mode="json", exclude=patience)


@dataclass(frozen=True)
class Question:
    """What is asked; `blob` is an encoded picture, which stands behind the text.

    `shown` are (question, answer) turns before it, which show what kind of answer is wanted.
    """

    text: str
    seed: int
    blob: bytes | None = None
    shown: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came back, or why nothing did; tokens as the model or its server counts them."""

    text: str = ""
    error: str | None = None
    num_prompt_tokens: int = 0
    num_tokens: int = 0


class Assistant(Protocol):
    """A model that answers; one answer for every question, in their order."""

    def answer(self, questions: Sequence[Question]) -> list[Answer]: ...


class Lazy:
    """An assistant that is loaded at its first question: a finished artifact needs no model."""

    def __init__(self, make: Callable[[], Assistant]) -> None:
        self._make = make

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return self._assistant.answer(questions)

    @functools.cached_property
    def _assistant(self) -> Assistant:
        return self._make()


class Refused(Exception):
    """An answer that cannot be used; the text says why, its particulars behind a colon."""


Read = Callable[[Todo, str], Mapping[str, Any]]
"""The columns that an answer gives; raises Refused."""


def ask(
    todo: Iterable[Todo],
    *,
    assistant: Assistant,
    config: AssistantConfig,
    question: Callable[[Todo, int], Question],
    read: Read,
    log: Path,
) -> Iterator[tuple[int, Result]]:
    """Results by place: what `read` makes of the first usable answer to `question(todo, try)`.

    A row about which `question` raises Refused is not asked about.
    """
    waiting = iter(todo)
    while window := list(itertools.islice(waiting, WINDOW * config.batch_size)):
        yield from _ask_window(window, assistant, config, question, read, log)


def _ask_window(
    window: Sequence[Todo],
    assistant: Assistant,
    config: AssistantConfig,
    question: Callable[[Todo, int], Question],
    read: Read,
    log: Path,
) -> Iterator[tuple[int, Result]]:
    left = list(window)
    reasons: dict[int, str] = {}
    costs: dict[int, collections.Counter[str]] = {t.place: collections.Counter() for t in window}
    for number in range(config.tries):
        asked: list[tuple[Todo, Question]] = []
        for item in left:
            try:
                asked.append((item, question(item, number)))
            except Refused as why:  # nothing to ask, now as later
                _note(log, item, costs[item.place], str(why))
                yield item.place, str(why)
        if not asked:
            return
        answers = assistant.answer([said for _, said in asked])
        again = []
        for (item, _), answer in zip(asked, answers, strict=True):
            cost = costs[item.place]
            cost.update(tries=1, prompt_tokens=answer.num_prompt_tokens, tokens=answer.num_tokens)
            try:
                if answer.error is not None:
                    raise Refused(answer.error)
                result = read(item, answer.text)
            except Refused as why:
                reasons[item.place] = str(why)
                again.append(item)
                continue
            _note(log, item, cost, None)
            yield item.place, result
        left = again
        if not left:
            return
    for item in left:
        _note(log, item, costs[item.place], reasons[item.place])
        yield item.place, reasons[item.place]


def _note(log: Path, item: Todo, cost: Mapping[str, int], error: str | None) -> None:
    line = {"key": item.row["key"], **cost, "error": error}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def load(
    model: str,
    *,
    config: AssistantConfig,
    server: str | None = None,
    sees: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> Assistant:
    """The model behind a name: of a server, or loaded here by transformers (a folder or hub id).

    `sees`: it is asked about pictures. Raises UserError where it cannot be had.
    """
    if server is not None:
        from tarkit.assistants.server import ServerAssistant

        return ServerAssistant(model, server, config)
    from tarkit.assistants.local import load_local

    return load_local(model, config=config, sees=sees, device=device, precision=precision)
