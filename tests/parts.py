"""Tiny, real and untrained: model directories, pictures and chats that fit each other.

Pictures of 16 px; TA-Tok: a grid of 4 (16, 4 and 1 codes), 16 codes in the book; the image VQ:
4 x 4 = 16 codes of a book of 12; a language model of 270 tokens, 16 wide as the codes are.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.checkpoints.directory import TOKENIZER, save_model
from tarkit.images import png_bytes
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.encoder import EncoderArch, VisionEncoder
from tarkit.models.mllm import LmArch, build, from_scratch
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.shapes.scene import Background, Object, Scene, scene_to_json
from tarkit.vocab import Scale, TextTokenizer, VisualVocabulary, train_text_tokenizer

ASSEMBLED = ("mllm", "ta_tok", "ar_dtok", "vqvae")
SIZE_PX, GRID, K, WIDTH = 16, 4, 16, 16
CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("ring", "heart")]

ENCODER = EncoderArch(size_px=SIZE_PX, patch_px=4, width=16, layers=2, heads=2, mlp_width=24)
TA_TOK = TaTokArch(
    encoder=ENCODER,
    num_codes=K,
    embedding_width=WIDTH,
    code_width=WIDTH,
    decoder_layers=1,
    decoder_heads=2,
    decoder_mlp_width=24,
    decoder_side=4,
)
VQVAE = VqvaeArch(
    channels=32,
    encoder_multipliers=(1, 1),
    decoder_multipliers=(1, 1),
    num_res_blocks=1,
    latent_channels=8,
    num_codes=12,
    code_dim=4,
    unshuffle=2,
)
AR_DTOK = ArDtokArch(
    layers=1,
    heads=2,
    width=16,
    multiple_of=16,
    condition_width=16,
    vocab_size=12,
    num_codes=16,
    max_condition=GRID**2,
)
LM = LmArch(width=WIDTH, layers=1, heads=2, kv_heads=1, mlp_width=24, max_positions=256)


def _save(out: Path, model: nn.Module, kind: str, arch: Any, **config: Any) -> Path:
    arch = arch if isinstance(arch, dict) else arch.model_dump(mode="json")
    save_model(out, model, {"kind": kind, "arch": arch, **config})
    return out


def sha256(model: Path) -> str:
    """The identity of a model directory."""
    return str(json.loads((model / "config.json").read_text())["sha256"])


def save_encoder(out: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return _save(out, _keen(VisionEncoder(ENCODER)), "encoder", ENCODER)


def save_ta_tok(out: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = TaTok(TA_TOK)
    _keen(model.encoder)
    return _save(out, model, "ta_tok", TA_TOK)


def save_vqvae(out: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    return _save(out, Vqvae(VQVAE), "vqvae", VQVAE)


def save_ar_dtok(out: Path, tokenizer: Path, vqvae: Path | None = None, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    made = {"tokenizer_sha256": sha256(tokenizer)}
    made |= {"vqvae_sha256": sha256(vqvae)} if vqvae else {}
    return _save(out, _loud(ArDtok(AR_DTOK)), "ar_dtok", AR_DTOK, **made)


def text_tokenizer() -> TextTokenizer:
    return TextTokenizer(train_text_tokenizer(CAPTIONS * 4, vocab_size=270))


def save_mllm(out: Path, tokenizer: Path | None, *, seed: int = 0) -> Path:
    """A language model; without a tokenizer one of text alone that knows which rows it used."""
    torch.manual_seed(seed)
    text = text_tokenizer()
    visual = VisualVocabulary(first_id=text.size, num_codes=K) if tokenizer else None
    arch = from_scratch(LM, visual.size if visual else text.size)
    ids = [i for words in [*CAPTIONS, "pack my box, 0123456789"] for i in text.encode(words)]
    counts = np.bincount(ids, minlength=text.size).tolist()
    _save(
        out,
        _loud(build(arch)),
        "mllm",
        arch,
        visual=visual and {"first_id": visual.first_id, "num_codes": K},
        system=None,
        tokenizer_sha256=sha256(tokenizer) if tokenizer else None,
        token_counts=None if tokenizer else counts,
    )
    (out / TOKENIZER).write_text(text.json)
    return out


def _keen(encoder: VisionEncoder) -> VisionEncoder:
    """As initialised, positions outweigh pixels and all pictures get the same codes."""
    with torch.no_grad():
        encoder.embeddings.patch_embedding.weight.mul_(8)
    return encoder


def _loud(model: nn.Module) -> nn.Module:
    """As initialised, logits are near zero and no prompt makes a difference."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
    return model


def save_parts(folder: Path) -> dict[str, Path]:
    """The four parts of a Tar, by the names that `tarkit assemble` calls them."""
    tokenizer = save_ta_tok(folder / "ta_tok")
    vqvae = save_vqvae(folder / "vqvae")
    return {
        "mllm": save_mllm(folder / "mllm", tokenizer),
        "tokenizer": tokenizer,
        "ar_dtok": save_ar_dtok(folder / "ar_dtok", tokenizer, vqvae),
        "vqvae": vqvae,
    }


def write_pictures(
    out: Path, splits: Sequence[Sequence[str | None]], *, size_px: int = SIZE_PX
) -> Artifact:
    """An images artifact: one shard for each list, one noise picture for each split in it.

    What their captions and scenes say is not there to be seen. The split "failed" stands for a
    row without a picture.
    """
    names = [f"{i:05d}" for i in range(len(splits))]
    artifact = begin_artifact(out, "images", settings={}, shards=names)
    for number, (name, shard) in enumerate(zip(names, splits, strict=True)):
        rows: list[dict[str, Any]] = []
        blobs: list[tuple[str, bytes] | None] = []
        for place, split in enumerate(shard):
            key = f"{number:05d}-{place:06d}"
            if split == "failed":
                rows.append(artifact.failed_row(key, "truncated", split="train"))
                blobs.append(None)
                continue
            rng = np.random.default_rng([number, place])
            pixels = rng.integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
            caption = CAPTIONS[(number + place) % len(CAPTIONS)]
            known: dict[str, Any] = {"split": split, "role": "target", "group": key, "source": "x"}
            known |= {"width": size_px, "height": size_px, "prompt": caption, "captions": [caption]}
            known |= {"scene": scene_of(caption)}
            blank = dict.fromkeys(artifact.schema.names)
            rows.append(blank | known | {"key": key, "seed": place, "status": "ok"})
            blobs.append(("png", png_bytes(pixels)))
        artifact.write_pictures(name, zip(rows, blobs, strict=True))
    return artifact


def status_counts(artifact: Artifact) -> dict[str, int]:
    """The rows of a complete artifact by status: `{"ok": 98, "failed": 2}`."""
    rows = [row for name in artifact.shards for row in artifact.rows(name)]
    return {status: sum(row["status"] == status for row in rows) for status in ("ok", "failed")}


def scene_of(caption: str) -> str:
    """The scene that a caption tells of: its one object, in the middle, 32 px wide of 64."""
    _, colour, shape = caption.split()
    item = Object(shape, colour, x=32.0, y=32.0, r=16.0)
    return scene_to_json(Scene((item,), Background("plain", (128, 128, 128))))


def write_chats(
    out: Path, shards: Sequence[Sequence[Mapping[str, Any]]], **settings: Any
) -> Artifact:
    """A chats artifact of rows from `chat_row`; keys are numbered."""
    names = [f"{i:05d}" for i in range(len(shards))]
    artifact = begin_artifact(out, "chats", settings=settings, shards=names)
    for number, (name, rows) in enumerate(zip(names, shards, strict=True)):
        keyed = [{**row, "key": f"{number:05d}-{i:06d}"} for i, row in enumerate(rows)]
        artifact.write(name, keyed, source_sha256=None)
    return artifact


def chat_row(
    task: str, *turns: tuple[str, str], codes: Sequence[int] = (), split: str | None = "train"
) -> dict[str, Any]:
    """A chat; every code in `codes` is a picture that holds it alone, at every scale."""
    pictures = [
        {f"codes_{int(scale)}": [code] * scale.num_codes(GRID) for scale in Scale} for code in codes
    ]
    return {
        "task": task,
        "split": split,
        "messages": [{"role": role, "content": content} for role, content in turns],
        "images": pictures,
        "status": "ok",
        "error": None,
    }


def mixed_chats(count: int) -> list[dict[str, Any]]:
    """`count` rows of each of t2i, i2t and text."""
    rows = []
    for i in range(count):
        caption, code = CAPTIONS[i % len(CAPTIONS)], i % K
        drawn = ("assistant", "<image>")
        rows.append(chat_row("t2i", ("user", caption), drawn, codes=[code]))
        asked = ("user", f"<image>\nWhat is number {i}?")
        rows.append(chat_row("i2t", asked, ("assistant", caption), codes=[code]))
        rows.append(chat_row("text", ("assistant", f"{caption} is number {i}.")))
    return rows
