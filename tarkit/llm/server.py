"""A language model on any server with the OpenAI protocol: vLLM, SGLang, `transformers serve`.

The caller checks the content of an answer: with status 200 a server may have ignored a part of the
request that it does not support. Only failed connections are retried here.

A server is not trusted. No redirect is followed, as the questions, the pictures and the key would
go to another host; an answer is bounded in bytes and in time; whatever is wrong with one answer
fails one row; and the key is shown nowhere, also where a server repeats it.
"""

from __future__ import annotations

import asyncio
import base64
import math
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

from tarkit.artifacts.files import LONE_SURROGATE
from tarkit.errors import UserError
from tarkit.images import ImageError, plain_bytes
from tarkit.llm.answer_text import UnusableAnswer, answer_text
from tarkit.llm.base import AssistantConfig, LlmAnswer, LlmQuestion

API_KEY = "OPENAI_API_KEY"
MAX_ANSWER_CHARS = 100_000
MAX_RESPONSE_BYTES = 4 << 20
MAX_TOKENS_COUNTED = 2**31
TOP_LOGPROBS = 20  # the most that the protocol allows, and that vLLM gives unless told otherwise
ROLES = ("user", "assistant")
WHOLE = (None, "", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_str")
"""Values of `finish_reason` for an answer that the model ended itself; servers differ."""
CUT_OFF = ("length", "max_tokens")


class ServerAssistant:
    """Keeps at most `batch_size` requests open; its key is in the variable OPENAI_API_KEY."""

    def __init__(self, model: str, url: str, config: AssistantConfig) -> None:
        check_server(url)
        self._model, self._url, self._config = model, url, config

    def answer(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        return asyncio.run(self._all(questions))

    def first_token_probabilities(
        self, questions: Sequence[LlmQuestion], forms: Sequence[Sequence[str]]
    ) -> list[float]:
        """By the server's list of its most probable tokens; a token that is not in it counts 0."""
        return asyncio.run(self._probabilities(questions, forms))

    async def _probabilities(
        self, questions: Sequence[LlmQuestion], forms: Sequence[Sequence[str]]
    ) -> list[float]:
        gate = asyncio.Semaphore(self._config.batch_size)
        timeout_s, retries = self._config.timeout_s, self._config.retries
        pairs = zip(questions, forms, strict=True)
        async with open_client(self._url, timeout_s=timeout_s, retries=retries) as client:
            asked = (self._probability(client, gate, question, form) for question, form in pairs)
            found = await asyncio.gather(*asked, return_exceptions=True)
        chances = []
        for chance in found:  # all requests have ended, so none outlives the client
            if isinstance(chance, BaseException):
                raise chance
            chances.append(chance)
        return chances

    async def _probability(
        self, client: Any, gate: asyncio.Semaphore, question: LlmQuestion, forms: Sequence[str]
    ) -> float:
        async with gate:
            try:
                messages = await asyncio.to_thread(_messages, question)
            except ImageError as error:
                raise UserError(f"the picture cannot be shown: {error}") from None
            request = client.chat.completions.create(
                model=self._model,
                messages=messages,
                max_tokens=1,
                temperature=1.0,  # at 0 some servers list one token with probability 1
                seed=question.seed,
                logprobs=True,
                top_logprobs=TOP_LOGPROBS,
            )
            try:
                reply = await reply_to(request, timeout_s=self._config.timeout_s)
            except ServerFailure as failure:
                raise UserError(str(failure)) from None
        return _chance_of(reply, forms)

    async def _all(self, questions: Sequence[LlmQuestion]) -> list[LlmAnswer]:
        gate = asyncio.Semaphore(self._config.batch_size)
        timeout_s, retries = self._config.timeout_s, self._config.retries
        async with open_client(self._url, timeout_s=timeout_s, retries=retries) as client:
            return await asyncio.gather(*(self._one(client, gate, q) for q in questions))

    async def _one(self, client: Any, gate: asyncio.Semaphore, question: LlmQuestion) -> LlmAnswer:
        async with gate:
            try:
                messages = await asyncio.to_thread(_messages, question)
            except ImageError as error:
                return LlmAnswer(error=f"the picture cannot be shown: {error}")
            request = client.chat.completions.create(
                model=self._model,
                messages=messages,
                max_tokens=self._config.max_tokens,
                temperature=self._config.temperature,
                top_p=self._config.top_p,
                seed=question.seed,
            )
            try:
                reply = await reply_to(request, timeout_s=self._config.timeout_s)
            except ServerFailure as failure:
                return LlmAnswer(error=str(failure))
        return _read(reply)


class ServerFailure(Exception):
    """A request without a usable answer; the message is the reason, without the key."""


def check_server(url: str) -> None:
    """Raise UserError without the client's package, or for a URL of another kind."""
    try:
        import openai  # noqa: F401
    except ImportError:
        raise UserError(
            "the openai client is not installed", hint="pip install 'tarkit[caption]'"
        ) from None
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"--server {url} is not an http:// or https:// address",
            hint="--server http://HOST:8000/v1",
        )


def open_client(url: str, *, timeout_s: float, retries: int) -> Any:
    """An asynchronous client whose answers are bounded, and which follows no redirect."""
    import openai

    return openai.AsyncOpenAI(
        base_url=url,
        api_key=_key(),
        max_retries=retries,
        timeout=timeout_s,
        # Compressed, an answer of the largest size could unpack to a thousand times as much.
        default_headers={"Accept-Encoding": "identity"},
        http_client=openai.DefaultAsyncHttpxClient(
            follow_redirects=False, event_hooks={"response": [_bound]}
        ),
    )


async def reply_to(request: Awaitable[Any], *, timeout_s: float) -> Any:
    """The server's reply to a request of `open_client`. Raises ServerFailure."""
    import openai

    try:
        # The client's timeout counts anew at each read: a slow server may never reach it.
        async with asyncio.timeout(timeout_s):
            return await request
    except (TimeoutError, openai.APITimeoutError):
        reason = f"the server gave no answer: {timeout_s:g} s"
    except openai.APIStatusError as error:
        reason = f"the server refused with {error.status_code}: {_brief(error)}"
    except openai.APIConnectionError as error:
        reason = f"the server cannot be reached: {_brief(error)}"
    except Exception as error:  # a JSON parser fails in many ways, for example by recursion
        reason = f"the server's answer cannot be read: {_brief(error)}"
    raise ServerFailure(reason)


def _key() -> str:
    return os.environ.get(API_KEY) or "none"


async def _bound(response: Any) -> None:
    """Make reading a response fail after MAX_RESPONSE_BYTES, and at once where it is compressed."""
    httpx = sys.modules[type(response).__module__.partition(".")[0]]  # openai 3 uses httpx2
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise httpx.DecodingError(
            f"the answer is compressed ({encoding})", request=response.request
        )
    stream = response.stream

    class Bounded(httpx.AsyncByteStream):  # type: ignore[name-defined]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            num_bytes = 0
            async for part in stream:
                num_bytes += len(part)
                if num_bytes > MAX_RESPONSE_BYTES:
                    why = f"the answer has more than {MAX_RESPONSE_BYTES} bytes"
                    raise httpx.ReadError(why, request=response.request)
                yield part

        async def aclose(self) -> None:
            await stream.aclose()

    response.stream = Bounded()


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
    kind, blob = plain_bytes(question.blob, max_pixels=question.max_pixels)
    data = base64.b64encode(blob).decode("ascii")
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
    refusal = getattr(getattr(choices[0], "message", None), "refusal", None)
    reason = getattr(choices[0], "finish_reason", None)
    if isinstance(refusal, str) and refusal.strip():
        error = f"the model refused: {' '.join(refusal.split())[:200]}"
    elif reason in CUT_OFF:
        error = "the answer is cut off"
    elif reason not in WHOLE:
        error = f"the answer is not whole: the server ended it for the reason {reason!r:.60}"
    elif not text.strip():
        error = "the answer is empty"
    elif len(text) > MAX_ANSWER_CHARS:
        error = f"the answer is too long: {len(text)} characters"
    elif LONE_SURROGATE.search(text):
        error = "the answer is not text: it has half of a surrogate pair"
    else:
        try:
            text = answer_text(text)
        except UnusableAnswer as unusable:
            error = str(unusable)
    return LlmAnswer(
        text="" if error else text,
        error=error,
        num_prompt_tokens=_count(num_prompt_tokens),
        num_tokens=_count(num_tokens),
    )


def _chance_of(reply: Any, forms: Sequence[str]) -> float:
    """The summed probability of the first token's alternatives that are one of `forms`."""
    choices = getattr(reply, "choices", None)
    first = choices[0] if isinstance(choices, list) and choices else None
    content = getattr(getattr(first, "logprobs", None), "content", None)
    place = content[0] if isinstance(content, list) and content else None
    listed = getattr(place, "top_logprobs", None)
    if not isinstance(listed, list) or not listed:
        raise UserError(
            "the server gives no logprobs of its tokens, from which the score is computed",
            hint="a server with top_logprobs, such as vLLM, or the judge on this machine: "
            "leave out --server",
        )
    chances: dict[str, float] = {}
    for each in listed:
        token, logprob = getattr(each, "token", None), getattr(each, "logprob", None)
        if not isinstance(token, str) or not isinstance(logprob, int | float) or logprob > 1e-3:
            raise UserError("the server's logprobs are no list of tokens with logarithms")
        chances[token] = math.exp(logprob)  # a list may hold the drawn token a second time
    chance = sum(value for token, value in chances.items() if token in forms)
    if not 0 <= chance <= 1.01:
        raise UserError(f"the server's probabilities add up to {chance:.3g}")
    return min(chance, 1.0)


def _count(number: Any) -> int:
    """A number of tokens as a server states it; 0 where it is none."""
    return number if isinstance(number, int) and 0 <= number < MAX_TOKENS_COUNTED else 0


def _brief(error: BaseException) -> str:
    """One short line without the key; a failed connection has its reason in its cause."""
    cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) else ""
    text = " ".join(f"{error}{cause}".split()) or type(error).__name__
    text = text.encode(errors="backslashreplace").decode()
    key = os.environ.get(API_KEY)
    return (text.replace(key, "***") if key else text)[:200]
