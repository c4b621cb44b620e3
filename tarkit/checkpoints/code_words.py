"""The words of a codebook: each code is the projection of one token's embedding (C = E W).

Source: paper Sec. 3.1. A TA-Tok that tarkit trained keeps the token ids of its codes. Those of a
published one are found again: its frozen rows E are rows of a language model's table.

Letters: K codes, V rows of the language model's table, E width of a row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tarkit.checkpoints.directory import CONFIG, REFETCH, TOKENIZER, read_config
from tarkit.checkpoints.embeddings import read_embeddings
from tarkit.errors import UserError
from tarkit.models.table_rows import equal_rows
from tarkit.terminal import printable

SPACE = "·"
"""A space in a word that is shown; it is in the simplest fonts."""
NO_WORD = "?"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
LM_HINT = (
    "name the language model that TA-Tok was trained with, such as --lm Qwen/Qwen2.5-1.5B-Instruct"
)


@dataclass(frozen=True)
class CodeWords:
    """The token behind each code of a codebook, as an id and as text."""

    token_ids: Sequence[int]  # K; -1 where it is not known
    words: Sequence[str]  # K; NO_WORD where the token is not known
    are_kept: bool
    """Whether TA-Tok's training recorded the ids; else they were found by equal rows."""
    num_equal: int | None
    """The number of codes whose frozen row is a row of the language model; None: not compared."""


def read_code_words(ta_tok: Path, rows: Tensor, lm: Path, *, compare: bool) -> CodeWords:
    """The words of a TA-Tok (a directory or a published file) with frozen `rows` (K, E).

    `lm` is the folder of a language model; its tokenizer names the tokens. Its embeddings, and no
    other tensor, are read with `compare`, or where the ids are not recorded. Raises UserError when
    no row is found, or ids and tokenizer do not fit.
    """
    kept = _kept_ids(ta_tok, len(rows))
    num_equal = None
    ids = kept
    if compare or ids is None:
        found = _found_ids(rows, lm)
        num_equal = int((found >= 0).sum()) if kept is None else _num_equal(found, kept)
        if kept is None and num_equal == 0:
            raise UserError(
                f"none of the {len(rows)} rows of TA-Tok's codebook is a row of {lm}", hint=LM_HINT
            )
        ids = found.tolist() if kept is None else kept
    assert ids is not None
    return CodeWords(ids, _words(ids, lm), kept is not None, num_equal)


def _num_equal(found: Tensor, kept: Sequence[int]) -> int:
    return int((found == torch.tensor(kept)).sum())


def _kept_ids(ta_tok: Path, num_codes: int) -> list[int] | None:
    """The token ids that TA-Tok's training recorded; None for a published one."""
    if ta_tok.is_file():
        return None
    ids = read_config(ta_tok, "ta_tok").get("codebook_rows")
    if ids is None:
        return None
    whole = isinstance(ids, list) and all(type(each) is int and 0 <= each < 2**31 for each in ids)
    if not whole or len(ids) != num_codes:
        raise UserError(
            f"{ta_tok / CONFIG}: codebook_rows is not the token id of each of {num_codes} codes",
            hint=REFETCH,
        )
    return list(ids)


def _found_ids(rows: Tensor, lm: Path) -> Tensor:
    """The row (K,) of the language model's table that each of `rows` is equal to; -1: none."""
    table = read_embeddings(lm).table
    if table.shape[1] != rows.shape[1]:
        raise UserError(
            f"{lm} has embeddings of width {table.shape[1]}, TA-Tok's codebook {rows.shape[1]}",
            hint=LM_HINT,
        )
    rows = rows.detach().cpu().float()
    if torch.equal(rows, rows.half().float()):  # weights that were stored in half precision
        table = table.half().float()
    return equal_rows(rows, table)


def _words(ids: Sequence[int], lm: Path) -> list[str]:
    from tokenizers import Tokenizer

    folder = lm.parent if lm.is_file() else lm
    file = folder / TOKENIZER
    if not file.exists():
        raise UserError(
            f"{folder} has no {TOKENIZER}, which says what its tokens are", hint=LM_HINT
        )
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise UserError(f"{file} is not a tokenizer: {error}", hint=LM_HINT) from None
    if max(ids) >= tokenizer.get_vocab_size():
        raise UserError(
            f"TA-Tok has codes of tokens up to {max(ids)}, but {file} has "
            f"{tokenizer.get_vocab_size()} tokens",
            hint=LM_HINT,
        )
    bytes_of = _bytes_of_characters() if "ByteLevel" in str(tokenizer.decoder) else None
    tokens = [tokenizer.id_to_token(each) if each >= 0 else None for each in ids]
    return [NO_WORD if token is None else word_of(token, bytes_of) for token in tokens]


def word_of(token: str, bytes_of: Mapping[str, int] | None) -> str:
    r"""A token as people read it: spaces as `·`, bytes that are no text as `\xe2`.

    `bytes_of` maps the characters of a byte-level tokenizer to bytes (`Ġ` is a space); None is for
    tokenizers in which `▁` is a space.
    """
    if bytes_of is not None and all(letter in bytes_of for letter in token):
        data = bytes(bytes_of[letter] for letter in token)
        text = data.decode("utf-8", errors="backslashreplace")
    else:
        byte = BYTE_TOKEN.fullmatch(token)
        text = f"\\x{byte[1].lower()}" if byte else token.replace("▁", " ")
    text = text.replace("\n", "\\n").replace("\t", "\\t")
    return printable(text.replace(" ", SPACE))


def _bytes_of_characters() -> dict[str, int]:
    """The byte of each character of a byte-level tokenizer, as GPT-2 defined it.

    Bytes that print in Latin-1 are themselves; the others are the characters from U+0100 on.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }
