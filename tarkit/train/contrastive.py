"""What `train encoder` trains: two towers that are compared, and heads that say what stands where.

Letters: B pictures of a process, S pictures of a step, N positions (grid**2), D width, T caption
tokens, P phrases.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn

from tarkit.models.encoder import (
    EncoderArch,
    TextTower,
    VisionEncoder,
    VitMlp,
    sigmoid_contrastive_loss,
)
from tarkit.train.captions import Chosen
from tarkit.train.loop_config import PicturesConfig
from tarkit.train.processes import rows_of_all_processes


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
    caption: Chosen = "longest"
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
