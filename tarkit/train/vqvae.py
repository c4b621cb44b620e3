"""`tarkit train vqvae`: the image VQ whose codes AR-DTok predicts.

Source: the paper loads LlamaGen's (Sun et al. 2024, Sec. 2.1), which is trained as VQGAN (Esser et
al. 2021): reconstruction and codebook losses; LPIPS; and, from a step on, a discriminator of
patches (adversary.py). LPIPS needs its published weights; both are off by default. With the table
`[alignment]` its codes are also trained to match captions (alignment.py), for the representation
"hybrid" of Sec. 4.3.

Letters: B pictures, H W pixels, M latents, K codes, D code width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.parquet import read_bounds
from tarkit.artifacts.remote import url_of
from tarkit.checkpoints.load import ALIGNED, START_SHA256, load_vqvae, model_sha256
from tarkit.checkpoints.lpips import load_lpips
from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.images import contact_sheet
from tarkit.models.codebook import usage, usage_of_counts
from tarkit.models.lpips import Lpips
from tarkit.models.patchgan import NORM_GROUPS, PatchDiscriminator, smallest_side
from tarkit.models.pixel_range import from_unit_truncated, to_signed
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.train.adversary import AdversarialVqvae, Adversary
from tarkit.train.alignment import AlignedOutput, AlignedVqvae, Alignment, AlignmentConfig
from tarkit.train.captions import CaptionTokens
from tarkit.train.contrastive import Pair
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import PicturesConfig
from tarkit.train.processes import rows_of_all_processes, sum_over_processes
from tarkit.train.sharded_tensors import whole_values
from tarkit.train.streams import PictureRow, PictureStream, mixed_pictures, picture_parents, sized
from tarkit.train.task import RowName


class VqvaeConfig(PicturesConfig):
    """Settings of the image VQ's training; loss weights are LlamaGen's."""

    arch: VqvaeArch = VqvaeArch()
    size_px: PositiveInt | None = None
    """Side of the square that every picture is resized to (256 for the published one); None: the
    pictures are of one size and stay as they are."""
    square: Literal["crop"] | None = None
    """How size_px makes a picture square: "crop" keeps the middle square; by default the whole
    picture is squashed, as for the published tokenizer."""
    warmup_unquantised: float = 0.1
    """Share of the steps, at the start, without quantisation. The codebook then starts from the
    data, at the earliest after the first step. With --start there is no such time: its codebook is
    kept, and quantisation is whole from the first step."""
    fade_in: float = 0.1
    """Share of the steps over which quantisation is blended in; none with --start."""
    commitment: float = 0.25
    codebook: float = 1.0
    tolerance: float = Field(default=0.0, ge=0)
    """Pixel errors up to this many grey levels (of 255) are free: faint texture needs no codes."""
    restart_every: int = 50
    """Steps between restarts: an unused code moves to one of the step's latents, most likely to
    one far from its own code (D^2 sampling, as in k-means++)."""
    restart_until: float = 0.8
    """Share of the steps after which no code restarts."""
    perceptual: float = Field(default=0.0, ge=0)
    """Weight of LPIPS, whose weights --lpips names; 1 in LlamaGen and VQGAN."""
    discriminator_from: NonNegativeInt | None = None
    """Step from which a discriminator is trained, and the image VQ against it (20,000 in LlamaGen);
    None: there is no discriminator."""
    discriminator_weight: float = Field(default=0.5, ge=0)
    """Factor on the adversarial loss, next to its adaptive weight (LlamaGen)."""
    discriminator_channels: int = Field(default=64, gt=0, multiple_of=NORM_GROUPS // 2)
    """Channels of the discriminator's first layer (LlamaGen)."""
    discriminator_layers: PositiveInt = 3
    """How often the discriminator halves the sides (LlamaGen)."""

    alignment: AlignmentConfig | None = None
    """A contrastive loss between the codes of a picture and its caption (alignment.py); None: the
    image VQ is trained on pixels alone."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset(
        ("size_px", "square", "perceptual", "discriminator_from", "discriminator_weight")
        + ("discriminator_channels", "discriminator_layers", "alignment")
    )

    @model_validator(mode="after")
    def _negatives_are_of_a_step(self) -> VqvaeConfig:
        if self.alignment and self.micro_batch_size not in (None, self.batch_size):
            raise ValueError(
                "micro_batch_size splits a step, but every other picture of a step is a negative "
                "of the contrastive loss: leave it out, or the table alignment"
            )
        return self

    @model_validator(mode="after")
    def _the_last_layer_is_whole(self) -> VqvaeConfig:
        if self.sharding == "full" and self.discriminator_from is not None:
            raise ValueError(
                "a discriminator is weighted by the gradient of the decoder's last layer, which "
                "sharding splits: leave sharding out, or discriminator_from"
            )
        return self


class VqvaeTask:
    """Reconstruction of pixels through codes."""

    unused_parameters = True  # the codebook, before quantisation

    def __init__(
        self,
        config: VqvaeConfig,
        stream: PictureStream,
        *,
        start: Vqvae | None = None,
        start_sha256: str | None = None,
        lpips: Lpips | None = None,
    ) -> None:
        """`start`: the image VQ to go on with, which is trained in place; its sha256 is recorded.

        An AR-DTok that was trained with `start` can then go on with this one.
        """
        self.config = config
        self.stream = stream
        self.started = start is not None
        self.start_sha256 = start_sha256
        self.lpips = lpips
        # Channels last: a tenth faster on CPUs, same numbers.
        self.vqvae: Vqvae = (start or Vqvae(config.arch)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if start:
            # Published files record codes here, not how often each is used.
            self.vqvae.quantize.codebook_used.fill_(1.0)
        self.model: nn.Module = self.vqvae
        self.adversary: Adversary | None = None
        if config.discriminator_from is not None:
            discriminator = PatchDiscriminator(
                config.discriminator_channels, config.discriminator_layers
            )
            self.adversary = Adversary(discriminator, config, begins=config.discriminator_from)
            self.model = AdversarialVqvae(self.vqvae, self.adversary)
        self.tokens: CaptionTokens | None = None
        if config.alignment is not None:
            self.tokens = CaptionTokens(
                stream,
                chosen=config.alignment.caption,
                vocab_size=config.alignment.text_vocab,
                max_length=config.alignment.text_length,
                key="alignment.text_length",
            )
            alignment = Alignment(config.alignment, config.arch.code_dim)
            self.model = AlignedVqvae(self.vqvae, alignment, self.adversary)
        self._step = -1
        # Of that step's micro-batches, (B, M, D) and (B, M).
        self._latents: list[Tensor] = []
        self._codes: list[Tensor] = []

    def _pixels(self, row: PictureRow) -> np.ndarray:
        """(H, W, 3) uint8, of the size to train on."""
        size_px, pixels = self.config.size_px, row.pixels()
        return pixels if size_px is None else sized(pixels, size_px, square=self.config.square)

    def batch(self, step: int, size: int, part: int, parts: int) -> Any:
        """Pixels (B, 3, H, W) in [-1, 1]; with captions to match, a `Pair`."""
        if self.tokens is None:
            rows = self.stream.batch(step, size, rank=part, world=parts)
            return to_signed([self._pixels(row) for row in rows])
        rows = self.stream.batch(step, size * parts)
        own = slice(part * size, (part + 1) * size)
        table, mask, same = self.tokens.compared(rows)
        pixels = to_signed([self._pixels(row) for row in rows[own]])
        return Pair(pixels, table[own], mask[own], same)

    def weight(self, batch: Tensor | Pair) -> float:
        """Pictures."""
        return len(_pixels_of(batch))

    def blend(self, step: int) -> float:
        """The share of quantisation at a step, in [0, 1]."""
        if self.started:
            return 1.0
        start = round(self.config.warmup_unquantised * self.config.steps)
        fade = max(1, round(self.config.fade_in * self.config.steps))
        return min(max((step - start + 1) / fade, 0.0), 1.0)

    def loss(
        self, model: nn.Module, given: Tensor | Pair, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        blend, batch = self.blend(step), _pixels_of(given)
        out = model(given, quantised=blend)
        aligned = out if isinstance(out, AlignedOutput) else None
        out = aligned.image_vq if aligned else out
        if step != self._step:  # the one before may have been skipped
            self._latents.clear()
            self._codes.clear()
            self._step = step
        self._latents.append(out.latents.detach())
        self._codes.append(out.codes)
        tolerance = self.config.tolerance / 127.5
        reconstruction = F.softshrink(out.pixels - batch, tolerance).pow(2).mean()
        figures = {"reconstruction": float(reconstruction.detach()), "quantised": blend}
        total = reconstruction
        if self.lpips is not None:
            distance = self.lpips.to(batch.device)(out.pixels, batch).mean()
            figures["perceptual"] = float(distance.detach())
            total = total + self.config.perceptual * distance
        if self.adversary is not None and step >= self.adversary.first_step:
            last_layer = self.vqvae.decoder.conv_out.weight
            adversarial = self.adversary.loss(out.pixels, batch, total, last_layer, step)
            figures |= adversarial.figures
            total = total + self.config.discriminator_weight * adversarial.weighted
        if blend > 0:
            total = (
                total
                + self.config.codebook * out.codebook_loss
                + self.config.commitment * out.commitment_loss
            )
        if aligned and self.config.alignment:
            figures |= aligned.figures
            total = total + self.config.alignment.weight * aligned.contrastive
        return total, figures

    def row_names(self, batch: Tensor | Pair, first: int) -> list[RowName]:
        return [self.stream[first + i].name for i in range(len(_pixels_of(batch)))]

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        """Start the codebook from the step's latents; later, restart unused codes from them.

        The discriminator takes its step. The figures are perplexity and usage of the step's codes.
        """
        figures = {}
        if self.adversary is not None:
            figures = self.adversary.take_step(step, self.vqvae.decoder.conv_out.weight)
        latents, codes = torch.cat(self._latents), torch.cat(self._codes)
        self._latents.clear()
        self._codes.clear()
        is_wrapped = isinstance(model, AdversarialVqvae | AlignedVqvae)
        vqvae = model.vqvae if is_wrapped else model
        assert isinstance(vqvae, Vqvae)
        num_codes = self.config.arch.num_codes
        used = vqvae.quantize.codebook_used[:num_codes]
        counts = sum_over_processes(torch.bincount(codes.flatten(), minlength=num_codes))
        start = max(1, round(self.config.warmup_unquantised * self.config.steps))
        start = 0 if self.started else start
        if step + 1 == start:
            with whole_values(vqvae.quantize.embedding.weight) as table:
                table.copy_(_random_rows(rows_of_all_processes(latents).flatten(0, 1), num_codes))
            used.fill_(1.0)
        elif step + 1 > start:
            used.mul_(0.97).add_(counts.to(used.dtype), alpha=0.03)
            due = (step + 1) % self.config.restart_every == 0
            if due and step < self.config.restart_until * self.config.steps:
                dead = (used < 0.01).nonzero()[:, 0]
                with whole_values(vqvae.quantize.embedding.weight) as table:
                    table[dead] = _far_latents(
                        rows_of_all_processes(latents).flatten(0, 1),
                        rows_of_all_processes(codes).flatten(),
                        table,
                        count=len(dead),
                    )
                used[dead] = 1.0
        health = usage_of_counts(counts)
        return {"perplexity": health.perplexity, "usage": health.used / len(counts)} | figures

    def samples(self, step: int) -> Image.Image:
        """Eight pictures and their reconstructions."""
        self.vqvae.eval()
        originals = [self._pixels(self.stream[i]) for i in range(8)]
        inputs = to_signed(originals).to(self._device) * 0.5 + 0.5
        with torch.no_grad():
            pixels = self.vqvae.decode(self.vqvae.encode(inputs))
        cells = [Image.fromarray(a) for a in [*originals, *from_unit_truncated(pixels)]]
        captions = ["original"] * 8 + ["decoded"] * 8
        return contact_sheet(cells, captions, columns=8, cell_px=96)

    @property
    def _device(self) -> torch.device:
        return self.vqvae.quantize.embedding.weight.device

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        """Measures PSNR and codebook usage on 512 pictures of the training stream."""
        alignment = self.config.alignment
        count = min(512, self.stream.total)
        errors, codes = [], []
        with torch.no_grad():
            for first in range(0, count, 64):
                rows = [self.stream[i] for i in range(first, min(first + 64, count))]
                pixels = to_signed([self._pixels(row) for row in rows]).to(self._device) * 0.5 + 0.5
                codes.append(self.vqvae.encode(pixels))
                decoded = self.vqvae.decode(codes[-1])
                errors.append((decoded - pixels).pow(2).flatten(1).mean(1))
        health = usage(torch.cat(codes), self.config.arch.num_codes)
        psnr = float((-10 * torch.cat(errors).log10()).mean())
        figures = {"psnr_db": psnr, "perplexity": health.perplexity, "dead_codes": health.dead}
        return self.vqvae, {
            "kind": "vqvae",
            "arch": self.config.arch.model_dump(mode="json"),
            "figures": {**figures, "pictures": count},
            **({START_SHA256: self.start_sha256} if self.start_sha256 else {}),
            **({ALIGNED: alignment.model_dump(mode="json")} if alignment else {}),
        }


def _pixels_of(batch: Tensor | Pair) -> Tensor:
    return batch.pixels if isinstance(batch, Pair) else batch


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


def usable_sizes(artifact: Artifact) -> list[tuple[int, int]]:
    """The recorded sizes (width, height) of an artifact's usable pictures, each once, in order."""
    # Mostly all rows of all shards are of one size, and none has to be read.
    if not url_of(artifact.path):
        paths = map(artifact.shard_path, artifact.shards)
        (wide, tall), *others = {read_bounds(path, ("width", "height")) for path in paths}
        if not others and wide and tall and wide[0] == wide[1] and tall[0] == tall[1]:
            return [(wide[0], tall[0])]
    sizes: set[tuple[int, int]] = set()
    for name in artifact.shards:
        table = artifact.read_few(name, ["status", "split", "width", "height"])
        in_split = pc.fill_null(pc.equal(table["split"], "train"), True)
        usable = pc.and_(pc.equal(table["status"], "ok"), in_split)
        table = table.filter(pc.and_(usable, pc.is_valid(table["width"])))
        groups: pa.Table = table.group_by(["width", "height"]).aggregate([])
        sizes |= set(zip(groups["width"].to_pylist(), groups["height"].to_pylist(), strict=True))
    return sorted(sizes)


def _require_fit(config: VqvaeConfig, artifacts: Sequence[Artifact]) -> None:
    """Raises UserError where the image VQ cannot read the pictures at the size they will have."""
    if config.size_px is not None:
        sizes = [(config.size_px, config.size_px)]
    elif config.square is not None:
        raise UserError(
            f"square = {config.square!r} is how size_px makes pictures square, and size_px is not "
            "set",
            hint="--set size_px=256, or leave square out",
        )
    else:
        sizes = sorted({size for artifact in artifacts for size in usable_sizes(artifact)})
    if len(sizes) > 1:
        (w, h), (width, height) = sizes[0], sizes[-1]
        raise UserError(
            f"the images have pictures of {len(sizes)} sizes, from {w} x {h} to {width} x "
            f"{height} px, and a batch is of one",
            hint="--set size_px=256 squashes each to that square; with --set square=crop it keeps "
            "the middle",
        )
    if not sizes:  # an artifact that does not record them
        return
    width, height = sizes[0]
    step = config.arch.downsampling
    if width % step or height % step:
        raise UserError(
            f"pictures of {width} x {height} px do not divide by {step}, the side of a code",
            hint=f"--set size_px={max(1, round(min(width, height) / step)) * step}",
        )
    least = smallest_side(config.discriminator_layers)
    if config.discriminator_from is not None and min(width, height) < least:
        raise UserError(
            f"pictures of {width} x {height} px have no patch for a discriminator of "
            f"{config.discriminator_layers} layers, which needs {least} px",
            hint=f"--set discriminator_layers={max(1, config.discriminator_layers - 1)}",
        )


def _load_lpips(config: VqvaeConfig, files: Sequence[Path]) -> Lpips | None:
    """LPIPS from its weights; UserError where only its weight or only its weights are there."""
    if bool(files) == (config.perceptual > 0):
        return load_lpips(files) if files else None
    if files:
        raise UserError(
            f"--lpips {files[0]}: the weight of LPIPS in the loss, perceptual, is 0",
            hint="--set perceptual=1.0, or leave --lpips out",
        )
    raise UserError(
        f"perceptual = {config.perceptual} is the weight of LPIPS, and there is no --lpips",
        hint="--lpips vgg16-397923af.pth --lpips vgg.pth, or --set perceptual=0",
    )


def _load_start(start: Path, arch: VqvaeArch) -> Vqvae:
    """The image VQ at `start`; UserError where its sizes are not those of `arch`."""
    trained = load_vqvae(start)
    wrong = [
        f"{name} = {configured} (is {there})"
        for (name, configured), (_, there) in zip(arch, trained.arch, strict=True)
        if configured != there
    ]
    if wrong:
        raise UserError(
            f"arch is not that of {start}: {', '.join(wrong)}",
            hint=f"give the sizes that `tarkit inspect {start}` shows, or leave --start out",
        )
    return trained


def run(
    config: Path | None,
    *,
    images: Sequence[Path],
    out: Path,
    start: Path | None = None,
    lpips: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> Path:
    """Train an image VQ on images artifacts, mixed by weight; returns the model directory.

    `start`: a trained image VQ to go on with, in place of random weights: a model directory or a
    published file. `lpips`: the files of LPIPS's weights (checkpoints/lpips.py), for the perceptual
    loss. Raises UserError where sizes, weights or settings do not fit.
    """
    settings = load_config(VqvaeConfig, config, overrides)
    begin_training(settings.seed)
    artifacts = [open_artifact(path, "images") for path in images]
    stream = mixed_pictures(artifacts, settings.images_weights, seed=settings.seed)
    _require_fit(settings, artifacts)
    task = VqvaeTask(
        settings,
        stream,
        start=_load_start(start, settings.arch) if start else None,
        start_sha256=model_sha256(start, "vqvae") if start else None,
        lpips=_load_lpips(settings, lpips),
    )
    parents = picture_parents(images) | ({"start": start} if start else {})
    parents |= {f"lpips_{number}": file for number, file in enumerate(lpips)}
    return train(task, settings, out=out, name="vqvae", parents=parents)
