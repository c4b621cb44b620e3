"""Linear probes: what a linear map can read out of codes, beside what the cosine says.

A codebook can reach a high cosine and have lost the colour (measured in miniature: cosine .905,
colour at chance), so the codes themselves are probed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Probe(NamedTuple):
    """Held-out figures of one linear probe on one-object pictures."""

    shape: float  # accuracy over 12 shapes
    colour: float  # accuracy over 10 colours
    position_px: float  # mean distance of the centre, on the 64 px canvas


def probe(
    features: np.ndarray,
    shapes: np.ndarray,
    colours: np.ndarray,
    centres: np.ndarray,
    *,
    held_out: int,
    ridge: float = 1.0,
) -> Probe:
    """Ridge regression on all but the last `held_out` pictures, measured on those.

    `features`: (M, F), any description of a picture's codes; `shapes`, `colours`: (M,) integers;
    `centres`: (M, 2) in px. Classes are regressed one-hot and read by argmax.
    """
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    targets = np.concatenate(
        [np.eye(shapes.max() + 1)[shapes], np.eye(colours.max() + 1)[colours], centres], axis=1
    )
    train, test = x[:-held_out], x[-held_out:]
    # Solve in whichever of rows and columns is the smaller.
    if train.shape[0] < train.shape[1]:
        kernel = train @ train.T + ridge * np.eye(len(train))
        weights = train.T @ np.linalg.solve(kernel, targets[:-held_out])
    else:
        gram = train.T @ train + ridge * np.eye(train.shape[1])
        weights = np.linalg.solve(gram, train.T @ targets[:-held_out])
    found = test @ weights
    num_shapes, num_colours = shapes.max() + 1, colours.max() + 1
    shape = found[:, :num_shapes].argmax(1) == shapes[-held_out:]
    colour = found[:, num_shapes : num_shapes + num_colours].argmax(1) == colours[-held_out:]
    distance = np.linalg.norm(found[:, -2:] - centres[-held_out:], axis=1)
    return Probe(float(shape.mean()), float(colour.mean()), float(distance.mean()))
