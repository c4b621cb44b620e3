"""Proof that scorer and world agree on prompts: truth is right, one change makes it wrong."""

import numpy as np
import pytest

from tarkit.eval.shapes_proof import drawn_prompts, prove
from tarkit.scoring.geneval import check
from tarkit.scoring.shapes_detector import ShapesDetector
from tarkit.scoring.statistics import chance_floor
from tarkit.shapes.prompts import TASKS
from tarkit.shapes.render import render
from tarkit.shapes.scene_edits import scene_for

DETECTOR = ShapesDetector()


def test_true_pictures_are_right_and_single_changes_are_wrong() -> None:
    proof = prove(a_task=20, seed=201)
    assert proof.num_truths == 7 * 20
    assert proof.refused_truths == 0
    assert proof.accepted.total() == 0, proof.accepted
    tried = proof.tried
    # drop, reshape: all; add: counting; recolour: three tasks; swaps: two with colours or places
    assert tried["drop"] == tried["reshape"] == 140
    assert tried["add"] == 20
    assert set(tried) == {"drop", "reshape", "add", "recolour", "swap_colours", "swap_positions"}


@pytest.mark.slow
def test_true_pictures_are_right_and_single_changes_are_wrong_at_full_size() -> None:
    proof = prove(a_task=320, seed=202)
    assert proof.num_truths == 2240 and proof.tried.total() > 3370
    assert proof.refused_truths == 0
    assert proof.accepted.total() == 0, proof.accepted


def test_pictures_of_other_prompts_are_right_by_chance_alone() -> None:
    rng = np.random.default_rng(203)
    asked = list(drawn_prompts(rng, a_task=30))
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
