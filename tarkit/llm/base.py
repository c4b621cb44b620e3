"""The interface of language models that answer questions, with or without a picture, in text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import Field

from tarkit.config import Config
from tarkit.images import MAX_PIXELS


class AssistantConfig(Config):
    """How a language model is asked. An answer that reaches `max_tokens` is an error."""

    max_tokens: int = Field(default=512, ge=1)
    temperature: float = Field(default=0.7, ge=0)
    """0 is greedy decoding: then every try gives the same answer."""
    top_p: float = Field(default=0.9, gt=0, le=1)
    tries: int = Field(default=3, ge=1)
    """The most questions for one row; the next is asked when an answer cannot be used."""
    batch_size: int = Field(default=8, ge=1)
    """Questions at a time: rows of a batch of a local model, open requests to a server."""
    timeout_s: float = Field(default=120.0, gt=0)
    """The longest wait for one answer of a server, retries included."""
    retries: int = Field(default=5, ge=0)
    """Requests after a server's 408, 429 or 5xx, or a broken connection, with growing pauses."""

    def identity(self, *, served: bool) -> dict[str, Any]:
        """The numbers that answers depend on; a run cannot be continued with other ones."""
        # A local answer depends on its batch (padding, seed); a server makes batches of its own.
        ignored = {"timeout_s", "retries"} | ({"batch_size"} if served else set())
        return self.model_dump(mode="json", exclude=ignored)


@dataclass(frozen=True)
class LlmQuestion:
    """A question; `blob` is an encoded picture of at most `max_pixels`, shown after the text.

    `examples` are earlier (question, answer) turns, which show the kind of answer that is wanted.
    """

    text: str
    seed: int
    blob: bytes | None = None
    max_pixels: int = MAX_PIXELS
    examples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LlmAnswer:
    """The answer, or the reason why there is none; tokens as counted by the model or its server."""

    text: str = ""
    error: str | None = None
    num_prompt_tokens: int = 0
    num_tokens: int = 0


class Assistant(Protocol):
    """A model that gives one answer to every question, in their order."""

    def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]: ...


class ProbabilityAssistant(Assistant, Protocol):
    """A model that also says how probable a certain answer of one token is."""

    def first_token_probabilities(
        self, questions: Sequence[LlmQuestion], forms: Sequence[Sequence[str]]
    ) -> list[float]:
        """For each question the probability in [0, 1] that its answer begins with such a token.

        `forms` are the spellings of one answer to each question; only a token that spells one of
        them whole counts. Raises UserError for a question to which no probability can be given.
        """
        ...
