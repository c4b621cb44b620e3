"""Pictures to TA-Tok codes (paper Sec. 3.1): sized pixels in, codes of one or three scales out.

B: pictures, N: codes of a picture, K: codes of the codebook, W: width of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarkit.bench.case import BenchSettings, Case, Floor, equal_share
from tarkit.bench.products import Products
from tarkit.bench.random_weights import on_meta, random_model, share_weights
from tarkit.models.encoder import EncoderArch
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.vocab import Scale

TINY = TaTokArch(
    encoder=EncoderArch(size_px=84, width=64, layers=3, heads=4, mlp_width=128),
    num_codes=256,
    embedding_width=48,
    code_width=48,
    decoder_layers=1,
    decoder_heads=4,
    decoder_mlp_width=64,
    decoder_side=4,
)


def arch_of(settings: BenchSettings) -> TaTokArch:
    """The published sizes, or tiny ones."""
    return TINY if settings.tiny else TaTokArch()


def cases(settings: BenchSettings) -> Iterator[Case]:
    ta_tok = random_model(lambda: TaTok(arch_of(settings)), settings.device, seed=settings.seed)
    siglip = _siglip(ta_tok)
    rows = ta_tok.codebook.embedding_proj(ta_tok.codebook.embedding.weight)
    rows = F.normalize(rows, dim=-1)
    for batch in (1, 8):
        size = ta_tok.arch.encoder.size_px
        pixels = torch.rand(batch, 3, size, size, generator=settings.generator()) * 2 - 1
        pixels = pixels.to(settings.device)
        for scales in ([Scale.FULL], list(Scale)):
            products = _products(ta_tok, batch, scales, settings.device)
            names = "scale 1" if scales == [Scale.FULL] else "scales 1 to 3"
            yield Case(
                name=f"encode, batch {batch}, {names}",
                ours=_ours(ta_tok, pixels, scales),
                against={
                    "products": products,
                    "stock": _stock(siglip, ta_tok, rows, pixels, scales),
                    "published": _published(siglip, ta_tok, pixels, scales),
                },
                floor=Floor(flops=products.flops),
                count=batch,
                unit="pictures",
                agreement=equal_share,
            )


def _siglip(ta_tok: TaTok) -> Any:
    """transformers' SigLIP vision model with the weights of a TA-Tok's encoder."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    arch = ta_tok.arch.encoder
    config = SiglipVisionConfig(
        hidden_size=arch.width,
        intermediate_size=arch.mlp_width,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        image_size=arch.size_px,
        patch_size=arch.patch_px,
    )
    model = on_meta(lambda: SiglipVisionModel(config))
    share_weights(model, ta_tok.encoder.state_dict())
    model.embeddings.position_ids = torch.arange(arch.grid**2, device=device_of(ta_tok))[None]
    return model


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _ours(ta_tok: TaTok, pixels: Tensor, scales: Sequence[Scale]) -> Callable[[], Tensor]:
    return lambda: _flat([ta_tok.encode(pixels, scales)[scale] for scale in scales])


def _stock(
    siglip: Any, ta_tok: TaTok, rows: Tensor, pixels: Tensor, scales: Sequence[Scale]
) -> Callable[[], Tensor]:
    """One pass of transformers' model for all scales, and a codebook that is projected once."""

    @torch.no_grad()
    def way() -> Tensor:
        hidden = siglip(pixels, output_hidden_states=True).hidden_states[-2]
        codes = []
        for scale in scales:
            z = _projected(ta_tok, hidden, scale)
            codes.append((F.normalize(z, dim=-1) @ rows.T).argmax(-1))
        return _flat(codes)

    return way


def _published(
    siglip: Any, ta_tok: TaTok, pixels: Tensor, scales: Sequence[Scale]
) -> Callable[[], Tensor]:
    """A pass for each scale; each projects the codebook and normalises K scores by softmax.

    The published tokenizer holds one scale at a time, computes its codebook from the embeddings in
    every forward pass, and takes the argmax of softmax(scores / temperature).
    """
    book = ta_tok.codebook

    @torch.no_grad()
    def way() -> Tensor:
        codes = []
        for scale in scales:
            hidden = siglip(pixels, output_hidden_states=True).hidden_states[-2]
            z = F.normalize(_projected(ta_tok, hidden, scale), dim=-1)
            rows = F.normalize(book.embedding_proj(book.embedding.weight), dim=-1)
            codes.append(((z @ rows.T) / book.temperature).softmax(-1).argmax(-1))
        return _flat(codes)

    return way


def _projected(ta_tok: TaTok, hidden: Tensor, scale: Scale) -> Tensor:
    """Pooling, task layer and bottleneck (B, N, D), the same lines in every program."""
    if scale is not Scale.FULL:
        side = round(hidden.shape[1] ** 0.5)
        grid = hidden.transpose(1, 2).reshape(hidden.shape[0], -1, side, side)
        hidden = F.avg_pool2d(grid, int(scale), int(scale)).flatten(2).transpose(1, 2)
    z: Tensor = ta_tok.bottleneck.in_linear(ta_tok.encode_task_layer(hidden))
    return z


def _flat(codes: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in codes])


def _products(ta_tok: TaTok, batch: int, scales: Sequence[Scale], device: torch.device) -> Products:
    arch = ta_tok.arch.encoder
    products = Products(device)
    positions = arch.grid**2
    rows = batch * positions
    products.linear(rows, ta_tok.encoder.embeddings.patch_embedding.weight.flatten(1))
    layers = list(ta_tok.encoder.encoder.layers)[: ta_tok.arch.select_layer + 1]
    for layer in layers:
        products.linear(rows, *(p for p in layer.parameters() if p.dim() == 2))
    products.attention(len(layers), batch, arch.heads, positions, arch.width // arch.heads)
    task = [p for p in ta_tok.encode_task_layer.parameters() if p.dim() == 2]
    for scale in scales:
        rows = batch * scale.num_codes(arch.grid)
        products.linear(rows, *task, ta_tok.bottleneck.in_linear.weight)
        products.linear(rows, *ta_tok.codebook.projected().split(8192))
    return products
