"""The input embeddings of a causal language model, read without building the model.

Source: paper Sec. 3.1: the rows E of the codebook C = E W are embeddings of a language model.

Letters: V rows of the table, E width of a row, U rows that can become codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarkit.checkpoints.directory import CONFIG, TOKENIZER, read_config
from tarkit.checkpoints.stored_tensors import StoredTensor, stored_tensors
from tarkit.errors import UserError

TABLES = (
    "model.embed_tokens.weight",  # Llama, Qwen, Mistral, Gemma, Phi-3, OLMo and most others
    "model.language_model.embed_tokens.weight",  # the language model within one of pictures
    "language_model.model.embed_tokens.weight",  # the same, as transformers < 5 saved it
    "model.decoder.embed_tokens.weight",  # OPT
    "transformer.wte.weight",  # GPT-2, GPT-J, GPT-Neo
    "wte.weight",  # GPT-2 as it was published
    "gpt_neox.embed_in.weight",  # GPT-NeoX, Pythia
    "transformer.word_embeddings.weight",  # Falcon, BLOOM
    "word_embeddings.weight",  # BLOOM as it was published
    "backbone.embeddings.weight",  # Mamba
)
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
HINT = "name the folder or the safetensors file of a causal language model with --lm"


@dataclass(frozen=True)
class TokenEmbeddings:
    """A language model's input embeddings, and the rows that can become codes."""

    table: Tensor  # (V, E) float32
    used: Tensor  # (U,) int64 row numbers, ascending


def read_embeddings(path: Path) -> TokenEmbeddings:
    """The input embeddings of any causal LM; no other tensor is read.

    `path` is its folder, or a safetensors file of it with `tokenizer.json` in the same folder. Only
    the tokenizer's own vocabulary can become codes: neither rows of padding nor added tokens. Of a
    model that tarkit made from nothing these are the tokens that its training text had. Raises
    UserError when there is no such table, or no tokenizer that fits it.
    """
    folder = path.parent if path.is_file() else path
    tensors = stored_tensors(path)
    config = read_config(folder) if (folder / CONFIG).exists() else {}
    table = _table(tensors, config, path)
    words = _own_vocabulary(folder)
    if words[-1] >= table.shape[0]:
        raise UserError(
            f"{folder / TOKENIZER} has token ids up to {words[-1]}, but {table.name} in {path} has "
            f"{table.shape[0]} rows",
            hint="put the tokenizer.json of this language model into its folder",
        )
    used = torch.tensor(words)
    counts = config.get("token_counts")
    if counts:
        used = used[
            _checked_counts(counts, num_tokens=words[-1] + 1, file=folder / CONFIG)[used] > 0
        ]
    return TokenEmbeddings(table.read().float(), used)


def _checked_counts(counts: Any, *, num_tokens: int, file: Path) -> Tensor:
    """How often each token occurs in the training text (V,) int64; UserError for anything else."""
    if (
        not isinstance(counts, list)
        or len(counts) < num_tokens
        or not all(type(count) is int and 0 <= count < 2**63 for count in counts)
    ):
        raise UserError(
            f"{file}: token_counts is no list of {num_tokens} counts, one of each token",
            hint="copy config.json from the training of this model again",
        )
    return torch.tensor(counts)


def _table(
    tensors: Mapping[str, StoredTensor], config: Mapping[str, Any], path: Path
) -> StoredTensor:
    """The embedding table: the first of TABLES, else the widest one of `vocab_size` rows."""
    known = next((tensors[name] for name in TABLES if name in tensors), None)
    if known is not None:
        return known
    text = config.get("text_config")
    size = (text if isinstance(text, Mapping) else config).get("vocab_size")
    tables = [
        tensor
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2 and tensor.shape[0] == size and name not in HEADS
    ]
    widest = max((tensor.shape[1] for tensor in tables), default=0)
    candidates = [tensor for tensor in tables if tensor.shape[1] == widest]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(tensor.name for tensor in candidates)
        raise UserError(f"{path} has several tables of {size} rows: {names}", hint=HINT)
    of_size = f", and there is no table of vocab_size = {size} rows" if size else ""
    raise UserError(
        f"no embedding table in {path}: looked for {', '.join(TABLES)}{of_size}", hint=HINT
    )


def _own_vocabulary(folder: Path) -> list[int]:
    """Ids of the tokenizer's own vocabulary, ascending: without its added tokens."""
    from tokenizers import Tokenizer

    file = folder / TOKENIZER
    if not file.exists():
        raise UserError(
            f"{folder} has no {TOKENIZER}, which says which rows of the table are words",
            hint=f"put the {TOKENIZER} of this language model into that folder",
        )
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(f"{file} is not a tokenizer: {error}", hint=HINT) from None
    ids = set(tokenizer.get_vocab(with_added_tokens=False).values())
    words = sorted(ids - set(tokenizer.get_added_tokens_decoder()))
    if not words:
        raise UserError(f"{file} has no vocabulary but added tokens", hint=HINT)
    return words
