"""Linear probes: what a linear map can read out of a picture's codes, beside what the cosine says.

A codebook can reach a high cosine and have lost the colour (in a prototype: cosine .905,
colour at chance), so the codes themselves are probed.

Letters: M pictures of one object each, N positions, F width of what stands at a position.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Probe(NamedTuple):
    """Figures of the linear probes on pictures that they were not fitted to."""

    shape: float  # accuracy over the shapes
    colour: float  # accuracy over the colours
    position_px: float  # mean distance of the centre


def probe(
    features: np.ndarray,
    shapes: np.ndarray,
    colours: np.ndarray,
    centres: np.ndarray,
    *,
    held_out: int,
    ridge: float = 1e-3,
) -> Probe:
    """Ridge regression on all but the last `held_out` pictures, measured on those.

    `features` (M, N, F): what stands at each position (a code's vector, a feature). Shape and
    colour are read, one-hot and by argmax, from the sum over positions, because they may be
    anywhere; the centre `centres` (M, 2) from all positions side by side. `ridge` is relative to
    the mean square of the features.
    """
    bag = _fit(
        features.sum(1), np.concatenate([_one_hot(shapes), _one_hot(colours)], 1), held_out, ridge
    )
    num_shapes = int(shapes.max()) + 1
    place = _fit(features.reshape(len(features), -1), centres, held_out, ridge)
    shape = bag[:, :num_shapes].argmax(1) == shapes[-held_out:]
    colour = bag[:, num_shapes:].argmax(1) == colours[-held_out:]
    distance = np.linalg.norm(place - centres[-held_out:], axis=1)
    return Probe(float(shape.mean()), float(colour.mean()), float(distance.mean()))


def _one_hot(labels: np.ndarray) -> np.ndarray:
    hot: np.ndarray = np.eye(int(labels.max()) + 1)[labels]
    return hot


def _fit(x: np.ndarray, y: np.ndarray, held_out: int, ridge: float) -> np.ndarray:
    """Predictions of a ridge regression for the last `held_out` rows."""
    x = x.astype(np.float64)
    fit = slice(None, len(x) - held_out)
    centre, target = x[fit].mean(0), y[fit].mean(0)
    x, y = x - centre, y[fit] - target
    # Never zero: features that are the same everywhere predict the mean, and are no error.
    penalty = max(ridge * float((x[fit] ** 2).mean()) * len(x[fit]), 1e-9)
    # Solve in whichever of rows and columns is the smaller.
    if len(x[fit]) < x.shape[1]:
        kernel = x[fit] @ x[fit].T
        weights = x[fit].T @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), y)
    else:
        gram = x[fit].T @ x[fit]
        weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), x[fit].T @ y)
    predicted: np.ndarray = x[-held_out:] @ weights + target
    return predicted
