"""The text-aligned codebook: codes are projected rows of a language model's embedding table.

Source: paper Sec. 3.1, Eq. 1-3: C = E W with E frozen, and the nearest row by distance. The
released model departs from it twice: its projection has a bias, and rows and features are
l2-normalised. Both are the default here, and each can be switched off.

Codes are chosen in float32, also under autocast: bfloat16 would choose others.

Letters: K codes, V rows of the language model's table, E width of a row, D width of a code,
(...) any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarkit.models.exact import without_autocast

SCORES_AT_ONCE = 1 << 27
"""Scores that are held at once where codes are chosen: 512 MB, of 2,048 features in the release."""
Representative = Literal["far", "near", "first"]


class Quantised(NamedTuple):
    """Features quantised by the codebook."""

    codes: Tensor  # (...) int64
    z_q: Tensor  # (..., D) codebook rows, straight-through to z
    codebook_loss: Tensor  # () Eq. 3, |C - sg(z)|^2
    commitment_loss: Tensor  # () Eq. 3, |sg(C) - z|^2


def representative_rows(table: Tensor, num_codes: int, *, how: Representative = "far") -> Tensor:
    """Indices (K,) of the K most representative rows of `table` (V, E), in ascending order.

    The paper picks by "average distance to others" and leaves distance and direction open
    (Sec. 3.1). Here: mean cosine distance to all rows, which is 1 - <row, mean row> for unit rows
    and so needs no VxV matrix. `far` keeps the rows furthest from the rest (broad coverage, least
    redundant), `near` the most central ones, `first` takes rows in order. Ties go to the lower
    index. Raises ValueError when V < K.
    """
    if len(table) < num_codes:
        raise ValueError(f"num_codes = {num_codes}, but the table has {len(table)} usable rows")
    unit = F.normalize(table.float(), dim=-1)
    distance = 1 - unit @ unit.mean(0)
    order = {"far": -distance, "near": distance, "first": torch.zeros_like(distance)}[how]
    return torch.sort(order, stable=True).indices[:num_codes].sort().values


class TextAlignedCodebook(nn.Module):
    """K frozen embeddings, one learned projection, nearest neighbour (on the unit sphere).

    With `bias=False` and `l2_normalized=False` it is the paper's own C = E W.
    """

    def __init__(
        self,
        *,
        num_codes: int,
        embedding_width: int,
        width: int,
        bias: bool = True,
        l2_normalized: bool = True,
        stochastic: bool = True,
        temperature: float = 0.03,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, embedding_width)
        self.embedding.weight.requires_grad_(False)
        self.embedding_proj = nn.Linear(embedding_width, width, bias=bias)
        self.l2_normalized = l2_normalized
        self.stochastic = stochastic
        self.temperature = temperature
        self._projected: Tensor | None = None

    def train(self, mode: bool = True) -> TextAlignedCodebook:
        self._projected = None
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextAlignedCodebook:
        self._projected = None  # `.to` moves parameters alone
        super()._apply(fn, recurse)
        return self

    def projected(self) -> Tensor:
        """C, (K, D). Computed once in eval mode: at paper size it costs 309 GFLOP."""
        if self._projected is not None and not self.training:
            return self._projected
        with without_autocast(self.embedding.weight):
            rows: Tensor = self.embedding_proj(self.embedding.weight)
        if self.l2_normalized:
            rows = F.normalize(rows, dim=-1, eps=1e-12)
        if not self.training and not torch.is_grad_enabled():
            self._projected = rows
        return rows

    def scores(self, z: Tensor, rows: Tensor) -> Tensor:
        """(..., K): cosine, or the negative squared distance where nothing is normalised."""
        z, rows = z.float(), rows.float()
        with without_autocast(z):
            if self.l2_normalized:
                return F.normalize(z, dim=-1, eps=1e-12) @ rows.T
            return 2 * z @ rows.T - rows.pow(2).sum(-1) - z.pow(2).sum(-1, keepdim=True)

    def nearest(self, z: Tensor) -> Tensor:
        """(..., D) -> (...) int64 codes: argmax, the lowest index on ties.

        The code of a feature that is not finite is -1: no row is nearest to it.
        """
        rows = self.projected()
        flat = z.reshape(-1, z.shape[-1])
        parts = flat.split(max(1, SCORES_AT_ONCE // len(rows)))
        codes = torch.cat([self.scores(part, rows).argmax(dim=-1) for part in parts])
        return codes.where(flat.isfinite().all(dim=-1), -1).view(z.shape[:-1])

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(..., D) -> (...) codes drawn from softmax(cosine / temperature).

        What the released tokenizer trains with, and what its scripts do at inference by mistake.
        """
        return self._draw(self.scores(z, self.projected()), generator)

    def _draw(self, scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scores (..., K) -> codes (...)."""
        p = torch.softmax(scores / self.temperature, dim=-1)
        flat = torch.multinomial(p.view(-1, p.shape[-1]), 1, generator=generator)
        return flat.view(p.shape[:-1])

    def _draw_rows(self, scores: Tensor, seeds: Sequence[int]) -> Tensor:
        """Scores (B, ..., K) -> codes (B, ...), each row by its seed."""
        generator = torch.Generator(scores.device)
        rows = [
            self._draw(row, generator.manual_seed(seed))
            for row, seed in zip(scores, seeds, strict=True)
        ]
        return torch.stack(rows)

    def lookup(self, codes: Tensor) -> Tensor:
        """(...) codes -> (..., D) rows of C."""
        return F.embedding(codes, self.projected())

    def keep(self, codes: Tensor) -> None:
        """Keep only these codes (K',), renumbered in their order."""
        old = self.embedding.weight
        self.embedding = nn.Embedding(len(codes), old.shape[1])
        self.embedding.weight.data.copy_(old.detach()[codes])
        self.embedding.weight.requires_grad_(old.requires_grad)
        self._projected = None

    def forward(self, z: Tensor, seeds: Sequence[int] | None = None) -> Quantised:
        """Quantise (B, ..., D) for training, with both losses of Eq. 3 (means, not sums).

        Where codes are drawn, `seeds` holds one of each of the B rows, and a row's codes do not
        depend on its batch; with None torch's global generator draws.
        """
        rows = self.projected()
        with torch.no_grad():
            score = self.scores(z, rows)
            if self.stochastic and self.training:
                codes = self._draw(score) if seeds is None else self._draw_rows(score, seeds)
            else:
                codes = score.argmax(dim=-1)
        c = F.embedding(codes, rows)
        z = z.float()
        z = F.normalize(z, dim=-1, eps=1e-12) if self.l2_normalized else z
        codebook_loss = (c - z.detach()).pow(2).sum(-1).mean()
        commitment_loss = (c.detach() - z).pow(2).sum(-1).mean()
        return Quantised(codes, z + (c - z).detach(), codebook_loss, commitment_loss)


def distinct_codes(rows: Tensor, counts: Tensor, *, cosine: float) -> Tensor:
    """Indices (K',), ascending, of the codes that remain when near copies are dropped.

    Unit-norm codes (K, D) are visited from the most to the least frequent (`counts`, (K,)); a code
    is dropped where its cosine with an earlier remaining one is at least `cosine`. Among near
    copies noise decides which code is used, and a language model would have to guess it.
    """
    order = torch.sort(counts, descending=True, stable=True).indices
    near = rows @ rows.T >= cosine
    remaining = torch.zeros(len(rows), dtype=torch.bool)
    for code in order.tolist():
        remaining[code] = not bool((near[code] & remaining).any())
    return remaining.nonzero()[:, 0]


class Usage(NamedTuple):
    """How much of a codebook some codes use."""

    used: int  # codes that occur
    dead: int  # codes that never do
    perplexity: float  # exp of the entropy, in [1, K]


def usage(codes: Tensor, num_codes: int) -> Usage:
    """Usage of `codes` (any shape, int) in a codebook of `num_codes`."""
    return usage_of_counts(torch.bincount(codes.reshape(-1), minlength=num_codes))


def usage_of_counts(counts: Tensor) -> Usage:
    """Usage of a codebook whose K codes occur so often (K,)."""
    num_codes, counts = len(counts), counts.double()
    p = counts / counts.sum()
    entropy = -(p[p > 0] * p[p > 0].log()).sum()
    used = int((counts > 0).sum())
    return Usage(used, num_codes - used, float(entropy.exp()))
