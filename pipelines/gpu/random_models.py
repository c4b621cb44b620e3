"""Models of the paper's sizes with random weights, for a run that measures and learns nothing.

    python random_models.py FOLDER PART...

A PART is siglip2 (siglip2-so400m-patch14-384), qwen (Qwen2.5-1.5B with a tokenizer of as many
tokens), ta_tok, vqvae (LlamaGen's VQ-16) or sana (SANA-0.6B at 512 px, with its autoencoder).
With the environment's TINY=1 they are small, of the same kinds. FOLDER/PART is written when all of
it is done.
A part that cannot be made is named, and the next one is.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tarkit.artifacts.files import whole_folder
from tarkit.checkpoints.directory import save_model
from tarkit.models.encoder import EncoderArch
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch

TINY = os.environ.get("TINY") == "1"
NUM_TOKENS, NUM_WORDS, NUM_ROWS = (300, 290, 304) if TINY else (151_665, 151_643, 151_936)
WIDTH = 32 if TINY else 1536  # of the language model and of the codes


def siglip2(folder: Path) -> None:
    """Small: 58 px in patches of 14, a grid of 4."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "image_size": 384, "patch_size": 14}
    sizes |= {"num_hidden_layers": 27, "num_attention_heads": 16}
    if TINY:
        sizes |= {"hidden_size": 32, "intermediate_size": 48, "image_size": 58}
        sizes |= {"num_hidden_layers": 3, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**sizes)).save_pretrained(folder)


def qwen(folder: Path) -> None:
    """In bfloat16, as published; the tokenizer has bytes, words that no text has, and tags."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
    }
    sizes |= {"num_attention_heads": 12, "num_key_value_heads": 2}
    if TINY:
        sizes |= {"intermediate_size": 48, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "vocab_size": NUM_ROWS}
    config |= {"max_position_embeddings": 32_768, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
    config |= sizes | {"tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    heads, keys = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    narrow, mlp = WIDTH // heads * keys, sizes["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (NUM_ROWS, WIDTH)}
    for number in range(sizes["num_hidden_layers"]):
        block = f"model.layers.{number}."
        for name, out in {"q": WIDTH, "k": narrow, "v": narrow}.items():
            shapes[f"{block}self_attn.{name}_proj.weight"] = (out, WIDTH)
            shapes[f"{block}self_attn.{name}_proj.bias"] = (out,)
        shapes[f"{block}self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        shapes[f"{block}mlp.gate_proj.weight"] = shapes[f"{block}mlp.up_proj.weight"] = (mlp, WIDTH)
        shapes[f"{block}mlp.down_proj.weight"] = (WIDTH, mlp)
        shapes[f"{block}input_layernorm.weight"] = (WIDTH,)
        shapes[f"{block}post_attention_layernorm.weight"] = (WIDTH,)
    shapes["model.norm.weight"] = (WIDTH,)
    tensors = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if "norm" in name
        else torch.randn(shape, dtype=torch.bfloat16) / 50
        for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols += [f"word{number}" for number in range(NUM_WORDS - len(symbols))]
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tags = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tags += [f"<|tag{number}|>" for number in range(NUM_TOKENS - NUM_WORDS - len(tags))]
    tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in tags])
    tokenizer.save(str(folder / "tokenizer.json"))


def ta_tok(folder: Path) -> None:
    arch = TaTokArch()
    if TINY:
        encoder = EncoderArch(
            size_px=58, patch_px=14, width=32, layers=3, heads=2, mlp_width=48, head=False
        )
        sizes: dict[str, Any] = {"num_codes": 64, "embedding_width": WIDTH, "code_width": WIDTH}
        sizes |= {
            "decoder_layers": 1,
            "decoder_heads": 2,
            "decoder_mlp_width": 48,
            "decoder_side": 4,
        }
        arch = TaTokArch(encoder=encoder, **sizes)
    save_model(folder, TaTok(arch), {"kind": "ta_tok", "arch": arch.model_dump(mode="json")})


def vqvae(folder: Path) -> None:
    arch = VqvaeArch()
    if TINY:
        arch = VqvaeArch(
            channels=32,
            encoder_multipliers=(1, 1),
            decoder_multipliers=(1, 1),
            num_res_blocks=1,
            latent_channels=8,
            num_codes=16,
            unshuffle=8,
        )
    save_model(folder, Vqvae(arch), {"kind": "vqvae", "arch": arch.model_dump(mode="json")})


def sana(folder: Path) -> None:
    """The autoencoder halves the side five times (small: once)."""
    import diffusers

    # Cross-attention is as wide as self-attention; the condition as wide as a language model's.
    transformer: dict[str, Any] = {
        "num_layers": 28,
        "num_attention_heads": 36,
        "attention_head_dim": 32,
    }
    transformer |= {"num_cross_attention_heads": 16, "cross_attention_head_dim": 72}
    transformer |= {"cross_attention_dim": 1152, "caption_channels": 2304, "sample_size": 16}
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    vae: dict[str, Any] = {"upsample_block_type": "interpolate", "downsample_block_type": "conv"}
    if TINY:
        transformer |= {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
        transformer |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
        transformer |= {"cross_attention_dim": 16, "caption_channels": 24, "in_channels": 4}
        transformer |= {"out_channels": 4}
        blocks = ("ResBlock", "EfficientViTBlock")
        vae |= {"latent_channels": 4, "attention_head_dim": 2}
        for side in ("encoder", "decoder"):
            vae[f"{side}_block_out_channels"] = (8, 8)
            vae[f"{side}_layers_per_block"] = (1, 1)
            vae[f"{side}_qkv_multiscales"] = ((), (5,))
    vae |= {"encoder_block_types": blocks, "decoder_block_types": blocks, "scaling_factor": 0.41407}
    parts = {
        "transformer": diffusers.SanaTransformer2DModel(**transformer),
        "vae": diffusers.AutoencoderDC(**vae),
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)


PARTS: dict[str, Callable[[Path], None]] = {
    "siglip2": siglip2,
    "qwen": qwen,
    "ta_tok": ta_tok,
    "vqvae": vqvae,
    "sana": sana,
}


def main(folder: Path, parts: Sequence[str]) -> None:
    """Exit status 1 where a part could not be made."""
    failed = 0
    for part in parts:
        if (folder / part).exists():
            continue
        torch.manual_seed(0)
        try:
            with whole_folder(folder / part) as out:
                PARTS[part](out)
        except ImportError as error:
            print(f"no {part}: {error}", file=sys.stderr)
            failed = 1
    sys.exit(failed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
