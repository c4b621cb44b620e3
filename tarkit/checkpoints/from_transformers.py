"""Loads models with transformers in float32, from safetensors only."""

from __future__ import annotations

from typing import Any

import torch

from tarkit.errors import UserError


def from_transformers(family: Any, model: str, **options: Any) -> Any:
    """The model or processor of class `family` in a folder or under a hub id.

    A model is float32 and read from safetensors only. Raises UserError when it cannot be loaded.
    """
    if hasattr(family, "_model_mapping") or hasattr(family, "base_model_prefix"):
        options |= {"use_safetensors": True, "dtype": torch.float32}
    try:
        return family.from_pretrained(model, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(
            f"the model {model} cannot be loaded: {' '.join(str(error).split())[:300]}",
            hint="--model names a folder or hub id in transformers' layout",
        ) from None
