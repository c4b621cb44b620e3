"""Files of the published formats at their real sizes, with random weights, through one picture.

9 GB of disk and minutes of two cores: run by hand, `pytest -m slow tests/test_real_size.py -s`.
Time and memory are printed; those of the machine it was last run on stand in the README.
"""

import json
import os
import resource
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from tarkit.checkpoints.published_pth import SIGLIP2
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.mllm import skeleton
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.vocab import VisualVocabulary

GIB = 2**30
NUM_TEXT, NUM_BPE = 151_665, 151_643  # Qwen2.5's tokens, and those before its tags
VISUAL = VisualVocabulary(first_id=NUM_TEXT, num_codes=65_536)
QWEN: Mapping[str, Any] = {
    **{"model_type": "qwen2", "vocab_size": VISUAL.size, "hidden_size": 1536},
    **{"intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    **{"num_key_value_heads": 2, "max_position_embeddings": 32_768, "rope_theta": 1e6},
    **{"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
}
LP = ArDtokArch(
    layers=30,
    heads=20,
    width=1280,
    condition_width=1152,
    vocab_size=16_384,
    num_codes=256,
    max_condition=729,
)


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Norm weights of one, all else small enough for thirty layers to stay finite."""
    return (
        torch.ones(shape, dtype=dtype) if len(shape) == 1 else torch.randn(shape, dtype=dtype) / 50
    )


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def weights(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights of a model without any."""
    own = model.state_dict()
    return {name: drawn(tuple(value.shape), dtype) for name, value in own.items()}


def write_ta_tok(file: Path) -> int:
    """The released args, as the foreign class that the released file pickles; returns its size."""
    arch = TaTokArch()
    state = weights(on_meta(lambda: TaTok(arch)))
    head = {"probe": (1, 1, 1152), "attention.in_proj_weight": (3456, 1152)}
    head |= {"attention.in_proj_bias": (3456,), "attention.out_proj.weight": (1152, 1152)}
    head |= {"attention.out_proj.bias": (1152,)}
    head |= {"layernorm.weight": (1152,), "layernorm.bias": (1152,)}
    for part, width in (("encoder", 4304), ("decoder.vision_model", 3072)):
        sizes = head | {"mlp.fc1.weight": (width, 1152), "mlp.fc1.bias": (width,)}
        sizes |= {"mlp.fc2.weight": (1152, width), "mlp.fc2.bias": (1152,)}
        state |= {f"{part}.head.{k}": drawn(s, torch.float32) for k, s in sizes.items()}
    state |= {f"scale_layer.{k}": torch.full((1, 3, 1, 1), 0.5) for k in ("shift", "scale")}
    module = types.ModuleType("easydict")
    easy = type("EasyDict", (dict,), {"__module__": "easydict"})
    module.EasyDict = easy  # type: ignore[attr-defined]
    book = easy(
        **{"codebook_size": 65_536, "l2_normalized": True, "stochastic": True},
        **{"stochastic_temperature": 0.03, "commitment_loss_weight": 0.25},
    )
    args = easy(
        bottleneck=easy(
            name="bottleneck",
            args=easy(bottleneck_dim=1536, norm="none", regularizer=easy(name="simvq", args=book)),
        ),
        **{"bottleneck_token_num": 729, "input_size": 384, "teacher": SIGLIP2, "rand_scale": True},
    )
    sys.modules["easydict"] = module
    try:
        torch.save({"model": {"name": "ta_tok", "args": args, "sd": state}}, file)
    finally:
        del sys.modules["easydict"]
    return sum(value.numel() for value in state.values())


def write_ar_dtok(file: Path) -> int:
    state = weights(on_meta(lambda: ArDtok(LP)))
    args = {"model_type": "clip_cond", "cond_dim": 1152, "vocab_size": 16_384}
    args |= {"cls_token_num": 729, "max_seq_len": 256}
    torch.save({"model": {"name": "llama-abs-LP", "args": args, "sd": state}}, file)
    return sum(value.numel() for value in state.values())


def write_vqvae(file: Path) -> int:
    state = weights(on_meta(lambda: Vqvae(VqvaeArch())))
    state["quantize.codebook_used"] = torch.zeros(65_536)
    torch.save({"model": state}, file)
    return sum(value.numel() for value in state.values())


def text_tokenizer() -> Tokenizer:
    """As many tokens and tags as Qwen2.5 has, and no merges."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols += [f"word{number}" for number in range(NUM_BPE - len(symbols))]
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tags = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tags += [f"<|tag{number}|>" for number in range(NUM_TEXT - NUM_BPE - len(tags))]
    tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in tags])
    return tokenizer


def write_language_model(folder: Path) -> int:
    """Qwen2.5-1.5B's shape with Tar's 217,206 tokens, in bfloat16."""
    state = weights(skeleton(QWEN), torch.bfloat16)
    del state["lm_head.weight"]  # tied
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**QWEN, "architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = text_tokenizer()
    tokenizer.add_tokens([AddedToken(name, special=False) for name in VISUAL.tokens()])
    tokenizer.save(str(folder / "tokenizer.json"))
    return sum(value.numel() for value in state.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_picture_of_released_sizes_takes_less_than_16_gib(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "tar"
    folder.mkdir()
    assert write_ta_tok(folder / "ta_tok.pth") == 591_032_006
    assert write_ar_dtok(folder / "ar_dtok_lp_256px.pth") == pytest.approx(654.2e6, rel=1e-3)
    assert write_vqvae(folder / "vq_ds16_t2i.pt") == 71_948_939
    num_words = write_language_model(folder)
    assert num_words == pytest.approx(1.64e9, rel=0.01)
    out = tmp_path / "macaw.png"
    command = [sys.executable, "-m", "tarkit.cli", "generate", "A photo of a macaw"]
    command += ["--model", str(folder), "--out", str(out), "--scale", "3", "--size", "256"]
    command += ["--precision", "bfloat16", "--device", "cpu"]
    began = time.monotonic()
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"\n{num_words:,} + 591M + 654M + 72M: {seconds:.0f} s, peak {peak / GIB:.2f} GiB")
    assert done.returncode == 0
    with Image.open(out) as picture:
        assert picture.size == (256, 256)
        assert picture.info["precision"] == "bfloat16" and picture.info["scale"] == "3"
    assert peak < 16 * GIB
