"""`tarkit encode`: pictures to the codes of every scale, in one encoder pass.

Source: paper Sec. 3.1 (scale-adaptive pooling comes after the encoder, so one pass serves all
scales). Each row of the images artifact gives one row in the shard of the same number, with its
texts; a picture that cannot be read gives a failed row. Pictures are squashed to the tokenizer's
input size, by default as for the training of the published language model. Every batch has the same
shape, so that the codes of a picture do not depend on its batch: a short batch is filled up with
blank pictures, whose codes are dropped. Codes are chosen in float32, also where the tokenizer's
encoder runs in half precision.

Pictures are read ahead of the models (artifacts/picture_reader.py), and on a GPU the next batch is
put together while the models compute. Several GPUs share the shards as all commands do
(artifacts/ranks.py).

With an image VQ each row also has its codes of the same picture (column `vq_codes`), from which
AR-DTok is trained without running an encoder (Sec. 3.2, Eq. 4). Both models see the same part of
the picture: it is squared once, and then resized for each.

With a SANA each row also has the latents of its VAE (column `latents`), from which Dif-DTok is
trained without running an encoder (Sec. 3.2, Eq. 5): float32 in SANA's scale, C x h x w in a row.

S: side of the tokenizer's input in pixels. P: side of the image VQ's, L: of the VAE's. C h w: the
VAE's latents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.picture_reader import ReadsPictures, picture_reader
from tarkit.artifacts.plan import RowPlan
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.remote import with_next_fetched
from tarkit.artifacts.resume import pending_shards
from tarkit.artifacts.schema import ABOUT_PICTURE, TEXTS, code_type
from tarkit.artifacts.workers import default_readers, memory_bytes, num_cores
from tarkit.checkpoints.directory import PRECISIONS
from tarkit.checkpoints.load import (
    LoadedTaTok,
    LoadedVqvae,
    Resize,
    load_ta_tok,
    load_vqvae,
    model_sha256,
    stretched,
)
from tarkit.checkpoints.sana import find_sana, load_vae, vae_downsampling, vae_latents, vae_sha256
from tarkit.config import Config, load_config
from tarkit.errors import UserError
from tarkit.images import ImageError, SizedPicture, middle_square, squashed, to_uint8
from tarkit.models.exact import exact_float32
from tarkit.models.peak_memory import on_meta, peak_bytes
from tarkit.models.pixel_range import bytes_to_unit, channels_first, to_unit
from tarkit.models.threads import threads_at_most
from tarkit.progress import Progress
from tarkit.vocab import Scale

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

MEMORY_SHARE = 0.8
"""Of a device's memory, which the models and a batch may take by default."""
CARRIED = [field[0] for field in (*ABOUT_PICTURE, *TEXTS)]


class EncodeConfig(Config):
    """Which codes are stored, and how pictures become the pixels that they are made from."""

    scales: tuple[Scale, ...] = tuple(Scale)
    """Any subset; by default all scales."""
    resize: Resize = "pil-bicubic"
    """One of the three published ways, which give different codes (`LoadedTaTok.sized`)."""
    square: Literal["crop"] | None = None
    """"crop" keeps the middle square of a picture, for both models; by default the whole picture is
    squashed, as for the published language model."""
    batch_size: int = Field(default=32, ge=1)
    """The most pictures that the models encode at once; it is halved until they fit into
    memory_gb."""
    memory_gb: PositiveFloat | None = None
    """What the models and the tensors of a batch may take together, computed before the run; by
    default four fifths of the device's memory. 1 is 2^30 bytes."""
    num_workers: NonNegativeInt | None = None
    """Processes that read, decode and resize pictures ahead of the models; 0: threads. By default 0
    on a CPU, and on a GPU one a core that is left, at most 8. The codes are the same."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the tokenizer's encoder. Half precision is faster on GPUs and gives part of the positions
    other codes; codes are chosen in float32 anyway."""
    compile: bool = False
    """Compile the blocks of the tokenizer's encoder before the first batch, which takes up to some
    minutes; part of the positions get other codes."""
    vq_size_px: PositiveInt | None = None
    """P, with an image VQ: the resolution of the AR-DTok to be trained. 256, 512 or 1024 in the
    paper (App. C.1)."""
    latent_size_px: PositiveInt | None = None
    """L, with a SANA: the resolution of the Dif-DTok to be trained. 512 or 1024 in the paper."""


@dataclass(frozen=True, kw_only=True)
class LoadedVae:
    """The VAE of a SANA, the sha256 that identifies its latents, and the pictures it encodes."""

    model: AutoencoderDC
    sha256: str
    size_px: int  # L

    @property
    def channels(self) -> int:
        return int(self.model.config.latent_channels)

    @property
    def side(self) -> int:
        """Latents along a side of a picture."""
        return self.size_px // vae_downsampling(self.model)


@dataclass(frozen=True, kw_only=True)
class EncodePlan(RowPlan):
    """Writes a tokens artifact from an images artifact.

    `tokenizer` is a TA-Tok and `vqvae` an image VQ, whose codes are stored as well: each a model
    directory or a published file. `sana` is a folder or hub id of a SANA, whose VAE's latents are
    stored as well. The same plan again encodes the shards that are missing or whose input has
    changed, and with `retry_failed` also the failed rows of finished shards. Raises UserError where
    `vqvae` and `vq_size_px`, or `sana` and `latent_size_px`, do not come together or do not fit.
    """

    tokenizer: Path
    vqvae: Path | None = None
    sana: str | None = None
    device: str = "cpu"

    kind = "tokens"
    input_kind = "images"

    @cached_property
    def settings(self) -> EncodeConfig:
        return load_config(EncodeConfig, self.config, self.overrides)

    @cached_property
    def ta_tok(self) -> LoadedTaTok:
        return load_ta_tok(self.tokenizer)

    @cached_property
    def image_vq(self) -> LoadedVqvae | None:
        size_px = self.settings.vq_size_px
        if self.vqvae is None:
            if size_px is not None:
                raise UserError(
                    f"vq_size_px = {size_px} is the size of an image VQ's pictures, and there is "
                    "no --vqvae",
                    hint="name the image VQ with --vqvae, or leave vq_size_px out",
                )
            return None
        if size_px is None:
            raise UserError(
                f"--vqvae {self.vqvae} needs vq_size_px, the side of the pictures that it encodes",
                hint="--set vq_size_px=256, the size of the AR-DTok to be trained",
            )
        model = load_vqvae(self.vqvae)
        step = model.arch.downsampling
        if size_px % step:
            raise UserError(
                f"vq_size_px = {size_px} does not divide by {step}, the pixels of a code of "
                f"{self.vqvae}",
                hint=f"--set vq_size_px={max(1, round(size_px / step)) * step}",
            )
        sha256 = model_sha256(self.vqvae, "vqvae")
        return LoadedVqvae(model=model, sha256=sha256, size_px=size_px)

    @cached_property
    def vae(self) -> LoadedVae | None:
        size_px = self.settings.latent_size_px
        if self.sana is None:
            if size_px is not None:
                raise UserError(
                    f"latent_size_px = {size_px} is the size of a VAE's pictures, and there is no "
                    "--sana",
                    hint="name the SANA with --sana, or leave latent_size_px out",
                )
            return None
        if size_px is None:
            raise UserError(
                f"--sana {self.sana} needs latent_size_px, the side of the pictures that its VAE "
                "encodes",
                hint="--set latent_size_px=512, the size of the Dif-DTok to be trained",
            )
        folder = find_sana(self.sana)
        model = load_vae(folder, hint="--sana names a SANA in the layout of diffusers")
        step = vae_downsampling(model)
        if size_px % step:
            raise UserError(
                f"latent_size_px = {size_px} does not divide by {step}, the pixels of a latent of "
                f"{self.sana}",
                hint=f"--set latent_size_px={max(1, round(size_px / step)) * step}",
            )
        return LoadedVae(model=model, sha256=vae_sha256(folder), size_px=size_px)

    @property
    def scales(self) -> Sequence[Scale]:
        return sorted(set(self.settings.scales))

    @cached_property
    def batch_size(self) -> int:
        """The pictures of a batch: batch_size, or as many of its halves as fit into the memory."""
        models = (self.ta_tok, self.image_vq, self.vae)
        modules = [loaded.model for loaded in models if loaded is not None]
        on_device = torch.device(self.device)
        if on_device.type == "cuda":
            total = torch.cuda.get_device_properties(on_device).total_memory
        else:
            total = memory_bytes()
        limit = (self.settings.memory_gb or MEMORY_SHARE * total / 2**30) * 2**30
        copies = on_meta(models, modules)
        size = self.settings.batch_size
        while (needed := _bytes_of_batch(copies, self.scales, self.settings, size)) > limit:
            if size == 1:
                raise UserError(
                    f"to encode one picture takes {needed / 2**30:.3g} GB of memory, and there are "
                    f"{limit / 2**30:.3g} GB for it",
                    hint="give more with --set memory_gb=, or name a device with more memory",
                )
            size //= 2
        return size

    @property
    def recorded(self) -> Mapping[str, Any]:
        ta_tok, image_vq, vae = self.ta_tok, self.image_vq, self.vae
        crop = ", the middle square" if self.settings.square else ""
        recorded = {
            "scales": [int(scale) for scale in self.settings.scales],
            "batch_size": self.batch_size,
            "limit": self.limit,
            "tokenizer_sha256": ta_tok.sha256,
            "codebook_size": ta_tok.num_codes,
            "sides": {str(int(scale)): scale.side(ta_tok.grid) for scale in self.scales},
            "resize": f"{self.settings.resize}, {ta_tok.size_px} px{crop}",
            "dtype": self.settings.precision,
        }
        if self.settings.compile:
            recorded["compile"] = True
        if image_vq is not None:
            recorded |= {
                "vqvae_sha256": image_vq.sha256,
                "vq_codebook_size": image_vq.model.arch.num_codes,
                "vq_side": image_vq.grid,
                "vq_size_px": image_vq.size_px,
            }
        if vae is not None:
            recorded |= {
                "vae_sha256": vae.sha256,
                "latent_channels": vae.channels,
                "latent_side": vae.side,
                "latent_size_px": vae.size_px,
            }
        return recorded

    @property
    def parents(self) -> Mapping[str, Artifact | Path]:
        models = {"tokenizer": Path(self.tokenizer)}
        models |= {"vqvae": Path(self.vqvae)} if self.vqvae else {}
        models |= {"sana": find_sana(self.sana)} if self.sana else {}
        return {"images": self.source, **models}

    def make(self, artifact: Artifact) -> None:
        settings = self.settings
        rank, world = rank_and_world()
        pending = set(pending_shards(artifact, self.source, rank=rank, world=world))
        names = [n for n in artifact.shards[rank::world] if n in pending or self.retry_failed]
        total = sum(self.rows_of[name] for name in names)
        encoder = _Encoder(
            (self.ta_tok, self.image_vq, self.vae),
            self.scales,
            settings,
            torch.device(self.device),
            batch_size=self.batch_size,
        )
        num_workers = settings.num_workers
        if num_workers is None:
            num_workers = default_readers(encoder.device.type)
        reader = picture_reader(
            encoder.sizing(), max_pixels=self.source.max_pixels, num_workers=num_workers
        )
        with (
            Progress("encode", total=total, unit="pictures") as progress,
            reader as pictures_at,
            threads_at_most(num_cores() - num_workers),
        ):
            for name in with_next_fetched(names, self.source.files):
                table = _shard(
                    self.source,
                    name,
                    self.rows_of[name],
                    old=None if name in pending else artifact.read(name),
                    encoder=encoder,
                    pictures_at=pictures_at,
                    progress=progress,
                )
                artifact.write(name, table, source_sha256=self.source.shard_sha256(name))
            if encoder.num_enlarged:
                sizes = [
                    f"{key} = {size_px}"
                    for key in ("vq_size_px", "latent_size_px")
                    if (size_px := getattr(self.settings, key)) is not None
                ]
                progress.message(
                    f"{encoder.num_enlarged} pictures are smaller than {' or '.join(sizes)} and "
                    "were enlarged"
                )


Models = tuple[LoadedTaTok, LoadedVqvae | None, LoadedVae | None]

Codes = dict[str, np.ndarray]
"""The codes of a shard's rows (rows, N), and the latents (rows, C * h * w), by column."""


class _Encoder:
    """The models on their device, and how pictures become codes."""

    def __init__(
        self,
        models: Models,
        scales: Sequence[Scale],
        settings: EncodeConfig,
        device: torch.device,
        *,
        batch_size: int,
    ) -> None:
        self.ta_tok, self.image_vq, self.vae = models
        self.scales = scales
        self.settings = settings
        self.device = device
        self.batch_size = batch_size
        self.num_enlarged = 0
        for loaded in models:
            if loaded is not None:
                loaded.model.to(device)
        if settings.precision != "float32":
            self.ta_tok.model.encoder.to(PRECISIONS[settings.precision])
        if settings.compile and not self.is_meta:
            for block in self.ta_tok.model.encoder.encoder.layers:
                block.compile()  # blocks are alike, so that one is compiled for all of them

    @property
    def is_meta(self) -> bool:
        """Whether it computes nothing, but tells the memory of a batch."""
        return self.device.type == "meta"

    @property
    def sizes_px(self) -> list[int]:
        """S, P, L, as far as there are such models."""
        models = (self.ta_tok, self.image_vq, self.vae)
        return [loaded.size_px for loaded in models if loaded is not None]

    def blank(self, num_rows: int) -> Codes:
        """Zeros in place of every code of `num_rows` pictures."""
        codes = {
            f"codes_{int(scale)}": np.zeros(
                (num_rows, scale.num_codes(self.ta_tok.grid)), np.uint16
            )
            for scale in self.scales
        }
        if self.image_vq is not None:
            width = code_type(self.image_vq.model.arch.num_codes).to_pandas_dtype()
            codes["vq_codes"] = np.zeros((num_rows, self.image_vq.grid**2), width)
        if self.vae is not None:
            values = self.vae.channels * self.vae.side**2
            codes["latents"] = np.zeros((num_rows, values), np.float32)
        return codes

    def sizing(self) -> Callable[[Image.Image], SizedPicture]:
        """From a picture to the squares of all models: cheap to import in a worker by default."""
        way, square = self.settings.resize, self.settings.square
        if way == "pil-bicubic":
            return functools.partial(squashed, self.sizes_px, square=square)
        return functools.partial(_stretched, way, self.sizes_px, square=square)

    def begin(self, pictures: Sequence[SizedPicture]) -> dict[str, Tensor]:
        """The columns of some pictures, on the device, which may still be computing them."""
        others = max(self.sizes_px[1:], default=0)
        self.num_enlarged += sum(picture.smallest_side < others for picture in pictures)
        batches = zip(*(picture.squares for picture in pictures), strict=True)
        return self.columns([channels_first(self._filled(b), self.device) for b in batches])

    def columns(self, batches: Sequence[Tensor]) -> dict[str, Tensor]:
        """The columns of a batch, (batch_size, 3, size, size) of each of `sizes_px`."""
        unit, *others = batches
        unit = unit if unit.is_floating_point() else bytes_to_unit(unit)
        with exact_float32(self.device):
            scales = self.ta_tok.encode_scales(unit, scales=self.scales)
            columns = {f"codes_{int(scale)}": numbers for scale, numbers in scales.items()}
            if self.image_vq is not None:
                columns["vq_codes"] = self.image_vq.model.encode(bytes_to_unit(others.pop(0)))
            if self.vae is not None:
                columns["latents"] = vae_latents(self.vae.model, others.pop(0)).flatten(1)
        return columns

    def _filled(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(batch_size, H, W, 3): blank pictures fill a short batch up."""
        pixels = np.zeros((self.batch_size, *pictures[0].shape), pictures[0].dtype)
        pixels[: len(pictures)] = pictures
        return pixels


def _stretched(
    way: Resize, sizes_px: Sequence[int], picture: Image.Image, *, square: Literal["crop"] | None
) -> SizedPicture:
    """As `squashed`, with the tokenizer's square by one of the ways of torchvision."""
    if square == "crop":
        picture = middle_square(picture)
    first, *others = sizes_px
    unit = to_unit(to_uint8(picture)[None])
    pixels = stretched(unit, first, way)[0].permute(1, 2, 0).numpy()
    sized = squashed(others, picture)
    return SizedPicture((pixels, *sized.squares), sized.smallest_side)


def _bytes_of_batch(
    models: Models, scales: Sequence[Scale], settings: EncodeConfig, size: int
) -> int:
    """Bytes of the models, which are on the meta device, and of a batch's tensors at their peak."""
    encoder = _Encoder(models, scales, settings, torch.device("meta"), batch_size=size)
    kept = [loaded.model for loaded in models if loaded is not None]
    weights = sum(p.nbytes for model in kept for p in (*model.parameters(), *model.buffers()))
    dtype = torch.uint8 if settings.resize == "pil-bicubic" else torch.float32

    def encode() -> None:
        first, *others = encoder.sizes_px
        batches = [torch.empty(size, 3, first, first, dtype=dtype)]
        encoder.columns(batches + [torch.empty(size, 3, s, s, dtype=torch.uint8) for s in others])

    return weights + peak_bytes(encode)


def _shard(
    source: Artifact,
    name: str,
    num_rows: int,
    *,
    old: pa.Table | None,
    encoder: _Encoder,
    pictures_at: ReadsPictures[SizedPicture],
    progress: Progress,
) -> pa.Table:
    """The first rows of a shard with their codes; rows that have codes in `old` keep them."""
    index = source.read(name).slice(0, num_rows)
    codes = encoder.blank(num_rows)
    finished = _keep(old, codes)
    progress.advance(len(finished))
    places = source.picture_places(name)[:num_rows]
    errors: list[str | None] = [None] * num_rows
    for row, reason in enumerate(index["error"].to_pylist()):
        if places[row] is None:
            errors[row] = f"its images row failed: {reason}"
            progress.advance(1, failed=1)
    todo = {row: place for row, place in enumerate(places) if place and row not in finished}
    batch: dict[int, SizedPicture] = {}
    begun: tuple[list[int], dict[str, Tensor]] = ([], {})
    for row, picture in zip(todo, pictures_at(list(todo.values())), strict=True):
        if isinstance(picture, ImageError):
            errors[row] = str(picture)
            progress.advance(1, failed=1)
        else:
            batch[row] = picture
        if len(batch) == encoder.batch_size:
            _finish(begun, codes, progress)
            begun = (list(batch), encoder.begin(list(batch.values())))
            batch = {}
    _finish(begun, codes, progress)
    if batch:
        _finish((list(batch), encoder.begin(list(batch.values()))), codes, progress)
    return _table(index, codes, errors)


def _finish(begun: tuple[list[int], dict[str, Tensor]], codes: Codes, progress: Progress) -> None:
    """Put the codes of a batch into their rows of `codes`; waits for the device."""
    rows, columns = begun
    for name, column in columns.items():
        values = column.cpu().numpy()[: len(rows)]
        if name != "latents" and values.min() < 0:
            raise UserError(
                "the encoder gave features that are not finite: the weights are damaged, or the "
                "precision is too low for them",
                hint="--set precision=bfloat16, or float32",
            )
        codes[name][rows] = values
    progress.advance(len(rows))


def _keep(old: pa.Table | None, codes: Codes) -> set[int]:
    """Copy the codes of the ok rows of `old` into `codes`; returns the numbers of those rows."""
    if old is None:
        return set()
    ok = [row for row, status in enumerate(old["status"].to_pylist()) if status == "ok"]
    for name, array in codes.items():
        column = old[name].combine_chunks().take(pa.array(ok, pa.int64()))
        array[ok] = column.flatten().to_numpy().reshape(len(ok), -1)
    return set(ok)


def _table(index: pa.Table, codes: Codes, errors: Sequence[str | None]) -> pa.Table:
    """The rows of a tokens artifact; a row with an error is failed and has no codes."""
    failed = np.array([error is not None for error in errors], bool)
    table = index.select(CARRIED)
    for name, array in codes.items():
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(array.reshape(-1)), array.shape[1], mask=pa.array(failed)
        )
        table = table.append_column(name, column)
    status = pa.array(["failed" if bad else "ok" for bad in failed], pa.string())
    table = table.append_column("status", status)
    return table.append_column("error", pa.array(errors, pa.string()))
