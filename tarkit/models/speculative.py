"""Speculative drawing: a small AR-DTok proposes codes, the large one tests many of them in a pass.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023); Chen
et al., "Accelerating Large Language Model Decoding with Speculative Sampling" (2023). With the
distributions p of the large model and q of the small one, each after guidance, temperature, top-k
and top-p, a code x drawn from q is kept with probability min(1, p(x) / q(x)); else a code is drawn
from max(p - q, 0), normalised. What comes out is distributed by p.

Here every code has three random numbers of its own: for the proposal, the test and the other draw.
The code at a place is then a function of the codes before it and of these numbers alone. How many
codes are proposed at once, and for which pictures together, does not change a picture, but for
rounding; so the number may follow what was accepted.

Letters: B pictures, n condition positions, N codes to draw, T proposed codes, V image-VQ codes,
C condition width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tarkit.models.ar_decoding import CodeSampling, Decoding
from tarkit.models.ar_dtok import ArDtok
from tarkit.models.sampling import Generators, pick, probabilities

MAX_PROPOSED = 16
"""Codes that the small model proposes at most before the large one tests them."""
FIRST_PROPOSED = 4


@dataclass
class Acceptance:
    """How often the large model kept what the small one proposed; adds up over pictures."""

    proposed: int = 0
    accepted: int = 0
    passes: int = 0
    """Passes of the large model, counted for each picture."""
    codes: int = 0

    @property
    def rate(self) -> float:
        """Share of the tested codes that were kept: those up to the first that was not."""
        return self.accepted / max(self.proposed, 1)

    @property
    def mean_length(self) -> float:
        """Codes that a pass of the large model settles."""
        return self.codes / max(self.passes, 1)


@torch.no_grad()
def sample_codes_speculatively(
    model: ArDtok,
    draft: ArDtok,
    condition: Tensor,
    sampling: CodeSampling,
    *,
    acceptance: Acceptance,
    generator: Generators = None,
    proposed: int | None = None,
) -> Tensor:
    """Draw codes (B, N) for conditions (B, n, C), distributed as those of `sample_codes`.

    `draft` is an AR-DTok of the same codes, conditions and resolution, and what becomes of its
    proposals is added to `acceptance`. `proposed` fixes their number in a pass, which else follows
    what was accepted. The random numbers are others than those of `sample_codes`. Greedily both
    draw the same codes.
    """
    B, N = len(condition), model.arch.num_codes
    device = condition.device
    large, small = (Decoding(each, condition, sampling) for each in (model, draft))
    # Proposals beyond the last code have a place, too.
    numbers = torch.zeros(B, N + MAX_PROPOSED, 3, dtype=torch.float64, device=device)
    numbers[:, :N] = _uniform(B, N, generator).to(device)
    codes = torch.zeros(B, N + MAX_PROPOSED, dtype=torch.long, device=device)
    rows = torch.arange(B, device=device)[:, None]

    def distribution(logits: Tensor) -> Tensor:
        p = probabilities(logits.flatten(0, -2), **sampling.filters())
        return p.unflatten(0, logits.shape[:-1])

    p, q = distribution(large.first[:, None]), distribution(small.first[:, None])
    first = pick(q, numbers[:, :1, 0])
    codes[:, :1], _ = settle(p, q, first, numbers[:, :1])
    # Both caches hold all codes that are settled but the last one.
    settled = [1] * B
    T = proposed or FIRST_PROPOSED
    while min(settled) < N:
        T = min(T, N - min(settled))
        starts = [count - 1 for count in settled]
        places = torch.tensor(settled, device=device)[:, None] + torch.arange(T, device=device)
        own = numbers[rows, places]
        read, qs = [codes[rows, places[:, :1] - 1]], []
        for i in range(T):
            qs.append(distribution(small.extend(read[-1], [start + i for start in starts])))
            read.append(pick(qs[-1], own[:, i : i + 1, 0]))
        p = distribution(large.extend(torch.cat(read[:-1], dim=1), starts))
        codes[rows, places], kept = settle(p, torch.cat(qs, dim=1), torch.cat(read[1:], dim=1), own)
        whole = active = 0
        for row, accepted in enumerate(kept.tolist()):
            left = N - settled[row]
            if not left:
                continue
            count = min(accepted + 1, T, left)
            settled[row] += count
            active += 1
            whole += accepted >= T
            acceptance.proposed += count
            acceptance.accepted += min(accepted, count)
            acceptance.passes += 1
            acceptance.codes += count
        if proposed is None:
            # More where at least half of the pictures kept all of them.
            T = min(T + 2, MAX_PROPOSED) if 2 * whole >= active else max(T - 1, 1)
    return codes[:, :N]


def settle(p: Tensor, q: Tensor, proposals: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (B, T) from proposals (B, T) of q (B, T, V), by p (B, T, V); and how many were kept.

    After the kept ones comes the code that is drawn in place of the next proposal, if there is one;
    what follows it has no meaning. `numbers` (B, T, 3) are in [0, 1), of which the second tests a
    proposal and the third draws the other code.
    """
    chosen = proposals[..., None]
    keep = numbers[..., 1] * q.gather(-1, chosen)[..., 0] < p.gather(-1, chosen)[..., 0]
    kept = keep.long().cumprod(-1).sum(-1)
    at = kept.clamp(max=proposals.shape[1] - 1)
    row = torch.arange(len(at), device=at.device)
    p_at = p[row, at]
    rest = (p_at - q[row, at]).clamp(min=0)
    # Rounding can leave nothing where p and q are equal.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p_at)
    other = pick(rest, numbers[row, at, 2])
    place = torch.arange(proposals.shape[1], device=at.device)
    return torch.where(place < kept[:, None], proposals, other[:, None]), kept


def _uniform(B: int, N: int, generator: Generators) -> Tensor:
    """(B, N, 3) float64 in [0, 1), of each picture from its own generator where there is one."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(B, N, 3, dtype=torch.float64, generator=generator)
    if len(generator) != B:
        raise ValueError(f"{len(generator)} generators for {B} pictures")
    return torch.stack([torch.rand(N, 3, dtype=torch.float64, generator=g) for g in generator])
