"""Hidden matrices and tables, what Muon and AdamW get, shrinking, and the size of the weights."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.mllm import LmArch, build, from_scratch
from tarkit.train.loop_config import LoopConfig
from tarkit.train.optimizers import hidden_matrices, make_optimizers, shrink, weight_rms


def settings(**changes: Any) -> LoopConfig:
    small = {"steps": 8, "batch_size": 4, "learning_rate": 0.1}
    return LoopConfig.model_validate(small | changes)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.hidden = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.lm_head = nn.Linear(4, 5, bias=False)


def names(net: Net, params: list[Any]) -> set[str]:
    found = {id(p): n for n, p in net.named_parameters()}
    return {found[id(p)] for p in params}


def test_weight_decay_falls_on_matrices_alone() -> None:
    net = Net()
    (adamw,) = make_optimizers(net, settings(weight_decay=0.3))
    by_decay = {g["weight_decay"]: names(net, g["params"]) for g in adamw.param_groups}
    assert by_decay == {
        0.3: {"embed.weight", "hidden.weight", "lm_head.weight"},
        0.0: {"hidden.bias"},
    }
    assert {group["base_lr"] for group in adamw.param_groups} == {0.1}


def test_muon_gets_the_hidden_matrices_and_never_a_table() -> None:
    net = Net()
    adamw, muon = make_optimizers(net, settings(optimizer="muon", muon_rate=0.02))
    assert names(net, [p for g in muon.param_groups for p in g["params"]]) == {"hidden.weight"}
    assert names(net, [p for g in adamw.param_groups for p in g["params"]]) == {
        "embed.weight",
        "lm_head.weight",
        "hidden.bias",
    }
    assert [g["base_lr"] for g in muon.param_groups] == [0.02]


def test_the_size_of_the_weights_is_that_of_the_hidden_matrices() -> None:
    net = Net()
    nn.init.constant_(net.hidden.weight, -3.0)
    net.hidden.weight.data[0] = 5.0  # four of sixteen
    nn.init.constant_(net.embed.weight, 100.0)
    assert weight_rms(net) == pytest.approx(math.sqrt((12 * 9 + 4 * 25) / 16))
    assert weight_rms(nn.LayerNorm(3)) == 0


# ---- hidden matrices of whole models


def hidden_names(model: nn.Module) -> set[str]:
    hidden = set(map(id, hidden_matrices(model)))
    return {name for name, parameter in model.named_parameters() if id(parameter) in hidden}


def test_the_hidden_matrices_of_a_de_tokenizer_are_its_layers_and_the_projection() -> None:
    arch = ArDtokArch(layers=1, heads=2, width=8, multiple_of=4, condition_width=6, vocab_size=9)
    layer = {"attention.wqkv", "attention.wo", *(f"feed_forward.w{n}" for n in (1, 2, 3))}
    expected = {"clip_proj.weight"} | {f"layers.0.{name}.weight" for name in layer}
    assert hidden_names(ArDtok(arch)) == expected


def test_an_embedding_is_a_table_whatever_its_name() -> None:
    # GPT-2 calls its tables of words and positions wte and wpe; its head is the first of them.
    gpt2 = {"model_type": "gpt2", "vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2}
    hidden = hidden_names(build(gpt2))
    assert len(hidden) == 4 and all(".h.0." in name for name in hidden)


# ---- shrinking


@pytest.mark.parametrize("tied", [True, False])
def test_shrinking_scales_the_hidden_matrices_and_nothing_else(tied: bool) -> None:
    sizes = LmArch(width=24, layers=2, heads=4, kv_heads=2, mlp_width=32, max_positions=64)
    torch.manual_seed(0)
    model = build({**from_scratch(sizes, 50), "tie_word_embeddings": tied})
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    shrink(model, 0.25)
    for name, weight in model.state_dict().items():
        hidden = "proj" in name and name.endswith("weight")
        assert torch.equal(weight, before[name] * (0.25 if hidden else 1)), name
    assert sum("proj" in name for name in before) >= 7
