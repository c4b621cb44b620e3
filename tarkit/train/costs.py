"""Formulas of what a training costs: floating-point operations, and bytes kept for backward.

A multiplication and its addition are two FLOPs. Backward costs twice the forward pass, so a matrix
of N values costs 6 N FLOPs a position in training and 2 N where it is frozen (Kaplan et al. 2020,
Sec. 2.1). Attention adds 4 T q in the forward pass of a position among T, whether or not a mask
leaves part of them out (as in Chowdhery et al. 2022, App. B). A lookup in a table costs nothing;
the head of a language model is a matrix like any other.

Bytes are those of the tensors that autograd keeps in torch's eager mode. A value of the residual
stream, of a normalisation or of a loss has 4 bytes; an input of a matrix or of attention has c: 4,
or 2 under bf16, where each matrix keeps a bf16 copy of its input of its own.

Letters: D width, q width of all heads together, F MLP width, T positions of a sequence, c bytes of
a computed value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from tarkit.models.encoder import EncoderArch
from tarkit.models.vqvae import (
    AttnBlock,
    ResBlock,
    Vqvae,
    VqvaeDecoder,
    VqvaeEncoder,
    VqvaeLevel,
)

LOGIT_BYTES = 12
"""Bytes of a logit when a cross-entropy goes backward: the float32 log-softmax that it kept, its
gradient, and the gradient of the logit."""
SCORE_BYTES, DRAW_BYTES = 4, 8
"""Bytes of the score of one feature and one code; and, of the one picture whose codes TA-Tok draws,
of the probability and the random number that `torch.multinomial` divides it by."""
TRAINED, FROZEN = 3, 1
"""Forward passes that one training step costs."""


class Stack(NamedTuple):
    """A stack of equal pre-norm transformer blocks."""

    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    head_width: int
    gated: bool
    """RMSNorm and SwiGLU (three matrices), as in Qwen2 and AR-DTok; else LayerNorm and GELU (two),
    as in SigLIP."""
    input_copies: int
    """Matrices that read a normalised input: q, k, v (one where they are fused) and those that
    begin the MLP. Under bf16 each keeps a copy of its own."""
    dropout: bool = False
    """Whether both outputs of a block go through dropout, whose masks have a byte a value."""
    adapter_rank: int = 0
    """Rank of LoRA adapters on all matrices of a gated stack, which is then frozen; 0: no adapters,
    and the stack is trained."""

    @property
    def attention_width(self) -> int:
        """q."""
        return self.heads * self.head_width

    @property
    def matrix_values(self) -> int:
        """Values of all matrices of the stack; biases and norms are not counted."""
        attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_width
        return self.layers * (attention + (3 if self.gated else 2) * self.width * self.mlp_width)

    @property
    def adapter_values(self) -> int:
        """Values of the adapters on all seven matrices of a gated block."""
        keys = self.kv_heads * self.head_width
        sides = 7 * self.width + 2 * self.attention_width + 2 * keys + 3 * self.mlp_width
        return self.layers * self.adapter_rank * sides

    def training_flops(self, positions: float, length: float) -> float:
        """FLOPs of a training step; frozen matrices need no gradient of their own."""
        whole = TRAINED * self.flops(positions, length)
        if not self.adapter_rank:
            return whole
        return whole + positions * (TRAINED * 2 * self.adapter_values - 2 * self.matrix_values)

    def flops(self, positions: float, length: float) -> float:
        """FLOPs of a forward pass over `positions` positions in sequences of `length`."""
        attention = 4 * self.layers * self.attention_width * length
        return positions * (2 * self.matrix_values + attention)

    def kept_bytes(self, positions: float, c: int) -> float:
        """Bytes that the blocks keep for backward.

        Both norms keep their input, and an RMSNorm its normalised input too. Attention keeps
        queries, keys, values (repeated to all heads) and its output. A GELU MLP keeps two, a
        SwiGLU MLP four tensors of width F. Two normalised inputs are D wide; under bf16 their
        `input_copies` take their place.

        With adapters a frozen norm keeps its input alone. Each adapter keeps the input of its
        matrix (under bf16 a copy, of attention's output too) and what it makes of it, r wide.
        """
        norms = (4 if self.gated and not self.adapter_rank else 2) * 4 * self.width
        inputs = (2 if c == 4 else self.input_copies) * c * self.width
        attention = 4 * c * self.attention_width + 4 * self.heads
        mlp = (4 if self.gated else 2) * c * self.mlp_width
        masks = 2 * self.width if self.dropout else 0
        copied = self.attention_width if c == 2 else 0
        adapters = c * (7 * self.adapter_rank + copied) if self.adapter_rank else 0
        return positions * self.layers * (norms + inputs + attention + mlp + masks + adapters)

    def gradient_bytes(self, positions: float, c: int) -> float:
        """Bytes of the gradients that the MLP of one block holds at once in its backward pass.

        Of a SwiGLU's product and both its factors, or of a GELU's output and input, each F wide.
        """
        return positions * (3 if self.gated else 2) * c * self.mlp_width

    def input_bytes(self, positions: float) -> float:
        """Bytes of the blocks' inputs, all that is kept with activation checkpointing."""
        return positions * self.layers * 4 * self.width

    def block_bytes(self, positions: float, c: int) -> float:
        """Bytes of one block, computed again, in its backward pass: kept tensors and gradients."""
        one = self._replace(layers=1).kept_bytes(positions, c)
        return one + self.gradient_bytes(positions, c)


def vit_stack(layers: int, width: int, heads: int, mlp_width: int) -> Stack:
    """The blocks of SigLIP."""
    return Stack(
        layers, width, mlp_width, heads, heads, width // heads, gated=False, input_copies=4
    )


class PatchCosts(NamedTuple):
    """From one picture's pixels to its positions: the stem's convolutions, if any, and patches."""

    flops: float
    inputs: float  # values that convolutions read
    normed: float  # values that a stem's norms and GELUs read, each one

    def kept(self, c: int) -> float:
        """Bytes for backward: a norm and a GELU keep their input in float32."""
        return c * self.inputs + 8 * self.normed


def patch_costs(arch: EncoderArch) -> PatchCosts:
    """Of a picture's way through the embeddings of the vision encoder."""
    side, width = arch.size_px, 3
    flops, inputs, normed = 0.0, 3.0 * side**2, 0.0
    for channels in arch.stem_channels:
        side = (side + 1) // 2
        for source in (width, channels):
            flops += 2 * 9 * source * channels * side**2
            inputs += channels * side**2
            normed += channels * side**2
        width = channels
    patch = arch.patch_px // 2 ** len(arch.stem_channels)
    return PatchCosts(flops + 2 * width * patch**2 * arch.width * arch.grid**2, inputs, normed)


def count(module: nn.Module) -> int:
    """Values of all parameters of a module; a shared one counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def conv_flops(part: VqvaeEncoder | VqvaeDecoder, size_px: int) -> float:
    """FLOPs of a forward pass of the image VQ's encoder or decoder on one square picture."""
    total = 0.0
    for module, side in _placed(part, size_px):
        convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        total += sum(2 * conv.weight.numel() * side**2 for conv in convs)
        if isinstance(module, AttnBlock):
            total += 4 * module.q.in_channels * side**4
    return total


def conv_kept_bytes(vqvae: Vqvae, size_px: int, c: int) -> float:
    """Bytes that the image VQ keeps of one square picture for backward.

    Before every 3x3 convolution of a block: the input of its GroupNorm, the output, and the SiLU's
    output, which is the convolution's input. A block of attention keeps its input, its normalised
    input, queries, keys, values, the weights before and after dropout's place, and its output.
    """
    total = 0.0
    for part in (vqvae.encoder, vqvae.decoder):
        for module, side in _placed(part, size_px):
            if isinstance(module, ResBlock):
                widths = module.conv1.in_channels + module.conv1.out_channels
                total += widths * side**2 * (8 + c)
            elif isinstance(module, AttnBlock):
                total += (4 + 6 * c) * module.q.in_channels * side**2 + 2 * c * side**4
            elif isinstance(module, nn.Conv2d):
                total += c * module.in_channels * side**2
    return total


def _placed(part: VqvaeEncoder | VqvaeDecoder, size_px: int) -> Iterator[tuple[nn.Module, int]]:
    """Each block and convolution of a part, with the side of the grid that it puts out."""
    full = size_px // part.unshuffle
    coarse = full // 2 ** (len(part.conv_blocks) - 1)
    encodes = isinstance(part, VqvaeEncoder)
    side = full if encodes else coarse
    yield part.conv_in, side
    middle = [(block, coarse) for block in part.mid]
    if not encodes:
        yield from middle
    for level in part.conv_blocks:
        assert isinstance(level, VqvaeLevel)
        yield from ((block, side) for block in [*level.res, *level.attn])
        for name, child in level.named_children():
            if name in ("downsample", "upsample"):
                side = side // 2 if encodes else side * 2
                yield child.conv, side  # type: ignore[misc]
    if encodes:
        yield from middle
    yield part.conv_out, side
