"""Blocks of every model, computed twice with activation checkpointing, or compiled."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tarkit.models.ar_dtok import ArDtok
from tarkit.models.encoder import VisionEncoder
from tarkit.models.mllm import LmArch, PackedLoss, build, from_scratch, pack
from tarkit.models.ta_tok import TaTok
from tarkit.models.vqvae import Vqvae
from tarkit.train.blocks import blocks_of, set_training_forward
from tarkit.train.loop_config import LoopConfig
from tests import parts

VOCABULARY = 64
LM = LmArch(width=32, layers=3, heads=2, kv_heads=1, mlp_width=48)


def settings(**changes: Any) -> LoopConfig:
    small = {"steps": 8, "batch_size": 6, "learning_rate": 0.01}
    return LoopConfig.model_validate(small | changes)


def language_model() -> PackedLoss:
    torch.manual_seed(0)
    return PackedLoss(build(from_scratch(LM, VOCABULARY)))


def packed(chats: int) -> Any:
    ids = torch.arange(chats * 9).remainder(VOCABULARY).view(chats, 9).tolist()
    return pack([(chat, [-100, *chat[1:]]) for chat in ids], 32)


def classes(model: nn.Module) -> list[str]:
    return [type(block).__name__ for block in blocks_of(model)]


def test_blocks_are_those_of_every_stack() -> None:
    assert classes(language_model()) == ["Qwen2DecoderLayer"] * 3
    assert classes(VisionEncoder(parts.ENCODER)) == ["VitBlock"] * 2
    assert classes(TaTok(parts.TA_TOK)) == ["VitBlock"] * 3
    assert classes(ArDtok(parts.AR_DTOK)) == ["ArDtokBlock"]
    # Of the image VQ: levels, and three blocks between them, of encoder and decoder.
    half = ["VqvaeLevel", "VqvaeLevel", "ResBlock", "AttnBlock", "ResBlock"]
    assert sorted(classes(Vqvae(parts.VQVAE))) == sorted(half * 2)


def gradients(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    model.train()
    model(batch)[0].mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_checkpointed_block_is_computed_again_and_gives_the_same_gradient() -> None:
    plain, checkpointed = language_model(), language_model()
    calls = list[bool]()
    layer: Any = checkpointed.lm.base_model.layers[1]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    set_training_forward(checkpointed, settings(activation_checkpointing=True))
    assert_close(gradients(checkpointed, packed(4)), gradients(plain, packed(4)), rtol=0, atol=1e-6)
    assert calls == [True, True]
    # Without a gradient there is nothing to keep, and the names of weights are the same.
    with torch.no_grad():
        checkpointed(packed(4))
    assert calls == [True, True, False]
    assert list(checkpointed.state_dict()) == list(plain.state_dict())


def test_a_checkpointed_block_drops_out_the_same_values_again() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Dropout(0.5) for _ in range(2))

        def forward(self, x: Tensor) -> tuple[Tensor]:
            for block in self.blocks:
                x = block(x)
            return (x * torch.arange(64.0),)

    inputs = []
    for checkpointing in (False, True):
        model = Dropping()
        set_training_forward(model, settings(activation_checkpointing=checkpointing))
        x = torch.ones(64, requires_grad=True)
        torch.manual_seed(3)
        model(x)[0].sum().backward()
        inputs.append(x.grad)
    assert torch.equal(*inputs)  # type: ignore[arg-type]
    assert 0 < int((inputs[0] == 0).sum()) < 64  # type: ignore[union-attr]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_model_has_the_gradient_of_a_plain_one(
    checkpointing: bool, compiler: None
) -> None:
    plain, compiled = language_model(), language_model()
    set_training_forward(compiled, settings(compile=True, activation_checkpointing=checkpointing))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # Packed rows of a step are longer or more than those of the last.
    for chats in (2, 3, 6, 7):
        for model in (plain, compiled):
            model.zero_grad()
        apart = gradients(compiled, packed(chats)), gradients(plain, packed(chats))
        assert_close(*apart, rtol=0, atol=1e-6)
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
    assert 1 <= made <= 8  # not one for each layer and length
    with torch.no_grad():
        assert_close(compiled(packed(3)), plain(packed(3)))
    assert list(compiled.state_dict()) == list(plain.state_dict())
