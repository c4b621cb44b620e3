"""The similarity of two pictures, pixel by pixel (PSNR) and window by window (SSIM).

Sources: PSNR of 8-bit pictures, peak 255; SSIM of Wang et al. 2004 with its own constants: an
11 x 11 Gaussian window of sigma 1.5, K1 = .01, K2 = .03, L = 255, windows inside the picture only.
Departures: SSIM is the mean over the RGB channels, where the paper takes grey; pictures are not
shrunk first, as later programs of its authors do; variances divide by the weights' sum, 1. Figures
of other constants do not compare. Pictures are (H, W, 3) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PEAK = 255
WINDOW_PX = 11
SIGMA_PX = 1.5
C1 = (0.01 * PEAK) ** 2
C2 = (0.03 * PEAK) ** 2


class Similarity(NamedTuple):
    """The summary of many pairs of pictures.

    `psnr` is that of the mean squared error of all pictures, inf where all pairs are identical.
    `psnr_mean` is the mean of the pairs' own PSNR without the `num_identical` pairs whose PSNR is
    inf; nan if all are identical. A few bad pictures lower the former much and the latter little.
    """

    psnr: float
    psnr_mean: float
    num_identical: int
    ssim: float


def similarity(errors: Sequence[float], ssims: Sequence[float]) -> Similarity:
    """Mean squared errors and SSIMs of the pairs -> their summary; ValueError without a pair."""
    if not errors or len(errors) != len(ssims):
        raise ValueError(f"{len(errors)} squared errors and {len(ssims)} SSIMs")
    finite = [psnr(error) for error in errors if error > 0]
    return Similarity(
        psnr=psnr(float(np.mean(errors))),
        psnr_mean=float(np.mean(finite)) if finite else math.nan,
        num_identical=len(errors) - len(finite),
        ssim=float(np.mean(ssims)),
    )


def mean_squared_error(first: NDArray[Any], second: NDArray[Any]) -> float:
    """The mean squared difference of all values of two pictures, in [0, 255^2]."""
    a, b = _pair(first, second)
    return float(np.square(a - b).mean())


def psnr(squared_error: float) -> float:
    """A mean squared error as decibels below the peak, 10 log10(255^2 / error); inf for 0."""
    return 10 * math.log10(PEAK**2 / squared_error) if squared_error else math.inf


def ssim(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Structural similarity in [-1, 1], the mean over windows and channels.

    Raises ValueError for a side below 11 px.
    """
    a, b = _pair(first, second)
    if min(a.shape[:2]) < WINDOW_PX:
        raise ValueError(
            f"a window of {WINDOW_PX} px does not fit into {a.shape[1]} x {a.shape[0]}"
        )
    mean_a, mean_b = _blur(a), _blur(b)
    variances = _blur(a * a) - mean_a**2 + _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return float((luminance * (2 * covariance + C2) / (variances + C2)).mean())


def cosines(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """(n, D), (n, D) features -> (n,) cosines of the rows' angles; ValueError for a zero row."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    if a.shape != b.shape:
        raise ValueError(f"features of shapes {a.shape} and {b.shape} do not form pairs")
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    if not lengths.all():
        raise ValueError("a row of zeros has no direction")
    values: Floats = (a * b).sum(axis=1) / lengths
    return values


def _pair(first: NDArray[Any], second: NDArray[Any]) -> tuple[Floats, Floats]:
    for array in (first, second):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"expected (H, W, 3) uint8, got {array.dtype} {array.shape}")
    if first.shape != second.shape:
        raise ValueError(f"pictures of shapes {first.shape} and {second.shape} do not compare")
    return first.astype(np.float64), second.astype(np.float64)


def _blur(values: Floats) -> Floats:
    """(H, W, 3) -> (H - 10, W - 10, 3), weighted by the window, one axis after the other."""
    places = np.arange(WINDOW_PX) - WINDOW_PX // 2
    weights = np.exp(-(places**2) / (2 * SIGMA_PX**2))
    weights /= weights.sum()
    for axis in (0, 1):
        values = np.lib.stride_tricks.sliding_window_view(values, WINDOW_PX, axis=axis) @ weights
    return values
