"""What SigLIP costs in training: a vision tower, a text tower, and the loss over all pairs.

Counted as in `tarkit.train.costs`, where the formulas of the towers' blocks stand.

Letters: N positions, D width, S side in pixels, c bytes of a computed value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tarkit.models.encoder import EncoderArch
from tarkit.train.costs import TRAINED, Stack, patch_costs, vit_stack

if TYPE_CHECKING:
    from tarkit.train.contrastive import EncoderConfig


class ContrastiveCosts(NamedTuple):
    """The sizes that decide what a contrastive step costs."""

    arch: EncoderArch
    vision: Stack
    text: Stack

    @classmethod
    def of(cls, config: EncoderConfig) -> ContrastiveCosts:
        """Of the settings of `train encoder`."""
        arch, width = config.arch, config.text_width
        return cls(
            arch,
            vit_stack(arch.layers, arch.width, arch.heads, arch.mlp_width),
            vit_stack(config.text_layers, width, config.text_heads, 4 * width),
        )

    def flops(self, pictures: float, tokens: float, squared: float, *, of_step: int) -> float:
        """FLOPs of forward and backward pass over pictures with captions of `tokens` in all.

        `squared`: the sum over captions of length squared. Each picture is compared with the
        captions of a step of `of_step` pictures, and once more, without a gradient, to find the
        nearest one.
        """
        D, N = self.arch.width, self.arch.grid**2
        vision = self.vision.flops(N, N) + patch_costs(self.arch).flops
        # The pool's keys and values of all positions; its query, output and MLP once.
        pool = 4 * D**2 * N + 4 * D * N + 4 * D**2 + 4 * D * self.arch.mlp_width
        head = 2 * self.text.width * D
        pairs = 2 * of_step * D
        text = self.text.flops(tokens, squared / max(tokens, 1))
        return TRAINED * (text + pictures * (vision + pool + head + pairs)) + pictures * pairs

    def end_bytes(self, c: int) -> float:
        """Bytes kept of a picture outside of blocks: pixels, patches, and what the pool reads."""
        D, N = self.arch.width, self.arch.grid**2
        return patch_costs(self.arch).kept(c) + N * D * (4 + 3 * c)
