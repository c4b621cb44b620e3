"""Asking a language model about rows; no answer is trusted.

The verb that asks says how an answer is read. An answer that cannot be read is asked for again, and
after the last try the row fails with the last reason. What each row cost goes to a log in the
artifact's folder and never into its shards, because the cost differs from run to run.
"""

from __future__ import annotations

import collections
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.map_rows import Result, Todo
from tarkit.llm.base import Assistant, AssistantConfig, LlmAnswer, LlmQuestion

LOG = "answers.jsonl"
WINDOW = 8
"""Questions that wait together, in batches: what a server's slowest answer holds up."""


class Lazy:
    """An assistant that is loaded at its first question: a finished artifact needs no model."""

    def __init__(self, make: Callable[[], Assistant]) -> None:
        self._make = make

    def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
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
    question: Callable[[Todo, int], LlmQuestion],
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
    question: Callable[[Todo, int], LlmQuestion],
    read: Read,
    log: Path,
) -> Iterator[tuple[int, Result]]:
    left = list(window)
    reasons: dict[int, str] = {}
    costs: dict[int, collections.Counter[str]] = {t.place: collections.Counter() for t in window}
    for number in range(config.tries):
        asked: list[tuple[Todo, LlmQuestion]] = []
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
