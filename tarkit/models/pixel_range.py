"""Between uint8 pictures and float tensors: the only places where a range of pixels changes.

Rows of bytes are (B, H, W, 3) RGB, from 0 to 255; tensors are (B, 3, H, W). The functions differ in
their last bits (`to_signed` is not `to_unit` * 2 - 1), and weights, codes and pictures on disk
depend on which one is used where.

Shapes: B pictures, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def channels_first(
    rows: np.ndarray | Sequence[np.ndarray], device: str | torch.device = "cpu"
) -> Tensor:
    """(B, H, W, 3) of any type -> (B, 3, H, W) of that type, strided as the rows are."""
    stacked = rows if isinstance(rows, np.ndarray) else np.stack(rows)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(device)


def to_unit(rows: np.ndarray | Sequence[np.ndarray], device: str | torch.device = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [0, 1]."""
    return bytes_to_unit(channels_first(rows, device))


def bytes_to_unit(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 of the same shape in [0, 1], on the same device."""
    # On the device: a GPU divides by multiplying with the reciprocal, which differs in a last bit.
    return images.float() / 255


def to_signed(rows: np.ndarray | Sequence[np.ndarray]) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1], as models are trained on."""
    return signed(channels_first(rows))


def signed(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 in [-1, 1], on the device that they are on."""
    return pixels.float() / 127.5 - 1


def from_unit(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> uint8 (B, H, W, 3), each value rounded to the nearest byte."""
    return _channels_last((images * 255).round())


def from_unit_truncated(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [0, 1] -> uint8 (B, H, W, 3), rounded down as the published program does."""
    return _channels_last(images * 255)


def _channels_last(levels: Tensor) -> np.ndarray:
    pixels: np.ndarray = levels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels
