"""Loads models and processors of others with transformers: whole, bounded, from safetensors only.

Transformers gives a weight that the file lacks random numbers, and only logs that it did. Here such
a model is refused. A config.json that describes more than the files hold is refused before
anything of that size is built. A hub id stands for its folder in the hub's cache; nothing is
fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tarkit.artifacts.files import read_object
from tarkit.checkpoints.hub import find_snapshot
from tarkit.errors import UserError

HINT = "name a folder or hub id in transformers' layout, with all its weights in safetensors"

# Limits of what a config.json may claim; the largest models known have 126 layers and 512 experts.
PARTS = re.compile("(?!.*(size|dim|length|index)).*(layer|expert|block|depth|head|group)")
MAX_PARTS, MAX_SIZE = 1024, 1 << 24
NO_SIZES = re.compile("theta|_id$|token|position|seed|version|label")


def from_transformers(
    family: Any, model: str | Path, *, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """The model or processor of class `family` in a folder, or of a hub id that is in the cache.

    A model has all its weights from safetensors, in `dtype`. Raises UserError when it cannot be
    loaded, when the files lack a weight or have one of another shape, and when its config.json
    describes more than its files hold.
    """
    folder = find_snapshot(model)
    hint = HINT if folder == Path(model) else f"hf download {model}, if a file is missing"
    options |= {"local_files_only": True}
    try:
        if not is_network(family):
            processor = family.from_pretrained(folder, **options)
            _try_on_a_picture(processor)
            return processor
        _check_claims(family, folder, hint)
        network, info = family.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except UserError:
        raise
    except Exception as error:  # transformers and tokenizers raise many types for a bad file
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"the model {model} cannot be loaded: {reason}", hint=hint) from None
    require_whole(info, str(model), hint)
    return network


def _try_on_a_picture(processor: Any) -> None:
    """Process one small picture, if it is for pictures: settings that cannot work raise here."""
    from transformers.image_processing_utils import BaseImageProcessor

    for_pictures = getattr(processor, "image_processor", processor)
    if isinstance(for_pictures, BaseImageProcessor):
        for_pictures(images=[Image.new("RGB", (64, 64))], return_tensors="pt")


def is_network(family: Any) -> bool:
    """Whether a class of transformers makes a network, and not a processor or a config."""
    return hasattr(family, "_model_mapping") or hasattr(family, "base_model_prefix")


def require_whole(info: Mapping[str, Any], model: str, hint: str = HINT) -> None:
    """Raise UserError where `output_loading_info` names weights that the files do not give."""
    faults = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    # A mismatch is a name, or (name, shape in the file, shape in the model).
    names = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    faults += [f"{name} has another shape" for name in sorted(names)]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise UserError(
            f"{model} lacks weights that its config.json describes: {', '.join(faults[:4])}{more}",
            hint=hint,
        )


def check_sizes(config: Mapping[str, Any], where: str, hint: str) -> None:
    """Raise UserError for sizes beyond any known model, in a config.json or its parts."""
    for name, value in config.items():
        if isinstance(value, dict):
            check_sizes(value, where, hint)
        limit = MAX_PARTS if PARTS.match(name) else MAX_SIZE
        if isinstance(value, int) and value > limit and not NO_SIZES.search(name):
            raise UserError(f"{where}: {name} = {value} is above {limit}", hint=hint)


def _check_claims(family: Any, folder: Path, hint: str) -> None:
    """Compare the config.json of a folder with its files."""
    if not folder.is_dir():
        return
    config_file = folder / "config.json"
    facts = read_object(config_file, hint=hint)
    check_sizes(facts, str(config_file), hint)
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        network = family.from_config(config) if hasattr(family, "from_config") else family(config)
    num_weights = sum(weight.numel() for weight in network.parameters())
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    if num_weights > num_bytes:
        raise UserError(
            f"{config_file} describes {num_weights:,} weights, but the safetensors files beside it "
            f"have {num_bytes:,} bytes",
            hint=hint,
        )
