"""Language models read from disk: weights, text tokenizer, vocabulary.

Two layouts are read: tarkit's model directory, and the published one, a transformers directory
whose tokenizer.json has Tar's visual tokens as added tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tarkit.artifacts.digests import files_sha256, remembered_sha256
from tarkit.checkpoints.directory import (
    CONFIG,
    REFETCH,
    TOKENIZER,
    WEIGHTS,
    fill,
    fill_directory,
    in_precision,
    read_config,
    read_tensors,
    read_weights,
    require_weights,
    unshared,
)
from tarkit.checkpoints.from_transformers import check_sizes
from tarkit.checkpoints.hub import PUBLISHED_LMS
from tarkit.checkpoints.stored_tensors import indexed_files
from tarkit.errors import UserError
from tarkit.vocab import (
    CHAT_END,
    CHAT_START,
    END_OF_TEXT,
    TextTokenizer,
    VisualVocabulary,
    Vocabulary,
    split_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A published file may also hold TA-Tok, as a vision tower; it is ignored here.
VISION_TOWER = "model.vision_tower."
MAX_FEATURE_WIDTH = 1 << 16
"""Values of an encoder's feature: those of the largest vision encoders are 3,200."""


@dataclass(frozen=True)
class LoadedMllm:
    """A causal language model with its vocabulary of words and pictures."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    config: dict[str, Any]


def load_mllm(path: Path, dtype: torch.dtype = torch.float32) -> LoadedMllm:
    """A language model in eval mode, with weights in `dtype`, with or without visual tokens.

    `path` is a model directory of tarkit or a published one. Raises UserError when a file is
    missing or does not fit the others.
    """
    config = read_config(path)
    if "kind" not in config and config.get("model_type") in PUBLISHED_LMS:
        return _published_mllm(path, config, dtype)
    config = read_config(path, "mllm")
    model = checked_skeleton(config.get("arch"), path)
    if "reader" in config:
        _add_projector(model, config["reader"], path)
    state = _with_tied(model, read_weights(path, dtype))
    fill_directory(model, state, path)
    model.tie_weights()
    return LoadedMllm(model, read_vocabulary(path, config), config)


def _add_projector(model: PreTrainedModel, reader: Any, path: Path) -> None:
    """Give a network without weights the projector of a config.json, which stores no sizes else."""
    from tarkit.models.mllm import PROJECTOR, Projector

    width = reader.get("width") if isinstance(reader, dict) else None
    if type(width) is not int or not 1 <= width <= MAX_FEATURE_WIDTH:
        raise UserError(
            f"{path / CONFIG}: reader names no width of features from 1 to {MAX_FEATURE_WIDTH:,}",
            hint=REFETCH,
        )
    with torch.device("meta"):
        setattr(model, PROJECTOR, Projector(width, model.config.hidden_size))


def _published_mllm(path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> LoadedMllm:
    """Tar's published language model; all tensors must fit, except those of the vision tower."""
    try:
        text, visual = split_tokenizer(_tokenizer_json(path))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / TOKENIZER}: {error}", hint=REFETCH) from None
    _check_tags(text, path / TOKENIZER)
    if visual is None:
        raise UserError(
            f"{path} has no visual tokens: it is a plain language model",
            hint="tarkit train mllm CONFIG.toml --lm DIR --tokenizer DIR --chats DIR --out DIR",
        )
    state: dict[str, Tensor] = {}
    for file in indexed_files(path) or [require_weights(path)]:
        state |= read_tensors(file)
    table = state.get("model.embed_tokens.weight")
    rows = len(table) if table is not None else 0
    if rows != visual.size:
        raise UserError(
            f"{path} has {rows:,} embeddings, its tokenizer {visual.size:,} tokens", hint=REFETCH
        )
    state = {k: v for k, v in state.items() if not k.startswith(VISION_TOWER)}
    state = in_precision(state, dtype)
    arch = {**config, "model_type": "qwen2", "vocab_size": visual.size}
    for name in ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"):
        arch.pop(name, None)
    model = checked_skeleton(arch, path)
    fill(model, _with_tied(model, state), path, REFETCH)
    model.tie_weights()
    return LoadedMllm(model, Vocabulary(text=text, visual=visual), dict(config))


def checked_skeleton(arch: Any, path: Path) -> PreTrainedModel:
    """A language model without weights, of the sizes in a config.json.

    Raises UserError for sizes that make none, and for claims beyond any language model: a network
    is built before its weights are looked at.
    """
    from tarkit.models.mllm import skeleton

    if not isinstance(arch, dict):
        raise UserError(f"{path / CONFIG} has no table `arch`", hint=REFETCH)
    check_sizes(arch, str(path / CONFIG), REFETCH)
    try:
        return skeleton(arch)
    except Exception as error:  # transformers raises many types for a bad config
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path / CONFIG} makes no model: {reason}", hint=REFETCH) from None


def _with_tied(model: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the head where it is tied to the embeddings, and so stored once."""
    for tied, source in model.all_tied_weights_keys.items():
        if source in state:
            state[tied] = state[source]
    return state


def require_readable(model: PreTrainedModel) -> None:
    """Raise ValueError unless `load_mllm` would make this model again of its config and weights."""
    from tarkit.models.mllm import head_logits, skeleton

    family = model.config.model_type
    try:
        copy = skeleton(stored_arch(model))
        fill(copy, _with_tied(copy, unshared(model)), Path(WEIGHTS), "")
        copy.tie_weights()
        copy = copy.to(model.device)
        ids = torch.arange(1, 12, device=model.device)[None]
        training = model.training
        with torch.no_grad():
            ours, theirs = (
                head_logits(lm, lm.base_model(input_ids=ids).last_hidden_state)
                for lm in (copy, model.eval())
            )
        model.train(training)
    except Exception as error:  # transformers raises many kinds
        raise ValueError(f"{family} models cannot be loaded again: {error}") from None
    if not (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max():
        raise ValueError(f"{family} models compute something else when they are loaded again")


def lm_sha256(path: Path) -> str:
    """The sha256 of a language model's weights; of several files, that of their names and sums."""
    files = indexed_files(path)
    return files_sha256(files) if files else remembered_sha256(require_weights(path))


def stored_arch(model: PreTrainedModel) -> dict[str, Any]:
    """The transformers config of a model as its config.json holds it."""
    arch = model.config.to_diff_dict()
    return {k: v for k, v in arch.items() if k not in ("dtype", "transformers_version")}


# ---- tokenizers and vocabularies -----------------------------------------------------------------


def read_vocabulary(path: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a tarkit language model directory."""
    text = read_text_tokenizer(path)
    visual = config.get("visual")
    return Vocabulary(
        text=text,
        visual=_visual(visual, path) if visual else None,
        system=config.get("system"),
    )


def _visual(visual: Any, path: Path) -> VisualVocabulary:
    names = ("first_id", "num_codes")
    if not isinstance(visual, dict) or not all(type(visual.get(name)) is int for name in names):
        raise UserError(f"{path / CONFIG}: visual is not {' and '.join(names)}", hint=REFETCH)
    return VisualVocabulary(**{name: visual[name] for name in names})


def read_text_tokenizer(path: Path) -> TextTokenizer:
    """The text tokenizer of a language model directory; UserError if it lacks the chat's tags."""
    try:
        text = TextTokenizer(_tokenizer_json(path))
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(
            f"{path / TOKENIZER} is not a tokenizer: {error}", hint=f"tarkit inspect {path}"
        ) from None
    _check_tags(text, path / TOKENIZER)
    return text


def has_visual_tokens(path: Path) -> bool:
    """Whether the `tokenizer.json` of a published language model has Tar's visual tokens."""
    try:
        return split_tokenizer(_tokenizer_json(path))[1] is not None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / TOKENIZER}: {error}", hint=REFETCH) from None


def _tokenizer_json(path: Path) -> str:
    file = path / TOKENIZER
    if not file.exists():
        raise UserError(
            f"{path} has no {TOKENIZER}: only fast tokenizers can be read",
            hint=f"tarkit inspect {path}",
        )
    return file.read_text(encoding="utf-8")


def _check_tags(text: TextTokenizer, file: Path) -> None:
    missing = [name for name in (CHAT_START, CHAT_END, END_OF_TEXT) if name not in text.special]
    if missing:
        raise UserError(
            f"{file} has no {', '.join(missing)}: chats are written with Qwen's tags",
            hint="name a model of the Qwen family",
        )
