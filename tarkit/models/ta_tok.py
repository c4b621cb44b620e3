"""TA-Tok: pictures to text-aligned codes at three scales, and codes back to semantic features.

Source: paper Sec. 3.1, Fig. 3. Key names are the released file's. The release departs from the
paper, and this file follows the release: pooling is average pooling with a floor (the paper says
adaptive), the projection of the codebook has a bias and its rows are normalised, and inference
keeps the decoder, whose output conditions the de-tokenizers.

Letters: B pictures, N codes of a picture at one scale, K codes, D code width, W encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from tarkit.config import Config, Count, Size
from tarkit.models.codebook import TextAlignedCodebook
from tarkit.models.encoder import EncoderArch, VisionEncoder, VitLayers
from tarkit.vocab import Scale


class TaTokArch(Config):
    """Sizes of TA-Tok; the defaults are the released model's (591M values)."""

    encoder: EncoderArch = EncoderArch()
    select_layer: int = -2
    num_codes: Size = 65536
    embedding_width: Size = 1536
    code_width: Size = 1536
    projection_bias: bool = True
    l2_normalized: bool = True
    stochastic: bool = True
    temperature: float = 0.03
    decoder_layers: Count = 3
    decoder_heads: Count = 12
    decoder_mlp_width: Size = 3072
    decoder_side: Size = 16

    @model_validator(mode="after")
    def _heads_fit(self) -> TaTokArch:
        if self.encoder.width % self.decoder_heads:
            raise ValueError(
                f"decoder_heads = {self.decoder_heads} must divide the encoder's width, "
                f"{self.encoder.width}"
            )
        return self


class TaTokOutput(NamedTuple):
    """One training pass at one scale."""

    features: Tensor  # (B, N, W) decoded features, an estimate of the teacher's
    codes: Tensor  # (B, N) int64
    codebook_loss: Tensor  # () Eq. 3
    commitment_loss: Tensor  # () Eq. 3


class TaTokDecoderEmbeddings(nn.Module):
    """(B, N, D) -> (B, N, W) plus position embeddings, resized to the grid of N = side**2."""

    def __init__(self, arch: TaTokArch) -> None:
        super().__init__()
        self.side = arch.decoder_side
        self.patch_embedding = nn.Linear(arch.code_width, arch.encoder.width)
        self.position_embedding = nn.Embedding(self.side**2, arch.encoder.width)

    def forward(self, x: Tensor) -> Tensor:
        side = round(x.shape[1] ** 0.5)
        if side * side != x.shape[1]:
            raise ValueError(f"{x.shape[1]} codes are not a square grid")
        x = self.patch_embedding(x)
        table = self.position_embedding.weight.view(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        table = F.interpolate(
            table.float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True
        )
        return x + table.flatten(2).transpose(1, 2).to(x.dtype)


class TaTokDecoderTransformer(nn.Module):
    """(B, N, D) -> (B, N, W): embeddings, transformer blocks, a final norm."""

    def __init__(self, arch: TaTokArch) -> None:
        super().__init__()
        width = arch.encoder.width
        self.embeddings = TaTokDecoderEmbeddings(arch)
        self.encoder = VitLayers(
            arch.decoder_layers, width, arch.decoder_heads, arch.decoder_mlp_width
        )
        self.post_layernorm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embeddings(x)
        for block in self.encoder.layers:
            x = block(x)
        out: Tensor = self.post_layernorm(x)
        return out


class TaTokDecoder(nn.Module):
    """The decoder under the published prefix `decoder.vision_model`: (B, N, D) -> (B, N, W)."""

    def __init__(self, arch: TaTokArch) -> None:
        super().__init__()
        self.vision_model = TaTokDecoderTransformer(arch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.vision_model(x)
        return out


class TaTokBottleneck(nn.Module):
    """The layers around the codebook, under the published prefix `bottleneck`."""

    def __init__(self, arch: TaTokArch) -> None:
        super().__init__()
        self.in_linear = nn.Linear(arch.encoder.width, arch.code_width)
        self.out_linear = nn.Linear(arch.code_width, arch.code_width)
        self.regularizer = TextAlignedCodebook(
            num_codes=arch.num_codes,
            embedding_width=arch.embedding_width,
            width=arch.code_width,
            bias=arch.projection_bias,
            l2_normalized=arch.l2_normalized,
            stochastic=arch.stochastic,
            temperature=arch.temperature,
        )


def pool(features: Tensor, scale: Scale) -> Tensor:
    """Scale-adaptive pooling: (B, grid**2, W) -> (B, N, W) by averages over scale x scale cells.

    Rows and columns that do not fill a cell are dropped (27 -> 13 at scale 2).
    """
    if scale is Scale.FULL:
        return features
    side = round(features.shape[1] ** 0.5)
    grid = features.transpose(1, 2).unflatten(2, (side, side))
    return F.avg_pool2d(grid, kernel_size=int(scale), stride=int(scale)).flatten(2).transpose(1, 2)


class TaTok(nn.Module):
    """Encoder, pooling, text-aligned codebook, decoder. Pixels enter in [-1, 1], already sized."""

    def __init__(self, arch: TaTokArch) -> None:
        super().__init__()
        self.arch = arch
        width = arch.encoder.width
        self.encoder = VisionEncoder(arch.encoder)
        self.decoder = TaTokDecoder(arch)
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.decode_task_layer = nn.Sequential(
            nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)
        )
        self.bottleneck = TaTokBottleneck(arch)

    @property
    def codebook(self) -> TextAlignedCodebook:
        return self.bottleneck.regularizer

    def keep_codes(self, codes: Tensor) -> None:
        """Keep only these codes (K',), renumbered in their order."""
        self.codebook.keep(codes)
        self.arch = self.arch.model_copy(update={"num_codes": len(codes)})

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] -> (B, grid**2, W), before pooling."""
        size = self.arch.encoder.size_px
        if tuple(pixels.shape[1:]) != (3, size, size):
            raise ValueError(f"expected (B, 3, {size}, {size}), got {tuple(pixels.shape)}")
        return self.encoder.features(pixels, layer=self.arch.select_layer)

    def project(self, features: Tensor, scale: Scale) -> Tensor:
        """(B, grid**2, W) -> unquantised z (B, N, D)."""
        z: Tensor = self.bottleneck.in_linear(self.encode_task_layer(pool(features, scale)))
        return z

    def decode(self, z_q: Tensor) -> Tensor:
        """(B, N, D) rows of the codebook -> (B, N, W) features, the teacher's estimate."""
        x: Tensor = self.decoder(self.bottleneck.out_linear(z_q))
        out: Tensor = self.decode_task_layer(x)
        return out

    @torch.no_grad()
    def encode(
        self,
        pixels: Tensor,
        scales: Sequence[Scale],
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> dict[Scale, Tensor]:
        """Codes (B, N) int64 of each scale, from one encoder pass over pixels in [-1, 1].

        The encoder may be in half precision; all after it is in float32. `sample=True` draws random
        codes, as the published scripts do without saying so.
        """
        dtype = self.encoder.embeddings.position_embedding.weight.dtype
        features = self.features(pixels.to(dtype)).float()
        codes = {}
        for scale in scales:
            z = self.project(features, scale)
            codes[scale] = (
                self.codebook.sample(z, generator) if sample else self.codebook.nearest(z)
            )
        return codes

    @torch.no_grad()
    def condition(self, codes: Tensor) -> Tensor:
        """Codes (B, N) -> the condition (B, N, W) of the de-tokenizers.

        Raises ValueError for codes outside [0, K).
        """
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.arch.num_codes:
            raise ValueError(
                f"codes span {int(codes.min())} to {int(codes.max())}, K is {self.arch.num_codes}"
            )
        return self.decode(self.codebook.lookup(codes))

    def forward(
        self, features: Tensor, scale: Scale, *, seeds: Sequence[int] | None = None
    ) -> TaTokOutput:
        """One training pass from the encoder's features (B, grid**2, W).

        `seeds`: one of each picture, where codes are drawn.
        """
        quantised = self.codebook(self.project(features, scale), seeds)
        return TaTokOutput(
            self.decode(quantised.z_q),
            quantised.codes,
            quantised.codebook_loss,
            quantised.commitment_loss,
        )
