"""What SANA costs in training: FLOPs, and bytes that autograd keeps, of diffusers' implementation.

Source of the architecture: Xie et al. 2024, "SANA", Sec. 3: linear attention with ReLU, whose cost
grows with the number of positions and not with its square; cross-attention to the condition; a
gated MLP with a depthwise 3x3 convolution. Counted as in `tarkit.train.costs`.

Where cross-attention and condition embedding alone are trained, gradients still pass through all
blocks, down to the first cross-attention: a frozen matrix costs two forward passes, and products of
two activations three.

Letters: N positions, n condition positions, D width, Q width of all heads of cross-attention, h
width of the gated MLP, d width of a head of linear attention, c bytes of a computed value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tarkit.artifacts.files import read_object
from tarkit.errors import UserError

HINT = "--sana names a folder or hub id of a SANA in diffusers' layout"


class SanaConfigs(NamedTuple):
    """The configs of a SANA's transformer and of its autoencoder, as diffusers writes them."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]


_BLOCKS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
SANA_600M = SanaConfigs(
    {"num_layers": 28, "num_attention_heads": 36, "attention_head_dim": 32, "sample_size": 16}
    | {"num_cross_attention_heads": 16, "cross_attention_head_dim": 72}
    | {"cross_attention_dim": 1152, "caption_channels": 2304},
    {"encoder_block_types": _BLOCKS, "decoder_block_types": _BLOCKS}
    | {"upsample_block_type": "interpolate", "downsample_block_type": "conv"},
)
"""SANA-0.6B at 512 px with its autoencoder; other sizes are the defaults of diffusers."""


def read_sana_configs(folder: Path) -> SanaConfigs:
    """The configs in a SANA's folder; UserError where one cannot be read."""
    transformer, vae = (
        read_object(folder / part / "config.json", hint=HINT) for part in ("transformer", "vae")
    )
    return SanaConfigs(transformer, vae)


def build_sana(configs: SanaConfigs) -> tuple[Any, Any]:
    """Transformer and autoencoder on the meta device; UserError where diffusers cannot make it."""
    try:
        from diffusers import AutoencoderDC, SanaTransformer2DModel
    except ImportError as error:
        raise UserError(
            f"SANA's costs need diffusers: {error}", hint="pip install 'tarkit[diffusion]'"
        ) from None
    with torch.device("meta"):
        try:
            return (
                SanaTransformer2DModel.from_config(dict(configs.transformer)),
                AutoencoderDC.from_config(dict(configs.vae)),
            )
        except Exception as error:  # diffusers raises exceptions of many types
            raise UserError(f"these are no sizes of a SANA: {error}", hint=HINT) from None


class SanaCosts(NamedTuple):
    """The sizes that decide what a transformer of SANA costs."""

    layers: int
    width: int
    head_width: int
    cross_width: int
    cross_heads: int
    mlp_width: int
    condition_width: int
    pixels_in: int  # channels of a position that is read
    pixels_out: int
    normed_keys: bool  # queries and keys are normalised (SANA 1.5)
    trains_all: bool

    @classmethod
    def of(cls, transformer: Any, *, trains_all: bool) -> SanaCosts:
        """Of a transformer of diffusers."""
        config = transformer.config
        width = config.num_attention_heads * config.attention_head_dim
        patch = config.patch_size**2
        return cls(
            layers=config.num_layers,
            width=width,
            head_width=config.attention_head_dim,
            cross_width=config.num_cross_attention_heads * config.cross_attention_head_dim,
            cross_heads=config.num_cross_attention_heads,
            mlp_width=int(config.mlp_ratio * width),
            condition_width=config.caption_channels,
            pixels_in=config.in_channels * patch,
            pixels_out=(config.out_channels or config.in_channels) * patch,
            normed_keys=config.qk_norm is not None,
            trains_all=trains_all,
        )

    def block_flops(self, positions: float, condition: float) -> float:
        """FLOPs of the forward pass through one block."""
        return sum(self._block(positions, condition))

    def _block(self, positions: float, condition: float) -> tuple[float, float, float, float]:
        """Of linear attention its matrices and its products, cross-attention, MLP."""
        D, Q, h = self.width, self.cross_width, self.mlp_width
        cross = 4 * D * Q * (positions + condition) + 4 * Q * positions * condition
        return (
            8 * D**2 * positions,
            4 * D * (self.head_width + 1) * positions,
            cross,
            2 * positions * (3 * h * D + 18 * h),
        )

    def training_flops(self, positions: float, condition: float) -> float:
        """FLOPs of the forward and backward pass of one picture."""
        D = self.width
        matrices, products, cross, mlp = self._block(positions, condition)
        through = 3 if self.trains_all else 2
        block = through * (matrices + mlp) + 3 * (products + cross)
        # The first block's input needs no gradient.
        first = 0.0
        if not self.trains_all:
            first = matrices + 2 * products + 2 * D * self.cross_width * positions
        ends = (
            2
            * D
            * positions
            * (self.pixels_in * (2 if self.trains_all else 1) + self.pixels_out * through)
        )
        embedded = 2 * D * condition * (2 * self.condition_width + 3 * D)
        time = 2 * (256 * D + 7 * D**2) * (3 if self.trains_all else 1)
        return self.layers * block - first + ends + embedded + time

    def kept_bytes(self, positions: float, condition: float, c: int) -> float:
        """Bytes that autograd keeps of positions and condition positions of all rows of a pass."""
        first = 0.0 if self.trains_all else self._linear_attention_bytes(c) * positions
        blocks = self.layers * self.block_bytes(positions, condition, c) - first
        copies = 0.0 if c == 4 or self.trains_all else c * self._frozen_matrices()
        return blocks + copies + self.end_bytes(positions, condition, c)

    def _linear_attention_bytes(self, c: int) -> float:
        """Of a position: the norm's input; queries and keys behind the ReLU, twice, as the products
        need them in another order; values with a row of ones, and the output, with its sum."""
        D = self.width
        norms = 8 * D if self.normed_keys else 0
        return 4 * D + 4 * c * D + 2 * c * (D + D / self.head_width) + norms

    def block_bytes(self, positions: float, condition: float, c: int) -> float:
        """Of one block whose input needs a gradient.

        Cross-attention keeps its input, queries, output and, for the condition, keys and values.
        The MLP keeps the input of each convolution, the SiLU's input, and both factors of the gate.
        Trained, each matrix keeps its input, and each modulation and gate what it multiplies. Under
        bf16 each matrix keeps a copy of its own.
        """
        D, Q, h = self.width, self.cross_width, self.mlp_width
        copies = 3 if c == 2 else 1  # of the input of queries, keys and values
        of_position = self._linear_attention_bytes(c)
        of_position += c * (D + 2 * Q) + 4 * self.cross_heads + 4 * D + c * (D + 8 * h)
        if self.trains_all:
            of_position += (8 + (3 + copies) * c) * D
        of_condition = c * 2 * Q + (2 * c * D if c == 2 else 0)
        if self.normed_keys:
            of_position += 8 * Q
            of_condition += 8 * Q
        return of_position * positions + of_condition * condition

    def end_bytes(self, positions: float, condition: float, c: int) -> float:
        """Of what is in no block: the condition's embedding, the last norm, and the loss."""
        D = self.width
        embedded = c * self.condition_width + (3 if c == 4 else 2) * c * D + 8 * D
        last = 4 * D + 4 * self.pixels_out
        if self.trains_all:
            last += 4 * D + c * D
        return embedded * condition + last * positions

    def gradient_bytes(self, positions: float, c: int) -> float:
        """Gradients that the gated MLP of one block holds at once: two of 2h, and both halves."""
        return 6 * c * self.mlp_width * positions

    def _frozen_matrices(self) -> float:
        """Values of the frozen matrices that gradients pass through: bf16 copies of them stay."""
        D, h = self.width, self.mlp_width
        block = 4 * D**2 + 3 * h * D + 18 * h
        return self.layers * block - 4 * D**2 + D * self.pixels_out


def vae_encoder_flops(vae: Any, size_px: int) -> float:
    """FLOPs of an autoencoder's encoder on one square picture.

    torch counts them on a copy of the encoder on the meta device, of the same config.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        type(vae).from_config(vae.config).encoder(torch.empty(1, 3, size_px, size_px))
    return float(counter.get_total_flops())
