"""Feature extractors: each turns a picture into one row of numbers, by which sets are compared.

`tatok` needs no download: it is the mean over positions of a tokenizer's encoder, before anything
is quantised. A model that draws from this tokenizer's codes was trained with the same features, so
these figures compare two versions of it; they are not FID. `shapes` is a classifier of the drawn
world, trained on renders when it is loaded. `inception` is the network of the published FID and
Inception Score (the 2015 TensorFlow graph in torch-fidelity's port, pool_3 and the logits without
bias). Letters: n pictures, D features, C classes.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tarkit.artifacts.digests import file_sha256
from tarkit.checkpoints.hub import find_part
from tarkit.errors import UserError
from tarkit.images import resize, to_uint8

if TYPE_CHECKING:
    from PIL import Image

    from tarkit.checkpoints.load import LoadedTaTok

Features = NDArray[np.float32]

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)


class FeatureExtractor(Protocol):
    """Turns RGB pictures of any size into rows of features."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int:
        """D."""

    @property
    def logits(self) -> Callable[[Features], Features] | None:
        """(n, D) features -> (n, C) logits without bias; None without a classifier."""

    def identity(self) -> dict[str, Any]:
        """Everything that determines the features: figures compare only where it is equal."""

    def extract(self, pictures: Sequence[Image.Image]) -> Features:
        """n RGB pictures -> (n, D) float32."""


@dataclass(frozen=True)
class TatokFeatures:
    """The encoder's features of a tokenizer, averaged over its grid; D is the encoder's width."""

    ta_tok: LoadedTaTok
    name: str = "tatok"
    logits: None = None

    @classmethod
    def load(cls, model: str | Path, device: str) -> TatokFeatures:
        """The tokenizer of a model by name or folder, or a tokenizer's own folder."""
        from tarkit.checkpoints.load import load_ta_tok

        ta_tok = load_ta_tok(find_part(Path(model), "ta_tok"))
        ta_tok.model.to(device)
        return cls(ta_tok)

    @property
    def dim(self) -> int:
        return self.ta_tok.model.arch.encoder.width

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dim": self.dim,
            "tokenizer_sha256": self.ta_tok.sha256,
            "layer": self.ta_tok.model.arch.select_layer,
            "resize": f"pil-bicubic, {self.ta_tok.size_px} px",
        }

    def extract(self, pictures: Sequence[Image.Image]) -> Features:
        import torch

        from tarkit.models.pixel_range import to_unit

        model = self.ta_tok.model
        sized = [to_uint8(resize(p, self.ta_tok.size_px, "squash")) for p in pictures]
        device = next(model.parameters()).device
        with torch.inference_mode():
            found = model.features(to_unit(sized, device) * 2 - 1).mean(dim=1)
        return np.asarray(found.float().cpu().numpy())


@dataclass(frozen=True)
class InceptionFeatures:
    """pool_3 of the FID network, D = 2048, C = 1008; pictures enter as bytes, of any size.

    The network resizes them itself, as TensorFlow 1 did.
    """

    network: Any
    weights_sha256: str
    name: str = "inception"
    dim: int = 2048

    @classmethod
    def load(cls, device: str) -> InceptionFeatures:
        """The network from torch's cache; raises UserError if package or weights are missing."""
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        # A torchvision of another build ends in a RuntimeError: "operator ... does not exist".
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"the features inception need torch-fidelity, which does not load here: {error}",
                hint="pip install 'tarkit[metrics]'",
            ) from None
        weights = _inception_weights()
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
        return cls(network.to(device).eval(), file_sha256(weights))

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dim": self.dim,
            "network": "inception-v3-compat",
            "torch_fidelity": importlib.metadata.version("torch-fidelity"),
            "weights_sha256": self.weights_sha256,
            "resize": "TensorFlow 1 bilinear, 299 px",
        }

    def extract(self, pictures: Sequence[Image.Image]) -> Features:
        # One call for each sequence of pictures of one size, because the network resizes them.
        rows = [
            self._extract([to_uint8(picture) for picture in run])
            for _, run in itertools.groupby(pictures, key=lambda picture: picture.size)
        ]
        return np.concatenate(rows)

    def logits(self, features: Features) -> Features:
        import torch

        weight = self.network.fc.weight
        with torch.inference_mode():
            logits = torch.from_numpy(features).to(weight) @ weight.T
        return np.asarray(logits.float().cpu().numpy())

    def _extract(self, pixels: Sequence[NDArray[np.uint8]]) -> Features:
        import torch

        from tarkit.models.pixel_range import channels_first

        device = self.network.fc.weight.device
        with torch.inference_mode():
            (found,) = self.network(channels_first(pixels, device))
        return np.asarray(found.float().cpu().numpy())


SHAPES = "tarkit.eval.metrics.shapes_classifier:load_features"  # only the drawn world imports it
EXTRACTORS: Mapping[str, Callable[[str | Path, str], FeatureExtractor]] = {
    "tatok": TatokFeatures.load,
    "inception": lambda model, device: InceptionFeatures.load(device),
    "shapes": lambda model, device: pkgutil.resolve_name(SHAPES)(),
}


def load_extractor(
    name: str, *, model: str | Path = "mini", device: str = "cpu"
) -> FeatureExtractor:
    """The extractor of that name; only `tatok` uses `model`, whose tokenizer it takes.

    Raises UserError for another name, and where weights or packages are missing.
    """
    if name not in EXTRACTORS:
        raise UserError(f"features {name!r} are unknown", hint=f"one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](model, device)


def _inception_weights() -> Path:
    """The file in torch's cache; it is not downloaded here. Raises UserError if it is missing."""
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        raise UserError(
            f"the weights of inception are not on this machine (looked for {file})",
            hint=f"curl -L --create-dirs -o {file} {INCEPTION_URL}",
        )
    return file
