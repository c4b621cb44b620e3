"""Language models of other families: what trains also loads, draws and exports."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from tarkit.checkpoints import assemble, export_hf
from tarkit.checkpoints.language_model import load_mllm
from tarkit.inference.tar_model import Tar
from tarkit.models.mllm import build
from tarkit.train import mllm
from tarkit.train.mllm import MllmTask
from tarkit.vocab import Scale
from tests import parts
from tests.train.test_mllm import config

SIZES: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
LLAMA3_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 128},
    "gemma2": {"model_type": "gemma2", **GEMMA, "final_logit_softcapping": 2.0, **TIED},
    "gemma3": {"model_type": "gemma3_text", **GEMMA, "layer_types": ["sliding_attention"] * 2},
    "qwen3": {"model_type": "qwen3", "head_dim": 8, **UNTIED},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, **TIED},
    "qwen2.5-7b": {"model_type": "qwen2", "use_sliding_window": False, **UNTIED},
    "qwen2.5-1m": {
        **{"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8},
        "max_window_layers": 1,
    },
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE, **UNTIED},
    "smollm2": {"model_type": "llama", **TIED},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0], **TIED},
    "mistral": {"model_type": "mistral", "sliding_window": 8, "head_dim": 8, **UNTIED},
    "phi3": {"model_type": "phi3", **UNTIED},
    "olmo2": {"model_type": "olmo2", **UNTIED},
    "granite": {"model_type": "granite", "logits_scaling": 4.0, "embedding_multiplier": 2.0},
}
QUICK = ("gpt2", "gemma2", "qwen3")


def foreign(path: Path, arch: dict[str, Any], *, dtype: torch.dtype, shard_size: str) -> Path:
    """A tiny model in transformers' layout, as its publisher would write it."""
    text = parts.text_tokenizer()
    torch.manual_seed(1)
    network = build({**SIZES, "vocab_size": text.size + 7, **arch}).to(dtype)
    network.save_pretrained(path, max_shard_size=shard_size)
    (path / "tokenizer.json").write_text(text.json)
    return path


def check(
    lm: Path, chats: Path, models: dict[str, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    real = MllmTask.finish

    def finish(self: MllmTask) -> Any:
        trained.append(self.model.lm)
        return real(self)

    monkeypatch.setattr(MllmTask, "finish", finish)
    made = mllm.run(
        config(out.parent, steps=2, optimizer="adamw"),
        chats=[chats],
        tokenizer=models["tokenizer"],
        lm=lm,
        out=out,
    )
    loaded = load_mllm(made).model
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = trained[0].eval()(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, expected)

    tar = assemble.run(
        mllm=made,
        tokenizer=models["tokenizer"],
        ar_dtok=models["ar_dtok"],
        vqvae=models["vqvae"],
        out=out.parent / "tar",
    )
    drawn = Tar.load(tar, device="cpu").imagine_codes(["a red ring"], seeds=[0], scale=Scale.THIRD)
    assert all(0 <= code < parts.K for code in drawn[0].flatten().tolist())

    export_hf.run(tar, out=out.parent / "hf")
    again, info = AutoModelForCausalLM.from_pretrained(
        out.parent / "hf", local_files_only=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert_close(again.eval()(input_ids=ids).logits, expected)
    assert AutoTokenizer.from_pretrained(out.parent / "hf").encode("a red ring")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n not in QUICK)]
)
def test_what_trains_also_loads_draws_and_exports(
    name: str,
    chats: Path,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = foreign(tmp_path / "lm", FAMILIES[name], dtype=torch.float32, shard_size="1GB")
    check(lm, chats, models, tmp_path / "out", monkeypatch)


@pytest.mark.parametrize(
    "name",
    ["smollm2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt2", "gemma3", "llama3"))],
)
def test_weights_in_bfloat16_and_several_files_are_as_good(
    name: str,
    chats: Path,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = foreign(tmp_path / "lm", FAMILIES[name], dtype=torch.bfloat16, shard_size="4KB")
    index = json.loads((lm / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    check(lm, chats, models, tmp_path / "out", monkeypatch)
