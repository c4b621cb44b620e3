"""The small classifier of the drawn world: it learns, and is the same again."""

import numpy as np
import pytest
from PIL import Image

from tarkit.eval.metrics.shapes_classifier import ShapesFeatures, Trained, train_classifier
from tarkit.shapes.render import render
from tarkit.shapes.sampling import sample_scene


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train_classifier(steps=150)


def test_the_same_seed_gives_the_same_weights(trained: Trained) -> None:
    again = train_classifier(steps=3)
    assert again.sha256 == train_classifier(steps=3).sha256 != trained.sha256


def test_features_are_64_numbers_whose_logits_know_what_is_shown(trained: Trained) -> None:
    extractor = ShapesFeatures(trained)
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, kind="single") for _ in range(64)]
    pictures = [Image.fromarray(render(scene, rng)) for scene in scenes]
    features = extractor.extract(pictures)
    assert features.shape == (64, 64) and features.dtype == np.float32
    logits = extractor.logits(features)
    assert logits.shape == (64, 120)
    # By chance one picture in sixty shows the likeliest class: two of 120 are there.
    assert 0.1 < trained.accuracy <= 1.0


@pytest.mark.slow
def test_trained_in_full_it_names_what_renders_show() -> None:
    assert train_classifier().accuracy > 0.6
