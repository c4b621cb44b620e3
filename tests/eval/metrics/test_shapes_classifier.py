"""The small classifier of the drawn world: it learns, is the same again, and is kept."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tarkit.eval.metrics.shapes_classifier import (
    ShapesFeatures,
    Trained,
    cache_file,
    load_classifier,
    train_classifier,
)
from tarkit.shapes.render import render
from tarkit.shapes.sampling import sample_scene


@pytest.fixture(scope="module")
def trained(pytestconfig: pytest.Config) -> Iterator[Trained]:
    """After 150 steps; kept by pytest's cache, so that only the first run takes its 20 seconds."""
    assert pytestconfig.cache is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("classifier")))
        yield load_classifier(steps=150)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the user, and a process that has loaded nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_classifier.cache_clear()
    return tmp_path / "tarkit"


def test_the_same_seed_gives_the_same_weights(trained: Trained) -> None:
    again = train_classifier(steps=3)
    assert again.sha256 == train_classifier(steps=3).sha256 != trained.sha256
    assert train_classifier(steps=3, seed=1).sha256 != again.sha256


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


def test_the_kept_classifier_is_the_trained_one(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = load_classifier(steps=2)
    (file,) = cache.iterdir()
    load_classifier.cache_clear()
    written = file.stat().st_mtime_ns
    kept = load_classifier(steps=2)
    assert file.stat().st_mtime_ns == written and kept.network is not fresh.network
    assert (kept.accuracy, kept.sha256) == (fresh.accuracy, fresh.sha256)
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(kept.network(pixels), fresh.network(pixels))
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_file_is_trained_again_with_a_warning(
    cache: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    fresh = load_classifier(steps=2)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    file.write_bytes({"cut": whole[:-100], "flipped": flipped, "text": b"not weights"}[damage])
    load_classifier.cache_clear()
    assert load_classifier(steps=2).sha256 == fresh.sha256
    assert "is damaged" in capsys.readouterr().err
    load_classifier.cache_clear()
    assert load_classifier(steps=2).sha256 == fresh.sha256
    assert "is damaged" not in capsys.readouterr().err and list(cache.iterdir()) == [file]


def test_other_settings_and_versions_have_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {cache_file(steps=steps, seed=seed) for steps in (1, 2) for seed in (1, 2)}
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert len(files | {cache_file(steps=1, seed=1)}) == 5


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tarkit").write_text("a file, where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_classifier.cache_clear()
    assert load_classifier(steps=2).accuracy >= 0
    assert "is not kept" in capsys.readouterr().err


@pytest.mark.slow
def test_trained_in_full_it_names_what_renders_show() -> None:
    assert train_classifier().accuracy > 0.6
