"""Trains two steps in a process of its own and prints its peak memory: python FILE STAGE.

STAGE is mllm, mllm_chunked, mllm_checkpointed, mllm_lora or ar_dtok. A tiny training runs first, so
that what libraries allocate once is not counted. Prints JSON: bytes of the large training's peak
above that.
"""

import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.mllm import LmArch, PackedLoss, build, from_scratch, pack
from tarkit.train.adapters import AdapterConfig, add_adapters
from tarkit.train.ar_dtok import ArDtokConfig
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.mllm import MllmConfig

RATES = {"steps": 2, "learning_rate": 1e-3, "precision": "no"}
VOCABULARY = 4096


def mllm_config(large: bool) -> MllmConfig:
    """Text chats, two in a packed row; 8 in a step of the large training."""
    lm = LmArch(width=256, layers=6, heads=4, kv_heads=2, mlp_width=1024)
    size = {"batch_size": 8, "length": 1024} if large else {"batch_size": 2, "length": 64}
    return MllmConfig.model_validate(
        {**RATES, **size, "lm": lm, "text_vocab": VOCABULARY, "ratio": {"text": 1}}
        | {"packed_attention": "sdpa"}  # CPUs have no flex attention
    )


def mllm_chunked_config(large: bool) -> MllmConfig:
    """The same, with the logits of 256 tokens at once."""
    return mllm_config(large).model_copy(update={"loss_chunk_tokens": 256})


def mllm_checkpointed_config(large: bool) -> MllmConfig:
    """The same, where only the inputs of blocks are kept for the backward pass."""
    return mllm_config(large).model_copy(update={"activation_checkpointing": True})


def mllm_lora_config(large: bool) -> MllmConfig:
    """The same on adapters, with an average of their weights."""
    return mllm_config(large).model_copy(update={"lora": AdapterConfig(rank=16), "ema": 0.9})


def ar_dtok_config(large: bool) -> ArDtokConfig:
    """Conditions of 144 positions, 256 codes; without dropout, whose masks are larger on CPUs."""
    arch = ArDtokArch(
        **{"layers": 6, "heads": 4, "width": 256, "multiple_of": 32, "condition_width": 96},
        **{"vocab_size": VOCABULARY, "num_codes": 256, "max_condition": 144, "token_dropout": 0},
        **{"residual_dropout": 0, "ffn_dropout": 0},
    )
    return ArDtokConfig.model_validate(
        {**RATES, "batch_size": 12 if large else 1, "arch": arch, "scale_ratio": (1, 0, 0)}
    )


CONFIGS: dict[str, Callable[[bool], LoopConfig]] = {
    "mllm": mllm_config,
    "mllm_chunked": mllm_chunked_config,
    "mllm_checkpointed": mllm_checkpointed_config,
    "mllm_lora": mllm_lora_config,
    "ar_dtok": ar_dtok_config,
}


class FixedBatch:
    """A training on one batch."""

    unused_parameters = False

    def __init__(self, model: nn.Module, data: Any) -> None:
        self.model = model
        self.data = data

    def batch(self, step: int, size: int, part: int, parts: int) -> Any:
        return self.data

    def weight(self, batch: Any) -> float:
        return 1.0

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        if isinstance(self.model, PackedLoss):
            return model(batch)[0].mean(), {}
        return model(*batch), {}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> None:
        return None

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.model, {"kind": "test"}


def run(config: LoopConfig) -> None:
    begin_training(0)
    if isinstance(config, MllmConfig):
        ids = torch.randint(VOCABULARY, (config.length // 2,)).tolist()
        packed = pack([(ids, [-100, *ids[1:]])] * config.batch_size, config.length)
        lm = build(from_scratch(config.lm, VOCABULARY))
        if config.lora:
            add_adapters(lm, config.lora)
        loss = PackedLoss(
            lm, chunk_tokens=config.loss_chunk_tokens, attention=config.packed_attention
        )
        task = FixedBatch(loss, packed)
    else:
        assert isinstance(config, ArDtokConfig)
        rows, arch = config.batch_size, config.arch
        condition = torch.randn(rows, arch.max_condition, arch.condition_width)
        codes = torch.randint(arch.vocab_size, (rows, arch.num_codes))
        task = FixedBatch(ArDtok(arch), (condition, codes))
    with tempfile.TemporaryDirectory() as out:
        train(task, config, out=Path(out) / "model", name="test", parents={})


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    config = CONFIGS[sys.argv[1]]
    run(config(False))
    before = resident()
    run(config(True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bytes": peak - before}))


if __name__ == "__main__":
    main()
