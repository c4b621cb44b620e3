"""`tarkit encode`: pictures to the codes of every scale, in one encoder pass.

Source: paper Sec. 3.1 (scale-adaptive pooling comes after the encoder, so one pass serves all
scales). Each row of the images artifact gives one row in the shard of the same number, with its
texts; a picture that cannot be read gives a failed row. The tokenizer is float32, and pictures are
squashed to its input size, by default as for the training of the published language model. Every
batch has the same shape, so that the codes of a picture do not depend on its batch: a short batch
is filled up with blank pictures, whose codes are dropped.

With an image VQ each row also has its codes of the same picture (column `vq_codes`), from which
AR-DTok is trained without running an encoder (Sec. 3.2, Eq. 4). Both models see the same part of
the picture: it is squared once, and then resized for each.

With a SANA each row also has the latents of its VAE (column `latents`), from which Dif-DTok is
trained without running an encoder (Sec. 3.2, Eq. 5): float32 in SANA's scale, C x h x w in a row.

S: side of the tokenizer's input in pixels. P: side of the image VQ's, L: of the VAE's. C h w: the
VAE's latents.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, PositiveInt

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.plan import RowPlan
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.remote import with_next_fetched
from tarkit.artifacts.resume import pending_shards
from tarkit.artifacts.schema import ABOUT_PICTURE, TEXTS, code_type
from tarkit.checkpoints.load import (
    LoadedTaTok,
    Resize,
    load_ta_tok,
    load_vqvae,
    model_sha256,
)
from tarkit.checkpoints.sana import find_sana, load_vae, vae_downsampling, vae_latents, vae_sha256
from tarkit.config import Config, load_config
from tarkit.errors import UserError
from tarkit.images import ImageError, decode, middle_square, to_uint8
from tarkit.images import resize as resize_picture
from tarkit.models.exact import exact_float32
from tarkit.models.pixel_range import channels_first, to_unit
from tarkit.models.vqvae import Vqvae
from tarkit.progress import Progress
from tarkit.vocab import Scale

if TYPE_CHECKING:
    from diffusers import AutoencoderDC

DTYPE = "float32"
NUM_READERS = 4
READ_AHEAD = 256
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
    vq_size_px: PositiveInt | None = None
    """P, with an image VQ: the resolution of the AR-DTok to be trained. 256, 512 or 1024 in the
    paper (App. C.1)."""
    latent_size_px: PositiveInt | None = None
    """L, with a SANA: the resolution of the Dif-DTok to be trained. 512 or 1024 in the paper."""


@dataclass(frozen=True, kw_only=True)
class LoadedVqvae:
    """An image VQ, the sha256 that identifies its codes, and the pictures that it encodes."""

    model: Vqvae
    sha256: str
    size_px: int  # P

    @property
    def side(self) -> int:
        """Codes along a side of a picture."""
        return self.size_px // self.model.arch.downsampling


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

    @property
    def recorded(self) -> Mapping[str, Any]:
        ta_tok, image_vq, vae = self.ta_tok, self.image_vq, self.vae
        crop = ", the middle square" if self.settings.square else ""
        recorded = {
            **self.settings.model_dump(
                mode="json", exclude={"square", "vq_size_px", "latent_size_px"}
            ),
            "limit": self.limit,
            "tokenizer_sha256": ta_tok.sha256,
            "codebook_size": ta_tok.num_codes,
            "sides": {str(int(scale)): scale.side(ta_tok.grid) for scale in self.scales},
            "resize": f"{self.settings.resize}, {ta_tok.size_px} px{crop}",
            "dtype": DTYPE,
        }
        if image_vq is not None:
            recorded |= {
                "vqvae_sha256": image_vq.sha256,
                "vq_codebook_size": image_vq.model.arch.num_codes,
                "vq_side": image_vq.side,
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
        encoder = _Encoder(
            self.ta_tok,
            self.image_vq,
            self.vae,
            self.scales,
            self.settings,
            self.device,
            max_pixels=self.source.max_pixels,
        )
        rank, world = rank_and_world()
        pending = set(pending_shards(artifact, self.source, rank=rank, world=world))
        names = [n for n in artifact.shards[rank::world] if n in pending or self.retry_failed]
        total = sum(self.rows_of[name] for name in names)
        with Progress("encode", total=total, unit="pictures") as progress:
            for name in with_next_fetched(names, self.source.files):
                table = _shard(
                    self.source.read(name).slice(0, self.rows_of[name]),
                    self.source.read_images(name),
                    old=None if name in pending else artifact.read(name),
                    encoder=encoder,
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


class _EncoderInputs(NamedTuple):
    """One picture at the sizes of all models."""

    ta_tok: np.ndarray  # (S, S, 3) uint8 by Pillow, float32 in [0, 1] by the other ways
    vqvae: np.ndarray | None  # (P, P, 3) uint8; None without an image VQ
    vae: np.ndarray | None  # (L, L, 3) uint8; None without a VAE
    enlarged: bool  # the picture is smaller than P or L


Codes = dict[str, np.ndarray]
"""The codes of a shard's rows (rows, N), and the latents (rows, C * h * w), by column."""


class _Encoder:
    """The models on their device, and how pictures become codes."""

    def __init__(
        self,
        ta_tok: LoadedTaTok,
        image_vq: LoadedVqvae | None,
        vae: LoadedVae | None,
        scales: Sequence[Scale],
        settings: EncodeConfig,
        device: str,
        *,
        max_pixels: int,
    ) -> None:
        self.ta_tok = ta_tok
        self.image_vq = image_vq
        self.vae = vae
        self.scales = scales
        self.settings = settings
        self.device = torch.device(device)
        self.num_enlarged = 0
        self.max_pixels = max_pixels
        ta_tok.model.to(self.device)
        if image_vq is not None:
            image_vq.model.to(self.device)
        if vae is not None:
            vae.model.to(self.device)

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
            codes["vq_codes"] = np.zeros((num_rows, self.image_vq.side**2), width)
        if self.vae is not None:
            values = self.vae.channels * self.vae.side**2
            codes["latents"] = np.zeros((num_rows, values), np.float32)
        return codes

    def pixels(self, facts: dict[str, Any], blob: bytes | None) -> _EncoderInputs | str:
        """The pixels of a picture for all models, or the reason why it has none."""
        if blob is None:
            return f"its images row failed: {facts['error']}"
        try:
            picture = decode(blob, max_pixels=self.max_pixels)
        except ImageError as error:
            return str(error)
        if self.settings.square == "crop":
            picture = middle_square(picture)
        way, ta_tok = self.settings.resize, self.ta_tok
        if way == "pil-bicubic":
            pixels = to_uint8(resize_picture(picture, ta_tok.size_px, "squash"))
        else:
            unit = to_unit(to_uint8(picture)[None])
            pixels = ta_tok.sized(unit, way)[0].permute(1, 2, 0).numpy()
        vqvae, vae = (
            None if model is None else to_uint8(resize_picture(picture, model.size_px, "squash"))
            for model in (self.image_vq, self.vae)
        )
        side = max(0 if other is None else len(other) for other in (vqvae, vae))
        return _EncoderInputs(pixels, vqvae, vae, enlarged=min(picture.size) < side)

    def encode(self, batch: Sequence[tuple[int, _EncoderInputs]], codes: Codes) -> None:
        """Put the codes of the pictures of `batch` into their rows of `codes`."""
        rows = [row for row, _ in batch]
        self.num_enlarged += sum(pixels.enlarged for _, pixels in batch)
        images = self._unit([pixels.ta_tok for _, pixels in batch])
        with exact_float32(self.device):
            scales = self.ta_tok.encode_scales(images, scales=self.scales)
            columns = {f"codes_{int(scale)}": numbers for scale, numbers in scales.items()}
            if self.image_vq is not None:
                images = self._unit([p.vqvae for _, p in batch if p.vqvae is not None])
                columns["vq_codes"] = self.image_vq.model.encode(images)
            if self.vae is not None:
                filled = self._filled([p.vae for _, p in batch if p.vae is not None])
                latents = vae_latents(self.vae.model, channels_first(filled, self.device))
                columns["latents"] = latents.flatten(1)
        for name, array in codes.items():
            array[rows] = columns[name].cpu().numpy()[: len(rows)]

    def _filled(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(batch_size, H, W, 3): blank pictures fill a short batch up."""
        pixels = np.zeros((self.settings.batch_size, *pictures[0].shape), pictures[0].dtype)
        pixels[: len(pictures)] = pictures
        return pixels

    def _unit(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """(batch_size, 3, H, W) float32 in [0, 1]."""
        pixels = self._filled(pictures)
        to_tensor = to_unit if pixels.dtype == np.uint8 else channels_first
        return to_tensor(pixels, self.device)


def _shard(
    index: pa.Table,
    pictures: Iterator[tuple[dict[str, Any], bytes | None]],
    *,
    old: pa.Table | None,
    encoder: _Encoder,
    progress: Progress,
) -> pa.Table:
    """The rows of `index` with their codes; rows that have codes in `old` keep them."""
    num_rows = index.num_rows
    codes = encoder.blank(num_rows)
    finished = _keep(old, codes)
    errors: list[str | None] = [None] * num_rows
    progress.advance(len(finished))
    remaining = (
        (row, facts, blob)
        for row, (facts, blob) in enumerate(itertools.islice(pictures, num_rows))
        if row not in finished
    )
    batch: list[tuple[int, _EncoderInputs]] = []
    for row, pixels in _read_ahead(remaining, encoder):
        if isinstance(pixels, str):
            errors[row] = pixels
            progress.advance(1, failed=1)
        else:
            batch.append((row, pixels))
        if len(batch) == encoder.settings.batch_size:
            encoder.encode(batch, codes)
            progress.advance(len(batch))
            batch = []
    if batch:
        encoder.encode(batch, codes)
        progress.advance(len(batch))
    return _table(index, codes, errors)


def _read_ahead(
    rows: Iterator[tuple[int, dict[str, Any], bytes | None]], encoder: _Encoder
) -> Iterator[tuple[int, _EncoderInputs | str]]:
    """(row, pixels or error) in order, decoded by threads while the encoder works."""
    waiting: collections.deque[tuple[int, Future[_EncoderInputs | str]]] = collections.deque()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for row, facts, blob in rows:
            waiting.append((row, pool.submit(encoder.pixels, facts, blob)))
            if len(waiting) >= READ_AHEAD:
                ready, future = waiting.popleft()
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()


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
