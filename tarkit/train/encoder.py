"""`tarkit train encoder`: a small SigLIP 2, pictures against captions.

Stands in for the pretrained siglip2 that the paper downloads (Sec. 4.1); at paper size that one is
loaded instead. As there, the sigmoid contrastive loss is joined by a grounding loss: a position's
feature tells which phrase stands there, and in which box.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
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
from tarkit.shapes.scene import SIDE_PX, bounding_box, scene_from_json
from tarkit.train.loop import LoopConfig, begin_training, train
from tarkit.train.streams import PictureRow, Stream, picture_stream, sized, to_pixels
from tarkit.vocab import END_OF_TEXT, TextTokenizer, train_text_tokenizer


class EncoderConfig(LoopConfig):
    """Numbers of the contrastive training."""

    arch: EncoderArch = EncoderArch()
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_length: int = 96
    text_vocab: int = Field(default=512, ge=259)
    grounding: float = 0.0
    """Weight of the grounding loss: which phrase, and which box, stands at a position. Only
    pictures with a known scene take part."""
    surplus: float = 0.0
    """Weight, within the grounding loss, of what features tell beside phrase and box: the share of
    their variance that these two do not explain. What else a feature tells becomes codes that a
    language model must learn to guess."""
    grounding_layer: int = -2
    """The hidden state that is grounded: the one that TA-Tok will read (`select_layer`). What comes
    after it serves the whole picture's vector, and may write anything anywhere."""
    caption: Literal["longest", "first"] = "longest"
    """Which of a picture's captions it is compared with: a full one fits few other pictures."""


class Pair(NamedTuple):
    pixels: Tensor  # (B, 3, size, size) in [-1, 1]
    ids: Tensor  # (B, T) caption tokens
    mask: Tensor  # (B, T) 1 where a token is real
    same: Tensor  # (B, B) bool: caption j is also picture i's
    regions: Regions | None = None


class Regions(NamedTuple):
    """What stands at each of N positions of the pictures of a batch."""

    known: Tensor  # (B,) bool: the picture's scene is known
    phrase: Tensor  # (B, N) index of a phrase, -1 where no object is
    box: Tensor  # (B, N, 4) centre x, y from the position's own, width, height; in patches
    ids: Tensor  # (P, T) phrase tokens
    mask: Tensor  # (P, T)


class SigLip(nn.Module):
    """Both towers, and the loss's scale and bias (started as SigLIP's: ln 10 and -10)."""

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
        """The loss, its parts, and the share of pictures whose own caption scores highest."""
        states = self.vision.hidden_states(pair.pixels)
        pictures = self.vision.pool(states[-1])
        captions = self.text(pair.ids, pair.mask)
        loss = sigmoid_contrastive_loss(pictures, captions, pair.same, self.log_scale, self.bias)
        figures = {"contrastive": float(loss.detach())}
        if pair.regions is not None:
            phrases = self.text(pair.regions.ids, pair.regions.mask)
            grounded = states[self.config.grounding_layer]
            grounding, measured = self.grounding(grounded, phrases, pair.regions)
            loss = loss + self.config.grounding * grounding
            figures |= measured
        with torch.no_grad():
            found = (F.normalize(pictures, dim=-1) @ F.normalize(captions, dim=-1).T).argmax(1)
            figures["retrieval"] = float(pair.same.gather(1, found[:, None]).float().mean())
        return loss, figures


class Grounding(nn.Module):
    """What and where, read from each position's feature: an object or none, its phrase, its box.

    Stands in for LocCa's boxes and regional captions in SigLIP 2 (Tschannen et al. 2025, Sec. 2.2),
    as a classification and a regression: without them a small encoder learns colours long before
    shapes. With `surplus`, a further head predicts a feature from what should be read from it.
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
        """Features (B, N, D) and phrase vectors (P, D) -> the loss and its parts."""
        x = self.norm(features)
        there = regions.phrase >= 0
        is_object = F.binary_cross_entropy_with_logits(
            self.object(x[regions.known])[..., 0], there[regions.known].float()
        )
        x, said, box = x[there], regions.phrase[there], regions.box[there]
        logits = F.normalize(self.phrase(x), dim=-1) @ F.normalize(phrases, dim=-1).T
        phrase = F.cross_entropy(logits * self.log_scale.exp(), said)
        place = F.smooth_l1_loss(self.box(x), box)
        figures = {
            "object": float(is_object.detach()),
            "phrase": float(phrase.detach()),
            "box": float(place.detach()),
            "phrases_right": float((logits.argmax(1) == said).float().mean()),
        }
        loss = is_object + phrase + place
        if self.surplus:
            unexplained = self._unexplained(features, phrases, regions)
            figures["surplus"] = float(unexplained.detach())
            loss = loss + self.surplus * unexplained
        return loss, figures

    def _unexplained(self, features: Tensor, phrases: Tensor, regions: Regions) -> Tensor:
        """The share of the variance of known pictures' features that phrase and box leave over."""
        there = regions.phrase >= 0
        expected = self.nothing.expand_as(features).clone()
        told = phrases[regions.phrase[there]] + self.placed(regions.box[there])
        expected[there] = told + self.expected(told)
        left = (features - expected)[regions.known].flatten(0, 1)
        found = features[regions.known].flatten(0, 1)
        return left.square().mean() / found.var(0, correction=0).mean()


class EncoderTask:
    """Each picture with one caption; what other captions of the batch say counts as wrong."""

    def __init__(self, config: EncoderConfig, stream: Stream[PictureRow]) -> None:
        self.config = config
        self.stream = stream
        self.model: SigLip = SigLip(config)
        texts = [self._caption(stream[i]) for i in range(min(stream.total, 4096))]
        self.tokenizer = TextTokenizer(train_text_tokenizer(texts, vocab_size=config.text_vocab))

    def _caption(self, row: PictureRow) -> str:
        """The caption to compare a picture with; UserError where it has none."""
        captions = [c for c in [*(row["captions"] or []), row["prompt"]] if c]
        if not captions:
            raise UserError(
                f"picture {row['key']} has no caption to be compared with",
                hint="leave such pictures out, or caption them first",
            )
        return captions[0] if self.config.caption == "first" else max(captions, key=len)

    def batch(self, step: int, size: int, rank: int, world: int) -> Pair:
        rows = self.stream.batch(step, size, rank=rank, world=world)
        captions = [self._caption(row) for row in rows]
        table, mask = self._tokens(captions)
        same = torch.tensor([[a == b for b in captions] for a in captions])
        pictures = [sized(row.pixels(), self.config.arch.size_px) for row in rows]
        regions = self._regions(rows) if self.config.grounding else None
        return Pair(to_pixels(pictures), table, mask, same, regions)

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> ids (B, T) and mask; UserError where one has no room."""
        end = self.tokenizer.special[END_OF_TEXT]
        ids = [[end, *found, end] for found in self.tokenizer.encode_batch(texts)]
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
        """Where the objects of the pictures' scenes stand; None where no scene is known."""
        side = self.config.arch.size_px // self.config.arch.patch_px
        known = torch.tensor([row["scene"] is not None for row in rows])
        phrase = torch.full((len(rows), side * side), -1)
        box = torch.zeros(len(rows), side * side, 4)
        names: dict[str, int] = {}
        for index, row in enumerate(rows):
            for item in scene_from_json(row["scene"]).objects if known[index] else ():
                number = names.setdefault(f"{item.colour} {item.shape}", len(names))
                bounds = np.asarray(bounding_box(item)) * side / SIDE_PX
                where, offsets = covered(bounds, side)
                phrase[index, where] = number
                box[index, where] = offsets
        if not names:
            return None
        return Regions(known, phrase, box, *self._tokens(list(names)))

    def loss(self, model: nn.Module, batch: Pair, step: int) -> tuple[Tensor, dict[str, float]]:
        loss, figures = model(batch)
        return loss, figures

    def after_step(self, step: int, model: nn.Module) -> None:
        return None

    def samples(self, step: int) -> Image.Image | None:
        return None

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        """The vision tower; the text tower has done its work."""
        return self.model.vision, {
            "kind": "encoder",
            "arch": self.config.arch.model_dump(mode="json"),
        }


def covered(bounds: np.ndarray, side: int, *, least: float = 0.25) -> tuple[Tensor, Tensor]:
    """Positions of a `side` x `side` grid that a box (x0, y0, x1, y1), in patches, stands on.

    Those of which it covers at least the share `least`, and the one it covers most. Returns their
    indices (M,) row-major, and (M, 4): the box's centre from theirs, its width and height.
    """
    x0, y0, x1, y1 = bounds
    cells = np.arange(side)
    across = np.clip(np.minimum(x1, cells + 1) - np.maximum(x0, cells), 0, 1)
    down = np.clip(np.minimum(y1, cells + 1) - np.maximum(y0, cells), 0, 1)
    share = np.outer(down, across).ravel()
    where = np.flatnonzero(share >= min(least, share.max()))
    rows, columns = np.divmod(where, side)
    size = np.full(len(where), x1 - x0), np.full(len(where), y1 - y0)
    offsets = ((x0 + x1) / 2 - columns - 0.5, (y0 + y1) / 2 - rows - 0.5, *size)
    return torch.from_numpy(where), torch.from_numpy(np.stack(offsets, 1)).float()


def run(config: Path | None, *, images: Path, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Train a vision encoder on captioned pictures; returns the model directory."""
    settings = load_config(EncoderConfig, config, overrides)
    begin_training(settings.seed)
    stream = picture_stream(open_artifact(images, "images"), seed=settings.seed)
    return train(
        EncoderTask(settings, stream), settings, out=out, name="encoder", parents={"images": images}
    )
