"""The token behind each code: recorded, or found by equal rows; and its text."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tarkit.checkpoints.code_words import NO_WORD, read_code_words, word_of
from tarkit.checkpoints.embeddings import read_embeddings
from tarkit.errors import UserError
from tests import parts

IDS = [97, 260, 3, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52]


def record(ta_tok: Path, ids: object) -> None:
    file = ta_tok / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "codebook_rows": ids}))


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.save_mllm(tmp_path_factory.mktemp("lm"), None)


def test_token_ids_are_found_exactly_and_rows_of_no_token_have_no_word(
    lm: Path, tmp_path: Path
) -> None:
    ta_tok = parts.save_ta_tok(tmp_path / "ta_tok")
    rows = read_embeddings(lm).table[IDS].clone()
    rows[4] += 1e-3
    words = read_code_words(ta_tok, rows, lm, compare=False)
    assert list(words.token_ids) == [*IDS[:4], -1, *IDS[5:]]
    assert (words.num_equal, words.are_kept) == (15, False)
    # Ids 0 to 255 are the bytes in the order of GPT-2's characters: 0 is "!", 64 is "a".
    assert (words.words[2], words.words[4]) == ("$", NO_WORD)


def test_rows_in_half_precision_are_found_too(lm: Path, tmp_path: Path) -> None:
    rows = read_embeddings(lm).table[IDS].half().float()
    words = read_code_words(parts.save_ta_tok(tmp_path / "t"), rows, lm, compare=False)
    assert list(words.token_ids) == IDS


def test_recorded_ids_are_taken_and_can_be_compared(lm: Path, tmp_path: Path) -> None:
    ta_tok = parts.save_ta_tok(tmp_path / "ta_tok")
    record(ta_tok, IDS)
    rows = read_embeddings(lm).table[IDS].clone()
    rows[0] += 1
    kept = read_code_words(ta_tok, rows, lm, compare=False)
    compared = read_code_words(ta_tok, rows, lm, compare=True)
    assert list(kept.token_ids) == list(compared.token_ids) == IDS
    assert (kept.num_equal, compared.num_equal) == (None, 15)


def test_only_the_embedding_tensor_is_read(lm: Path, tmp_path: Path) -> None:
    # A folder with nothing but the table and the tokenizer is enough.
    state = load_file(lm / "model.safetensors")
    save_file(
        {"model.embed_tokens.weight": state["model.embed_tokens.weight"]},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "tokenizer.json").write_text((lm / "tokenizer.json").read_text())
    ta_tok = parts.save_ta_tok(tmp_path / "ta_tok")
    rows = read_embeddings(lm).table[IDS]
    assert read_code_words(ta_tok, rows, tmp_path, compare=False).num_equal == 16


def test_another_language_model_is_a_sentence(lm: Path, tmp_path: Path) -> None:
    ta_tok = parts.save_ta_tok(tmp_path / "ta_tok")
    with pytest.raises(UserError, match="none of the 16 rows") as error:
        read_code_words(ta_tok, torch.randn(16, 16), lm, compare=False)
    assert "--lm Qwen/Qwen2.5-1.5B-Instruct" in str(error.value.hint)
    with pytest.raises(UserError, match="width 16, TA-Tok's codebook 8"):
        read_code_words(ta_tok, torch.randn(16, 8), lm, compare=False)


@pytest.mark.parametrize("ids", [[1, 2], "abc", [-1] * 16, [1.5] * 16, [True] * 16])
def test_damaged_ids_are_a_sentence(lm: Path, tmp_path: Path, ids: object) -> None:
    ta_tok = parts.save_ta_tok(tmp_path / "ta_tok")
    record(ta_tok, ids)
    with pytest.raises(UserError, match="codebook_rows is not the token id of each"):
        read_code_words(ta_tok, torch.randn(16, 16), lm, compare=False)


def test_ids_beyond_the_tokenizer_are_a_sentence(lm: Path, tmp_path: Path) -> None:
    ta_tok = parts.save_ta_tok(tmp_path / "ta_tok")
    record(ta_tok, [*range(15), 5000])
    with pytest.raises(UserError, match="tokens up to 5000, but"):
        read_code_words(ta_tok, torch.randn(16, 16), lm, compare=False)


GPT2 = {"Ġ": 0x20, "c": ord("c"), "a": ord("a"), "t": ord("t"), "Ċ": 0x0A}
GPT2 |= {"å": 0xE5, "Ľ": 0x9B, "½": 0xBD, "Ģ": 0x80, "®": 0xAE}


@pytest.mark.parametrize(
    ("token", "byte_level", "word"),
    [
        ("Ġcat", True, "·cat"),
        ("åĽ½", True, "国"),  # E5 9B BD in UTF-8
        ("å", True, r"\xe5"),  # a byte that is no text by itself
        ("Ċ", True, r"\n"),
        ("▁cat", False, "·cat"),
        ("<0xE5>", False, r"\xe5"),
        ("\u202ecat\x1b", False, r"\u202ecat\u001b"),
    ],
)
def test_tokens_as_people_read_them(token: str, byte_level: bool, word: str) -> None:
    assert word_of(token, GPT2 if byte_level else None) == word


def test_the_characters_of_bytes_are_those_of_the_tokenizers_library(
    lm: Path, tmp_path: Path
) -> None:
    ta_tok = parts.save_ta_tok(tmp_path / "ta_tok")
    text = parts.text_tokenizer()
    ids = [text.encode(letter)[0] for letter in "a~!Zz09/"] + text.encode(" ") + text.encode("é")
    record(ta_tok, (ids + [0] * 16)[:16])
    words = read_code_words(ta_tok, torch.randn(16, 16), lm, compare=False).words
    assert list(words[:11]) == [*"a~!Zz09/", "·", r"\xc3", r"\xa9"]
