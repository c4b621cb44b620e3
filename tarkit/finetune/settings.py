"""The settings of a finetuning: TOMLs of the recipe `finetune`, completed from the model.

A file that is there already is kept: it may have been edited.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from tarkit.artifacts.files import read_text, write_once
from tarkit.checkpoints.directory import read_arch, read_config
from tarkit.checkpoints.hub import find
from tarkit.checkpoints.tar_config import read_defaults
from tarkit.errors import UserError
from tarkit.models.ar_dtok import ArDtokArch
from tarkit.models.vqvae import VqvaeArch
from tarkit.recipes import recipe_file
from tarkit.vocab import Scale

# The file in the folder of settings, and that of the recipe.
SMALL = {
    "ingest": "ingest.toml",
    "vqvae": "vqvae_small.toml",
    "ar_dtok": "ar_dtok_small.toml",
    "mllm": "mllm_small.toml",
}
PUBLISHED = {"ingest": "ingest.toml", "mllm": "mllm.toml"}
PUBLISHED_7B = {**PUBLISHED, "mllm": "mllm_7b.toml"}


def own_folder(model: str) -> Path | None:
    """The folder of a model whose de-tokenizer tarkit trained; None for a published one.

    Raises UserError where there is no such model, or where a part of it is missing.
    """
    places = find(model)
    if places.ta_tok is None:
        raise UserError(
            f"{model} draws with pixel codes of its image VQ, and finetune trains the parts of a "
            "text-aligned model",
            hint=f"tarkit train mllm --lm {places.mllm} trains it on",
        )
    if places.folder is None or places.ar_dtok is None or not places.ar_dtok.is_dir():
        return None
    is_own = "tokenizer_sha256" in read_config(places.ar_dtok, "ar_dtok")
    return places.folder if is_own else None


def write_settings(model: str, folder: Path | None, out: Path) -> list[str]:
    """Write the TOMLs of a finetuning into `out`, and return the names of those kept as they were.

    `folder` is that of a model whose parts are all trained on (`own_folder`).
    """
    kept = []
    for name, text in _texts(model, folder).items():
        file = out / f"{name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        if not write_once(file, text.encode()) and read_text(file) != text:
            kept.append(file.name)
    return kept


def _texts(model: str, folder: Path | None) -> Mapping[str, str]:
    if folder is None:
        names = PUBLISHED_7B if "7b" in model.lower() else PUBLISHED
        return {name: _recipe(file) for name, file in names.items()}
    defaults = read_defaults(folder)
    drawn_at, read_at = defaults.default_scale, defaults.read_scale or defaults.default_scale
    image_vq = read_arch(VqvaeArch, folder / "vqvae", read_config(folder / "vqvae"))
    ar_dtok = read_arch(ArDtokArch, folder / "ar_dtok", read_config(folder / "ar_dtok"))
    sizes: dict[str, dict[str, Any]] = {
        "vqvae": {
            "size_px": ar_dtok.side * image_vq.downsampling,
            "arch": image_vq.model_dump(mode="json", exclude_none=True),
        },
        "ar_dtok": {
            "scale_ratio": _odds_of(drawn_at),
            "arch": ar_dtok.model_dump(mode="json", exclude_none=True),
        },
        "mllm": {
            "system": read_config(folder / "mllm", "mllm").get("system") or "",
            "scale_ratio": _odds_of(drawn_at),
            "read_scale_ratio": _odds_of(read_at),
        },
        # Not its words: the new model knows more.
        "assemble": defaults.model_dump(mode="json", exclude={"words"}, exclude_none=True),
    }
    texts = {name: _recipe(file) for name, file in SMALL.items()}
    for name, values in sizes.items():
        own = f"# As in {model}:\n{tomli_w.dumps(values)}"
        texts[name] = f"{texts[name]}\n{own}" if name in texts else own
    return texts


def _recipe(file: str) -> str:
    return read_text(recipe_file(f"finetune/{file}"))


def _odds_of(scale: Scale) -> list[int]:
    """Odds of the scales, of which only this one is drawn."""
    return [int(each is scale) for each in Scale]
