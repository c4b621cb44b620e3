"""Trains two steps in a process of its own and prints its peak memory: python FILE STAGE.

STAGE is a key of CONFIGS. A tiny training runs first, so that what libraries allocate once is not
counted. Prints JSON: bytes of the large training's peak above that.
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
from tarkit.models.encoder import EncoderArch
from tarkit.models.mllm import LmArch, PackedLoss, build, from_scratch, pack
from tarkit.train.adapters import AdapterConfig, add_adapters
from tarkit.train.ar_dtok import ArDtokConfig
from tarkit.train.contrastive import EncoderConfig, Pair, SigLip
from tarkit.train.grpo import GrpoConfig, Policy
from tarkit.train.loop import begin_training, train
from tarkit.train.loop_config import LoopConfig
from tarkit.train.mllm import MllmConfig
from tarkit.vocab import (
    Scale,
    TextTokenizer,
    VisualVocabulary,
    Vocabulary,
    train_text_tokenizer,
)

RATES = {"steps": 2, "learning_rate": 1e-3, "precision": "no"}
VOCABULARY = 4096
GRID, NUM_CODES, PROMPT = 16, 2048, 16
POLICY = LmArch(width=256, layers=6, heads=4, kv_heads=2, mlp_width=1024)


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


def encoder_config(large: bool) -> EncoderConfig:
    """Pictures of 256 positions and captions of 32 tokens."""
    arch = EncoderArch(size_px=128, patch_px=8, width=256, layers=6, heads=4, mlp_width=1024)
    towers: dict[str, Any] = {"arch": arch, "text_width": 256, "text_layers": 6, "text_heads": 4}
    text = {"text_length": 32, "text_vocab": VOCABULARY}
    return EncoderConfig.model_validate(
        {**RATES, **towers, **text, "batch_size": 16 if large else 2}
    )


def grpo_config(large: bool) -> GrpoConfig:
    """Pictures of GRID x GRID codes after prompts of 16 tokens; no chats."""
    return GrpoConfig.model_validate(
        {**RATES, "batch_size": 16 if large else 2, "group": 8 if large else 2}
    )


CONFIGS: dict[str, Callable[[bool], LoopConfig]] = {
    "encoder": encoder_config,
    "grpo": grpo_config,
    "mllm": mllm_config,
    "mllm_chunked": mllm_chunked_config,
    "mllm_checkpointed": mllm_checkpointed_config,
    "mllm_lora": mllm_lora_config,
    "ar_dtok": ar_dtok_config,
}


class FixedBatch:
    """A training on one batch."""

    unused_parameters = False

    def __init__(self, model: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> None:
        self.model = model
        self.loss_of = loss_of

    def batch(self, step: int, size: int, part: int, parts: int) -> None:
        return None

    def weight(self, batch: None) -> float:
        return 1.0

    def loss(self, model: nn.Module, batch: None, step: int) -> tuple[Tensor, dict[str, float]]:
        return self.loss_of(model), {}

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        return {}

    def samples(self, step: int) -> None:
        return None

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        return self.model, {"kind": "test"}


def chats_task(config: MllmConfig) -> FixedBatch:
    ids = torch.randint(VOCABULARY, (config.length // 2,)).tolist()
    packed = pack([(ids, [-100, *ids[1:]])] * config.batch_size, config.length)
    lm = build(from_scratch(config.lm, VOCABULARY))
    if config.lora:
        add_adapters(lm, config.lora)
    loss = PackedLoss(lm, chunk_tokens=config.loss_chunk_tokens, attention=config.packed_attention)
    return FixedBatch(loss, lambda model: model(packed)[0].mean())


def ar_dtok_task(config: ArDtokConfig) -> FixedBatch:
    rows, arch = config.batch_size, config.arch
    condition = torch.randn(rows, arch.max_condition, arch.condition_width)
    codes = torch.randint(arch.vocab_size, (rows, arch.num_codes))
    return FixedBatch(ArDtok(arch), lambda model: model(condition, codes))


def encoder_task(config: EncoderConfig) -> FixedBatch:
    rows, side = config.batch_size, config.arch.size_px
    ids = torch.randint(VOCABULARY, (rows, config.text_length))
    same, mask = torch.eye(rows).bool(), torch.ones(ids.shape)
    pair = Pair(torch.randn(rows, 3, side, side), ids, mask, same)
    return FixedBatch(SigLip(config), lambda model: model(pair)[0])


def grpo_task(config: GrpoConfig) -> FixedBatch:
    text = TextTokenizer(train_text_tokenizer(["a red circle"], vocab_size=300))
    visual = VisualVocabulary(first_id=text.size, num_codes=NUM_CODES)
    policy = Policy(
        build(from_scratch(POLICY, visual.size)), Vocabulary(text=text, visual=visual), config
    )
    prompts = [[1] * PROMPT] * config.batch_size
    codes = torch.randint(NUM_CODES, (config.batch_size, GRID**2))
    return FixedBatch(policy, lambda model: -model(prompts, codes, Scale.FULL, None)[0].mean())


TASKS: dict[type[LoopConfig], Callable[[Any], FixedBatch]] = {
    MllmConfig: chats_task,
    ArDtokConfig: ar_dtok_task,
    EncoderConfig: encoder_task,
    GrpoConfig: grpo_task,
}


def run(config: LoopConfig) -> None:
    begin_training(0)
    task = TASKS[type(config)](config)
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
