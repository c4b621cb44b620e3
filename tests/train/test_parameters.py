"""Which parameters are trained: patterns by name, what they leave, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tarkit.errors import UserError
from tarkit.train.loop import train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.optimizers import make_optimizers
from tarkit.train.parameters import ParameterCounts, count_parameters, freeze_parameters

SETTINGS = {"steps": 4, "batch_size": 2, "learning_rate": 0.1, "weight_decay": 0.5, "log_every": 1}


class Tied(nn.Module):
    """Two layers between a table and a head that share a weight: 20 + 2 * 20 values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.lm_head = nn.Linear(4, 5, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        states = self.embed(ids)
        for layer in self.layers:
            states = layer(states).tanh()
        logits: Tensor = self.lm_head(states)
        return logits


class Rows:
    """A training of `Tied` on four tokens."""

    unused_parameters = False

    def __init__(self) -> None:
        self.model = Tied()

    def batch(self, step: int, size: int, part: int, parts: int) -> Tensor:
        return (torch.arange(size) + step) % 5

    def weight(self, batch: Tensor) -> float:
        return len(batch)

    def loss(self, model: nn.Module, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        return nn.functional.cross_entropy(model(batch), batch), {}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> None:
        return None

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.model, {"kind": "rows", "arch": {}}


def settings(**changes: Any) -> LoopConfig:
    return LoopConfig.model_validate(SETTINGS | changes)


def trained_names(**changes: Any) -> set[str]:
    model = Tied()
    freeze_parameters(model, settings(**changes))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


EVERY = {"embed.weight", *(f"layers.{i}.{part}" for i in (0, 1) for part in ("weight", "bias"))}


def test_patterns_match_whole_names_and_each_name_of_a_tied_weight() -> None:
    assert trained_names() == EVERY
    assert trained_names(freeze=["layers.0.*"]) == EVERY - {"layers.0.weight", "layers.0.bias"}
    assert trained_names(freeze=["lm_head.*", "*.bias"]) == {"layers.0.weight", "layers.1.weight"}
    assert trained_names(train_only=["lm_head.weight"]) == {"embed.weight"}
    assert trained_names(train_only=["layers.*"], freeze=["*.bias"]) == {
        "layers.0.weight",
        "layers.1.weight",
    }


def test_a_parameter_that_a_trainer_froze_stays_frozen() -> None:
    model = Tied()
    model.layers[0].requires_grad_(False)
    counts = freeze_parameters(model, settings(train_only=["layers.*"]))
    assert counts == ParameterCounts(20, 60)
    with pytest.raises(UserError, match=r"'layers.0.\*' of train_only matches no parameter"):
        freeze_parameters(model, settings(train_only=["layers.0.*"]))


def test_a_pattern_without_a_match_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"'layer.0.weight' of freeze matches no") as error:
        trained_names(freeze=["layers.1.*", "layer.0.weight"])
    assert "nearest names are layers.0.weight, " in error.value.message
    assert error.value.hint.startswith("--set freeze='[\"layers.0.weight\"]'")
    with pytest.raises(UserError, match="none of the 60 parameters is left to train"):
        trained_names(freeze=["*"])


def test_frozen_parameters_are_in_no_optimizer() -> None:
    model = Tied()
    freeze_parameters(model, settings(freeze=["layers.0.*"]))
    for kind in ("adamw", "muon"):
        optimizers = make_optimizers(model, settings(optimizer=kind, ema=0.5))
        held = {id(p) for o in optimizers for g in o.param_groups for p in g["params"]}
        assert held == {id(p) for n, p in model.named_parameters() if "layers.0" not in n}


def test_a_training_leaves_frozen_parameters_as_they_were_and_says_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Tied().state_dict()
    out = train(
        Rows(), settings(freeze=["layers.0.*"]), out=tmp_path / "out", name="rows", parents={}
    )
    after = load_file(out / "model.safetensors")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == EVERY - {"layers.0.weight", "layers.0.bias"}
    assert "rows: trains 40 of 60 parameters" in capsys.readouterr().err
    recorded = json.loads((out / "manifest.json").read_text())["settings"]
    assert recorded["freeze"] == ["layers.0.*"]
    assert recorded["parameters"] == {"trained": 40, "total": 60}


def test_settings_that_choose_nothing_leave_the_manifest_of_older_versions() -> None:
    assert not {"freeze", "train_only", "ema"} & settings().recorded().keys()
    assert settings(ema=0.9, freeze=["*"]).recorded()["freeze"] == ["*"]
    assert count_parameters(Tied()) == ParameterCounts(60, 60)
