"""The settings of a training that is given no TOML: a recipe that fits what it is given.

What is small is trained as the embedded model was (`pipelines/mini`), what has a published size as
in the paper (`pipelines/paper`) or as published models are finetuned (`pipelines/finetune`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.row_counts import row_counts
from tarkit.checkpoints.hub import HUB_ID
from tarkit.checkpoints.language_model import has_visual_tokens

SMALL_BYTES = 256 << 20
"""Weights of fewer bytes are those of a small model: the embedded one has 20 MB, a SigLIP 1 GB."""


class Defaults(NamedTuple):
    """A file of a recipe, and what is changed in it, as `--set` has it."""

    recipe: str
    overrides: tuple[str, ...] = ()


def vqvae_defaults(*, lpips: Sequence[Path], start: Path | None) -> Defaults:
    """The paper's where LPIPS judges or a large image VQ is gone on with."""
    published = bool(lpips) or not _is_small(start)
    return Defaults("paper/vqvae.toml" if published else "mini/vqvae.toml")


def encoder_defaults() -> Defaults:
    """Those of the embedded model: a published encoder is not trained."""
    return Defaults("mini/encoder.toml")


def tokenizer_defaults(*, images: Sequence[Path], encoder: Path, lm: Path) -> Defaults:
    """Those of the size of the encoder and the language model."""
    if _is_small(encoder) and _is_small(lm):
        return Defaults("mini/tokenizer.toml")
    weights = ", ".join("1" for _ in images)  # the paper has two, of which it takes as many
    return Defaults("paper/tokenizer.toml", (f"images_weights=[{weights}]",))


def ar_dtok_defaults(*, tokenizer: Path, vqvae: Path, start: Path | None) -> Defaults:
    """Those of the size of the tokenizer and the image VQ; the paper's are for 256 px."""
    small = all(map(_is_small, (tokenizer, vqvae, start)))
    return Defaults("mini/ar_dtok.toml" if small else "paper/ar_dtok_256.toml")


def dif_dtok_defaults(*, sana: Path) -> Defaults:
    """Those of the size of the SANA; the paper's are for 512 px."""
    return Defaults("dif_dtok/dif_dtok.toml" if _is_small(sana) else "paper/dif_dtok_512.toml")


def mllm_defaults(
    *, chats: Sequence[Path], tokenizer: Path | None, lm: Path | None, vqvae: Path | None = None
) -> Defaults:
    """Those of the size of the language model, for the tasks that the chats have.

    A large model that has visual tokens is finetuned with adapters; a large one that has none is
    trained as in the paper. With `vqvae` pictures are pixel codes, of one scale and no words.
    """
    if not _is_small(lm):
        is_tar = lm is not None and _has_codes(lm)
        recipe = "finetune/mllm.toml" if is_tar else "paper/mllm_pretrain.toml"
        tasks = ("t2i", "i2t") if is_tar else ("i2t", "t2i", "i2i", "ti2i", "text")
    elif tokenizer is None and vqvae is None:
        return Defaults("mini/lm.toml")
    else:
        recipe, tasks = "mini/mllm.toml", ("t2i", "i2t", "i2i", "ti2i", "text")
    there = _tasks(chats)
    changes = tuple(f"ratio.{task}=0" for task in tasks if task not in there)
    if vqvae is not None:
        changes = ("scale_ratio=[1, 0, 0]", 'embedding_start="mean"', *changes)
    return Defaults(recipe, changes)


def grpo_defaults(*, chats: Sequence[Path]) -> Defaults:
    """Those of the embedded model, and without the chats of its training where none are given."""
    return Defaults("grpo/grpo.toml", () if chats else ("chats_size=0",))


def _is_small(model: Path | None) -> bool:
    """Whether the weights of a model are few; one of the hub, named by its id, has many."""
    if model is None:
        return True
    if not model.exists():
        return not HUB_ID.fullmatch(str(model))
    files = [model] if model.is_file() else list(model.rglob("*.safetensors"))
    return sum(file.stat().st_size for file in files) < SMALL_BYTES


def _has_codes(lm: Path) -> bool:
    return (lm / "tokenizer.json").exists() and has_visual_tokens(lm)


def _tasks(chats: Sequence[Path]) -> set[str]:
    """The tasks of chats that can be trained on."""
    found: set[str] = set()
    for path in chats:
        for counts in row_counts(open_artifact(path, "chats")):
            found |= {kind.task for kind in counts if kind.task and kind.status == "ok"}
    return found


def brief(config: Path) -> str:
    """The main numbers of a training's TOML."""
    settings = tomllib.loads(config.read_text(encoding="utf-8"))
    names = ("steps", "batch_size", "learning_rate", "precision")
    return ", ".join(f"{name} = {settings[name]}" for name in names if name in settings)
