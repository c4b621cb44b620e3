"""What Dif-DTok costs in training: SANA, and the frozen models that feed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tarkit.models.ta_tok import TaTokArch
from tarkit.train.sana_costs import SanaCosts, vae_encoder_flops
from tarkit.train.workloads.tokenizer import TaTokParts, decode_flops, encoder_flops, ta_tok_parts
from tarkit.vocab import Scale


class DifDtokCosts(NamedTuple):
    """The sizes that decide what a step costs."""

    sana: SanaCosts
    positions: int  # of a picture in SANA
    latents: int  # values of a picture
    ta_tok: TaTokArch
    parts: TaTokParts
    encoding: float  # FLOPs of the autoencoder on one picture; 0 where latents are stored

    @classmethod
    def of(
        cls,
        transformer: Any,
        vae: Any,
        ta_tok: TaTokArch,
        *,
        size_px: int,
        trains_all: bool,
        from_images: bool,
    ) -> DifDtokCosts:
        """Of models of diffusers; their weights are not read. With `from_images` `vae` runs."""
        side = size_px // 2 ** (len(vae.config.encoder_block_out_channels) - 1)
        return cls(
            SanaCosts.of(transformer, trains_all=trains_all),
            (side // transformer.config.patch_size) ** 2,
            vae.config.latent_channels * side**2,
            ta_tok,
            ta_tok_parts(ta_tok),
            vae_encoder_flops(vae, size_px) if from_images else 0.0,
        )

    def frozen_flops(self, codes: float, scales: Sequence[Scale]) -> float:
        """FLOPs of the frozen models on a picture whose condition is made of `codes` codes.

        `scales`: those that a picture is encoded at, where it is.
        """
        flops = decode_flops(self.parts, codes)
        if self.encoding:
            arch, grid = self.ta_tok, self.ta_tok.encoder.grid
            every_scale = sum(scale.num_codes(grid) for scale in scales)
            flops += encoder_flops(self.parts, grid**2) + self.encoding
            flops += 2 * (self.parts.project + arch.num_codes * arch.code_width) * every_scale
        return flops

    def input_bytes(self, condition: float) -> float:
        """Bytes of a picture's latents, noise, their mixture and target, and of its condition."""
        return 4.0 * (5 * self.latents + condition * self.sana.condition_width)
