"""Proof that scorer and world agree on prompts: truth is right, one change makes it wrong."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from tarkit.scoring.geneval import check
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.scoring.statistics import chance_floor
from tarkit.worlds.clauses import corrupt, corruptions_for, scene_for
from tarkit.worlds.prompts import EXTRA_TASK, TASKS, Metadata, g0_captions
from tarkit.worlds.scenes import sample_scene
from tarkit.worlds.shapes import render

DETECTOR = ShapesDetector()


def prompts(rng: np.random.Generator, *, a_task: int) -> Iterator[Metadata]:
    """As many prompts of each of the seven tasks, held-out compositions among them."""
    left = dict.fromkeys((*TASKS, EXTRA_TASK), a_task)
    while any(left.values()):
        scene = sample_scene(rng, split="heldout" if rng.random() < 0.5 else "test")
        options = [m for m in g0_captions(scene, split="test") if left[m["tag"]]]
        if options:
            metadata = options[int(rng.integers(len(options)))]
            left[metadata["tag"]] -= 1
            yield metadata


def judge(num_a_task: int, seed: int) -> tuple[int, int, Counter[str], Counter[str]]:
    """(wrong truths, truths, accepted corruptions, corruptions)."""
    rng = np.random.default_rng(seed)
    wrong = truths = 0
    accepted: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for metadata in prompts(rng, a_task=num_a_task):
        scene = scene_for(metadata, rng)
        truths += 1
        wrong += not check(metadata, DETECTOR.detect(render(scene, rng))).correct
        for kind in corruptions_for(metadata):
            spoilt = corrupt(scene, metadata, kind, rng)
            tried[kind] += 1
            accepted[kind] += check(metadata, DETECTOR.detect(render(spoilt, rng))).correct
    return wrong, truths, accepted, tried


def test_true_pictures_are_right_and_single_changes_are_wrong() -> None:
    wrong, truths, accepted, tried = judge(20, seed=201)
    assert truths == 7 * 20
    assert wrong == 0
    assert accepted.total() == 0, accepted
    # drop, reshape: all; add: counting; recolour: three tasks; swaps: two with colours or places
    assert tried["drop"] == tried["reshape"] == 140
    assert tried["add"] == 20
    assert set(tried) == {"drop", "reshape", "add", "recolour", "swap_colours", "swap_positions"}


@pytest.mark.slow
def test_true_pictures_are_right_and_single_changes_are_wrong_at_full_size() -> None:
    wrong, truths, accepted, tried = judge(320, seed=202)
    assert truths == 2240 and tried.total() > 3370
    assert wrong == 0
    assert accepted.total() == 0, accepted


def test_pictures_of_other_prompts_are_right_by_chance_alone() -> None:
    rng = np.random.default_rng(203)
    asked = list(prompts(rng, a_task=30))
    found = [DETECTOR.detect(render(scene_for(metadata, rng), rng)) for metadata in asked]
    floor = chance_floor(
        lambda prompt, picture: check(asked[prompt], found[picture]).correct, len(asked)
    )
    by_task = {
        task: float(floor[[metadata["tag"] == task for metadata in asked]].mean()) for task in TASKS
    }
    # a picture shows one or two of twelve shapes, the commonest ones oftenest: one in six or so
    assert 0.08 < by_task.pop("single_object") < 0.30
    assert max(by_task.values()) < 0.06, by_task
