"""Language models read from disk: weights, text tokenizer, vocabulary, token embeddings.

Two layouts are read: tarkit's model directory, and the published one, a transformers directory
whose tokenizer.json holds Tar's visual tokens among its added ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tarkit.checkpoints.directory import (
    CONFIG,
    REFETCH,
    TOKENIZER,
    WEIGHTS,
    damaged,
    fill,
    fill_directory,
    in_precision,
    read_config,
    read_tensors,
    read_weights,
    require_weights,
    unshared,
)
from tarkit.checkpoints.hub import PUBLISHED_LMS
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

# A published file may hold its training's vision tower: TA-Tok, which is read from its own file.
VISION_TOWER = "model.vision_tower."


@dataclass(frozen=True)
class LoadedMllm:
    """A causal language model with its vocabulary of words and pictures."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    config: dict[str, Any]


def load_mllm(path: Path, dtype: torch.dtype = torch.float32) -> LoadedMllm:
    """A language model in eval mode, with visual tokens or with text alone.

    `path` is a model directory of tarkit's or a published one. Raises UserError where its files do
    not fit each other.
    """
    from tarkit.models.mllm import skeleton

    config = read_config(path)
    if "kind" not in config and config.get("model_type") in PUBLISHED_LMS:
        return _published_mllm(path, config, dtype)
    config = read_config(path, "mllm")
    model = skeleton(config["arch"])
    state = _with_tied(model, read_weights(path, dtype))
    fill_directory(model, state, path)
    model.tie_weights()
    return LoadedMllm(model, read_vocabulary(path, config), config)


def _published_mllm(path: Path, config: Mapping[str, Any], dtype: torch.dtype) -> LoadedMllm:
    """Tar's published language model; strict but for what its training left in the file."""
    from tarkit.models.mllm import skeleton

    try:
        text, visual = split_tokenizer(_tokenizer_json(path))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / TOKENIZER}: {error}", hint=REFETCH) from None
    _check_tags(text, path / TOKENIZER)
    if visual is None:
        raise UserError(
            f"{path} has no visual tokens: a language model before it learned pictures",
            hint="tarkit train mllm CONFIG.toml --lm DIR --tokenizer DIR --chats DIR --out DIR",
        )
    state: dict[str, Tensor] = {}
    for file in _weight_files(path):
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
    try:
        model = skeleton(arch)
    except Exception as error:  # transformers raises many kinds for a config that fits nothing
        raise UserError(f"{path / CONFIG} makes no model: {error}", hint=REFETCH) from None
    fill(model, _with_tied(model, state), path, REFETCH)
    model.tie_weights()
    return LoadedMllm(model, Vocabulary(text=text, visual=visual), dict(config))


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


def stored_arch(model: PreTrainedModel) -> dict[str, Any]:
    """The transformers config of a model as its config.json holds it."""
    arch = model.config.to_diff_dict()
    return {k: v for k, v in arch.items() if k not in ("dtype", "transformers_version")}


def _weight_files(path: Path) -> list[Path]:
    """The safetensors of a transformers directory: those of its index, or the only one."""
    index = path / f"{WEIGHTS}.index.json"
    if not index.exists():
        return [require_weights(path)]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is no index of weights: {error!r}", hint=REFETCH) from None
    files = [path / str(name) for name in names]
    for file in files:
        if file.parent != path or not file.is_file():
            raise UserError(f"{index} names {file.name}, which is not in that folder", hint=REFETCH)
    return files


# ---- tokenizers and vocabularies -----------------------------------------------------------------


def read_vocabulary(path: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary of a tarkit language model directory."""
    text = read_text_tokenizer(path)
    visual = config.get("visual")
    return Vocabulary(
        text=text,
        visual=VisualVocabulary(**visual) if visual else None,
        system=config.get("system"),
    )


def read_text_tokenizer(path: Path) -> TextTokenizer:
    """The `tokenizer.json` of a language model directory, with the tags of a chat in it."""
    try:
        text = TextTokenizer(_tokenizer_json(path))
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(
            f"{path / TOKENIZER} is no tokenizer: {error}", hint=f"tarkit inspect {path}"
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


# ---- embeddings ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenEmbeddings:
    """A language model's input embeddings, and the rows that its training text used."""

    table: Tensor  # (V, E) float32
    used: Tensor  # (U,) int64, ascending


def read_embeddings(path: Path) -> TokenEmbeddings:
    """The input embeddings of any causal LM directory, by that one tensor alone.

    A tarkit model has counted the tokens of its text; of another model every row counts as used.
    Raises UserError where the directory has no such tensor.
    """
    from safetensors import SafetensorError, safe_open

    names = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{path} holds no safetensors weights to take embeddings from",
            hint="name the directory of a causal language model with --lm",
        )
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                present = [name for name in names if name in opened.keys()]  # noqa: SIM118 (no dict)
                table = opened.get_tensor(present[0]).float() if present else None
        except SafetensorError as error:
            raise damaged(file, error) from None
        if table is not None:
            counts = read_config(path).get("token_counts")
            used = torch.tensor(counts) > 0 if counts else torch.ones(len(table)).bool()
            return TokenEmbeddings(table, used.nonzero()[:, 0])
    raise UserError(
        f"no embedding table in {path}: looked for {', '.join(names)}",
        hint="name the directory of a causal language model with --lm",
    )
