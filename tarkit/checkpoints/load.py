"""Loads the models that tarkit defines: the image VQ, the encoder, TA-Tok and AR-DTok.

Each is read from a model directory (directory.py) or from a published file (published_pth.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tarkit.artifacts.digests import files_sha256, remembered_sha256
from tarkit.checkpoints.directory import (
    MODELS,
    REFETCH,
    ModuleT,
    fill,
    fill_directory,
    in_precision,
    read_arch,
    read_config,
    read_weights,
    require_weights,
)
from tarkit.checkpoints.published_pth import Published, read_published
from tarkit.checkpoints.siglip import is_siglip, read_siglip
from tarkit.checkpoints.stored_tensors import indexed_files
from tarkit.config import Config
from tarkit.errors import UserError
from tarkit.images import resize as resize_picture
from tarkit.images import to_uint8
from tarkit.models.ar_dtok import ArDtok
from tarkit.models.encoder import VisionEncoder
from tarkit.models.pixel_range import from_unit, to_unit
from tarkit.models.ta_tok import TaTok, pool
from tarkit.models.vqvae import Vqvae
from tarkit.vocab import Scale


def _empty(build: Callable[[Any], ModuleT], arch: Config, path: Path) -> ModuleT:
    """A network on the meta device, which takes no memory until its weights are assigned.

    Raises UserError for sizes that make no network, such as a width that heads do not divide.
    """
    try:
        with torch.device("meta"):
            return build(arch)
    except (ValueError, ArithmeticError, AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: its sizes make no network: {reason}", hint=REFETCH) from None


def _load(
    path: Path,
    kind: str,
    build: Callable[[Any], ModuleT],
    dtype: torch.dtype = torch.float32,
) -> tuple[ModuleT, str]:
    """A model in eval mode and its identity, the sha256 of its weights."""
    if path.is_file():
        model = _from_published(read_published(path), path, kind, build, dtype)
        return model, remembered_sha256(path)
    config = read_config(path, kind)
    model = _empty(build, read_arch(MODELS[kind][0], path, config), path)
    return fill_directory(model, read_weights(path, dtype), path), str(config["sha256"])


def check_published(published: Published, path: Path) -> None:
    """UserError where a published file's weights do not fit its own sizes."""
    fill(_empty(MODELS[published.kind][1], published.arch, path), published.state, path, REFETCH)


def _from_published(
    published: Published,
    path: Path,
    kind: str,
    build: Callable[[Any], ModuleT],
    dtype: torch.dtype,
) -> ModuleT:
    """The model of a published file's content; UserError where it is of another kind."""
    if published.kind != kind:
        raise UserError(
            f"{path} is a published {published.kind}, where a model of kind {kind} is needed",
            hint=f"tarkit models convert {path} --out DIR",
        )
    state = in_precision(published.state, dtype)
    return fill(_empty(build, published.arch, path), state, path, REFETCH)


START_SHA256 = "start_sha256"
"""The key of an image VQ's config.json with the sha256 of the image VQ that it went on from."""


ALIGNED = "aligned"
"""The key of an image VQ's config.json that is there where it was trained to match captions too."""


def model_sha256(path: Path, kind: str) -> str:
    """The identity of a model: its config.json's sha256, or that of a published file."""
    return remembered_sha256(path) if path.is_file() else str(read_config(path, kind)["sha256"])


def load_vqvae(path: Path) -> Vqvae:
    """An image VQ in eval mode, float32; `path` is a model directory or a published file."""
    return _load(Path(path), "vqvae", Vqvae)[0]


def load_pixel_tokenizer(path: Path, *, grid: int) -> LoadedVqvae:
    """An image VQ as the tokenizer of a language model whose pictures have grid x grid codes."""
    model, sha256 = _load(Path(path), "vqvae", Vqvae)
    aligned = Path(path).is_dir() and ALIGNED in read_config(path)
    return LoadedVqvae(
        model=model,
        sha256=sha256,
        size_px=grid * model.arch.downsampling,
        is_aligned=aligned,
    )


def load_encoder(path: Path) -> VisionEncoder:
    """A vision encoder in eval mode, float32.

    `path` is a model directory, or a transformers folder of SigLIP or SigLIP 2 (siglip.py).
    """
    if is_siglip(path):
        arch, state = read_siglip(path)
        return fill(_empty(VisionEncoder, arch, path), state, path, REFETCH)
    return _load(Path(path), "encoder", VisionEncoder)[0]


@dataclass(frozen=True, kw_only=True)
class LoadedEncoder:
    """A frozen vision encoder whose features a language model reads in place of codes (Sec. 4.3).

    S: side of its pictures in pixels, W: width of its features.
    """

    model: VisionEncoder
    sha256: str
    layer: int
    """The hidden state that is read, as TA-Tok's `select_layer`."""

    @property
    def size_px(self) -> int:
        return self.model.arch.size_px

    @property
    def grid(self) -> int:
        return self.model.arch.grid

    @property
    def width(self) -> int:
        """W."""
        return self.model.arch.width

    @torch.no_grad()
    def features(self, images: Tensor, scales: Sequence[Scale]) -> list[Tensor]:
        """Pictures (B, 3, S, S) in [0, 1], a scale for each -> the features (N, W) of each.

        They are pooled as TA-Tok pools them.
        """
        if not len(images):
            return []
        whole = self.model.features(images * 2 - 1, layer=self.layer)
        return [pool(row[None], scale)[0] for row, scale in zip(whole, scales, strict=True)]

    def facts(self) -> dict[str, Any]:
        """What a language model that reads the features records of them."""
        return {"encoder_sha256": self.sha256, "layer": self.layer, "width": self.width}


def load_reading_encoder(path: Path, *, layer: int) -> LoadedEncoder:
    """An encoder that a language model reads pictures with; UserError for a layer it lacks.

    Its identity is the sha256 of its training, or of the weights files of a SigLIP.
    """
    model = load_encoder(path)
    if not -model.arch.layers - 1 <= layer <= model.arch.layers:
        raise UserError(
            f"read_layer = {layer}: {path} has {model.arch.layers} layers",
            hint="--set read_layer=-2 is the last but one, as TA-Tok reads",
        )
    if is_siglip(path):
        sha256 = files_sha256(indexed_files(path) or [require_weights(path)])
    else:
        sha256 = str(read_config(path, "encoder")["sha256"])
    return LoadedEncoder(model=model, sha256=sha256, layer=layer)


Resize = Literal["pil-bicubic", "bilinear", "bilinear-noaa"]


@dataclass(frozen=True)
class LoadedTaTok:
    """TA-Tok and the sha256 that identifies its codes."""

    model: TaTok
    sha256: str

    @property
    def size_px(self) -> int:
        return self.model.arch.encoder.size_px

    @property
    def grid(self) -> int:
        return self.model.arch.encoder.grid

    @property
    def num_codes(self) -> int:
        """K, the size of the codebook."""
        return self.model.arch.num_codes

    def encode_scales(self, images: Tensor, scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        """Pictures (B, 3, size_px, size_px) in [0, 1] -> codes (B, N) int64 of each scale.

        Argmax in float32, one encoder pass for all scales.
        """
        return self.model.encode(images * 2 - 1, scales)

    def sized(self, images: Tensor, resize: Resize) -> Tensor:
        """RGB pictures (B, 3, H, W) in [0, 1] as the encoder takes them: `stretched`."""
        return stretched(images, self.size_px, resize)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The scales at which it encodes a picture."""
        return tuple(Scale)

    def condition(self, codes: Tensor) -> Tensor:
        """Codes (B, N) -> features (B, N, W) that the de-tokenizers are conditioned on."""
        return self.model.condition(codes)

    def vectors(self, codes: Tensor) -> Tensor:
        """Codes (B, N) -> their rows of the codebook (B, N, D)."""
        return self.model.codebook.lookup(codes)

    def codebook(self) -> Tensor:
        """The codebook (K, D), in the space of the language model's embeddings."""
        return self.model.codebook.projected()


@dataclass(frozen=True, kw_only=True)
class LoadedVqvae:
    """An image VQ, the sha256 that identifies its codes, and the pictures that it encodes.

    As a language model's tokenizer it reads, writes and draws pictures at one scale.
    """

    model: Vqvae
    sha256: str
    size_px: int  # P
    is_aligned: bool = False
    """Whether it was also trained to match captions."""

    @property
    def grid(self) -> int:
        """Codes along a side of a picture."""
        return self.size_px // self.model.arch.downsampling

    @property
    def num_codes(self) -> int:
        """K, the size of the codebook."""
        return self.model.arch.num_codes

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The one scale at which it encodes a picture."""
        return (Scale.FULL,)

    def encode_scales(self, images: Tensor, scales: Sequence[Scale]) -> dict[Scale, Tensor]:
        """Pictures (B, 3, P, P) in [0, 1] -> codes (B, N) int64; UserError for another scale."""
        for scale in scales:
            self.require_scale(scale)
        return {scale: self.model.encode(images) for scale in scales}

    def require_scale(self, scale: Scale) -> None:
        """Raise UserError for a scale that pixel codes do not have."""
        if scale not in self.scales:
            raise UserError(
                f"pixel codes of an image VQ have scale 1 alone, not scale {int(scale)}",
                hint="--scale 1, or leave --scale out",
            )

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N) -> pixels (B, 3, P, P) in [0, 1]."""
        return self.model.decode(codes)

    def vectors(self, codes: Tensor) -> Tensor:
        """Codes (B, N) -> their rows of the codebook (B, N, D), of length 1."""
        return F.embedding(codes, self.model.quantize.codebook())

    def codebook(self) -> Tensor:
        """The codebook (K, D), rows of length 1."""
        return self.model.quantize.codebook()


def stretched(images: Tensor, size_px: int, resize: Resize) -> Tensor:
    """RGB pictures (B, 3, H, W) in [0, 1] -> (B, 3, size_px, size_px), stretched to the square.

    The three published ways of resizing give different codes: "pil-bicubic" is what the published
    language model was trained with, "bilinear" what its scripts do with torchvision 0.17 and later,
    "bilinear-noaa" (no antialiasing) with earlier ones. Raises ValueError for another shape,
    integers, or pixels outside [0, 1].
    """
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"expected float pictures (B, 3, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    low, high = images.aminmax()
    if not (0 <= low and high <= 1):
        raise ValueError(f"pixels span {float(low):.3f} to {float(high):.3f}, not [0, 1]")
    size = (size_px, size_px)
    if tuple(images.shape[-2:]) == size:
        return images
    if resize == "pil-bicubic":
        sized = [
            to_uint8(resize_picture(Image.fromarray(row), size_px, "squash"))
            for row in from_unit(images)
        ]
        return to_unit(sized, images.device)
    if resize not in ("bilinear", "bilinear-noaa"):
        raise ValueError(f"resize {resize!r}: expected one of {', '.join(get_args(Resize))}")
    # Resized in [-1, 1], the range of the model's input, as in the published scripts.
    resized = F.interpolate(
        images * 2 - 1,
        size=size,
        mode="bilinear",
        align_corners=False,
        antialias=resize == "bilinear",
    )
    return resized * 0.5 + 0.5


def load_ta_tok(path: Path) -> LoadedTaTok:
    """A tokenizer in eval mode, float32; `path` is a model directory or a published file."""
    return LoadedTaTok(*_load(Path(path), "ta_tok", TaTok))


def load_ar_dtok(path: Path, dtype: torch.dtype = torch.float32) -> ArDtok:
    """An AR-DTok in eval mode, in `dtype`; `path` is a model directory or a published file."""
    return _load(Path(path), "ar_dtok", ArDtok, dtype)[0]
