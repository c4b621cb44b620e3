"""Linear probes: shape, colour and position of an object, read by a linear map from codes.

A codebook can reach a high cosine and yet lose the colour (in a prototype: cosine .905, colour at
chance), so the codes themselves are probed.

Letters: M pictures of one object each, N positions, F numbers at a position.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Probe(NamedTuple):
    """Figures of the linear probes on held-out pictures."""

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
    """Fit a ridge regression on all but the last `held_out` pictures, and measure it on those.

    `features` (M, N, F) holds a vector of each position, such as that of its code. Shape and
    colour, one-hot and read by argmax, come from the sum over positions, because the object may be
    anywhere; the centre, `centres` (M, 2) in pixels, comes from the vectors of all positions
    concatenated. `ridge` is relative to the mean square of the features.
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
    # Above zero, so that features that are equal everywhere predict the mean instead of failing.
    penalty = max(ridge * float((x[fit] ** 2).mean()) * len(x[fit]), 1e-9)
    # Solve the smaller system, that of the rows or that of the columns.
    if len(x[fit]) < x.shape[1]:
        kernel = x[fit] @ x[fit].T
        weights = x[fit].T @ np.linalg.solve(kernel + penalty * np.eye(len(kernel)), y)
    else:
        gram = x[fit].T @ x[fit]
        weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), x[fit].T @ y)
    predicted: np.ndarray = x[-held_out:] @ weights + target
    return predicted
