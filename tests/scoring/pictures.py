"""Pictures and prompts for the detector's proofs: scenes, spoilt copies, random questions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tarkit.shapes.render import render
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import COLOURS, SHAPES, Scene

Picture = NDArray[np.uint8]
RELATIONS = ("left of", "right of", "above", "below")


def drawn_scenes(count: int, *, seed: int) -> list[tuple[Scene, Picture]]:
    """Half as training draws them, half with held-out compositions."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, split="test" if index % 2 else "heldout") for index in range(count)]
    return [(scene, render(scene, rng)) for scene in scenes]


def facts(scene: Scene) -> list[tuple[str, str]]:
    return sorted((item.shape, item.colour) for item in scene.objects)


def _pick(rng: np.random.Generator, names: list[Any]) -> Any:
    return names[int(rng.integers(len(names)))]


def random_prompt(scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    """A GenEval prompt of any of the seven kinds, mostly about what the scene holds.

    Where a class occurs more than once, which one is "the most confident" is no fact of the
    scene, so colours and relations are asked of classes that occur once or not at all.
    """
    present = [item.shape for item in scene.objects]
    names = [item for item in SHAPES if present.count(item) < 2]
    once = [name for name in names if name in present]

    def name() -> str:
        return str(_pick(rng, once if once and rng.random() < 0.8 else names))

    def colour(shape: str) -> str:
        held = [item.colour for item in scene.objects if item.shape == shape]
        return str(_pick(rng, held if held and rng.random() < 0.6 else list(COLOURS)))

    kind = _pick(rng, ["single_object", "two_object", "counting", "colors", "position"])
    if kind == "counting":
        shape, count = str(_pick(rng, [*present, *SHAPES])), int(rng.integers(1, 5))
        return {
            "tag": kind,
            "include": [{"class": shape, "count": count}],
            "exclude": [{"class": shape, "count": count + 1}],
        }
    first: dict[str, Any] = {"class": name(), "count": 1}
    if kind == "colors":
        first["color"] = colour(first["class"])
    if kind in ("single_object", "colors"):
        return {"tag": kind, "include": [first]}
    second: dict[str, Any] = {"class": name(), "count": 1}
    if rng.random() < 0.5:
        first["color"], second["color"] = colour(first["class"]), colour(second["class"])
    if kind == "position":
        second["position"] = [str(_pick(rng, list(RELATIONS))), 0]
    return {"tag": kind, "include": [first, second]}


def blurred(picture: Picture, sigma_px: float) -> Picture:
    """A true Gaussian blur, unlike Pillow's, which approximates one by boxes."""
    reach = int(4 * sigma_px + 1)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    taps /= taps.sum()
    canvas = np.pad(picture.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = picture.shape[:2]
    canvas = sum(tap * canvas[k : k + height] for k, tap in enumerate(taps))
    canvas = sum(tap * canvas[:, k : k + width] for k, tap in enumerate(taps))
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def noisy(picture: Picture, sigma: float, rng: np.random.Generator) -> Picture:
    return np.clip(np.rint(picture + rng.normal(0, sigma, picture.shape)), 0, 255).astype(np.uint8)


def halved(picture: Picture) -> Picture:
    """64 -> 32 -> 64 px."""
    small = Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX)
    return np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))
