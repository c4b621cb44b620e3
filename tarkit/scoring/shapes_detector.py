"""Finds the objects of a drawn picture without learning: Lab, mattes and templates.

From the drawn world's palette and masks alone it makes what a trained detector gives
(`geneval.Detection`), so that GenEval's checker can judge drawn pictures exactly.

1. the background is a plane per Lab channel, fitted robustly to the picture's border;
2. what differs from it by dE > 14 is foreground, in 8-connected components, split by colour
   only where two colours each fill 15 % of a component's inside;
3. a component's colour C is the median of its core; projecting each pixel on the line from
   background to C gives a soft matte t in [0, 1];
4. t, scaled to 24 x 24 with its aspect kept, is compared with every template by soft IoU.

Letters: L a picture in Lab, bg its background, t the matte, all on the 64 x 64 canvas.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tarkit.errors import UserError
from tarkit.scoring.geneval import Detection
from tarkit.shapes.render import shape_mask
from tarkit.shapes.scene import BOXES, COLOURS, PALETTE, SHAPES, SIDE_PX

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

UNKNOWN = "unknown"
FOREGROUND_DE = 14.0
CORE_DE = 18.0  # a blob that fits no template is an object only if its core stands out this far
MIN_IOU = 0.70
MIN_AREA_PX = 12.0  # the smallest shape, a bar of r 6.6, covers 59 px
MIN_SIDE_PX = 9.0  # longest side of a named shape; the smallest square has 11.6, noise up to 7.5
SPLIT_SHARE = 0.15
NOISE_TO_BLUR = 3.5  # grey levels; the world's own noisy backgrounds have 5, its edges fake < 1
BLUR_SIGMA_PX = 0.7
EDGE = 0.35  # a matte's box begins where this much is covered; .5 loses the tips of blurred stars
TEMPLATE_PX = 24
TEMPLATE_RADII = (6.6, 7.4, 8.4, 9.8, 11.6, 14.0, 16.8)
TEMPLATE_SHIFTS = ((0.0, 0.0), (0.5, 0.25), (0.25, 0.5))

_PIXELS = np.arange(SIDE_PX, dtype=np.float64)


class ShapesDetector:
    """The drawn world's detector; stateless, its templates are made once a process (~0.2 s)."""

    def detect(self, image: NDArray[np.uint8]) -> list[Detection]:
        """All objects of an RGB uint8 picture (S, S, 3), S = 64 or a multiple of it.

        Boxes are in the picture's own pixels. A blob that fits no template is `unknown`.
        Raises UserError for another size or type.
        """
        canvas, factor = _canvas(image)
        blurred = _noise_level(canvas) > NOISE_TO_BLUR
        lab = _to_lab(_blur(canvas) if blurred else canvas)
        background = _fit_background(lab)
        difference = np.sqrt(((lab - background) ** 2).sum(axis=2))
        labels, count = _label(difference > FOREGROUND_DE)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        areas[0] = 0
        detections: list[Detection] = []
        for index in np.flatnonzero(areas >= MIN_AREA_PX):
            component = labels == index
            others = (labels > 0) & ~component
            for part in _split_by_colour(component, lab, background):
                for whole in _split_by_matte(part, lab, background):
                    apart = others | (component & ~whole)
                    named = _recognise(whole, apart, lab, background, difference, blurred=blurred)
                    if named is not None:
                        detections.append(_scaled(named, factor))
        return detections


def _scaled(detection: Detection, factor: int) -> Detection:
    x0, y0, x1, y1 = (factor * edge for edge in detection.box)
    return Detection(detection.cls, (x0, y0, x1, y1), detection.score, detection.colour)


def _canvas(image: NDArray[np.uint8]) -> tuple[Floats, int]:
    """The picture on the 64 x 64 canvas, each pixel the mean of a box, and the box's side."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"a uint8 RGB picture is needed, got {image.dtype} of {image.shape}")
    height, width = image.shape[:2]
    if height != width or height % SIDE_PX or not height:
        raise UserError(
            f"the shapes detector takes {SIDE_PX} x {SIDE_PX} pictures or a multiple, "
            f"got {width} x {height}"
        )
    factor = height // SIDE_PX
    boxes = image.reshape(SIDE_PX, factor, SIDE_PX, factor, 3)
    return boxes.mean(axis=(1, 3), dtype=np.float32), factor


def _noise_level(canvas: Floats) -> float:
    """Noise sigma in grey levels: Immerkaer's Laplacian mask, by median so that edges drop out."""
    grey = canvas.mean(axis=2)
    rows = grey[:-2] - 2 * grey[1:-1] + grey[2:]
    laplacian = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    # |N(0, s)| has its median at .6745 s; the mask's weights have norm 6, three channels sqrt 3
    return float(np.median(np.abs(laplacian)) / 0.6745 / 6 * np.sqrt(3))


def _blur(canvas: Floats) -> Floats:
    """A light Gaussian blur (5 taps), edges repeated."""
    taps = np.exp(-0.5 * (np.arange(-2, 3) / BLUR_SIGMA_PX) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (0, 1):
        widths = [(2, 2) if a == axis else (0, 0) for a in range(canvas.ndim)]
        padded = np.pad(canvas, widths, mode="edge")
        length = canvas.shape[axis]
        slices = [np.take(padded, range(k, k + length), axis=axis) for k in range(5)]
        canvas = sum((tap * part for tap, part in zip(taps, slices, strict=True)), 0 * canvas)
    return canvas


def _to_lab(rgb: Floats) -> Floats:
    """sRGB in [0, 255] to CIE Lab (D65), any leading shape."""
    c = rgb / np.float32(255)
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ],
        dtype=np.float32,
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883], dtype=np.float32)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


_PALETTE_LAB = _to_lab(np.array([PALETTE[name] for name in COLOURS], dtype=np.float32))


@lru_cache(maxsize=1)
def _border() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    frame = np.ones((SIDE_PX, SIDE_PX), dtype=bool)
    frame[2:-2, 2:-2] = False
    rows, columns = np.nonzero(frame)
    return rows, columns


def _fit_background(lab: Floats) -> Floats:
    """A plane per channel through the two outermost rings of pixels, outliers weighted down.

    Tukey's weights on the distance in Lab, from a median start: objects that touch the border
    (a model draws such) must not tilt the plane as long as most of the border is bare.
    """
    rows, columns = _border()
    position = (_PIXELS / (SIDE_PX - 1) - 0.5).astype(np.float32)
    basis = np.stack([np.ones(len(rows)), position[columns], position[rows]], axis=1)
    values = lab[rows, columns]
    fitted = np.broadcast_to(np.median(values, axis=0), values.shape)
    for cut in (30.0, 20.0, 14.0, 10.0):
        distance = np.sqrt(((values - fitted) ** 2).sum(axis=1))
        weight = np.clip(1 - (distance / cut) ** 2, 0, None) ** 2
        if np.count_nonzero(weight) < 30:
            break
        weighted = basis * weight[:, None]
        plane = np.linalg.lstsq(weighted.T @ basis, weighted.T @ values, rcond=None)[0]
        fitted = basis @ plane
    else:
        return (
            plane[0] + position[None, :, None] * plane[1] + position[:, None, None] * plane[2]
        ).astype(np.float32)
    return np.broadcast_to(np.median(values, axis=0), lab.shape).astype(np.float32)


def _label(mask: Bools) -> tuple[NDArray[np.int32], int]:
    """8-connected components: labels 1 .. count (0 elsewhere), by union-find over rows' runs."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    run_rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]  # one past the run's last pixel
    first_of_row = np.searchsorted(run_rows, np.arange(height + 1)).tolist()
    start, end = starts.tolist(), ends.tolist()
    parent = list(range(len(start)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    for row in range(1, height):
        above, below = first_of_row[row - 1], first_of_row[row]
        while above < first_of_row[row] and below < first_of_row[row + 1]:
            if start[above] <= end[below] and start[below] <= end[above]:
                one, other = root(above), root(below)
                parent[max(one, other)] = min(one, other)
            if end[above] < end[below]:
                above += 1
            else:
                below += 1
    roots = np.array([root(run) for run in range(len(start))], dtype=np.intp)
    names, numbers = np.unique(roots, return_inverse=True)
    labels = np.zeros((height, width), dtype=np.int32)
    # runs in row-major order are the set pixels in row-major order
    labels[mask] = np.repeat(numbers.astype(np.int32) + 1, ends - starts)
    return labels, len(names)


def _erode(mask: Bools) -> Bools:
    """The pixels whose four neighbours belong to the mask as well."""
    inside = mask.copy()
    inside[1:] &= mask[:-1]
    inside[:-1] &= mask[1:]
    inside[:, 1:] &= mask[:, :-1]
    inside[:, :-1] &= mask[:, 1:]
    inside[[0, -1]] = False
    inside[:, [0, -1]] = False
    return inside


def _dilate(mask: Bools) -> Bools:
    """The mask and all its 8-neighbours."""
    rows = mask.copy()
    rows[1:] |= mask[:-1]
    rows[:-1] |= mask[1:]
    grown = rows.copy()
    grown[:, 1:] |= rows[:, :-1]
    grown[:, :-1] |= rows[:, 1:]
    return grown


def _core(mask: Bools) -> Bools:
    """The mask eroded, or the mask itself where nothing would be left."""
    inside = _erode(mask)
    return inside if inside.any() else mask


def _nearest_colours(lab: Floats) -> NDArray[np.intp]:
    """(..., 3) Lab -> (...) index into COLOURS."""
    distance = ((lab[..., None, :] - _PALETTE_LAB) ** 2).sum(axis=-1)
    return distance.argmin(axis=-1)


def _split_by_colour(component: Bools, lab: Floats, background: Floats) -> list[Bools]:
    """The component, or its connected parts by colour where two colours fill its inside.

    A soft edge passes through foreign colours on its way to the background (red to grey looks
    brown), so a second colour counts only if it is no mixture of the first and the background.
    """
    inside = _core(component)
    names = _nearest_colours(lab[inside])
    shares = np.bincount(names, minlength=len(COLOURS)) / inside.sum()
    colours = np.flatnonzero(shares >= SPLIT_SHARE)
    if len(colours) < 2:
        return [component]
    bare = np.median(background[inside], axis=0)
    seen = {int(c): np.median(lab[inside][names == c], axis=0) for c in colours}
    first = int(shares.argmax())
    kept = [c for c in seen if c == first or _off_line(seen[c], bare, seen[first]) > FOREGROUND_DE]
    if len(kept) < 2:
        return [component]
    distances = [_off_line(lab[component], background[component], seen[c]) for c in kept]
    assigned = np.full(component.shape, -1, dtype=np.intp)
    assigned[component] = np.argmin(distances, axis=0)
    parts = []
    for colour in range(len(kept)):
        labels, count = _label(assigned == colour)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        parts += [labels == k for k in range(1, count + 1) if sizes[k] >= MIN_AREA_PX]
    return parts


def _split_by_matte(part: Bools, lab: Floats, background: Floats) -> list[Bools]:
    """The part, or its pieces where pixels that are mostly background lie between them.

    dE 14 is a seventh of the way to a vivid colour: blurred neighbours touch at that level.
    """
    matte = _along(lab, background, np.median(lab[_core(part)], axis=0))
    labels, count = _label(part & (matte > 0.5))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    large = [k for k in range(1, count + 1) if sizes[k] >= MIN_AREA_PX]
    if len(large) < 2:
        return [part]
    pieces = [labels == k for k in large]
    remaining = part & ~np.logical_or.reduce(pieces)
    while remaining.any():  # the soft edges go to the nearest piece, one ring of pixels at a time
        grown = [_dilate(piece) & remaining for piece in pieces]
        if not any(ring.any() for ring in grown):
            break
        for k, ring in enumerate(grown):
            pieces[k] = pieces[k] | (ring & remaining)
            remaining = remaining & ~ring
    return pieces


def _off_line(colour: Floats, start: Floats, end: Floats) -> Floats:
    """How far in dE a colour is from the nearest mixture of two others (..., 3)."""
    line = end - start
    t = ((colour - start) * line).sum(axis=-1) / np.maximum((line**2).sum(axis=-1), 1e-6)
    nearest = start + np.clip(t, 0, 1)[..., None] * line
    distance: Floats = np.sqrt(((colour - nearest) ** 2).sum(axis=-1))
    return distance


def _recognise(
    part: Bools,
    apart: Bools,
    lab: Floats,
    background: Floats,
    difference: Floats,
    *,
    blurred: bool,
) -> Detection | None:
    """Name one blob by its matte, or None for a blob that is neither a shape nor stands out."""
    core = _core(part)
    observed = np.median(lab[core], axis=0)
    matte = _matte(part, apart, lab, background, observed)
    extent = _extent(matte)
    if extent is None:
        return None
    shape, iou = _best_template(_normalise(matte, extent), blurred=blurred)
    colour = COLOURS[int(_nearest_colours(observed))]
    if iou >= MIN_IOU and max(extent[2] - extent[0], extent[3] - extent[1]) >= MIN_SIDE_PX:
        return Detection(shape, _true_box(matte, shape), iou, colour)
    if _erode(part).any() and float(np.median(difference[core])) >= CORE_DE:
        return Detection(UNKNOWN, extent, iou, colour)
    return None


def _matte(
    part: Bools, apart: Bools, lab: Floats, background: Floats, observed: Floats
) -> NDArray[np.float64]:
    """t = clip((L - bg) . (C - bg) / |C - bg|^2, 0, 1) on the blob and two pixels around it."""
    region = _dilate(_dilate(part)) & ~apart
    along = _along(lab, background, observed)
    return np.where(region, np.clip(along, 0, 1), 0.0).astype(np.float64)


def _along(lab: Floats, background: Floats, observed: Floats) -> Floats:
    """Each pixel's place on the line from its background, 0, to the observed colour, 1."""
    line = observed - background
    share: Floats = ((lab - background) * line).sum(axis=2)
    return share / np.maximum((line**2).sum(axis=2), 1e-6)


class _Profile(NamedTuple):
    low: float
    high: float


def _profile_extent(profile: NDArray[np.float64]) -> _Profile | None:
    """Where a profile of the matte's maxima begins and ends: whole pixels count 1, edges t."""
    full = np.flatnonzero(profile >= EDGE)
    if not len(full):
        return None
    first, last = int(full[0]), int(full[-1])
    before = profile[first - 1] if first else 0.0
    after = profile[last + 1] if last + 1 < len(profile) else 0.0
    low, high = first + 1 - profile[first] - before, last + profile[last] + after
    return _Profile(float(low), float(high))


def _extent(matte: NDArray[np.float64]) -> tuple[float, float, float, float] | None:
    """The matte's box to a fraction of a pixel, or None where nothing reaches half."""
    across, down = _profile_extent(matte.max(axis=0)), _profile_extent(matte.max(axis=1))
    if across is None or down is None:
        return None
    return across.low, down.low, across.high, down.high


def _normalise(
    matte: NDArray[np.float64], box: tuple[float, float, float, float]
) -> NDArray[np.float64]:
    """The matte's box as the centre of a 24 x 24 square, aspect kept, by area averaging."""
    side = max(box[2] - box[0], box[3] - box[1])
    weights = []
    for low, high in ((box[1], box[3]), (box[0], box[2])):
        edges = (low + high) / 2 + side * (np.arange(TEMPLATE_PX + 1) / TEMPLATE_PX - 0.5)
        overlap = np.minimum(edges[1:, None], _PIXELS + 1) - np.maximum(edges[:-1, None], _PIXELS)
        weights.append(np.clip(overlap, 0, None) * (TEMPLATE_PX / side))
    return np.asarray(weights[0] @ matte @ weights[1].T)


class _Templates(NamedTuple):
    masks: Floats  # (T, 576)
    sums: Floats  # (T,)
    shapes: tuple[str, ...]  # T names


@lru_cache(maxsize=2)
def _templates(blurred: bool) -> _Templates:
    """12 shapes x 7 radii x 3 sub-pixel shifts, rendered and normalised as pictures are.

    Each once sharp and once soft (sigma 1 px): without the soft ones, blurred stars are circles.
    """
    masks, shapes = [], []
    centre = SIDE_PX / 2
    for shape in SHAPES:
        for r in TEMPLATE_RADII:
            for dx, dy in TEMPLATE_SHIFTS:
                mask = shape_mask(shape, r, centre + dx, centre + dy, SIDE_PX)
                sharp = _blur(mask) if blurred else mask
                for matte in (sharp, _blur(_blur(sharp))):
                    extent = _extent(matte.astype(np.float64))
                    assert extent is not None
                    masks.append(_normalise(matte.astype(np.float64), extent).ravel())
                    shapes.append(shape)
    stacked = np.array(masks, dtype=np.float32)
    return _Templates(stacked, stacked.sum(axis=1), tuple(shapes))


def _best_template(matte: NDArray[np.float64], *, blurred: bool) -> tuple[str, float]:
    """The shape of the template with the highest soft IoU, sum of minima / sum of maxima."""
    templates = _templates(blurred)
    flat = matte.astype(np.float32).ravel()
    shared = np.minimum(templates.masks, flat).sum(axis=1)
    iou = shared / (templates.sums + flat.sum() - shared)
    best = int(iou.argmax())
    return templates.shapes[best], float(iou[best])


@lru_cache(maxsize=1)
def _moments() -> dict[str, tuple[float, float, float]]:
    """Area, centroid x and centroid y of each shape of radius 1, from a large render."""
    r, moments = 30.0, {}
    for shape in SHAPES:
        area, x, y = _area_and_centroid(shape_mask(shape, r, 32.0, 32.0, SIDE_PX))
        moments[shape] = (area / r**2, (x - 32.0) / r, (y - 32.0) / r)
    return moments


def _area_and_centroid(matte: NDArray[Any]) -> tuple[float, float, float]:
    area = float(matte.sum())
    x = float(matte.sum(axis=0) @ (_PIXELS + 0.5)) / area
    y = float(matte.sum(axis=1) @ (_PIXELS + 0.5)) / area
    return area, x, y


def _true_box(matte: NDArray[np.float64], shape: str) -> tuple[float, float, float, float]:
    """The box of the ideal shape with the matte's area and centroid.

    Tips thinner than a pixel vanish from a matte's own extent; area and centroid do not care.
    """
    area, x, y = _area_and_centroid(matte)
    unit_area, unit_x, unit_y = _moments()[shape]
    r = float(np.sqrt(area / unit_area))
    x, y = x - unit_x * r, y - unit_y * r
    left, top, right, bottom = BOXES[shape]
    return x + left * r, y + top * r, x + right * r, y + bottom * r
