"""An image VQ whose codes also match captions: the tokenizer of the representation "hybrid".

Source: UniTok (Ma et al. 2025), which the paper follows (Sec. 4.3): to the image VQ's losses comes
the contrastive loss between a picture's quantised code vectors, pooled to one vector, and its
caption. One set of codes then serves reading and writing, and the decoder still gives pixels.

This is the simplest form of it, and differs from UniTok: one codebook in place of its eight
(multi-codebook quantisation); the image VQ's own convolutional encoder, from random weights or from
--start, in place of a vision transformer with CLIP's weights; a small text tower that is trained
with it, in place of CLIP's; SigLIP's sigmoid loss, which needs no large batch, in place of CLIP's.
What reads the code vectors are a projection, transformer blocks without position embeddings (the
convolutions know places) and an attention pool, all of which are dropped after the training. The
language model reads rows of its own table for the codes, as for every representation here.

Letters: B pictures of a process, S pictures of a step, N codes of a picture, D code width, W width
of the vectors that are compared, T caption tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from tarkit.config import Config
from tarkit.models.encoder import (
    TextTower,
    VitAttentionPool,
    VitLayers,
    sigmoid_contrastive_loss,
)
from tarkit.models.vqvae import Vqvae, VqvaeOutput
from tarkit.train.adversary import Adversary
from tarkit.train.captions import Chosen
from tarkit.train.contrastive import Pair
from tarkit.train.processes import rows_of_all_processes


class AlignmentConfig(Config):
    """Settings of the contrastive loss between codes and captions."""

    weight: PositiveFloat = 1.0
    """Of the contrastive loss beside the reconstruction (1 in UniTok)."""
    width: PositiveInt = 128
    """W."""
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    text_width: PositiveInt = 128
    text_layers: PositiveInt = 2
    text_heads: PositiveInt = 4
    text_length: PositiveInt = 96
    text_vocab: int = Field(default=512, ge=259)
    caption: Chosen = "longest"
    """The caption that a picture is compared with: a long one fits few other pictures."""

    @model_validator(mode="after")
    def _heads_fit(self) -> AlignmentConfig:
        for heads, width in (("heads", "width"), ("text_heads", "text_width")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{heads} = {getattr(self, heads)} must divide {width} = {getattr(self, width)}"
                )
        return self


class Alignment(nn.Module):
    """Compares code vectors with captions; scale and bias start as SigLIP's, ln 10 and -10."""

    def __init__(self, config: AlignmentConfig, code_dim: int) -> None:
        super().__init__()
        width = config.width
        self.project = nn.Linear(code_dim, width)
        self.encoder = VitLayers(config.layers, width, config.heads, 4 * width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pool = VitAttentionPool(width, config.heads, 4 * width)
        self.text = TextTower(
            vocab_size=config.text_vocab,
            length=config.text_length,
            width=config.text_width,
            layers=config.text_layers,
            heads=config.text_heads,
            out_width=width,
        )
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, vectors: Tensor, pair: Pair) -> tuple[Tensor, dict[str, float]]:
        """Code vectors (B, N, D) of pictures -> the loss () of the whole step, and figures."""
        x = self.project(vectors)
        for block in self.encoder.layers:
            x = block(x)
        pictures = rows_of_all_processes(self.pool(self.norm(x)))
        captions = rows_of_all_processes(self.text(pair.ids, pair.mask))
        loss = sigmoid_contrastive_loss(pictures, captions, pair.same, self.log_scale, self.bias)
        with torch.no_grad():
            nearest = (F.normalize(pictures, dim=-1) @ F.normalize(captions, dim=-1).T).argmax(1)
            right = float(pair.same.gather(1, nearest[:, None]).float().mean())
        return loss, {"contrastive": float(loss.detach()), "retrieval": right}


class AlignedOutput(NamedTuple):
    """The result of one training pass."""

    image_vq: VqvaeOutput
    contrastive: Tensor  # ()
    figures: dict[str, float]


class AlignedVqvae(nn.Module):
    """The image VQ with what compares its codes with captions, and its adversary, if any."""

    def __init__(self, vqvae: Vqvae, alignment: Alignment, adversary: Adversary | None) -> None:
        super().__init__()
        self.vqvae = vqvae
        self.alignment = alignment
        self.adversary = adversary

    def forward(self, pair: Pair, *, quantised: float = 1.0) -> AlignedOutput:
        out: VqvaeOutput = self.vqvae(pair.pixels, quantised=quantised)
        contrastive, figures = self.alignment(out.vectors, pair)
        return AlignedOutput(out, contrastive, figures)
