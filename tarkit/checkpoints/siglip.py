"""SigLIP's and SigLIP 2's vision tower, read from a folder of transformers.

Source: paper Sec. 4.1 (siglip2-so400m-patch14-384 is encoder and teacher of TA-Tok). The published
SigLIP 2 of a fixed resolution is a `siglip` model; `siglip2` is its NaFlex variant, whose pictures
keep their aspect ratio and therefore have no square grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from tarkit.artifacts.files import read_object
from tarkit.checkpoints.directory import CONFIG, REFETCH, in_precision, read_config
from tarkit.checkpoints.stored_tensors import StoredTensor, stored_tensors
from tarkit.errors import UserError
from tarkit.models.encoder import EncoderArch

FAMILIES = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
FIXED = "name a fixed-resolution model, such as google/siglip2-so400m-patch14-384"

# EncoderArch's sizes: the key in the vision config, and the default of transformers, which a
# published config.json leaves out.
SIZES: Mapping[str, tuple[str, int]] = {
    "size_px": ("image_size", 224),
    "patch_px": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
}
# What VisionEncoder does in one way only.
REQUIRED: Mapping[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
}
TEXT_SIDE = r"text_model\.|logit_scale$|logit_bias$"
PATCHES = "embeddings.patch_embedding.weight"


def is_siglip(path: Path) -> bool:
    """Whether a path is a transformers folder of a SigLIP or SigLIP 2 model."""
    try:
        config = read_object(path / CONFIG)
    except UserError:
        return False
    return config.get("model_type") in FAMILIES


def read_siglip(path: Path) -> tuple[EncoderArch, dict[str, Tensor]]:
    """Sizes and float32 weights of the vision tower in a folder, by VisionEncoder's names.

    The folder holds the whole model or the vision tower alone, as any version of transformers
    saved it; the text tower is not read. Raises UserError where `read_siglip_arch` does.
    """
    arch = read_siglip_arch(path)
    tensors = {
        name.removeprefix("vision_model."): tensor
        for name, tensor in stored_tensors(path).items()
        if not re.match(TEXT_SIDE, name)
    }
    if PATCHES in tensors and len(tensors[PATCHES].shape) == 2:
        raise _naflex(path)
    return arch, _read(tensors)


def read_siglip_arch(path: Path) -> EncoderArch:
    """Sizes of the vision tower in a folder, whose config.json is enough.

    Raises UserError for NaFlex, and for a tower that computes what VisionEncoder does not.
    """
    config = read_config(path)
    vision = config.get("vision_config", config if "vision" in config["model_type"] else {})
    if not isinstance(vision, Mapping):
        raise UserError(f"{path / CONFIG}: vision_config is not a table", hint=REFETCH)
    if str(config["model_type"]).startswith("siglip2") and "image_size" not in vision:
        raise _naflex(path)
    for key, value in REQUIRED.items():
        if vision.get(key, value) != value:
            raise UserError(
                f"{path / CONFIG}: {key} is {vision[key]!r}, only {value!r} can be read", hint=FIXED
            )
    sizes = {name: vision.get(key, default) for name, (key, default) in SIZES.items()}
    try:
        return EncoderArch(**sizes, head=vision.get("vision_use_head", True))
    except pydantic.ValidationError as error:
        faults = "; ".join(f"{e['loc'][0]} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path / CONFIG} has no sizes of SigLIP: {faults}", hint=REFETCH) from None


def _read(tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    return in_precision({name: t.read() for name, t in tensors.items()}, torch.float32)


def _naflex(path: Path) -> UserError:
    return UserError(
        f"{path} is SigLIP 2 NaFlex, whose grid changes with the picture: TA-Tok pools the square "
        "grid of a fixed resolution",
        hint=FIXED,
    )
