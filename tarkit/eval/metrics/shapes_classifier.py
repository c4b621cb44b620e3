"""A small classifier of the drawn world, whose features stand in for Inception's there.

Five convolutions, the mean over positions, and which of the 12 shapes x 10 colours a picture shows.
FID, precision and recall are taken over the 64 means, the Inception Score over the 120 classes.
It is trained on renders, from a seed, in about two minutes of one core, and kept in the user's
cache folder. Letters: B pictures, C = 120 classes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tarkit.artifacts.files import write_whole
from tarkit.eval.metrics.features import Features
from tarkit.images import resize, to_uint8
from tarkit.models.pixel_range import to_unit
from tarkit.progress import Progress
from tarkit.shapes.render import render
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import COLOURS, SHAPES, SIDE_PX
from tarkit.terminal import print_note

SEED = 20
STEPS, BATCH_SIZE, LEARNING_RATE = 1500, 64, 1e-2
NUM_TESTED = 1000
DIM = 64
STRIDES = (2, 2, 1, 2, 1)


def _convolution(width: int, wider: int, *, stride: int) -> tuple[nn.Module, ...]:
    layer = nn.Conv2d(width, wider, 3, stride=stride, padding=1, bias=False)
    return layer, nn.BatchNorm2d(wider), nn.SiLU()


class ShapesClassifier(nn.Module):
    """(B, 3, 64, 64) in [0, 1] -> features (B, 64), and of them logits (B, C)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 32, 64, DIM, DIM)
        self.layers = nn.Sequential(
            *(
                layer
                for width, wider, stride in zip(widths, widths[1:], STRIDES, strict=False)
                for layer in _convolution(width, wider, stride=stride)
            ),
        )
        self.head = nn.Linear(DIM, len(SHAPES) * len(COLOURS), bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels - 0.5).mean((2, 3))
        return features


class Trained(NamedTuple):
    """A classifier in evaluation mode, its accuracy, and the sha256 of its weights.

    `accuracy` is the share in [0, 1] of fresh renders that show what it finds likeliest.
    """

    network: ShapesClassifier
    accuracy: float
    sha256: str


# ---- training -----------------------------------------------------------------------------------


def train_classifier(*, steps: int = STEPS, seed: int = SEED) -> Trained:
    """Train on renders of training scenes, none of them twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ShapesClassifier()
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    with Progress("train the shapes classifier", total=steps, unit="steps") as progress:
        for _ in range(steps):
            pixels, labels = _batch(rng, BATCH_SIZE)
            # Few of the 120 are there: a class that is shown counts as much as five that are not.
            weight = torch.where(labels > 0, 5.0, 1.0)
            loss = F.binary_cross_entropy_with_logits(network.head(network(pixels)), labels, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance(1)
    network.eval()
    pixels, labels = _batch(np.random.default_rng(seed + 1), NUM_TESTED)
    with torch.no_grad():
        best = network.head(network(pixels)).argmax(1)
    right = labels[torch.arange(NUM_TESTED), best]
    return Trained(network, float(right.mean()), _weights_sha256(network))


def _weights_sha256(network: ShapesClassifier) -> str:
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    scenes = [sample_scene(rng) for _ in range(size)]
    pictures = [render(scene, rng) for scene in scenes]
    labels = torch.zeros(size, len(SHAPES) * len(COLOURS))
    for row, scene in enumerate(scenes):
        for each in scene.objects:
            labels[row, SHAPES.index(each.shape) * len(COLOURS) + COLOURS.index(each.colour)] = 1
    return to_unit(pictures), labels


# ---- the user's cache ---------------------------------------------------------------------------


@functools.cache  # once a process
def load_classifier(*, steps: int = STEPS, seed: int = SEED) -> Trained:
    """The classifier of `train_classifier`, from the user's cache folder or trained and put there.

    A damaged file is replaced, with a warning on stderr; where the folder cannot be written the
    classifier is trained in every process, with a warning too.
    """
    file = cache_file(steps=steps, seed=seed)
    if file.exists():
        try:
            return _read(file)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            print_note(f"warning: {file} is damaged ({error}); trained again")
    trained = train_classifier(steps=steps, seed=seed)
    metadata = {"accuracy": repr(trained.accuracy), "sha256": trained.sha256}
    try:
        write_whole(file, safetensors.torch.save(trained.network.state_dict(), metadata))
    except OSError as error:
        print_note(f"warning: the shapes classifier is not kept: {error}")
    return trained


def cache_file(*, steps: int, seed: int) -> Path:
    """$XDG_CACHE_HOME/tarkit/shapes_classifier-KEY.safetensors, by default in ~/.cache.

    The key is a hash of all that decides the weights: steps and seed, the code of this module and
    of the renders, and the versions of torch and numpy.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tarkit"
    settings = [steps, seed, torch.__version__, np.__version__]
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(Path(__file__).read_bytes())
    for name in ("scene.py", "sampling.py", "render.py", "heldout.py", "heldout.json"):
        digest.update(resources.files("tarkit.shapes").joinpath(name).read_bytes())
    return folder / f"shapes_classifier-{digest.hexdigest()[:16]}.safetensors"


def _read(file: Path) -> Trained:
    """The classifier in a file of the cache; ValueError where its weights are not those written."""
    network = ShapesClassifier()
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        network.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()})
    network.eval()
    if _weights_sha256(network) != metadata["sha256"]:
        raise ValueError("its weights have another sha256 than it names")
    return Trained(network, float(metadata["accuracy"]), metadata["sha256"])


# ---- features -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShapesFeatures:
    """The 64 means of a trained classifier: a `FeatureExtractor` (features.py)."""

    trained: Trained

    name = "shapes"
    dim = DIM

    def identity(self) -> dict[str, Any]:
        """The classifier's accuracy and the sha256 of its weights, beside name and dimension."""
        named = {"features": self.name, "dim": self.dim, "accuracy": self.trained.accuracy}
        return {**named, "sha256": self.trained.sha256}

    def extract(self, pictures: Sequence[Image.Image]) -> Features:
        """n RGB pictures, brought to 64 x 64 -> (n, 64) float32."""
        rows = [to_uint8(resize(picture, SIDE_PX, "squash")) for picture in pictures]
        with torch.no_grad():
            features: Features = self.trained.network(to_unit(rows)).numpy()
        return features

    def logits(self, features: Features) -> Features:
        """(n, 64) -> (n, 120), without bias."""
        with torch.no_grad():
            logits: Features = self.trained.network.head(torch.from_numpy(features)).numpy()
        return logits


def load_features() -> ShapesFeatures:
    """The features of the classifier in the user's cache, which is trained where it is missing."""
    return ShapesFeatures(load_classifier())
