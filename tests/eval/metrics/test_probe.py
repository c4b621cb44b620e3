"""Linear probes on features made by hand, from which it is known what can be read."""

import numpy as np
import pytest

from tarkit.eval.metrics.probe import Probe, probe

M, N, F = 400, 4, 8


def pictures(*, colour_is_there: bool) -> Probe:
    """One object a picture, at one of four positions: shape, perhaps colour, in its feature."""
    rng = np.random.default_rng(0)
    shapes, colours = rng.integers(3, size=M), rng.integers(4, size=M)
    places = rng.integers(N, size=M)
    features = np.zeros((M, N, F))
    features[np.arange(M), places, shapes] = 1
    if colour_is_there:
        features[np.arange(M), places, 3 + colours] = 1
    features[np.arange(M), places, 7] = 1
    centres = np.stack([places % 2, places // 2], axis=1) * 32.0 + 16
    return probe(features, shapes, colours, centres, held_out=100)


def test_what_stands_in_the_features_is_read_wherever_it_stands() -> None:
    found = pictures(colour_is_there=True)
    assert found.shape == found.colour == 1.0
    # The last feature is 1 at the object's position alone, so the centre is linear in it.
    assert found.position_px == pytest.approx(0, abs=0.5)


def test_what_is_lost_is_at_chance() -> None:
    found = pictures(colour_is_there=False)
    assert found.shape == 1.0
    assert found.colour < 0.45  # four colours: chance is .25, give or take on 100 pictures


def test_codes_that_are_all_the_same_tell_nothing_and_break_nothing() -> None:
    rng = np.random.default_rng(1)
    labels, centres = rng.integers(4, size=M), rng.uniform(0, 64, size=(M, 2))
    found = probe(np.ones((M, N, F)), labels, labels, centres, held_out=100)
    assert found.shape < 0.5 and found.colour < 0.5
    assert found.position_px > 15  # the mean of a uniform 64 px square lies 24 px from its points
