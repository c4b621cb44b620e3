"""Drawing the next symbol from logits, the one way for words, codes and image-VQ codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# One for the whole batch, one for each row (which then does not depend on its batch), or the global
# one. They are the CPU's on every device, so that a seed means the same everywhere.
Generators = torch.Generator | Sequence[torch.Generator] | None


def draw(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    generator: Generators = None,
) -> Tensor:
    """One index a row of `logits` (B, V): temperature, then top-k, then top-p, then a draw.

    `top_k=0` and `top_p=1.0` are off; ties with the k-th are kept, and so is the token that
    crosses `top_p`. `temperature=0` or `top_k=1` is the argmax. Order as published.
    """
    if temperature <= 0 or top_k == 1:
        return logits.argmax(dim=-1)
    logits = logits.float() / max(temperature, 1e-5)
    if 0 < top_k < logits.shape[-1]:
        kth = torch.topk(logits, top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
        before[:, 0] = 0
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(drop, float("-inf"))
    p = logits.softmax(-1)
    if generator is None:
        return torch.multinomial(p, 1)[:, 0]
    if isinstance(generator, torch.Generator):
        return torch.multinomial(p.cpu(), 1, generator=generator)[:, 0].to(p.device)
    rows = [
        torch.multinomial(row, 1, generator=own)
        for row, own in zip(p.cpu(), generator, strict=True)
    ]
    return torch.cat(rows).to(p.device)
