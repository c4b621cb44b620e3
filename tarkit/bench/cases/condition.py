"""TA-Tok codes to the features that the de-tokenizers are conditioned on (paper Sec. 3.2).

B: pictures, N: codes of a picture, K: codes of the codebook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tarkit.bench.case import BenchSettings, Case, Floor, close_share
from tarkit.bench.cases.encode import arch_of
from tarkit.bench.products import Products
from tarkit.bench.random_weights import on_meta, random_model, share_weights
from tarkit.models.ta_tok import TaTok
from tarkit.vocab import Scale


def cases(settings: BenchSettings) -> Iterator[Case]:
    ta_tok = random_model(lambda: TaTok(arch_of(settings)), settings.device, seed=settings.seed)
    siglip2 = _siglip2(ta_tok)
    book = ta_tok.codebook
    with torch.no_grad():
        rows = F.normalize(book.embedding_proj(book.embedding.weight), dim=-1)
    for scale in Scale:
        count = scale.num_codes(ta_tok.arch.encoder.grid)
        codes = torch.randint(ta_tok.arch.num_codes, (1, count), generator=settings.generator()).to(
            settings.device
        )
        products = _products(ta_tok, count, settings.device)
        yield Case(
            name=f"condition of {count} codes",
            ours=_ours(ta_tok, codes),
            against={
                "products": products,
                "stock": _stock(siglip2, ta_tok, rows, codes),
                "published": _published(siglip2, ta_tok, codes),
            },
            floor=Floor(flops=products.flops),
            unit="pictures",
            agreement=close_share,
        )


def _siglip2(ta_tok: TaTok) -> Any:
    """transformers' SigLIP 2 of flexible sizes with the weights of a TA-Tok's decoder."""
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    arch = ta_tok.arch
    config = Siglip2VisionConfig(
        hidden_size=arch.encoder.width,
        intermediate_size=arch.decoder_mlp_width,
        num_hidden_layers=arch.decoder_layers,
        num_attention_heads=arch.decoder_heads,
        num_channels=arch.code_width,
        num_patches=arch.decoder_side**2,
        patch_size=1,
        vision_use_head=False,
    )
    model = on_meta(lambda: Siglip2VisionModel(config))
    share_weights(model, ta_tok.decoder.vision_model.state_dict())
    return model


def _ours(ta_tok: TaTok, codes: Tensor) -> Callable[[], Tensor]:
    return lambda: ta_tok.condition(codes)


def _stock(siglip2: Any, ta_tok: TaTok, rows: Tensor, codes: Tensor) -> Callable[[], Tensor]:
    """A codebook that is projected once, and transformers' SigLIP 2."""

    @torch.no_grad()
    def way() -> Tensor:
        return _decoded(siglip2, ta_tok, F.embedding(codes, rows))

    return way


def _published(siglip2: Any, ta_tok: TaTok, codes: Tensor) -> Callable[[], Tensor]:
    """The codebook is projected anew for every picture, as the published tokenizer does."""
    book = ta_tok.codebook

    @torch.no_grad()
    def way() -> Tensor:
        rows = F.normalize(book.embedding_proj(book.embedding.weight), dim=-1)
        return _decoded(siglip2, ta_tok, F.embedding(codes, rows))

    return way


def _decoded(siglip2: Any, ta_tok: TaTok, z_q: Tensor) -> Tensor:
    side = round(z_q.shape[1] ** 0.5)
    out = siglip2(
        pixel_values=ta_tok.bottleneck.out_linear(z_q),
        pixel_attention_mask=torch.ones(z_q.shape[:2], dtype=torch.int32, device=z_q.device),
        spatial_shapes=torch.tensor([[side, side]] * len(z_q), device=z_q.device),
    )
    condition: Tensor = ta_tok.decode_task_layer(out.last_hidden_state)
    return condition


def _products(ta_tok: TaTok, count: int, device: torch.device) -> Products:
    arch = ta_tok.arch
    products = Products(device)
    layers = ta_tok.decoder.vision_model.encoder.layers
    products.linear(
        count,
        ta_tok.bottleneck.out_linear.weight,
        ta_tok.decoder.vision_model.embeddings.patch_embedding.weight,
        *(p for layer in layers for p in layer.parameters() if p.dim() == 2),
        *(p for p in ta_tok.decode_task_layer.parameters() if p.dim() == 2),
    )
    width = arch.encoder.width // arch.decoder_heads
    products.attention(arch.decoder_layers, 1, arch.decoder_heads, count, width)
    return products
