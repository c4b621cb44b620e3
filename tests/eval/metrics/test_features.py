"""Extractors: the embedded tokenizer's features, and the FID network with a stand-in for it."""

import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tarkit.artifacts.digests import file_sha256
from tarkit.checkpoints.hub import EMBEDDED
from tarkit.errors import UserError
from tarkit.eval.metrics.features import (
    EXTRACTORS,
    INCEPTION_FILE,
    InceptionFeatures,
    TatokFeatures,
    load_extractor,
)
from tarkit.inference.tar_model import Tar


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


# - tatok -


@pytest.fixture(scope="module")
def tatok() -> TatokFeatures:
    found = load_extractor("tatok")
    assert isinstance(found, TatokFeatures)
    return found


def test_tatok_is_the_mean_of_the_encoder_of_the_model(tatok: TatokFeatures) -> None:
    # From the model's side: its pixels, its encoder's 12 x 12 positions of 128, their sum / 144
    pictures = [picture(0), picture(1, 50, 80)]
    tar = Tar.load("mini", dtok=None)
    with torch.no_grad():
        grid = tar.ta_tok.model.features(tar.pixels(pictures) * 2 - 1)
    assert grid.shape == (2, 144, 128)
    found = tatok.extract(pictures)
    assert found.dtype == np.float32
    assert found.shape == (2, tatok.dim)
    np.testing.assert_allclose(found, grid.sum(dim=1).numpy() / 144, rtol=1e-4, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_a_picture_has_its_features_in_any_batch(tatok: TatokFeatures) -> None:
    pictures = [picture(seed) for seed in range(5)]
    whole = tatok.extract(pictures)
    np.testing.assert_allclose(tatok.extract(pictures[3:4]), whole[3:4], rtol=1e-4, atol=1e-5)


def test_the_tokenizer_is_named_by_model_or_folder(tatok: TatokFeatures) -> None:
    for place in (EMBEDDED["mini"], EMBEDDED["mini"] / "ta_tok"):
        assert TatokFeatures.load(place, "cpu").identity() == tatok.identity()
    assert tatok.identity()["tokenizer_sha256"] == Tar.load("mini", dtok=None).sha256
    assert tatok.logits is None
    with pytest.raises(UserError, match="is no model directory"):
        load_extractor("tatok", model="nowhere/at/all")


def test_unknown_features_are_refused() -> None:
    assert set(EXTRACTORS) == {"tatok", "inception", "shapes"}
    with pytest.raises(UserError, match="'clip' are unknown"):
        load_extractor("clip")


# - inception -


class Network(nn.Module):
    """Calls as torch-fidelity's network: bytes (n, 3, H, W) -> a tuple with the features asked for.

    Its features are the mean red, green and blue, the height and the width, padded to 2048.
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str
    ) -> None:
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])
        assert Path(feature_extractor_weights_path).read_bytes() == b"weights"
        self.fc = nn.Linear(2048, 1008)
        nn.init.zeros_(self.fc.weight)
        nn.init.constant_(self.fc.bias, 1000)
        with torch.no_grad():
            self.fc.weight[7, 0] = 2  # class 7 is twice the red
        self.calls = 0

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        assert pixels.dtype == torch.uint8
        self.calls += 1
        sizes = torch.tensor(pixels.shape[2:]).expand(len(pixels), 2)
        rows = torch.cat([pixels.float().mean(dim=(2, 3)), sizes], dim=1)
        return (nn.functional.pad(rows, (0, 2043)),)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package that looks like torch-fidelity 0.4.0, and where its weights must lie."""
    package = ModuleType("torch_fidelity")
    package.FeatureExtractorInceptionV3 = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.4.0" if "fidel" in name else real(name)
    )
    return tmp_path / "checkpoints" / INCEPTION_FILE


def test_inception_reads_bytes_of_any_size_in_order(fidelity: Path) -> None:
    fidelity.parent.mkdir()
    fidelity.write_bytes(b"weights")
    extractor = load_extractor("inception")
    assert isinstance(extractor, InceptionFeatures)
    sizes = [(30, 20), (30, 20), (10, 40), (30, 20)]
    pictures = [Image.new("RGB", size, (i, 10 * i, 255)) for i, size in enumerate(sizes)]
    found = extractor.extract(pictures)
    assert found.shape == (4, extractor.dim)
    assert found.dtype == np.float32
    # red i, green 10 i, blue 255, height, width
    assert found[:, :5].tolist() == [
        [0, 0, 255, 20, 30],
        [1, 10, 255, 20, 30],
        [2, 20, 255, 40, 10],
        [3, 30, 255, 20, 30],
    ]
    assert extractor.network.calls == 3
    assert extractor.identity() == {
        "name": "inception",
        "dim": 2048,
        "network": "inception-v3-compat",
        "torch_fidelity": "0.4.0",
        "weights_sha256": file_sha256(fidelity),
        "resize": "TensorFlow 1 bilinear, 299 px",
    }


def test_logits_have_no_bias(fidelity: Path) -> None:
    # weight 2 from the first feature to class 7, bias 1000 everywhere: 2 x 3 and else 0
    fidelity.parent.mkdir()
    fidelity.write_bytes(b"weights")
    extractor = load_extractor("inception")
    features = np.zeros((1, 2048), np.float32)
    features[0, 0] = 3
    assert extractor.logits is not None
    found = extractor.logits(features)
    assert found.shape == (1, 1008)
    assert found[0, 7] == 6
    assert np.count_nonzero(found) == 1


def test_missing_weights_are_named_and_not_fetched(fidelity: Path) -> None:
    with pytest.raises(UserError, match="not on this machine") as raised:
        load_extractor("inception")
    assert f"-o {fidelity} https://" in raised.value.hint


@pytest.mark.parametrize("error", [None, RuntimeError("operator torchvision::nms does not exist")])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError | None
) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise error or AttributeError(name)

    monkeypatch.setitem(sys.modules, "torch_fidelity", Broken("torch_fidelity") if error else None)
    with pytest.raises(UserError, match="torch-fidelity, which does not load here") as raised:
        load_extractor("inception")
    assert raised.value.hint == "pip install 'tarkit[metrics]'"
    assert error is None or str(error) in raised.value.message
