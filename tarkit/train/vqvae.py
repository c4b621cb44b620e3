"""`tarkit train vqvae`: the image VQ whose codes AR-DTok predicts, trained from nothing.

At paper size LlamaGen's published VQ is loaded instead. This one replaces it in miniature, with its
reconstruction and codebook losses but without LPIPS and PatchGAN, which need other weights.

Letters: B pictures, H W pixels, M latents, K codes, D code width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.config import load_config
from tarkit.images import contact_sheet
from tarkit.models.codebook import usage, usage_of_counts
from tarkit.models.pixel_range import from_unit_truncated, to_signed
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.processes import rows_of_all_processes, sum_over_processes
from tarkit.train.sharded_tensors import whole_values
from tarkit.train.streams import PictureRow, Stream, picture_stream


class VqvaeConfig(LoopConfig):
    """Settings of the image VQ's training; loss weights are LlamaGen's."""

    arch: VqvaeArch = VqvaeArch()
    warmup_unquantised: float = 0.1
    """Share of the steps, at the start, without quantisation. The codebook then starts from the
    data, at the earliest after the first step."""
    fade_in: float = 0.1
    """Share of the steps over which quantisation is blended in."""
    commitment: float = 0.25
    codebook: float = 1.0
    tolerance: float = Field(default=0.0, ge=0)
    """Pixel errors up to this many grey levels (of 255) are free: faint texture needs no codes."""
    restart_every: int = 50
    """Steps between restarts: an unused code moves to one of the step's latents, most likely to
    one far from its own code (D^2 sampling, as in k-means++)."""
    restart_until: float = 0.8
    """Share of the steps after which no code restarts."""


class VqvaeTask:
    """Reconstruction of pixels through codes."""

    unused_parameters = True  # the codebook, before quantisation

    def __init__(self, config: VqvaeConfig, stream: Stream[PictureRow]) -> None:
        self.config = config
        self.stream = stream
        # Channels last: a tenth faster on CPUs, same numbers.
        self.model: Vqvae = Vqvae(config.arch).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Of the step's micro-batches, (B, M, D) and (B, M).
        self._latents: list[Tensor] = []
        self._codes: list[Tensor] = []

    def batch(self, step: int, size: int, part: int, parts: int) -> Tensor:
        rows = self.stream.batch(step, size, rank=part, world=parts)
        return to_signed([row.pixels() for row in rows])

    def weight(self, batch: Tensor) -> float:
        """Pictures."""
        return len(batch)

    def blend(self, step: int) -> float:
        """The share of quantisation at a step, in [0, 1]."""
        start = round(self.config.warmup_unquantised * self.config.steps)
        fade = max(1, round(self.config.fade_in * self.config.steps))
        return min(max((step - start + 1) / fade, 0.0), 1.0)

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        blend = self.blend(step)
        out = model(batch, quantised=blend)
        self._latents.append(out.latents.detach())
        self._codes.append(out.codes)
        tolerance = self.config.tolerance / 127.5
        reconstruction = F.softshrink(out.pixels - batch, tolerance).pow(2).mean()
        total = reconstruction
        if blend > 0:
            total = (
                total
                + self.config.codebook * out.codebook_loss
                + self.config.commitment * out.commitment_loss
            )
        figures = {
            "reconstruction": float(reconstruction.detach()),
            "quantised": blend,
        }
        return total, figures

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        """Start the codebook from the step's latents; later, restart unused codes from them.

        The figure is the perplexity of the step's codes.
        """
        assert isinstance(model, Vqvae)
        latents, codes = torch.cat(self._latents), torch.cat(self._codes)
        self._latents.clear()
        self._codes.clear()
        num_codes = self.config.arch.num_codes
        used = model.quantize.codebook_used[:num_codes]
        counts = sum_over_processes(torch.bincount(codes.flatten(), minlength=num_codes))
        start = max(1, round(self.config.warmup_unquantised * self.config.steps))
        if step + 1 == start:
            with whole_values(model.quantize.embedding.weight) as table:
                table.copy_(_random_rows(rows_of_all_processes(latents).flatten(0, 1), num_codes))
            used.fill_(1.0)
        elif step + 1 > start:
            used.mul_(0.97).add_(counts.to(used.dtype), alpha=0.03)
            due = (step + 1) % self.config.restart_every == 0
            if due and step < self.config.restart_until * self.config.steps:
                dead = (used < 0.01).nonzero()[:, 0]
                with whole_values(model.quantize.embedding.weight) as table:
                    table[dead] = _far_latents(
                        rows_of_all_processes(latents).flatten(0, 1),
                        rows_of_all_processes(codes).flatten(),
                        table,
                        count=len(dead),
                    )
                used[dead] = 1.0
        return {"perplexity": usage_of_counts(counts).perplexity}

    def samples(self, step: int) -> Image.Image:
        """Eight pictures and their reconstructions."""
        self.model.eval()
        originals = [self.stream[i].pixels() for i in range(8)]
        with torch.no_grad():
            pixels = self.model.decode(self.model.encode(to_signed(originals) * 0.5 + 0.5))
        cells = [Image.fromarray(a) for a in [*originals, *from_unit_truncated(pixels)]]
        captions = ["original"] * 8 + ["decoded"] * 8
        return contact_sheet(cells, captions, columns=8, cell_px=96)

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        """Measures PSNR and codebook usage on 512 pictures of the training stream."""
        count = min(512, self.stream.total)
        errors, codes = [], []
        with torch.no_grad():
            for first in range(0, count, 64):
                rows = [self.stream[i] for i in range(first, min(first + 64, count))]
                pixels = to_signed([row.pixels() for row in rows]) * 0.5 + 0.5
                codes.append(self.model.encode(pixels))
                decoded = self.model.decode(codes[-1])
                errors.append((decoded - pixels).pow(2).flatten(1).mean(1))
        health = usage(torch.cat(codes), self.config.arch.num_codes)
        psnr = float((-10 * torch.cat(errors).log10()).mean())
        figures = {"psnr_db": psnr, "perplexity": health.perplexity, "dead_codes": health.dead}
        return self.model, {
            "kind": "vqvae",
            "arch": self.config.arch.model_dump(mode="json"),
            "figures": {**figures, "pictures": count},
        }


def _far_latents(flat: Tensor, codes: Tensor, table: Tensor, *, count: int) -> Tensor:
    """(count, D) of latents (M, D), with odds of their squared distance to their codes (M,)."""
    if not count:
        return flat[:0]
    error = (flat - table[codes]).pow(2).sum(1)
    return flat[torch.multinomial(error + 1e-12, count, replacement=count > len(flat))]


def _random_rows(flat: Tensor, count: int) -> Tensor:
    """(M, D) -> (count, D): rows in random order by the global generator, repeated if too few."""
    order = [torch.randperm(len(flat)) for _ in range(-(-count // len(flat)))]
    return flat[torch.cat(order)[:count]] if count else flat[:0]


def run(config: Path | None, *, images: Path, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Train an image VQ on an images artifact; returns the model directory."""
    settings = load_config(VqvaeConfig, config, overrides)
    begin_training(settings.seed)
    stream = picture_stream(open_artifact(images, "images"), seed=settings.seed)
    return train(
        VqvaeTask(settings, stream), settings, out=out, name="vqvae", parents={"images": images}
    )
