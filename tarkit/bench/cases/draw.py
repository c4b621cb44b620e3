"""Codes of the image VQ, one after the other, from AR-DTok (paper Sec. 3.2): LP at all sizes.

A step reads every weight and all live keys and values once, so memory bandwidth is its floor. It is
measured in the middle of a picture. With a draft, a pass tests several codes at once: how many of
them are kept depends on trained weights, and `tarkit generate --draft` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarkit.bench.case import BenchSettings, Case, Floor, close_share
from tarkit.bench.random_weights import random_model
from tarkit.checkpoints.product_forms import use_machines_forms
from tarkit.models.ar_decoding import CodeSampling, Decoding
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.skinny import use_products

# The published LP, and the smallest of the paper's sizes as a draft.
LP = ArDtokArch(num_codes=4096)
SMALL = ArDtokArch(num_codes=4096, layers=12, heads=6, width=384)
TINY = ArDtokArch(
    num_codes=64,
    layers=2,
    heads=2,
    width=32,
    condition_width=16,
    vocab_size=64,
    multiple_of=32,
    max_condition=16,
)
GUIDANCE = CodeSampling(guidance=4.0)
CONDITION = 81
"""Positions of a condition at scale 3."""
PROPOSED = (4, 8, 12)


def cases(settings: BenchSettings) -> Iterator[Case]:
    n = 4 if settings.tiny else CONDITION
    for pixels, batches in ((256, (1, 8)), (512, (1,)), (1024, (1,))):
        num_codes = (pixels // 16) ** 2 // (64 if settings.tiny else 1)
        place = num_codes // 2
        # A cache has room for all codes: of 8 pictures at 1024 px it would take 20 GB.
        arch = (TINY if settings.tiny else LP).model_copy(update={"num_codes": num_codes})
        model = _random(arch, settings)
        for batch in batches:
            name = f"AR-DTok's code {place} at {pixels} px, batch {batch}"
            yield _case(name, model, [n, place, 1], batch, settings)
    for proposed in PROPOSED:
        name = f"AR-DTok tests {proposed} codes"
        yield _case(name, model, [n, place, proposed], 1, settings)
    if not settings.tiny:
        small = _random(SMALL, settings)
        yield _case("a code of the draft at the same place", small, [n, place, 1], 1, settings)


def _random(arch: ArDtokArch, settings: BenchSettings) -> ArDtok:
    model = random_model(lambda: ArDtok(arch), settings.device, seed=settings.seed)
    use_products(model)
    use_machines_forms([model])
    return model


@torch.no_grad()
def _case(
    name: str, model: ArDtok, sizes: Sequence[int], batch: int, settings: BenchSettings
) -> Case:
    """A pass over T codes of each picture after n condition positions and `place` codes."""
    n, place, T = sizes
    generator = settings.generator()
    arch = model.arch
    condition = torch.randn(batch, n, arch.condition_width, generator=generator)
    codes = torch.randint(arch.vocab_size, (batch, T), generator=generator).to(settings.device)
    decoding = Decoding(model, condition.to(settings.device), GUIDANCE)
    for cache in decoding.caches:
        # As if `place` codes had been read.
        cache.stored[:, :, n : n + place].normal_()
    weights = sum(
        each.weight.numel()
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear) and name != "clip_proj"
    )
    rows, live = 2 * batch, n + place + T
    per_position = 2 * arch.layers * (arch.kv_heads or arch.heads) * (arch.width // arch.heads)
    return Case(
        name=name,
        ours=_ours(decoding, codes, place),
        against={"stock": _stock(decoding, codes, place)},
        floor=Floor(
            flops=2.0 * rows * T * weights, bytes=4.0 * (weights + rows * live * per_position)
        ),
        count=batch * T,
        unit="codes",
        agreement=close_share,
    )


def _ours(decoding: Decoding, codes: Tensor, place: int) -> Callable[[], Tensor]:
    @torch.no_grad()
    def way() -> Tensor:
        return decoding.extend(codes, [place] * len(codes)).clone()

    return way


def _stock(decoding: Decoding, codes: Tensor, place: int) -> Callable[[], Tensor]:
    """A plain cache: keys and values are concatenated, and every product is `F.linear`."""
    model, start = decoding.model, decoding.n + place
    heads, kv_heads = model.arch.heads, model.arch.kv_heads or model.arch.heads
    past = [cache.stored[:, :, :start].clone().chunk(2, dim=1) for cache in decoding.caches]
    T = codes.shape[1]
    mask = torch.ones(T, start + T, dtype=torch.bool, device=codes.device).tril(start)

    @torch.no_grad()
    def way() -> Tensor:
        layer: Any
        x = model.tok_embeddings(codes.repeat(2, 1)) + model.abs_pe[:, start : start + T]
        for layer, (old_k, old_v) in zip(model.layers, past, strict=True):
            attention, mlp = layer.attention, layer.feed_forward
            qkv = F.linear(layer.attention_norm(x), attention.wqkv.weight)
            qkv = qkv.unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(1, 2)
            q, new_k, new_v = qkv.split([heads, kv_heads, kv_heads], dim=1)
            k, v = torch.cat([old_k, new_k], dim=2), torch.cat([old_v, new_v], dim=2)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask if T > 1 else None, enable_gqa=kv_heads != heads
            )
            x = x + F.linear(out.transpose(1, 2).flatten(2), attention.wo.weight)
            h = layer.ffn_norm(x)
            gated = F.silu(F.linear(h, mlp.w1.weight)) * F.linear(h, mlp.w3.weight)
            x = x + F.linear(gated, mlp.w2.weight)
        conditional, null = F.linear(model.norm(x), model.output.weight).chunk(2)
        guided: Tensor = null + (conditional - null) * GUIDANCE.guidance
        return guided

    return way
