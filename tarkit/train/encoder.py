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
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.models.encoder import (
    EncoderArch,
    TextTower,
    VisionEncoder,
    VitMlp,
    sigmoid_contrastive_loss,
)
from tarkit.models.pixel_range import to_signed
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import PicturesConfig
from tarkit.train.processes import rows_of_all_processes
from tarkit.train.streams import (
    PictureRow,
    PictureStream,
    mixed_pictures,
    picture_parents,
    sized,
)
from tarkit.train.task import RowName
from tarkit.vocab import END_OF_TEXT, TextTokenizer, train_text_tokenizer

Box = tuple[float, float, float, float]
RegionsOf = Callable[[Mapping[str, Any]], Sequence[tuple[str, Box]] | None]
"""A row of an images artifact -> what stands where in its picture: phrases and their boxes (left,
top, right, bottom) in shares of its side, [0, 1]; None where that is not known."""


class EncoderConfig(PicturesConfig):
    """Settings of the contrastive training."""

    arch: EncoderArch = EncoderArch()
    text_width: PositiveInt = 128
    text_layers: PositiveInt = 2
    text_heads: PositiveInt = 4
    text_length: PositiveInt = 96
    text_vocab: int = Field(default=512, ge=259)
    grounding: NonNegativeFloat = 0.0
    """Weight of the grounding loss (object, phrase and box at a position). It counts only pictures
    whose regions are known."""
    surplus: NonNegativeFloat = 0.0
    """Weight, within the grounding loss, of the share of the features' variance that phrase and box
    do not explain. Other content of a feature becomes codes that a language model has to guess."""
    grounding_layer: int = -2
    """The hidden state that is grounded: the one that TA-Tok reads (`select_layer`). Later layers
    serve the vector of the whole picture, and need not keep content at its position."""
    caption: Literal["longest", "first"] = "longest"
    """The caption that a picture is compared with: a long one fits few other pictures."""

    @model_validator(mode="after")
    def _can_train(self) -> EncoderConfig:
        if self.micro_batch_size not in (None, self.batch_size):
            raise ValueError(
                "micro_batch_size splits a step, but every other picture of a step is a negative "
                "of the contrastive loss: leave it out, and use more processes where memory is "
                "short"
            )
        if self.text_width % self.text_heads:
            raise ValueError(
                f"text_heads = {self.text_heads} must divide text_width = {self.text_width}"
            )
        return self


class Pair(NamedTuple):
    """The B pictures of one process, each with one caption, among the S of its step."""

    pixels: Tensor  # (B, 3, size, size) in [-1, 1]
    ids: Tensor  # (B, T) caption tokens
    mask: Tensor  # (B, T) 1 where a token is real
    same: Tensor  # (S, S) bool: caption j is also picture i's
    regions: Regions | None = None


class Regions(NamedTuple):
    """The object, if any, at each of N positions of the S pictures of a step."""

    known: Tensor  # (S,) bool: whether the picture's regions are known
    phrase: Tensor  # (S, N) index of a phrase, -1 where there is no object
    box: Tensor  # (S, N, 4) centre x, y relative to the position's, width, height; in patches
    ids: Tensor  # (P, T) phrase tokens
    mask: Tensor  # (P, T)


class SigLip(nn.Module):
    """Vision and text tower, and scale and bias of the loss (SigLIP's start: ln 10 and -10)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.vision = VisionEncoder(config.arch)
        self.text = TextTower(
            vocab_size=config.text_vocab,
            length=config.text_length,
            width=config.text_width,
            layers=config.text_layers,
            heads=config.text_heads,
            out_width=config.arch.width,
        )
        self.config = config
        if config.grounding:
            self.grounding = Grounding(config.arch.width, surplus=config.surplus)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, pair: Pair) -> tuple[Tensor, dict[str, float]]:
        """The loss (), and figures: its parts; how many pictures match their own caption best.

        Both are those of the whole step, and every process has the same.
        """
        states = self.vision.hidden_states(pair.pixels)
        pictures = rows_of_all_processes(self.vision.pool(states[-1]))
        captions = rows_of_all_processes(self.text(pair.ids, pair.mask))
        loss = sigmoid_contrastive_loss(pictures, captions, pair.same, self.log_scale, self.bias)
        figures = {"contrastive": float(loss.detach())}
        if pair.regions is not None:
            phrases = self.text(pair.regions.ids, pair.regions.mask)
            grounded = rows_of_all_processes(states[self.config.grounding_layer])
            grounding, measured = self.grounding(grounded, phrases, pair.regions)
            loss = loss + self.config.grounding * grounding
            figures |= measured
        with torch.no_grad():
            nearest = (F.normalize(pictures, dim=-1) @ F.normalize(captions, dim=-1).T).argmax(1)
            figures["retrieval"] = float(pair.same.gather(1, nearest[:, None]).float().mean())
        return loss, figures


class Grounding(nn.Module):
    """Predicts from a position's feature whether an object is there, its phrase and its box.

    A classification and a regression in place of LocCa's boxes and regional captions in SigLIP 2
    (Tschannen et al. 2025, Sec. 2.2): without them a small encoder learns colours long before
    shapes. With `surplus`, one more head predicts the feature from phrase and box.
    """

    def __init__(self, width: int, *, surplus: float = 0.0) -> None:
        super().__init__()
        self.surplus = surplus
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.object = nn.Linear(width, 1)
        self.phrase = nn.Linear(width, width)
        self.box = nn.Linear(width, 4)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        if surplus:
            self.nothing = nn.Parameter(torch.zeros(width))
            self.expected = VitMlp(width, 4 * width)
            self.placed = nn.Linear(4, width)

    def forward(
        self, features: Tensor, phrases: Tensor, regions: Regions
    ) -> tuple[Tensor, dict[str, float]]:
        """Features (B, N, D), phrase vectors (P, D) -> the loss (), and its parts as figures."""
        x = self.norm(features)
        occupied = regions.phrase >= 0
        is_object = F.binary_cross_entropy_with_logits(
            self.object(x[regions.known])[..., 0], occupied[regions.known].float()
        )
        x, target, box = x[occupied], regions.phrase[occupied], regions.box[occupied]
        logits = F.normalize(self.phrase(x), dim=-1) @ F.normalize(phrases, dim=-1).T
        phrase = F.cross_entropy(logits * self.log_scale.exp(), target)
        place = F.smooth_l1_loss(self.box(x), box)
        figures = {
            "object": float(is_object.detach()),
            "phrase": float(phrase.detach()),
            "box": float(place.detach()),
            "phrases_right": float((logits.argmax(1) == target).float().mean()),
        }
        loss = is_object + phrase + place
        if self.surplus:
            unexplained = self._unexplained(features, phrases, regions)
            figures["surplus"] = float(unexplained.detach())
            loss = loss + self.surplus * unexplained
        return loss, figures

    def _unexplained(self, features: Tensor, phrases: Tensor, regions: Regions) -> Tensor:
        """The share () of the features' variance that phrase and box do not explain.

        Features are (B, N, D); those of pictures without a known scene are left out.
        """
        occupied = regions.phrase >= 0
        expected = self.nothing.expand_as(features).clone()
        content = phrases[regions.phrase[occupied]] + self.placed(regions.box[occupied])
        expected[occupied] = content + self.expected(content)
        residuals = (features - expected)[regions.known].flatten(0, 1)
        known = features[regions.known].flatten(0, 1)
        return residuals.square().mean() / known.var(0, correction=0).mean()


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
        texts = [self._caption(stream[i]) for i in range(min(stream.total, 4096))]
        self.tokenizer = TextTokenizer(train_text_tokenizer(texts, vocab_size=config.text_vocab))

    def _caption(self, row: PictureRow) -> str:
        """The caption that a picture is compared with; UserError where it has none."""
        captions = [c for c in [*(row["captions"] or []), row["prompt"]] if c]
        if not captions:
            raise UserError(
                f"picture {row['key']} has no caption to be compared with",
                hint="leave such pictures out, or caption them first",
            )
        return captions[0] if self.config.caption == "first" else max(captions, key=len)

    def batch(self, step: int, size: int, part: int, parts: int) -> Pair:
        rows = self.stream.batch(step, size * parts)
        own = slice(part * size, (part + 1) * size)
        captions = [self._caption(row) for row in rows]
        table, mask = self._tokens(captions)
        same = torch.tensor([[a == b for b in captions] for a in captions])
        pictures = [sized(row.pixels(), self.config.arch.size_px) for row in rows[own]]
        regions = self._regions(rows) if self.config.grounding else None
        return Pair(to_signed(pictures), table[own], mask[own], same, regions)

    def weight(self, batch: Pair) -> float:
        """Pictures."""
        return len(batch.pixels)

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> ids (B, T) and mask (B, T); UserError where one exceeds `text_length`."""
        end = self.tokenizer.special[END_OF_TEXT]
        ids = [[end, *tokens, end] for tokens in self.tokenizer.encode_batch(texts)]
        longest = max(map(len, ids))
        if longest > self.config.text_length:
            raise UserError(
                f"a caption has {longest} tokens, text_length is {self.config.text_length}: "
                f"{max(texts, key=len)!r}",
                hint=f"--set text_length={longest}",
            )
        table = torch.zeros(len(ids), longest, dtype=torch.long)
        mask = torch.zeros(len(ids), longest)
        for row, tokens in enumerate(ids):
            table[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return table, mask

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
        return Regions(known, phrase, box, *self._tokens(list(names)))

    def loss(self, model: nn.Module, batch: Pair, step: int) -> tuple[Tensor, dict[str, float]]:
        loss, figures = model(batch)
        return loss, figures

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
