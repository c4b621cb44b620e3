"""Drawing image-VQ codes with AR-DTok, one position at a time, from caches of keys and values.

Source: paper Sec. 3.2, Eq. 4; guidance and the order of the filters as in the published program.

Letters: B pictures, n condition positions, N codes to draw, T codes that a pass reads, V image-VQ
codes, C condition width; R rows of the caches: B, and with guidance B for the null condition too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tarkit.models.ar_dtok import ArDtok, ArDtokArch, KeyValueCache, Place
from tarkit.models.cuda_graph import Record, record_cuda_graph
from tarkit.models.sampling import Filters, Generators, draw

# A CUDA graph is recorded for a length of the caches; it reads a multiple of so many positions.
LIVE_STEP = 256


class CodeSampling(NamedTuple):
    """How codes are drawn from logits."""

    guidance: float = 4.0
    """g > 1 mixes in a null condition of all-zero features: u + (c - u) * g."""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guided_steps: int | None = None
    """k keeps guidance for the first code and the next k + 1 (the published `cfg_interval`)."""

    def filters(self) -> Filters:
        return Filters(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    @property
    def rows_per_picture(self) -> int:
        return 2 if self.guidance > 1 else 1


class Decoding:
    """A batch of pictures that are being drawn: their caches, and passes that extend them.

    The condition is read at once. The null condition of guidance, which all pictures share, is read
    as one row, whose keys and values every picture then gets. `first` (B, V) are the logits of
    the first code. On a GPU each pass is a CUDA graph, recorded at its first use: launching its
    thousand kernels takes longer than running them.
    """

    def __init__(
        self,
        model: ArDtok,
        condition: Tensor,
        sampling: CodeSampling,
        *,
        record: Record | None = None,
    ) -> None:
        B, n, _ = condition.shape
        self.model, self.sampling, self.n = model, sampling, n
        prompt = model.clip_proj(condition)
        if sampling.rows_per_picture == 2:
            null = model.clip_proj(torch.zeros_like(condition[:1]))
            prompt = torch.cat([prompt, null])
        shape = cache_shape(model.arch, n, B * sampling.rows_per_picture)
        self.caches = [KeyValueCache(shape, prompt) for _ in model.layers]
        x = self._hidden(prompt + model.abs_pe[:, :n], Place(slice(0, n), n))
        for cache in self.caches:
            # The null condition's row for all pictures; nothing where it is the only one.
            cache.stored[len(prompt) :, :, :n] = cache.stored[len(prompt) - 1, :, :n]
        self.first = self._guided(self._logits(x[:, -1:]), torch.zeros(B, 1, dtype=torch.long))[
            :, 0
        ]
        if record is None and condition.is_cuda:
            record = record_cuda_graph
        self._record = record
        self._recorded: dict[
            tuple[int, int], tuple[Tensor, Tensor, Callable[[], None], Tensor]
        ] = {}

    def extend(self, codes: Tensor, starts: Sequence[int]) -> Tensor:
        """Read codes (B, T), of each picture its codes from `starts` on; guided logits (B, T, V).

        The logits of position i are those of the code after the i-th one that was read. What the
        caches held of codes from `starts` on is replaced. The result is overwritten by the next
        call.
        """
        T = codes.shape[1]
        length = self.caches[0].stored.shape[2]
        live = min(self.n + max(starts) + T, length)
        if self._record is None:
            if T == 1 and len(set(starts)) == 1:
                return self._pass(codes, starts[0], live)
            return self._pass(codes, torch.tensor(starts, device=codes.device), live)
        live = min(-(-live // LIVE_STEP) * LIVE_STEP, length)
        places = torch.tensor(starts, device=codes.device)
        if (T, live) not in self._recorded:
            own = codes.clone(), places.clone()
            replay, result = self._record(lambda: self._pass(*own, live))
            self._recorded[T, live] = (*own, replay, result)
        own_codes, own_places, replay, result = self._recorded[T, live]
        own_codes.copy_(codes)
        own_places.copy_(places)
        replay()
        return result

    def _pass(self, codes: Tensor, starts: int | Tensor, live: int) -> Tensor:
        """As `extend`. `starts` is one int for codes (B, 1) of the same step, or (B,)."""
        B, T = codes.shape
        copies = self.sampling.rows_per_picture
        x = self.model.tok_embeddings(codes)
        if isinstance(starts, int):
            steps = torch.full((B, 1), starts, device=codes.device)
            x = x + self.model.abs_pe[:, self.n + starts : live]
            place = Place(slice(self.n + starts, live), live)
        else:
            steps = starts[:, None] + torch.arange(T, device=codes.device)
            # A draft may go on beyond the last code; what it writes there nobody reads.
            steps = steps.clamp(max=self.model.arch.num_codes - 1)
            positions = (self.n + steps).repeat(copies, 1)
            x = x + self.model.abs_pe[0, positions[:B].clamp(max=self.model.abs_pe.shape[1] - 1)]
            mask = torch.arange(live, device=codes.device) <= positions[..., None]
            place = Place(positions, live, mask[:, None])
        x = self._hidden(x.repeat(copies, 1, 1), place)
        return self._guided(self._logits(x), steps + 1)

    def _hidden(self, x: Tensor, place: Place) -> Tensor:
        for layer, cache in zip(self.model.layers, self.caches, strict=True):
            x = layer(x, cache, place)
        return x

    def _logits(self, x: Tensor) -> Tensor:
        """(R, T, D) -> (R, T, V), as one product of R T rows."""
        logits: Tensor = self.model.output(self.model.norm(x.flatten(0, 1)))
        return logits.unflatten(0, x.shape[:2])

    def _guided(self, logits: Tensor, steps: Tensor) -> Tensor:
        """Logits (R, T, V), the last half or the last row without the condition -> (B, T, V)."""
        conditional, unconditional = logits[: len(steps)], logits[len(steps) :]
        if not len(unconditional):
            return conditional
        guided = unconditional + (conditional - unconditional) * self.sampling.guidance
        if self.sampling.guided_steps is None:
            return guided
        within = steps.to(logits.device) <= self.sampling.guided_steps + 1
        return torch.where(within[..., None], guided, conditional)


def cache_shape(arch: ArDtokArch, n: int, rows: int) -> tuple[int, int, int, int]:
    """(R, 2 heads, positions, D / h) of one layer's keys and values.

    n condition positions and N codes.
    """
    heads = arch.kv_heads or arch.heads
    return (rows, 2 * heads, n + arch.num_codes, arch.width // arch.heads)


@torch.no_grad()
def sample_codes(
    model: ArDtok,
    condition: Tensor,
    sampling: CodeSampling,
    *,
    generator: Generators = None,
) -> Tensor:
    """Draw codes (B, N) for conditions (B, n, C).

    `generator`: one a picture, so that a picture does not depend on its batch; without them the
    global generator draws.
    """
    decoding = Decoding(model, condition, sampling)
    N = model.arch.num_codes
    logits = decoding.first
    codes: list[Tensor] = []
    for step in range(N):
        code = draw(logits, **sampling.filters(), generator=generator)
        codes.append(code)
        if step + 1 < N:
            logits = decoding.extend(code[:, None], [step] * len(code))[:, 0]
    return torch.stack(codes, dim=1)
