"""A scene to pixels: 12 shapes in 10 colours on calm backgrounds, 64 x 64, about 1 ms a picture.

Shapes are given in units of their radius r, x to the right and y down, as the columns they fill:
for each x one or two intervals of y. That makes the 8 x 8 supersampling of an object two
comparisons over its own bounding box, and needs no rasteriser whose rounding may change.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tarkit.shapes.scene import BOXES, PALETTE, SIDE_PX, Background, Scene

SUPERSAMPLING = 8

Floats = NDArray[np.float64]

_STAR = [
    (
        (1.0 if k % 2 == 0 else 0.45) * math.sin(math.pi * k / 5),
        -(1.0 if k % 2 == 0 else 0.45) * math.cos(math.pi * k / 5),
    )
    for k in range(10)
]


def _half_disc(x: Floats, centre: float, half_width: float, half_height: float) -> Floats:
    """Half height of an ellipse over each x, negative where the column misses it."""
    inside = 1.0 - ((x - centre) / half_width) ** 2
    return np.where(inside > 0, half_height * np.sqrt(np.maximum(inside, 0.0)), -1.0)


def _half_height(shape: str, x: Floats) -> Floats:
    """Half height over each x of the shapes whose upper half mirrors their lower half."""
    a = np.abs(x)
    match shape:
        case "circle" | "ring" | "crescent":
            return _half_disc(x, 0.0, 1.0, 1.0)
        case "square":
            return np.where(a <= 0.88, 0.88, -1.0)
        case "diamond":
            return 1.0 - a / 0.78
        case "cross":
            return np.where(a <= 0.34, 1.0, np.where(a <= 1.0, 0.34, -1.0))
        case "bar":
            return np.where(a <= 1.0, 0.34, -1.0)
        case "pole":
            return np.where(a <= 0.34, 1.0, -1.0)
        case "arrow":
            return np.where(x < 0.1, np.where(x >= -1.0, 0.3, -1.0), 0.85 * (1.0 - x) / 0.9)
    raise KeyError(shape)


def _inside(shape: str, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Which of the points (x[j], y[i]), in units of r, lie in the shape: (len(y), len(x))."""
    rows = y[:, None]
    if shape == "triangle":
        return (rows >= 1.85 * np.abs(x) - 1.0) & (rows <= 0.85) & (np.abs(x) <= 1.0)
    if shape == "heart":
        t = np.arcsin(np.cbrt(np.minimum(np.abs(x) * 17 / 16, 1.0)))
        odd, even = 13 * np.cos(t) - 2 * np.cos(3 * t), 5 * np.cos(2 * t) + np.cos(4 * t)
        top, bottom = (even - odd) / 17, (even + odd) / 17  # at t and pi - t
        return (rows >= top) & (rows <= bottom) & (np.abs(x) <= 16 / 17)
    if shape == "star":
        mask = np.zeros((len(y), len(x)), dtype=np.bool_)
        for k, (x0, y0) in enumerate(_STAR):
            x1, y1 = _STAR[(k + 1) % 10]
            (x0, y0), (x1, y1) = sorted(((x0, y0), (x1, y1)))
            edge = np.where((x >= x0) & (x < x1), y0 + (x - x0) * (y1 - y0) / (x1 - x0), -2.0)
            mask ^= rows < edge  # parity of the edges below the point
        return mask
    distance = np.abs(rows)
    mask = distance <= _half_height(shape, x)
    if shape == "ring":
        mask &= distance > _half_disc(x, 0.0, 0.52, 0.52)
    elif shape == "crescent":
        mask &= distance > _half_disc(x, 0.69, 0.91, 0.92)
    return mask


def _coverage(
    shape: str, r: float, cx: float, cy: float, size: int
) -> tuple[slice, slice, NDArray[np.float32]]:
    """The rows and columns a shape touches and the covered share, [0, 1], of each pixel there."""
    left, top, right, bottom = BOXES[shape]
    s = SUPERSAMPLING
    spans = []
    for centre, low, high in ((cy, top, bottom), (cx, left, right)):
        first = max(math.floor(centre + low * r), 0)
        last = min(math.ceil(centre + high * r), size)
        spans.append((first, max(last, first)))
    (y0, y1), (x0, x1) = spans
    ys = (np.arange(y0 * s, y1 * s) + 0.5) / s - cy
    xs = (np.arange(x0 * s, x1 * s) + 0.5) / s - cx
    mask = _inside(shape, xs / r, ys / r).view(np.uint8)
    counts = mask.reshape(y1 - y0, s, -1).sum(axis=1, dtype=np.uint8)
    shares = counts.reshape(y1 - y0, x1 - x0, s).sum(axis=2, dtype=np.float32) / (s * s)
    return slice(y0, y1), slice(x0, x1), shares


def shape_mask(shape: str, r: float, cx: float, cy: float, size: int) -> NDArray[np.float32]:
    """Covered share, [0, 1], of every pixel of a (size, size) canvas by one shape.

    Pixel (i, j) is the square from (j, i) to (j + 1, i + 1), so a centred shape has cx = size / 2.
    """
    canvas = np.zeros((size, size), dtype=np.float32)
    rows, columns, shares = _coverage(shape, r, cx, cy, size)
    canvas[rows, columns] = shares
    return canvas


def _draw_background(background: Background, rng: np.random.Generator) -> NDArray[np.float32]:
    base = np.asarray(background.colour, dtype=np.float32)
    canvas = np.empty((SIDE_PX, SIDE_PX, 3), dtype=np.float32)
    canvas[:] = base
    if background.kind == "noisy":
        canvas += 5.0 * rng.standard_normal(canvas.shape, dtype=np.float32)
    elif background.kind in ("gradient", "striped"):
        centres = (np.arange(SIDE_PX, dtype=np.float32) + 0.5) / SIDE_PX - 0.5
        angle = math.radians(background.angle_deg)
        along = centres * math.cos(angle) + (centres * math.sin(angle))[:, None]
        if background.kind == "gradient":
            reach = 0.5 * (abs(math.cos(angle)) + abs(math.sin(angle)))
            canvas += (0.5 * background.rise / reach * along)[:, :, None]
        else:
            phase = np.floor(along * (2 * SIDE_PX / background.period_px)).astype(np.int64)
            canvas += np.where(phase % 2 == 0, 5.0, -5.0).astype(np.float32)[:, :, None]
    return canvas


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture of a scene: (64, 64, 3) uint8 RGB. Only noisy backgrounds use `rng`."""
    canvas = _draw_background(scene.background, rng)
    for item in scene.objects:
        rows, columns, shares = _coverage(item.shape, item.r, item.x, item.y, SIDE_PX)
        patch = canvas[rows, columns]
        colour = np.asarray(PALETTE[item.colour], dtype=np.float32)
        patch += shares[:, :, None] * (colour - patch)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
