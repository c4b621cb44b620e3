"""Proof that the scorer of the drawn world is right: truth passes, and one change does not.

Scenes are drawn on fresh seeds, and prompts are true of them. A corruption breaks one clause: an
object is dropped, added, reshaped or recoloured, or colours or places are swapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tarkit.scoring.geneval import check
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.shapes.prompts import EXTRA_TASK, TASKS, Metadata, g0_captions
from tarkit.shapes.render import render
from tarkit.shapes.sampling import sample_scene
from tarkit.shapes.scene_edits import corrupt, corruptions_for, scene_for

TRUE = "true"


@dataclass
class Proof:
    """Counts over the true pictures of prompts, and over corruptions by their kind."""

    num_truths: int = 0
    refused_truths: int = 0
    tried: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)


def drawn_prompts(rng: np.random.Generator, *, a_task: int) -> Iterator[Metadata]:
    """`a_task` prompts of each of the seven tasks; some state held-out compositions."""
    remaining = dict.fromkeys((*TASKS, EXTRA_TASK), a_task)
    while any(remaining.values()):
        scene = sample_scene(rng, split="heldout" if rng.random() < 0.5 else "test")
        options = [m for m in g0_captions(scene, split="test") if remaining[m["tag"]]]
        if options:
            metadata = options[int(rng.integers(len(options)))]
            remaining[metadata["tag"]] -= 1
            yield metadata


def corrupted(metadata: Metadata, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """A true picture (64, 64, 3) of a prompt, named `true`, and one with each corruption of it."""
    scene = scene_for(metadata, rng)
    yield TRUE, render(scene, rng)
    for kind in corruptions_for(metadata):
        yield kind, render(corrupt(scene, metadata, kind, rng), rng)


def prove(*, a_task: int, seed: int) -> Proof:
    """Judge `a_task` prompts of each task on their true picture and on every corruption of it."""
    rng = np.random.default_rng(seed)
    detector = ShapesDetector()
    proof = Proof()
    for metadata in drawn_prompts(rng, a_task=a_task):
        for kind, picture in corrupted(metadata, rng):
            correct = check(metadata, detector.detect(picture)).correct
            if kind == TRUE:
                proof.num_truths += 1
                proof.refused_truths += not correct
            else:
                proof.tried[kind] += 1
                proof.accepted[kind] += correct
    return proof
