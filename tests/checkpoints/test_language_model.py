"""Tar's published language model in small: its visual tokens, its files, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.testing import assert_close

from tarkit.checkpoints.language_model import load_mllm
from tarkit.errors import UserError
from tarkit.models.mllm import build
from tarkit.vocab import Scale, VisualVocabulary

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXT_TAGS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VISUAL = VisualVocabulary(first_id=259, num_codes=12)
ARCH: dict[str, Any] = {
    **{"model_type": "qwen2", "vocab_size": VISUAL.size, "hidden_size": 16},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"intermediate_size": 24, "max_position_embeddings": 256, "tie_word_embeddings": True},
}


def tokenizer_json(names: list[str]) -> str:
    tokenizer = Tokenizer(models.BPE(vocab={b: i for i, b in enumerate(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in TEXT_TAGS])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in names])
    text: str = tokenizer.to_str()
    return text


def publish(folder: Path, *, num_codes: int = 12) -> Path:
    """A directory as the publisher writes it: two shards, half precision, a left-over tower."""
    folder.mkdir(parents=True, exist_ok=True)
    visual = VisualVocabulary(first_id=259, num_codes=num_codes)
    arch = ARCH | {"vocab_size": visual.size}
    torch.manual_seed(0)
    state = {k: v.to(torch.bfloat16) for k, v in build(arch).state_dict().items()}
    del state["lm_head.weight"]
    state["model.vision_tower.patch.weight"] = torch.zeros(3, 3)
    names = sorted(state)
    shards = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, held in shards.items():
        save_file({name: state[name].contiguous() for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {**arch, "model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"]}
    config |= {"torch_dtype": "bfloat16", "image_start_tag_id": visual.image_start}
    (folder / "config.json").write_text(json.dumps(config))
    # What data preparation adds behind the embedding table is no token of the model.
    (folder / "tokenizer.json").write_text(tokenizer_json([*visual.tokens(), "<image>"]))
    return folder


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return publish(tmp_path)


def test_a_published_directory_computes_as_its_weights_say(published: Path) -> None:
    loaded = load_mllm(published)
    assert loaded.vocabulary.visual == VISUAL
    assert loaded.vocabulary.text.size == VISUAL.first_id
    torch.manual_seed(0)
    expected = build(ARCH).eval()
    expected.load_state_dict(
        {k: v.to(torch.bfloat16).float() for k, v in expected.state_dict().items()}
    )
    ids = torch.tensor([[257, 40, 261, VISUAL.first_code, VISUAL.size - 1, 7]])
    with torch.no_grad():
        assert_close(loaded.model(input_ids=ids).logits, expected(input_ids=ids).logits)
    head, table = loaded.model.get_output_embeddings(), loaded.model.get_input_embeddings()
    assert head.weight.data_ptr() == table.weight.data_ptr()
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())


def test_prompts_have_the_published_bytes(published: Path) -> None:
    vocabulary = load_mllm(published).vocabulary
    names = Tokenizer.from_file(str(published / "tokenizer.json"))
    opening = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    ids = vocabulary.prompt("A photo of a macaw", draw=Scale.FULL)
    said = names.decode(ids, skip_special_tokens=False)
    assert said == (f"{opening}A photo of a macaw<|im_end|>\n<|im_start|>assistant\n<im_start><S0>")
    ids = vocabulary.question("Describe the image shortly.", (Scale.FULL, [3, 1, 2]))
    said = names.decode(ids, skip_special_tokens=False)
    assert said == (
        f"{opening}<I3><I1><I2>\nDescribe the image shortly.<|im_end|>\n<|im_start|>assistant\n"
    )
    for typed in ("<I5>", "<im_start>", "<|im_end|>", "<S0><image>", "a" * 10_000):
        ids = vocabulary.prompt(typed, draw=Scale.FULL)
        plain = vocabulary.prompt("", draw=Scale.FULL)
        words = vocabulary.text.encode(f"user\n{typed}")
        assert len(ids) == len(plain) + len(words) - len(vocabulary.text.encode("user\n"))
        assert max(words) < 256 and vocabulary.text.decode(words) == f"user\n{typed}"


def rewritten(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        content = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps(change(content)))

    return rewrite


def named(*names: str) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        (path / "tokenizer.json").write_text(tokenizer_json(list(names)))

    return rewrite


def reshaped(path: Path) -> None:
    for file in path.glob("model-*"):
        state: dict[str, Tensor] = load_file(file)
        if "model.norm.weight" in state:
            save_file(state | {"model.norm.weight": torch.zeros(17)}, file)


TOKENS = VISUAL.tokens()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (named(*TOKENS[:7], *TOKENS[8:]), ["<I2>", "None"]),
        (named(*TOKENS[:5], TOKENS[6], TOKENS[5], *TOKENS[7:]), ["<I0>", "265"]),
        (named(*TOKENS[:-1]), ["276 embeddings", "275 tokens"]),
        (named(), ["no visual tokens"]),
        (reshaped, ["model.norm.weight is [17], expected [16]"]),
        (rewritten("config.json", lambda c: c | {"num_hidden_layers": 3}), ["missing model.layer"]),
        (rewritten("config.json", lambda c: c | {"num_attention_heads": 0}), ["makes no model"]),
        (
            rewritten(
                "model.safetensors.index.json",
                lambda i: {"weight_map": {**i["weight_map"], "x": "../config.json"}},
            ),
            ["config.json", "not in that folder"],
        ),
        (
            rewritten("model.safetensors.index.json", lambda i: [1]),
            ["index.json cannot be read", "a list, not a table"],
        ),
        (lambda path: (path / "tokenizer.json").unlink(), ["no tokenizer.json"]),
        (
            lambda path: (path / "tokenizer.json").write_text("{") and None,
            ["tokenizer.json", "Expecting"],
        ),
    ],
    ids=[
        *("missing code", "codes swapped", "fewer tokens", "text only", "wrong shape"),
        *("more layers", "no heads", "another folder", "no index", "no tokenizer", "half a file"),
    ],
)
def test_what_does_not_fit_is_named(
    published: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(published)
    with pytest.raises(UserError) as error:
        load_mllm(published)
    assert error.value.hint
    for word in (*words, str(published)):
        assert word in error.value.message
