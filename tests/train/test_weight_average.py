"""The average of the weights: its formula, what is saved, exact resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

from tarkit.train.loop import train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.optimizers import make_optimizers
from tarkit.train.weight_average import WeightAverage, averaged_weights
from tests.train.test_parameters import SETTINGS, Rows


def settings(**changes: Any) -> LoopConfig:
    return LoopConfig.model_validate(SETTINGS | {"ema": 0.5} | changes)


def formula(first: torch.Tensor, weights: list[torch.Tensor], decay: float) -> torch.Tensor:
    """The average in float64, written out."""
    average = first.double()
    for n, weight in enumerate(weights, 1):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * weight.double()
    return average


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_average_is_that_of_the_formula(decay: float) -> None:
    # 2/11 < 0.2 < 3/12: the warm-up ends at once; (1 + n) / (10 + n) reaches 0.9 at n = 80.
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(7, 3))
    first, weights = weight.detach().clone(), []
    average = WeightAverage([weight], decay=decay)
    for _ in range(100):
        with torch.no_grad():
            weight.copy_(torch.randn(7, 3))
        weights.append(weight.detach().clone())
        average.step()
    expected = formula(first, weights, decay)
    assert_close(average.state[weight]["average"].double(), expected, rtol=0, atol=1e-6)
    with averaged_weights([average]):
        assert_close(weight.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(weight, weights[-1])


class Watched(Rows):
    """Keeps the weights after every step, and can stop before one."""

    def __init__(self, stop: int = -1) -> None:
        super().__init__()
        self.stop = stop
        self.weights: list[torch.Tensor] = []

    def loss(self, model: nn.Module, batch: torch.Tensor, step: int) -> Any:
        if step == self.stop:
            raise KeyboardInterrupt
        return super().loss(model, batch, step)

    def first_layer(self) -> torch.Tensor:
        return self.model.state_dict()["layers.0.weight"].clone()

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        self.weights.append(self.first_layer())
        return {}


def fit(out: Path, task: Watched, **changes: Any) -> Path:
    return train(task, settings(**changes), out=out, name="rows", parents={})


def test_the_average_is_saved_and_the_training_does_not_feel_it(tmp_path: Path) -> None:
    task, plain = Watched(), Watched()
    first = task.first_layer()
    out = fit(tmp_path / "out", task, keep_every=2, sample_every=1)
    saved = load_file(out / "model.safetensors")["layers.0.weight"]
    assert_close(saved.double(), formula(first, task.weights, 0.5), rtol=0, atol=1e-6)
    kept = load_file(out / "steps/0000002/model.safetensors")["layers.0.weight"]
    assert_close(kept.double(), formula(first, task.weights[:2], 0.5), rtol=0, atol=1e-6)
    fit(tmp_path / "plain", plain, ema=None)
    assert all(map(torch.equal, task.weights, plain.weights))
    assert not torch.equal(saved, task.weights[-1])


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_run_ends_with_the_same_average(tmp_path: Path, stop: int) -> None:
    whole = fit(tmp_path / "whole", Watched(), checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "out", Watched(stop), checkpoint_every=1)
    resumed = Watched()
    out = fit(tmp_path / "out", resumed, checkpoint_every=1)
    assert len(resumed.weights) == 4 - stop
    for name in ("model.safetensors", "manifest.json", "run.toml"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_only_trained_weights_are_averaged() -> None:
    model = Rows().model
    model.layers[1].requires_grad_(False)
    *_, average = make_optimizers(model, settings())
    assert isinstance(average, WeightAverage)
    assert set(average.state) == {p for p in model.parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="less than 1"):
        settings(ema=1.0)
