"""A small classifier of the drawn world, whose features stand in for Inception's there.

Trained here on renders in about a minute on two cores, from a seed: five convolutions, the
mean over positions, and which of the 12 shapes x 10 colours a picture shows. FID, precision and
recall are taken over the 64 means, the Inception Score over the 120 classes.
Letters: B pictures, C = 120 classes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tarkit.eval.metrics.features import Features
from tarkit.images import resize, to_uint8
from tarkit.shapes.render import render
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene import COLOURS, SHAPES, SIDE_PX

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
    """A classifier, the share of held-back renders that show what it finds likeliest, and the
    sha256 of its weights."""

    network: ShapesClassifier
    accuracy: float
    sha256: str


@functools.cache  # once a process
def train_classifier(*, steps: int = STEPS, seed: int = SEED) -> Trained:
    """Train on fresh renders of training scenes, none of them twice."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ShapesClassifier()
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(steps):
        pixels, labels = _batch(rng, BATCH_SIZE)
        # Few of the 120 are there: a class that is shown counts as much as five that are not.
        weight = torch.where(labels > 0, 5.0, 1.0)
        loss = F.binary_cross_entropy_with_logits(network.head(network(pixels)), labels, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    pixels, labels = _batch(np.random.default_rng(seed + 1), NUM_TESTED)
    with torch.no_grad():
        best = network.head(network(pixels)).argmax(1)
    right = labels[torch.arange(NUM_TESTED), best]
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return Trained(network, float(right.mean()), digest.hexdigest())


def _batch(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
    scenes = [sample_scene(rng) for _ in range(size)]
    pictures = np.stack([render(scene, rng) for scene in scenes])
    labels = torch.zeros(size, len(SHAPES) * len(COLOURS))
    for row, scene in enumerate(scenes):
        for each in scene.objects:
            labels[row, SHAPES.index(each.shape) * len(COLOURS) + COLOURS.index(each.colour)] = 1
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, labels


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
        rows = np.stack([to_uint8(resize(picture, SIDE_PX, "squash")) for picture in pictures])
        with torch.no_grad():
            pixels = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255
            features: Features = self.trained.network(pixels).numpy()
        return features

    def logits(self, features: Features) -> Features:
        """(n, 64) -> (n, 120), without bias."""
        with torch.no_grad():
            logits: Features = self.trained.network.head(torch.from_numpy(features)).numpy()
        return logits


def load_features() -> ShapesFeatures:
    """The features of the classifier, trained now if this process has not trained it."""
    return ShapesFeatures(train_classifier())
