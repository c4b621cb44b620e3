"""Embedding tables of language models, read alone: which table, and which of its rows are words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers import models as tokenizer_models

from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.embeddings import read_embeddings
from tarkit.errors import UserError
from tests import parts

WORDS = ["a", "red", "ring", "<unk>", "heart"]


def write_tokenizer(folder: Path, tags: tuple[str, ...] = ("<unk>", "<|im_start|>")) -> None:
    """Five words of ids 0 to 4, of which <unk> is added too, and a tag of id 5."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in tags])
    tokenizer.save(str(folder / "tokenizer.json"))


def table_of(rows: int, width: int = 3) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def refused(path: Path, match: str) -> str:
    with pytest.raises(UserError, match=match) as error:
        read_embeddings(path)
    assert str(path) in error.value.message
    return error.value.hint or ""


def test_embeddings_know_which_rows_their_text_used(tmp_path: Path) -> None:
    lm = parts.save_mllm(tmp_path / "lm", None)
    embeddings = read_embeddings(lm)
    counts = read_config(lm)["token_counts"]
    assert embeddings.used.tolist() == [i for i, count in enumerate(counts) if count]
    table = load_file(lm / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(embeddings.table, table)


@pytest.mark.parametrize("counts", [["1"], [1, 2], {"0": 1}, [2**70] * 500, [-1] * 500])
def test_counts_that_are_none_are_refused(tmp_path: Path, counts: object) -> None:
    lm = parts.save_mllm(tmp_path / "lm", None)
    config = read_config(lm) | {"token_counts": counts}
    (lm / "config.json").write_text(json.dumps(config))
    refused(lm, "token_counts is no list of")


def test_picture_tokens_of_a_tar_are_not_words(tmp_path: Path) -> None:
    lm = parts.save_mllm(tmp_path / "mllm", parts.save_ta_tok(tmp_path / "ta_tok"))
    text = parts.text_tokenizer()
    embeddings = read_embeddings(lm)
    # 5 tags and 16 codes follow the text, whose last three tokens are those of a chat.
    assert len(embeddings.table) == text.size + 5 + parts.K
    assert len(text.special) == 3
    assert embeddings.used.tolist() == list(range(text.size - 3))


def test_padding_and_added_tokens_can_never_become_codes(tmp_path: Path) -> None:
    table = table_of(8)
    save_file({"model.embed_tokens.weight": table}, tmp_path / "model.safetensors")
    write_tokenizer(tmp_path)
    embeddings = read_embeddings(tmp_path)
    # Row 3 is <unk>, row 5 the tag, rows 6 and 7 fill the table up.
    assert embeddings.used.tolist() == [0, 1, 2, 4]
    assert torch.equal(embeddings.table, table)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "transformer.wte.weight"])
def test_any_language_models_table_is_found_in_any_of_its_files(tmp_path: Path, name: str) -> None:
    table = table_of(6)
    save_file({"other": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({name: table.bfloat16()}, tmp_path / "model-00002-of-00002.safetensors")
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    assert torch.equal(read_embeddings(tmp_path).table, table.bfloat16().float())


def test_one_file_of_a_model_is_enough_with_its_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "anything.safetensors"
    save_file({"model.embed_tokens.weight": table_of(6)}, file)
    with pytest.raises(UserError, match=r"has no tokenizer\.json, which says which rows"):
        read_embeddings(file)
    write_tokenizer(tmp_path)
    assert read_embeddings(file).used.tolist() == [0, 1, 2, 4]


def test_files_that_an_index_does_not_name_are_not_read(tmp_path: Path) -> None:
    # Mistral's folders hold the weights a second time, by other names.
    write_tokenizer(tmp_path)
    name, table = "model.embed_tokens.weight", table_of(6)
    save_file({name: table}, tmp_path / "model-00001-of-00001.safetensors")
    save_file({name: table + 1}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {name: "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(read_embeddings(tmp_path).table, table)


SMALL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": 8}
LLAMA: dict[str, Any] = {
    **SMALL,
    **{"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 8},
}
FAMILIES: dict[str, Any] = {
    "qwen2": transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True),
    "llama": transformers.LlamaConfig(**LLAMA),
    "gemma2": transformers.Gemma2Config(**LLAMA, head_dim=6),
    "gpt2": transformers.GPT2Config(**SMALL, n_embd=12, n_layer=1, n_head=2, n_positions=8),
    "gpt_neox": transformers.GPTNeoXConfig(**{k: v for k, v in LLAMA.items() if "key" not in k}),
    "opt": transformers.OPTConfig(
        **SMALL,
        **{"hidden_size": 12, "word_embed_proj_dim": 12, "ffn_dim": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "max_position_embeddings": 8},
    ),
    "bloom": transformers.BloomConfig(**SMALL, hidden_size=12, n_layer=1, n_head=2),
    "falcon": transformers.FalconConfig(
        **SMALL, hidden_size=12, num_hidden_layers=1, num_attention_heads=2
    ),
    "mamba": transformers.MambaConfig(**SMALL, hidden_size=12, num_hidden_layers=1),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_a_family_is_its_input_embeddings(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family])
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert torch.equal(read_embeddings(tmp_path).table, model.get_input_embeddings().weight)


def test_an_unknown_family_has_its_widest_table_of_vocab_size_rows(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "new", "vocab_size": 6}')
    table, narrow = table_of(6), table_of(6, width=2)
    tensors = {"words": table, "types": narrow, "lm_head.weight": table + 1, "square": table_of(7)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(read_embeddings(tmp_path).table, table)
    save_file({**tensors, "other_words": table + 2}, tmp_path / "model.safetensors")
    assert "--lm" in refused(tmp_path, "several tables of 6 rows: (other_words, words|words, o)")
    save_file({"square": table_of(7)}, tmp_path / "model.safetensors")
    refused(tmp_path, "no embedding table in .*wte.*no table of vocab_size = 6 rows")


def test_a_directory_without_a_table_or_a_tokenizer_that_fits_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "holds no safetensors weights")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    refused(tmp_path / "pytorch_model.bin", "holds no safetensors weights, and only those are read")
    file = tmp_path / "model.safetensors"
    save_file({"other": torch.zeros(1)}, file)
    assert "--lm" in refused(tmp_path, "no embedding table in .*wte")
    save_file({"model.embed_tokens.weight": table_of(4)}, file)
    assert "tokenizer.json" in refused(tmp_path, r"has no tokenizer\.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(tmp_path, r"tokenizer\.json is not a tokenizer")
    write_tokenizer(tmp_path)
    refused(tmp_path, r"has token ids up to 4, but model\.embed_tokens\.weight in .* has 4 rows")
    write_tokenizer(tmp_path, tags=tuple(WORDS))
    refused(tmp_path, "no vocabulary but added tokens")
    file.write_bytes(b"torn")
    refused(tmp_path, r"model\.safetensors is damaged")
