"""Captions of pictures as tokens of a small text tower, which compares them with the pictures.

Letters: B captions, S pictures of a step, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tarkit.errors import UserError
from tarkit.train.streams import PictureStream
from tarkit.vocab import END_OF_TEXT, TextTokenizer, train_text_tokenizer

Chosen = Literal["longest", "first"]
"""Which of a picture's captions it is compared with: a long one fits few other pictures."""
NUM_TEXTS = 4096
"""Captions that the text tokenizer is made from."""


def caption_of(row: Mapping[str, Any], chosen: Chosen) -> str:
    """The caption that a picture is compared with; UserError where it has none."""
    captions = [c for c in [*(row["captions"] or []), row["prompt"]] if c]
    if not captions:
        raise UserError(
            f"picture {row['key']} has no caption to be compared with",
            hint="leave such pictures out, or caption them first",
        )
    return captions[0] if chosen == "first" else max(captions, key=len)


class CaptionTokens:
    """A text tokenizer made from the first captions of a stream, and texts as its tokens."""

    def __init__(
        self, stream: PictureStream, *, chosen: Chosen, vocab_size: int, max_length: int, key: str
    ) -> None:
        """`key` is the name of the setting that `max_length` comes from."""
        texts = [caption_of(stream[i], chosen) for i in range(min(stream.total, NUM_TEXTS))]
        self.tokenizer = TextTokenizer(train_text_tokenizer(texts, vocab_size=vocab_size))
        self.chosen = chosen
        self.max_length = max_length
        self.key = key

    def compared(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        """The captions of S pictures: ids (S, T), mask (S, T), and (S, S) which are the same."""
        captions = [caption_of(row, self.chosen) for row in rows]
        same = torch.tensor([[a == b for b in captions] for a in captions])
        return *self(captions), same

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> ids (B, T) and mask (B, T); UserError where one exceeds the length."""
        end = self.tokenizer.special[END_OF_TEXT]
        ids = [[end, *tokens, end] for tokens in self.tokenizer.encode_batch(texts)]
        longest = max(map(len, ids))
        if longest > self.max_length:
            raise UserError(
                f"a caption has {longest} tokens, {self.key} is {self.max_length}: "
                f"{max(texts, key=len)!r}",
                hint=f"--set {self.key}={longest}",
            )
        table = torch.zeros(len(ids), longest, dtype=torch.long)
        mask = torch.zeros(len(ids), longest)
        for row, tokens in enumerate(ids):
            table[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return table, mask
