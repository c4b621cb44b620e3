"""`tarkit train encoder`: a small SigLIP 2, trained on pictures and their captions.

It replaces, in miniature, the pretrained siglip2 that the paper uses (Sec. 4.1); at paper size that
one is loaded. As in SigLIP 2, a grounding loss is added to the sigmoid contrastive loss: the object
at a position, its phrase and its box are predicted from the position's feature.

Letters: B pictures of a process, S pictures of a step, N positions (grid**2), D width, T caption
tokens, P phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.models.pixel_range import to_signed
from tarkit.train.captions import CaptionTokens
from tarkit.train.contrastive import EncoderConfig, Pair, Regions, SigLip
from tarkit.train.contrastive_costs import ContrastiveCosts
from tarkit.train.loop import begin_training, train
from tarkit.train.streams import (
    PictureRow,
    PictureStream,
    mixed_pictures,
    picture_parents,
    sized,
)
from tarkit.train.task import Amount, Figure, RowName

Box = tuple[float, float, float, float]
RegionsOf = Callable[[Mapping[str, Any]], Sequence[tuple[str, Box]] | None]
"""A row of an images artifact -> what stands where in its picture: phrases and their boxes (left,
top, right, bottom) in shares of its side, [0, 1]; None where that is not known."""


class EncoderTask:
    """Pictures against captions: those of the step's other pictures, on all processes, are the
    negatives.

    `regions_of` is needed for a grounding weight above 0.
    """

    def __init__(
        self,
        config: EncoderConfig,
        stream: PictureStream,
        *,
        regions_of: RegionsOf | None = None,
    ) -> None:
        if config.grounding and regions_of is None:
            raise UserError(
                f"grounding = {config.grounding} needs to know what stands where in the pictures",
                hint="--set grounding=0",
            )
        self.config = config
        self.stream = stream
        self.regions_of = regions_of
        # The grounding heads, where no picture of a step has known regions.
        self.unused_parameters = config.grounding > 0
        self.model: SigLip = SigLip(config)
        self.costs = ContrastiveCosts.of(config)
        self.tokens = CaptionTokens(
            stream,
            chosen=config.caption,
            vocab_size=config.text_vocab,
            max_length=config.text_length,
            key="text_length",
        )

    def batch(self, step: int, size: int, part: int, parts: int) -> Pair:
        rows = self.stream.batch(step, size * parts)
        own = slice(part * size, (part + 1) * size)
        table, mask, same = self.tokens.compared(rows)
        pictures = [sized(row.pixels(), self.config.arch.size_px) for row in rows[own]]
        regions = self._regions(rows) if self.config.grounding else None
        return Pair(to_signed(pictures), table[own], mask[own], same, regions)

    def weight(self, batch: Pair) -> float:
        """Pictures."""
        return len(batch.pixels)

    def _regions(self, rows: Sequence[PictureRow]) -> Regions | None:
        """The regions of the pictures on the encoder's grid; None where none is known."""
        assert self.regions_of is not None  # __init__ refuses a weight without it
        side = self.config.arch.size_px // self.config.arch.patch_px
        regions = [self.regions_of(row) for row in rows]
        phrase = torch.full((len(rows), side * side), -1)
        box = torch.zeros(len(rows), side * side, 4)
        names: dict[str, int] = {}
        for index, in_picture in enumerate(regions):
            for name, bounds in in_picture or ():
                where, offsets = covered(np.asarray(bounds) * side, side)
                phrase[index, where] = names.setdefault(name, len(names))
                box[index, where] = offsets
        if not names:
            return None
        known = torch.tensor([in_picture is not None for in_picture in regions])
        return Regions(known, phrase, box, *self.tokens(list(names)))

    def loss(self, model: nn.Module, batch: Pair, step: int) -> tuple[Tensor, dict[str, Figure]]:
        loss, figures = model(batch)
        lengths = batch.mask.sum(1)
        # In one transfer, as each waits for the device.
        tokens, squared = torch.stack([lengths.sum(), lengths.square().sum()]).tolist()
        flops = self.costs.flops(len(batch.pixels), tokens, squared, of_step=len(batch.same))
        return loss, {**figures, "flops_per_s": Amount(flops)}

    def row_names(self, batch: Pair, first: int) -> list[RowName]:
        return [self.stream[first + i].name for i in range(len(batch.pixels))]

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> Image.Image | None:
        return None

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        """The vision tower alone: no later step uses the text tower."""
        return self.model.vision, {
            "kind": "encoder",
            "arch": self.config.arch.model_dump(mode="json"),
        }


def covered(bounds: np.ndarray, side: int, *, least: float = 0.25) -> tuple[Tensor, Tensor]:
    """Positions of a `side` x `side` grid that a box (x0, y0, x1, y1), in patches, covers.

    A position is covered to at least the share `least`, in [0, 1], or more than any other. Returns
    M row-major indices (M,), and (M, 4): the box's centre x, y relative to the position's centre,
    its width and height, in patches.
    """
    x0, y0, x1, y1 = bounds
    cells = np.arange(side)
    across = np.clip(np.minimum(x1, cells + 1) - np.maximum(x0, cells), 0, 1)
    down = np.clip(np.minimum(y1, cells + 1) - np.maximum(y0, cells), 0, 1)
    share = np.outer(down, across).ravel()
    positions = np.flatnonzero(share >= min(least, share.max()))
    rows, columns = np.divmod(positions, side)
    size = np.full(len(positions), x1 - x0), np.full(len(positions), y1 - y0)
    offsets = ((x0 + x1) / 2 - columns - 0.5, (y0 + y1) / 2 - rows - 0.5, *size)
    return torch.from_numpy(positions), torch.from_numpy(np.stack(offsets, 1)).float()


def run(
    config: Path | None,
    *,
    images: Sequence[Path],
    out: Path,
    overrides: Sequence[str] = (),
    regions_of: RegionsOf | None = None,
) -> Path:
    """Train a vision encoder on captioned pictures; returns the model directory.

    `images`: images artifacts, which are mixed by weight.

    Raises UserError for a grounding weight above 0 without `regions_of`.
    """
    settings = load_config(EncoderConfig, config, overrides)
    begin_training(settings.seed)
    artifacts = [open_artifact(path, "images") for path in images]
    stream = mixed_pictures(artifacts, settings.images_weights, seed=settings.seed)
    task = EncoderTask(settings, stream, regions_of=regions_of)
    return train(task, settings, out=out, name="encoder", parents=picture_parents(images))
