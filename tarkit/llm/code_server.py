"""Codes of pictures from a language model on a vLLM server: token ids in, token ids out.

Source: vLLM's completions API. It takes a prompt of token ids, draws from `allowed_token_ids`
alone, and returns ids with `return_token_ids` (0.10.2 and later), so that no id passes through
text. The server's model must be this model: its folder, or what `tarkit export hf` makes.

The server is not trusted: see `server.py`. An answer of any other length, or with an id that is no
code, is a failure of its own prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tarkit.errors import UserError
from tarkit.llm.server import ServerFailure, check_server, open_client, reply_to
from tarkit.vocab import VisualVocabulary

TIMEOUT_S = 600.0
RETRIES = 3
OPEN_REQUESTS = 64
"""The server makes batches of the requests that are open."""


class CodeServer:
    """The one model of a vLLM server; a key is in the variable OPENAI_API_KEY."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, retries: int = RETRIES) -> None:
        """Raises UserError where no server with one model answers, or openai is missing."""
        check_server(url)
        self._url, self._timeout_s, self._retries = url, timeout_s, retries
        self._model = asyncio.run(self._model_name())

    def generate_codes(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        visual: VisualVocabulary,
        num_codes: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seeds: Sequence[int],
    ) -> list[list[int]]:
        """Exactly `num_codes` codes in [0, K) after each prompt of token ids.

        The draws are the server's own: the same seed is other codes than on this machine. Raises
        UserError with the reason where any prompt has no such answer.
        """
        return asyncio.run(
            self._all(
                prompts,
                seeds,
                visual,
                {
                    "max_tokens": num_codes,
                    "temperature": temperature,
                    "top_p": top_p,
                    "extra_body": {
                        "top_k": top_k,
                        "min_tokens": num_codes,
                        "ignore_eos": True,
                        "return_token_ids": True,
                        "allowed_token_ids": [
                            visual.first_code + code for code in range(visual.num_codes)
                        ],
                    },
                },
            )
        )

    async def _all(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        visual: VisualVocabulary,
        settings: dict[str, Any],
    ) -> list[list[int]]:
        gate = asyncio.Semaphore(OPEN_REQUESTS)
        async with self._client() as client:

            async def one(prompt: Sequence[int], seed: int) -> list[int]:
                async with gate:
                    request = client.completions.create(
                        model=self._model, prompt=list(prompt), seed=seed, **settings
                    )
                    reply = await reply_to(request, timeout_s=self._timeout_s)
                    return _codes(reply, visual, settings["max_tokens"])

            try:
                return await asyncio.gather(*map(one, prompts, seeds))
            except ServerFailure as failure:
                raise self._error(failure) from None

    async def _model_name(self) -> str:
        """The name of the server's only model."""
        async with self._client() as client:
            try:
                reply = await reply_to(client.models.list(), timeout_s=self._timeout_s)
            except ServerFailure as failure:
                raise self._error(failure) from None
        models = getattr(reply, "data", None)
        names = [getattr(one, "id", None) for one in models] if isinstance(models, list) else []
        if len(names) != 1 or not isinstance(names[0], str):
            raise self._error(ServerFailure(f"it serves {len(names)} models, not one"))
        return names[0]

    def _client(self) -> Any:
        return open_client(self._url, timeout_s=self._timeout_s, retries=self._retries)

    def _error(self, failure: ServerFailure) -> UserError:
        return UserError(f"--server {self._url}: {failure}", hint="vllm serve DIR, of this model")


def _codes(reply: Any, visual: VisualVocabulary, num_codes: int) -> list[int]:
    """The codes of a reply, any field of which may be missing or wrong."""
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise ServerFailure("the server's answer has no choices")
    ids = getattr(choices[0], "token_ids", None)
    if not isinstance(ids, list):
        raise ServerFailure("the server's answer has no token_ids: it needs vLLM 0.10.2 or later")
    if len(ids) != num_codes:
        raise ServerFailure(f"the server's answer has {len(ids):,} tokens, not {num_codes:,}")
    codes = [token - visual.first_code for token in ids if type(token) is int]
    if len(codes) != num_codes or not all(0 <= code < visual.num_codes for code in codes):
        raise ServerFailure("the server's answer has tokens that are no codes")
    return codes
