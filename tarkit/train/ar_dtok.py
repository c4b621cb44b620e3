"""`tarkit train ar-dtok`: a transformer that predicts image-VQ codes from TA-Tok's features.

Source: paper Sec. 3.2, Eq. 4; scales drawn as for the tokenizer (App. C.1); Table 8.

Letters: B pictures, n condition positions, N image-VQ codes, C condition width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import LoadedTaTok, load_ar_dtok, load_ta_tok, load_vqvae
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.pixel_range import from_unit_truncated, to_signed
from tarkit.models.vqvae import Vqvae
from tarkit.train.loop import LoopConfig, begin_training, train
from tarkit.train.streams import PictureRow, Stream, draw_scale, picture_stream, sized
from tarkit.vocab import Scale


class ArDtokConfig(LoopConfig):
    """Settings of AR-DTok's training."""

    arch: ArDtokArch = ArDtokArch()
    scale_ratio: tuple[int, int, int] = (2, 1, 1)
    """Odds of scales 1, 2, 3; each step draws one (App. C.1)."""
    condition_dropout: float = 0.1
    """Share of pictures whose condition is set to zero, for classifier-free guidance (Table 8:
    token drop prob)."""
    sample_guidance: float = 1.5
    remember: int = 200_000
    """Pictures whose codes are kept in memory (0.6 kB each in miniature), so that later epochs run
    neither encoder. When it is full, it is emptied."""


class DtokBatch(NamedTuple):
    """Conditions, and the codes to predict from them."""

    condition: Tensor  # (B, n, C) decoded TA-Tok features
    codes: Tensor  # (B, N) image-VQ codes
    dropped: Tensor  # (B,) bool: set the condition to zero


# TA-Tok's codes (B, n) of each scale, and under None the image VQ's (B, N).
Codes = dict[Scale | None, Tensor]


class ArDtokTask:
    """Cross-entropy of image-VQ codes given TA-Tok's features of the same square picture."""

    unused_parameters = False

    def __init__(
        self,
        config: ArDtokConfig,
        stream: Stream[PictureRow],
        ta_tok: LoadedTaTok,
        vqvae: Vqvae,
        *,
        vqvae_sha256: str,
        start: Path | None = None,
    ) -> None:
        self.config = config
        self.stream = stream
        self.ta_tok = ta_tok
        self.vqvae = vqvae
        self.vqvae_sha256 = vqvae_sha256
        arch = config.arch
        required = {
            "vocab_size": vqvae.arch.num_codes,
            "condition_width": ta_tok.model.arch.encoder.width,
            "max_condition": ta_tok.grid**2,
        }
        wrong = [
            f"{k} = {getattr(arch, k)} (is {v})"
            for k, v in required.items()
            if getattr(arch, k) != v
        ]
        if wrong:
            flags = " ".join(f"--set arch.{k}={v}" for k, v in required.items())
            raise UserError(
                f"arch does not fit the tokenizer and the image VQ: {', '.join(wrong)}",
                hint=flags,
            )
        if arch.side**2 != arch.num_codes:
            raise UserError(
                f"arch.num_codes = {arch.num_codes} is not a square number: pictures are square",
                hint=f"--set arch.num_codes={arch.side**2}",
            )
        self.size_px = arch.side * vqvae.arch.downsampling
        if start is None:
            self.model: ArDtok = ArDtok(arch)
            self.model.reset_parameters()
        else:
            self.model = _start_from(start, arch, ta_tok.sha256, vqvae_sha256)
        self.scales = [s for s, weight in zip(Scale, config.scale_ratio, strict=True) if weight]
        self._rows: dict[str, int] = {}  # a picture's row in the tables
        self._tables: Codes = {}

    def _encode(self, rows: Sequence[PictureRow]) -> Codes:
        """The pictures' TA-Tok codes at every scale that is trained, and their image-VQ codes."""
        raw = [row.pixels() for row in rows]
        inputs = to_signed([sized(a, self.ta_tok.size_px) for a in raw]) * 0.5 + 0.5
        targets = to_signed([sized(a, self.size_px) for a in raw]) * 0.5 + 0.5
        codes: Codes = {None: self.vqvae.encode(targets)}
        for scale, scale_codes in self.ta_tok.encode_scales(inputs, self.scales).items():
            codes[scale] = scale_codes
        return codes

    def _cached_codes(self, rows: Sequence[PictureRow]) -> Codes:
        """The codes of a step's pictures: from memory if it holds them all, else encoded.

        A batch with a new picture is encoded as a whole: a smaller batch rounds differently, and
        codes must not depend on the pictures that this process encoded before.
        """
        keys = [row["key"] for row in rows]
        if all(key in self._rows for key in keys):
            cached = torch.tensor([self._rows[key] for key in keys])
            return {name: table[cached].long() for name, table in self._tables.items()}
        encoded = self._encode(rows)
        new = len(set(keys) - self._rows.keys())
        if len(self._rows) + new > self.config.remember:
            self._rows.clear()
        if len(set(keys)) > self.config.remember:
            return encoded
        for name, codes in encoded.items():
            if name not in self._tables:
                # One block for all: small tensors kept between a step's large ones would leave
                # holes that no later step fits into.
                self._tables[name] = torch.zeros(
                    self.config.remember, codes.shape[1], dtype=torch.int32
                )
        for index, key in enumerate(keys):
            row = self._rows.setdefault(key, len(self._rows))
            for name, codes in encoded.items():
                self._tables[name][row] = codes[index]
        return encoded

    def batch(self, step: int, size: int, part: int, parts: int) -> DtokBatch:
        rows = self.stream.batch(step, size, rank=part, world=parts)
        scale = draw_scale(self.config.scale_ratio, self.config.seed, step)
        rng = np.random.default_rng([self.config.seed, step, 0])
        # Drawn for the whole step, so that a row's number depends on its place alone.
        numbers = rng.random(size * parts)[part * size : (part + 1) * size]
        dropped = torch.from_numpy(numbers < self.config.condition_dropout)
        codes = self._cached_codes(rows)
        return DtokBatch(self.ta_tok.condition(codes[scale]), codes[None], dropped)

    def weight(self, batch: DtokBatch) -> float:
        """Pictures: all have as many codes."""
        return len(batch.codes)

    def loss(
        self, model: nn.Module, batch: DtokBatch, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        condition = batch.condition.masked_fill(batch.dropped[:, None, None], 0.0)
        loss = model(condition, batch.codes)
        return loss, {"condition_tokens": batch.condition.shape[1]}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> Image.Image:
        """Eight pictures, and each drawn again, greedily, from its codes at every scale."""
        self.model.eval()
        rows = [self.stream[i] for i in range(8)]
        encoded = self._encode(rows)
        cells = [Image.fromarray(sized(row.pixels(), self.size_px)) for row in rows]
        captions = ["original"] * 8
        for scale in self.scales:
            condition = self.ta_tok.condition(encoded[scale])
            codes = self.model.sample(
                condition, guidance=self.config.sample_guidance, temperature=0.0
            )
            cells += [Image.fromarray(a) for a in from_unit_truncated(self.vqvae.decode(codes))]
            captions += [f"{condition.shape[1]} codes"] * 8
        return contact_sheet(cells, captions, columns=8, cell_px=96)

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.model, {
            "kind": "ar_dtok",
            "arch": self.config.arch.model_dump(mode="json"),
            "tokenizer_sha256": self.ta_tok.sha256,
            "vqvae_sha256": self.vqvae_sha256,
        }


def _start_from(start: Path, arch: ArDtokArch, ta_tok_sha256: str, vqvae_sha256: str) -> ArDtok:
    """The AR-DTok of a directory; UserError where it has other codes or other sizes."""
    config = read_config(start, "ar_dtok")
    for part, trained_with, given in (
        ("tokenizer", config.get("tokenizer_sha256"), ta_tok_sha256),
        ("vqvae", config.get("vqvae_sha256"), vqvae_sha256),
    ):
        if trained_with != given:
            raise UserError(
                f"{start} was trained with {part} {str(trained_with)[:12]}, "
                f"--{part} is {given[:12]}",
                hint=f"name the --{part} it was trained with, or leave --start out",
            )
    model = load_ar_dtok(start)
    if model.arch != arch:
        wrong = [
            f"{name} = {configured} (is {trained})"
            for (name, configured), (_, trained) in zip(arch, model.arch, strict=True)
            if configured != trained
        ]
        raise UserError(
            f"arch is not that of {start}: {', '.join(wrong)}",
            hint=f"give the arch of {start}/config.json, or leave --start out",
        )
    return model


def run(
    config: Path | None,
    *,
    images: Path,
    tokenizer: Path,
    vqvae: Path,
    out: Path,
    start: Path | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Train the autoregressive de-tokenizer on pictures; returns the model directory.

    `start`: a trained AR-DTok to start from, in place of random weights.
    """
    settings = load_config(ArDtokConfig, config, overrides)
    begin_training(settings.seed)
    stream = picture_stream(open_artifact(images, "images"), seed=settings.seed)
    task = ArDtokTask(
        settings,
        stream,
        load_ta_tok(tokenizer),
        load_vqvae(vqvae),
        vqvae_sha256=str(read_config(vqvae, "vqvae")["sha256"]),
        start=start,
    )
    parents = {"images": images, "tokenizer": tokenizer, "vqvae": vqvae}
    parents |= {"start": start} if start else {}
    return train(task, settings, out=out, name="ar-dtok", parents=parents)
