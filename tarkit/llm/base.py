"""Models that write for us: a question with or without a picture in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import Field

from tarkit.config import Config


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
