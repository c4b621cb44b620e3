"""`tarkit train encoder`: a small SigLIP 2, pictures against captions.

Stands in for the pretrained siglip2 that the paper downloads (Sec. 4.1); at paper size that one is
loaded instead. As there, the sigmoid contrastive loss is joined by a captioning decoder and by a
loss on every position; for the latter each feature tells its own patch's pixels, where SigLIP 2
distils itself and predicts masked positions, which needs more steps than a laptop has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tarkit.artifacts import open_artifact
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.models.encoder import (
    CaptionDecoder,
    EncoderArch,
    TextTower,
    VisionEncoder,
    sigmoid_contrastive_loss,
)
from tarkit.train.data import Picture, Stream, picture_stream, sized, to_pixels
from tarkit.train.loop import LoopConfig, train
from tarkit.vocab import END_OF_TEXT, TextTokenizer, train_text_tokenizer


class EncoderConfig(LoopConfig):
    """Numbers of the contrastive training."""

    arch: EncoderArch = EncoderArch()
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_length: int = 96
    text_vocab: int = 512
    captioning: float = 0.0
    """Weight of the captioning loss on the encoder's last features."""
    dense: float = 0.0
    """Weight of the mean squared error of each patch's pixels, read linearly from its feature."""
    caption: Literal["longest", "first"] = "longest"
    """Which of a picture's captions it is compared with: a full one fits few other pictures."""


class Pair(NamedTuple):
    pixels: Tensor  # (B, 3, size, size) in [-1, 1]
    ids: Tensor  # (B, T) caption tokens
    mask: Tensor  # (B, T) 1 where a token is real
    same: Tensor  # (B, B) bool: caption j is also picture i's


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
        if config.captioning:
            self.captioner = CaptionDecoder(
                vocab_size=config.text_vocab,
                length=config.text_length,
                width=config.arch.width,
                layers=config.text_layers,
                heads=config.text_heads,
            )
        if config.dense:
            self.patch_pixels = nn.Linear(config.arch.width, 3 * config.arch.patch_px**2)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, pair: Pair) -> tuple[Tensor, dict[str, float]]:
        """The loss, its parts, and the share of pictures whose own caption scores highest."""
        features = self.vision.features(pair.pixels)
        pictures = self.vision.pool(features)
        captions = self.text(pair.ids, pair.mask)
        loss = sigmoid_contrastive_loss(pictures, captions, pair.same, self.log_scale, self.bias)
        figures = {"contrastive": float(loss.detach())}
        if self.config.captioning:
            captioning = self.captioner(features, pair.ids, pair.mask)
            loss = loss + self.config.captioning * captioning
            figures["captioning"] = float(captioning.detach())
        if self.config.dense:
            patches = F.unfold(
                pair.pixels, self.config.arch.patch_px, stride=self.config.arch.patch_px
            )
            dense = F.mse_loss(self.patch_pixels(features), patches.transpose(1, 2))
            loss = loss + self.config.dense * dense
            figures["dense"] = float(dense.detach())
        with torch.no_grad():
            found = (F.normalize(pictures, dim=-1) @ F.normalize(captions, dim=-1).T).argmax(1)
            figures["retrieval"] = float(pair.same.gather(1, found[:, None]).float().mean())
        return loss, figures


class EncoderTask:
    """Each picture with one caption; what other captions of the batch say counts as wrong."""

    def __init__(self, config: EncoderConfig, stream: Stream[Picture]) -> None:
        self.config = config
        self.stream = stream
        self.model: SigLip = SigLip(config)
        texts = [self._caption(stream[i]) for i in range(min(stream.total, 4096))]
        self.tokenizer = TextTokenizer(train_text_tokenizer(texts, vocab_size=config.text_vocab))

    def _caption(self, row: Picture) -> str:
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
        end = self.tokenizer.special[END_OF_TEXT]
        ids = [[end, *found, end] for found in self.tokenizer.encode_batch(captions)]
        longest = max(map(len, ids))
        if longest > self.config.text_length:
            raise UserError(
                f"a caption has {longest} tokens, text_length is {self.config.text_length}: "
                f"{max(captions, key=len)!r}",
                hint=f"--set text_length={longest}",
            )
        table = torch.zeros(len(ids), longest, dtype=torch.long)
        mask = torch.zeros(len(ids), longest)
        for row, tokens in enumerate(ids):
            table[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        same = torch.tensor([[a == b for b in captions] for a in captions])
        pictures = [sized(row.pixels(), self.config.arch.size_px) for row in rows]
        return Pair(to_pixels(pictures), table, mask, same)

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


def run(config: Path | None, *, images: Path, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Train a vision encoder on captioned pictures; returns the model directory."""
    settings = load_config(EncoderConfig, config, overrides)
    torch.manual_seed(settings.seed)
    stream = picture_stream(open_artifact(images, "images"), seed=settings.seed)
    return train(
        EncoderTask(settings, stream), settings, out=out, name="encoder", parents={"images": images}
    )
