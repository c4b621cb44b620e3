"""What one step of a training computes and keeps; what every trainer's costs have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tarkit.models.ar_dtok import ArDtokArch
from tarkit.models.encoder import EncoderArch
from tarkit.models.ta_tok import TaTokArch
from tarkit.models.vqvae import VqvaeArch
from tarkit.train.sana_costs import SanaConfigs
from tarkit.train.task import Amount
from tarkit.vocab import Scale

Settings = Mapping[str, Any]
"""A trainer's config as `model_dump()` gives it."""


@dataclass(frozen=True)
class Start:
    """What a training starts from, as far as its sizes depend on it; None is the default."""

    lm: Path | None = None
    embedding_width: int | None = None  # of `lm`, where it is known without its folder
    tokenizer: TaTokArch | None = None
    encoder: EncoderArch | None = None
    vqvae: VqvaeArch | None = None
    ar_dtok: ArDtokArch | None = None
    sana: SanaConfigs | None = None
    size_px: int | None = None
    text_tokens: int = 100
    picture_bytes: float = 100e3
    scale: Scale = Scale.FULL  # at which grpo draws
    from_images: bool = False  # a de-tokenizer's training encodes pictures as they come


class Kept(NamedTuple):
    """Bytes of one forward pass that its backward pass needs."""

    activations: float
    checkpointed: float  # activations with activation checkpointing
    loss: float  # logits of a cross-entropy (if larger: a block's gradients); scores of a codebook
    block: float = 0.0  # of a block that is computed again, when the loss has gone


@dataclass(frozen=True)
class Workload:
    """The cost of a trainer's step. Figures of a row are means over what is drawn."""

    unit: str  # a row of batch_size: "pictures" or "chats"
    model: nn.Module  # what is trained, on the meta device
    tokens: float  # positions of a row in the trained model
    flops: float  # of a row, forward and backward
    kept: Callable[[int], Kept]  # B -> bytes of a pass, at the fullest
    read_bytes: float  # of a row on the disk
    idle: int = 0  # trained values that no gradient reaches
    tied: int = 0  # trained values with two gradients, which are whole before they are added
    frozen: int = 0  # values of frozen models
    frozen_in_checkpoint: bool = False
    frozen_flops: float = 0.0  # of a row
    block_flops: float = 0.0  # of a row's forward pass through blocks: again if checkpointed
    recomputed_flops: Callable[[int], float] = lambda rows: 0.0  # B -> of a row, in a pass of B
    float32_flops: float = 0.0  # those of a row's that autocast is switched off for
    pass_flops: float = 0.0  # of a pass, however many rows it has; in float32
    frozen_is_saved: bool = True  # whether checkpoints hold the model's frozen values
    before_pass: Callable[[int], float] = lambda rows: 0.0  # B -> bytes, gone before the pass
    more_model_bytes: float = 0.0  # of files that a trained model has beside its weights
    is_divisible: bool = True  # a step may be read in several passes
    part: str | None = None  # the name of `model` in the module that is trained; None: it is that
    assumptions: tuple[str, ...] = ()


def bytes_of(settings: Settings) -> int:
    """c: bytes of a computed value."""
    return 2 if settings["precision"] == "bf16" else 4


def on_meta(build: Callable[[Any], nn.Module], arch: Any) -> Any:
    with torch.device("meta"):
        return build(arch)


def scale_odds(ratio: Sequence[int]) -> list[tuple[Scale, float]]:
    """Scales of a ratio with their probabilities."""
    return [(s, n / sum(ratio)) for s, n in zip(Scale, ratio, strict=True) if n]


class RowFlops(NamedTuple):
    """FLOPs of forward and backward pass, frozen models included, nothing computed twice."""

    row: float
    float32: float  # of a row, whatever `precision` is
    once: float  # of a pass, however many rows it has; in float32

    def amounts(self, rows: int) -> dict[str, Amount]:
        """The figures of a pass over so many rows."""
        slow = self.float32 * rows + self.once
        return {
            "flops_per_s": Amount(self.row * rows + self.once),
            "float32_flops_per_s": Amount(slow),
        }


def flops_by_scale(
    workload: Callable[[Settings, Start], Workload], settings: Settings, start: Start
) -> dict[Scale, RowFlops]:
    """What a row costs at each scale that a training draws."""
    costs = {}
    for scale, _ in scale_odds(settings["scale_ratio"]):
        alone = {"scale_ratio": [int(scale == other) for other in Scale]}
        work = workload({**settings, **alone}, start)
        costs[scale] = RowFlops(work.flops + work.frozen_flops, work.float32_flops, work.pass_flops)
    return costs
