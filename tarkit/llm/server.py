"""A language model on any server with the OpenAI protocol: vLLM, SGLang, `transformers serve`.

The caller checks the content of an answer: with status 200 a server may have ignored a part of the
request that it does not support. Only failed connections are retried here.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Sequence
from typing import Any

from tarkit.errors import UserError
from tarkit.images import image_format
from tarkit.llm.base import AssistantConfig, LlmAnswer, LlmQuestion

API_KEY = "OPENAI_API_KEY"
MAX_ANSWER_CHARS = 100_000
ROLES = ("user", "assistant")


class ServerAssistant:
    """Keeps at most `batch_size` requests open; its key is in the variable OPENAI_API_KEY."""

    def __init__(self, model: str, url: str, config: AssistantConfig) -> None:
        try:
            import openai
        except ImportError:
            raise UserError(
                "the openai client is not installed", hint="pip install 'tarkit[caption]'"
            ) from None
        if not url.startswith(("http://", "https://")):
            raise UserError(
                f"--server {url} is not an http:// or https:// address",
                hint="--server http://HOST:8000/v1",
            )
        self._openai = openai
        self._model, self._url, self._config = model, url, config

    def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        return asyncio.run(self._all(questions))

    async def _all(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        gate = asyncio.Semaphore(self._config.batch_size)
        key = os.environ.get(API_KEY, "none")
        async with self._openai.AsyncOpenAI(
            base_url=self._url,
            api_key=key,
            max_retries=self._config.retries,
            timeout=self._config.timeout_s,
        ) as client:
            return await asyncio.gather(*(self._one(client, gate, q) for q in questions))

    async def _one(self, client: Any, gate: asyncio.Semaphore, question: LlmQuestion) -> LlmAnswer:
        openai = self._openai
        async with gate:
            try:
                # The client's timeout counts anew at each read: a slow server may never reach it.
                async with asyncio.timeout(self._config.timeout_s):
                    reply = await client.chat.completions.create(
                        model=self._model,
                        messages=_messages(question),
                        max_tokens=self._config.max_tokens,
                        temperature=self._config.temperature,
                        top_p=self._config.top_p,
                        seed=question.seed,
                    )
            except (TimeoutError, openai.APITimeoutError):
                return LlmAnswer(error=f"the server gave no answer: {self._config.timeout_s:g} s")
            except openai.APIStatusError as error:
                return LlmAnswer(
                    error=f"the server refused with {error.status_code}: {_brief(error)}"
                )
            except openai.APIConnectionError as error:
                return LlmAnswer(error=f"the server cannot be reached: {_brief(error)}")
            except (openai.OpenAIError, ValueError) as error:
                return LlmAnswer(error=f"the server's answer cannot be read: {_brief(error)}")
        return _read(reply)


def _messages(question: LlmQuestion) -> list[dict[str, Any]]:
    turns = [
        (role, text) for pair in question.examples for role, text in zip(ROLES, pair, strict=True)
    ]
    return [
        *({"role": role, "content": text} for role, text in turns),
        {"role": "user", "content": _content(question)},
    ]


def _content(question: LlmQuestion) -> str | list[dict[str, Any]]:
    if question.blob is None:
        return question.text
    kind = image_format(question.blob).lower() or "png"
    data = base64.b64encode(question.blob).decode("ascii")
    picture = {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}
    return [{"type": "text", "text": question.text}, picture]


def _read(reply: Any) -> LlmAnswer:
    """The text of a reply, any field of which may be missing: servers differ."""
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list) or not choices:
        return LlmAnswer(error="the server's answer has no choices")
    content = getattr(getattr(choices[0], "message", None), "content", None)
    text = content if isinstance(content, str) else ""
    usage = getattr(reply, "usage", None)
    num_prompt_tokens = getattr(usage, "prompt_tokens", None)
    num_tokens = getattr(usage, "completion_tokens", None)
    error = None
    if not text.strip():
        error = "the answer is empty"
    elif getattr(choices[0], "finish_reason", None) == "length":
        error = "the answer is cut off"
    elif len(text) > MAX_ANSWER_CHARS:
        error = f"the answer is too long: {len(text)} characters"
    return LlmAnswer(
        text="" if error else text,
        error=error,
        num_prompt_tokens=num_prompt_tokens if isinstance(num_prompt_tokens, int) else 0,
        num_tokens=num_tokens if isinstance(num_tokens, int) else 0,
    )


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
