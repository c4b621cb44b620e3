"""What a step of `train dif-dtok` costs."""

from __future__ import annotations

from typing import Any, NamedTuple

from tarkit.errors import UserError
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.train.condition_layers import DifDtok
from tarkit.train.costs import FROZEN, count
from tarkit.train.dif_dtok_costs import DifDtokCosts
from tarkit.train.sana_costs import HINT, SANA_600M, build_sana
from tarkit.train.workloads.workload import (
    Kept,
    Settings,
    Start,
    Workload,
    bytes_of,
    on_meta,
    scale_odds,
)

ENCODER_TENSORS = 4
"""Tensors of a picture's full size that the autoencoder's first block holds at once: input and
output, and what is between its two convolutions."""


def dif_dtok(settings: Settings, start: Start) -> Workload:
    """Flow matching of latents; TA-Tok and the autoencoder run in float32."""
    ta_tok, configs = start.tokenizer or TaTokArch(), start.sana or SANA_600M
    width = ta_tok.encoder.width
    transformer, vae = build_sana(
        configs._replace(transformer={**configs.transformer, "caption_channels": width})
    )
    downsampling = 2 ** (len(vae.config.encoder_block_out_channels) - 1)
    size = settings["size_px"] or transformer.config.sample_size * downsampling
    if size <= 0 or size % (downsampling * transformer.config.patch_size):
        raise UserError(f"size_px = {size} does not divide by {downsampling}", hint=HINT)
    model, c = DifDtok(transformer, trained=settings["trained"]), bytes_of(settings)
    costs = DifDtokCosts.of(
        transformer,
        vae,
        ta_tok,
        size_px=size,
        trains_all=settings["trained"] == "all",
        from_images=start.from_images,
    )
    sana, positions, grid = costs.sana, costs.positions, ta_tok.encoder.grid
    odds = scale_odds(settings["scale_ratio"])
    drops = settings["condition_dropout"]
    null = Null(grid**2, drops)
    mean = sum(share * null.mean(scale.num_codes(grid)) for scale, share in odds)
    most = max(grid**2 if drops else 0, *(scale.num_codes(grid) for scale, _ in odds))
    scales = [scale for scale, _ in odds]
    frozen = sum(
        share * costs.frozen_flops(scale.num_codes(grid) * (1 - drops), scales)
        for scale, share in odds
    )

    def kept(rows: int) -> Kept:
        seen, condition = rows * positions, rows * most
        ends = sana.end_bytes(seen, condition, c) + rows * costs.input_bytes(most)
        gradient, block = sana.gradient_bytes(seen, c), sana.block_bytes(seen, condition, c)
        return Kept(
            sana.kept_bytes(seen, condition, c) + rows * costs.input_bytes(most),
            sana.layers * 4 * sana.width * seen + ends,
            gradient,
            block + gradient,
        )

    def encoding(rows: int) -> float:
        channels: Any = vae.config.encoder_block_out_channels[0]
        return float(ENCODER_TENSORS * 4 * rows * channels * size**2)

    source = "latents and codes come from --tokens"
    stored = 2.0 * (sum(scale.num_codes(grid) for scale in scales)) + 4 * costs.latents
    if start.from_images:
        source = "the tokenizer and the autoencoder run on the same GPUs, once for each picture"
    return Workload(
        unit="pictures",
        model=model,
        tokens=positions,
        flops=sana.training_flops(positions, mean),
        block_flops=sana.layers * sana.block_flops(positions, mean),
        kept=kept,
        read_bytes=start.picture_bytes if start.from_images else stored,
        frozen=count(on_meta(TaTok, ta_tok)) + count(vae),
        frozen_flops=FROZEN * frozen,
        float32_flops=FROZEN * frozen,
        frozen_is_saved=False,
        before_pass=encoding if start.from_images else lambda rows: 0.0,
        more_model_bytes=4.0 * (count(vae) + model_values(model)),
        assumptions=(
            source,
            *((f"{start.picture_bytes / 1e3:g} kB a picture on the disk",) * start.from_images),
            *(() if start.tokenizer else ("the tokenizer is the released TA-Tok",)),
            *(() if start.sana else ("SANA is SANA-0.6B at 512 px",)),
        ),
    )


class Null(NamedTuple):
    """The condition of pictures whose own is dropped."""

    positions: int
    share: float

    def mean(self, codes: int) -> float:
        """Condition positions of a picture, on average, whose own condition has `codes`."""
        return (1 - self.share) * codes + self.share * self.positions


def model_values(model: DifDtok) -> int:
    """Values of what is trained, which a model directory holds twice."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
