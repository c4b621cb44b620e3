"""Reads the published weights of LPIPS (models/lpips.py) from files that a user names.

They come in two files, torchvision's VGG16 and LPIPS's linear heads, or merged into one; each is
a `.pth`, opened in torch's weights-only mode, or a safetensors file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tarkit.checkpoints.directory import fill, read_tensors
from tarkit.errors import UserError
from tarkit.models.lpips import Lpips

UNUSED = "classifier."  # of VGG16, behind the features
HINT = (
    "name vgg16-397923af.pth of torchvision (features.N.weight, .bias) and vgg.pth of LPIPS 0.1 "
    "(linK.model.1.weight), each with its own --lpips"
)


def load_lpips(files: Sequence[Path]) -> Lpips:
    """LPIPS in eval mode, float32, from the tensors of all `files`; VGG16's classifier is unused.

    Raises UserError where a file cannot be read or is unsafe, and where tensors are missing, are
    there twice or have another shape.
    """
    state: dict[str, Tensor] = {}
    for file in files:
        tensors = _tensors(file)
        twice = sorted(tensors.keys() & state.keys())
        if twice:
            raise UserError(f"{file} holds {twice[0]}, which a file before it holds too", hint=HINT)
        state |= tensors
    kept = {k: v.float() for k, v in state.items() if not k.startswith(UNUSED)}
    try:
        return fill(Lpips(), kept, files[-1], HINT)
    except UserError as error:
        names = " and ".join(str(file) for file in files)
        faults = error.message.split(": ", 1)[1]
        raise UserError(f"{names}: no weights of LPIPS: {faults}", hint=HINT) from None


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, by name."""
    if not file.is_file():
        raise UserError(f"there is no file {file}", hint=HINT)
    if file.suffix == ".safetensors":
        return read_tensors(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a bad pickle
        raise UserError(
            f"{file} is refused: {' '.join(str(error).split())[:200]}",
            hint="only tensors and plain values are read; get the file from its publisher",
        ) from None
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{file} is not a file of named tensors", hint=HINT)
    return dict(content)
