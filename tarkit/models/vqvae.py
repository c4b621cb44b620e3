"""LlamaGen's image VQ: pixels to a grid of low-dimensional, l2-normalised codes and back.

Source: paper Sec. 3.2 (the discrete latents AR-DTok predicts) and the published VQ-16, whose
layout and key names these are. Sized by `VqvaeArch`: its defaults are the published model.

Letters: B pictures, H W pixels, h w latent cells (H / 2**(levels-1)), D code width, K codes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from tarkit.config import Config, Count, Size
from tarkit.models.exact import without_autocast

NORM_GROUPS = 32


class VqvaeArch(Config):
    """Sizes of the image VQ; the defaults are LlamaGen's VQ-16 (71.9M values)."""

    channels: Size = 128
    encoder_multipliers: tuple[Count, ...] = Field(default=(1, 1, 2, 2, 4), max_length=16)
    decoder_multipliers: tuple[Count, ...] = Field(default=(1, 1, 2, 2, 4), max_length=16)
    num_res_blocks: Count = 2
    latent_channels: Size = 256
    num_codes: Size = 16384
    code_dim: Size = 8
    unshuffle: Size = 1
    """Side of the squares of pixels that are folded into channels before the first convolution. 1
    as published; 2 saves two thirds of a small model's time, which full resolution mostly takes."""

    @model_validator(mode="after")
    def _pixels_come_back(self) -> VqvaeArch:
        if len(self.encoder_multipliers) != len(self.decoder_multipliers):
            raise ValueError(
                f"the encoder has {len(self.encoder_multipliers)} levels, the decoder "
                f"{len(self.decoder_multipliers)}: pictures would come back in another size"
            )
        for multiplier in {*self.encoder_multipliers, *self.decoder_multipliers}:
            if self.channels * multiplier % NORM_GROUPS:
                raise ValueError(
                    f"a level of {self.channels * multiplier} channels does not divide into "
                    f"{NORM_GROUPS} groups, which are normalised"
                )
        return self

    @property
    def downsampling(self) -> int:
        """Pixels along a side of one latent cell."""
        return self.unshuffle * 2 ** (len(self.encoder_multipliers) - 1)


class VqvaeOutput(NamedTuple):
    """The result of one training pass."""

    pixels: Tensor  # (B, 3, H, W) reconstruction, about [-1, 1]
    codes: Tensor  # (B, h*w) int64
    latents: Tensor  # (B, h*w, D) unit-norm encoder outputs
    codebook_loss: Tensor  # () mean |sg(z) - e|^2
    commitment_loss: Tensor  # () mean |z - sg(e)|^2
    vectors: Tensor  # (B, h*w, D) what the decoder reads; its gradient goes to the encoder


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels, eps=1e-6)


class ResBlock(nn.Module):
    """GroupNorm, swish, conv, twice, and a skip that is a 1x1 convolution where widths differ."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1 = _norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = _norm(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head attention over all positions, scaled by width**-0.5."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class VqvaeDownsample(nn.Module):
    """Half the resolution, by a stride-2 convolution padded at the right and the bottom."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class VqvaeUpsample(nn.Module):
    """Twice the resolution, by nearest neighbours and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class VqvaeLevel(nn.Module):
    """The blocks of one resolution, and the step to the next."""

    def __init__(
        self, width_in: int, width: int, *, blocks: int, attention: bool, step: str | None
    ) -> None:
        super().__init__()
        widths = [width_in] + [width] * blocks
        self.res = nn.ModuleList(
            ResBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.attn = nn.ModuleList(AttnBlock(width) for _ in range(blocks if attention else 0))
        if step == "down":
            self.downsample = VqvaeDownsample(width)
        elif step == "up":
            self.upsample = VqvaeUpsample(width)

    def forward(self, x: Tensor) -> Tensor:
        for index, res in enumerate(self.res):
            x = res(x)
            if len(self.attn):
                x = self.attn[index](x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


def _middle(width: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(width, width), AttnBlock(width), ResBlock(width, width)])


class VqvaeEncoder(nn.Module):
    """(B, 3, H, W) -> (B, latent_channels, h, w)."""

    def __init__(self, arch: VqvaeArch) -> None:
        super().__init__()
        widths = [arch.channels * m for m in arch.encoder_multipliers]
        last = len(widths) - 1
        self.unshuffle = arch.unshuffle
        self.conv_in = nn.Conv2d(3 * arch.unshuffle**2, arch.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            VqvaeLevel(
                widths[max(level - 1, 0)] if level else arch.channels,
                width,
                blocks=arch.num_res_blocks,
                attention=level == last,
                step=None if level == last else "down",
            )
            for level, width in enumerate(widths)
        )
        self.mid = _middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], arch.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(x, self.unshuffle))
        for block in [*self.conv_blocks, *self.mid]:
            x = block(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class VqvaeDecoder(nn.Module):
    """(B, latent_channels, h, w) -> (B, 3, H, W); level 0 is the coarsest."""

    def __init__(self, arch: VqvaeArch) -> None:
        super().__init__()
        widths = [arch.channels * m for m in reversed(arch.decoder_multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(arch.latent_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        self.conv_blocks = nn.ModuleList(
            VqvaeLevel(
                widths[max(level - 1, 0)],
                width,
                blocks=arch.num_res_blocks + 1,
                attention=level == 0,
                step=None if level == last else "up",
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3 * arch.unshuffle**2, 3, padding=1)
        self.unshuffle = arch.unshuffle

    def lay_out(self) -> None:
        """Order the weights in memory as convolutions are fastest where they are.

        On a CPU with channels last, which the results then have too: 1.14 times as fast at 256
        pixels, equal within 1e-5. On a GPU they stay as they are.
        """
        if self.conv_in.weight.device.type == "cpu":
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in [*self.mid, *self.conv_blocks]:
            x = block(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.unshuffle)


class VqvaeQuantizer(nn.Module):
    """The image VQ's codebook; its rows are compared on the unit sphere."""

    codebook_used: Tensor

    def __init__(self, arch: VqvaeArch) -> None:
        super().__init__()
        self.embedding = nn.Embedding(arch.num_codes, arch.code_dim)
        # Published files carry this usage record and load strictly only where it exists.
        self.register_buffer("codebook_used", torch.zeros(65536))

    def codebook(self) -> Tensor:
        """(K, D) unit-norm rows."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, z: Tensor) -> Tensor:
        """(..., D) unit-norm -> (...) int64, chosen in float32; the lowest index on ties."""
        with without_autocast(z):
            return (z.float() @ self.codebook().float().T).argmax(dim=-1)


class Vqvae(nn.Module):
    """Encoder, quantiser and decoder of pixels in [-1, 1]."""

    def __init__(self, arch: VqvaeArch) -> None:
        super().__init__()
        self.arch = arch
        self.encoder = VqvaeEncoder(arch)
        self.decoder = VqvaeDecoder(arch)
        self.quantize = VqvaeQuantizer(arch)
        self.quant_conv = nn.Conv2d(arch.latent_channels, arch.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(arch.code_dim, arch.latent_channels, 1)

    def latents(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) in [-1, 1] -> unit-norm (B, h*w, D) row-major, and (h, w)."""
        step = self.arch.downsampling
        if x.shape[-2] % step or x.shape[-1] % step:
            raise ValueError(f"pixels {tuple(x.shape[-2:])} do not divide by {step}")
        z = self.quant_conv(self.encoder(x))
        size = (z.shape[-2], z.shape[-1])
        return F.normalize(z.flatten(2).transpose(1, 2), dim=-1), size

    def decode_latents(self, q: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, h*w, D) -> (B, 3, H, W), about [-1, 1]."""
        grid = q.transpose(1, 2).reshape(q.shape[0], q.shape[2], *size)
        out: Tensor = self.decoder(self.post_quant_conv(grid))
        return out

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] -> codes (B, h*w) int64, row-major."""
        z, _ = self.latents(images * 2 - 1)
        return self.quantize.nearest(z)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h*w) of a square picture -> pixels (B, 3, H, W) in [0, 1]."""
        side = round(codes.shape[1] ** 0.5)
        if side * side != codes.shape[1]:
            raise ValueError(f"{codes.shape[1]} codes are not a square grid")
        q = F.embedding(codes, self.quantize.codebook())
        return (self.decode_latents(q, (side, side)) * 0.5 + 0.5).clamp(0, 1)

    def forward(self, x: Tensor, *, quantised: float = 1.0) -> VqvaeOutput:
        """One training pass on pixels in [-1, 1].

        `quantised` in [0, 1] fades quantisation in: with it on from step 0 the codebook collapses
        to about ten codes, so training starts from the encoder's unquantised latents. At 0 the
        codebook gets no gradient.
        """
        z, size = self.latents(x)
        codes = self.quantize.nearest(z.detach())
        with torch.set_grad_enabled(torch.is_grad_enabled() and quantised > 0):
            e = F.embedding(codes, self.quantize.codebook())
        codebook_loss = (z.detach() - e).pow(2).mean()
        commitment_loss = (z - e.detach()).pow(2).mean()
        q = z + quantised * (e - z).detach()  # straight-through
        pixels = self.decode_latents(q, size)
        return VqvaeOutput(pixels, codes, z, codebook_loss, commitment_loss, q)
