"""Image-VQ codes to pixels (paper Sec. 3.2): LlamaGen's VQ-16 at the sizes of the paper."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarkit.bench.case import BenchSettings, Case, Floor, close_share
from tarkit.bench.random_weights import random_model
from tarkit.models.vqvae import AttnBlock, Vqvae, VqvaeArch

TINY = VqvaeArch(
    channels=32,
    encoder_multipliers=(1, 1),
    decoder_multipliers=(1, 1),
    num_res_blocks=1,
    latent_channels=32,
    num_codes=64,
)


def cases(settings: BenchSettings) -> Iterator[Case]:
    arch = TINY if settings.tiny else VqvaeArch()
    model = random_model(lambda: Vqvae(arch), settings.device, seed=settings.seed)
    for pixels, batch in ((256, 1), (256, 8), (512, 1), (1024, 1)):
        side = pixels // 64 if settings.tiny else pixels // arch.downsampling
        shape = (batch, side * side)
        codes = torch.randint(arch.num_codes, shape, generator=settings.generator())
        codes = codes.to(settings.device)
        yield Case(
            name=f"decode to {side * arch.downsampling} px, batch {batch}",
            ours=_ours(model, codes),
            against={"stock": _stock(model, codes), "published": _published(model, codes)},
            floor=Floor(flops=batch * decoder_flops(model, side)),
            count=batch,
            unit="pictures",
            agreement=close_share,
        )


def decoder_flops(model: Vqvae, side: int) -> float:
    """Operations of the convolutions and attentions that decode side x side codes."""
    total = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += 2 * module.weight.numel() * output.shape[-1] * output.shape[-2]
        elif isinstance(module, AttnBlock):
            positions = output.shape[-1] * output.shape[-2]
            total += 4 * positions**2 * output.shape[1]

    # On the meta device nothing is computed.
    with torch.device("meta"):
        shapes = Vqvae(model.arch)
    for module in shapes.modules():
        module.register_forward_hook(count)
    shapes.decode_latents(
        torch.zeros(1, side * side, model.arch.code_dim, device="meta"), (side, side)
    )
    return total


def _ours(model: Vqvae, codes: Tensor) -> Callable[[], Tensor]:
    laid_out = copy.deepcopy(model)
    laid_out.decoder.lay_out()
    return lambda: laid_out.decode(codes)


def _stock(model: Vqvae, codes: Tensor) -> Callable[[], Tensor]:
    """torch's own functions in torch's own layout of memory."""
    return _plain(model, codes, silu=F.silu, attend=_attend_fused)


def _published(model: Vqvae, codes: Tensor) -> Callable[[], Tensor]:
    """Swish as x * sigmoid(x), and attention as two batched products around a softmax."""
    return _plain(model, codes, silu=lambda x: x * torch.sigmoid(x), attend=_attend_in_parts)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _attend_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2)) * q.shape[-1] ** -0.5
    return torch.bmm(scores.softmax(-1), v)


def _plain(
    model: Vqvae,
    codes: Tensor,
    *,
    silu: Callable[[Tensor], Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Callable[[], Tensor]:
    decoder = model.decoder

    def residual(block: Any, x: Tensor) -> Tensor:
        h = block.conv1(silu(block.norm1(x)))
        h = block.conv2(silu(block.norm2(h)))
        return h + (block.nin_shortcut(x) if hasattr(block, "nin_shortcut") else x)

    def attention(block: Any, x: Tensor) -> Tensor:
        h = block.norm(x)
        q, k, v = (c(h).flatten(2).transpose(1, 2) for c in (block.q, block.k, block.v))
        out: Tensor = x + block.proj_out(attend(q, k, v).transpose(1, 2).reshape(x.shape))
        return out

    def level(block: Any, x: Tensor) -> Tensor:
        for index, res in enumerate(block.res):
            x = residual(res, x)
            if len(block.attn):
                x = attention(block.attn[index], x)
        if hasattr(block, "upsample"):
            x = block.upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x

    @torch.no_grad()
    def way() -> Tensor:
        side = round(codes.shape[1] ** 0.5)
        q = F.embedding(codes, F.normalize(model.quantize.embedding.weight, dim=-1))
        x = q.transpose(1, 2).reshape(len(codes), -1, side, side)
        x = decoder.conv_in(model.post_quant_conv(x))
        first, attended, last = decoder.mid
        x = residual(last, attention(attended, residual(first, x)))
        for block in decoder.conv_blocks:
            x = level(block, x)
        x = decoder.conv_out(silu(decoder.norm_out(x)))
        return (x * 0.5 + 0.5).clamp(0, 1)

    return way
