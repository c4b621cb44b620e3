"""Sampling the next token from logits: text tokens, TA-Tok codes and image-VQ codes alike.

Letters: B rows, V candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

# Candidates that top-p puts in order at first.
FIRST_IN_ORDER = 2048

# One generator for the batch, one per row (a row then does not depend on its batch), or None for
# torch's global one. All are CPU generators, so that a seed means the same on every device.
Generators = torch.Generator | Sequence[torch.Generator] | None


class Filters(TypedDict):
    """What shapes a distribution, in this order; 0, 0 and 1.0 are greedy, off and off."""

    temperature: float
    top_k: int
    top_p: float


def draw(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: Generators = None,
) -> Tensor:
    """Sample an index (B,) int64 for each row of `logits` (B, V).

    Temperature, then top-k, then top-p, then the draw, as published. `top_k=0` and `top_p=1.0` are
    off; candidates that tie with the k-th are kept, and so is the one that crosses `top_p`.
    `temperature=0` or `top_k=1` is the argmax.
    """
    if temperature <= 0 or top_k == 1:
        return logits.argmax(dim=-1)
    p = probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    if generator is None:
        return torch.multinomial(p, 1)[:, 0]
    if isinstance(generator, torch.Generator):
        return torch.multinomial(p.cpu(), 1, generator=generator)[:, 0].to(p.device)
    rows = [
        torch.multinomial(row, 1, generator=own)
        for row, own in zip(p.cpu(), generator, strict=True)
    ]
    return torch.cat(rows).to(p.device)


def probabilities(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The distributions (B, V) float32 that `draw` samples from; greedily all on the argmax."""
    if temperature <= 0 or top_k == 1:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    logits = logits.float() / max(temperature, 1e-5)
    if 0 < top_k < logits.shape[-1]:
        kth = torch.topk(logits, top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p < 1:
        logits = logits.masked_fill(_beyond(logits, top_p), float("-inf"))
    return logits.softmax(-1)


def _beyond(logits: Tensor, top_p: float) -> Tensor:
    """The candidates (B, V) bool before which, in order, the others sum to more than `top_p`.

    The most likely ones alone are put in order, as many as it needs: of tens of thousands mostly
    2,048.
    """
    p = logits.softmax(-1)
    count = FIRST_IN_ORDER
    while True:
        count = min(count, p.shape[-1])
        ordered, order = p.topk(count)
        sums = ordered.cumsum(-1)
        if count == p.shape[-1] or bool((sums[:, -1] > top_p).all()):
            break
        count *= 8
    before = sums.roll(1, dims=-1)
    before[:, 0] = 0
    return torch.ones_like(p, dtype=torch.bool).scatter(-1, order, before > top_p)


def pick(p: Tensor, u: Tensor) -> Tensor:
    """The index (...) int64 that the number u (...) in [0, 1) picks from weights p (..., V).

    The first whose cumulative weight is above u times their sum: an index of weight 0 never is.
    """
    cumulative = p.double().cumsum(-1)
    total = cumulative[..., -1:]
    # Rounding may lift u * total to the total.
    below = torch.nextafter(total, torch.zeros_like(total))
    return torch.searchsorted(cumulative, (u[..., None] * total).minimum(below), right=True)[..., 0]
