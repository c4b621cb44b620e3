"""What stands where in a picture of the drawn world: the regions that `train encoder` grounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tarkit.shapes.scene import SIDE_PX, bounding_box, scene_from_json

Box = tuple[float, float, float, float]


def regions_of(row: Mapping[str, Any]) -> list[tuple[str, Box]] | None:
    """The phrase and the box of each object of a picture; None where its scene is not known.

    `row` is a row of an images artifact. ("red circle", (left, top, right, bottom)) in shares of
    the picture's side, [0, 1], y down.
    """
    if row["scene"] is None:
        return None
    regions = []
    for item in scene_from_json(row["scene"]).objects:
        left, top, right, bottom = (edge / SIDE_PX for edge in bounding_box(item))
        regions.append((f"{item.colour} {item.shape}", (left, top, right, bottom)))
    return regions
