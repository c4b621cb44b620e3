"""Settings with which nothing can be trained are refused in a sentence, before the first step."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from tarkit.config import Config, load_config, write_toml
from tarkit.errors import UserError
from tarkit.train import mllm, tokenizer
from tarkit.train.tokenizer import TokenizerConfig
from tests import parts
from tests.train import test_mllm, test_tokenizer

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"

# By the TOML that would train otherwise.
EVERY = [
    "learning_rate=-1e-4",
    "betas=[0.9, 1.0]",
    "betas=[-0.1, 0.9]",
    "weight_decay=-0.1",
    "warmup=1.5",
    "clip=0",
    "seed=-1",
    "steps=0",
    "batch_size=0",
    "micro_batch_size=0",
]
REFUSED: dict[str, list[str]] = {
    "paper/tokenizer": [
        *EVERY,
        *("scale_ratio=[0, 0, 0]", "scale_ratio=[2, -1, 1]", "images_weights=[0, 1]"),
        *("sizes.num_codes=0", "sizes.num_codes=65537", "sizes.code_width=0"),
        *("sizes.temperature=0", "sizes.decoder_layers=0", "sizes.decoder_heads=0"),
        *("codebook=-1", "reconstruction=-1", "whiten=-1", "measure_pictures=0", "start_rank=-1"),
    ],
    "paper/ar_dtok_256": [
        *EVERY,
        *("scale_ratio=[0, 0, 0]", "condition_dropout=1.1", "condition_dropout=-0.1"),
        *("arch.layers=0", "arch.heads=7", "arch.kv_heads=3", "arch.num_codes=0"),
        *("arch.token_dropout=1", "arch.ffn_dropout=1", "remember=-1"),
    ],
    "paper/dif_dtok_512": [
        *EVERY,
        *("betas=[0.9, 0.999, 1.0]", "betas=[0.9, 0.999]", "scale_ratio=[0, 0, 0]"),
        *("condition_dropout=1.1", "flow_shift=0", "size_px=0", "logit_std=-1"),
    ],
    "paper/mllm_pretrain": [
        *EVERY,
        *("ratio={}", "ratio={t2i = 0, text = 0}", "ratio={t2i = -1, text = 1}", "ratio={t3i = 1}"),
        *("scale_ratio=[0, 0, 0]", "read_scale_ratio=[0, 0, 0]", "length=1", "text_weight=0"),
        *("prompt_dropout=2", "lm.heads=5", "lm.kv_heads=4", "shrink=0", "tokenizer_documents=0"),
    ],
    "mini/encoder": [*EVERY, "arch.heads=5", "arch.patch_px=1000", "text_heads=3", "text_length=0"],
    "mini/vqvae": EVERY,
    "grpo/grpo": [*EVERY, "group=1", "temperature=0", "ratio={}"],
}


@pytest.mark.parametrize(
    ("toml", "setting"), [(toml, setting) for toml, all_of in REFUSED.items() for setting in all_of]
)
def test_a_setting_that_cannot_train_is_refused(
    toml: str, setting: str, config_class: Callable[[str], type[Config]]
) -> None:
    path = PIPELINES / f"{toml}.toml"
    cls = config_class(path.stem)
    load_config(cls, path)
    with pytest.raises(UserError) as refused:
        load_config(cls, path, [setting])
    sentence = str(refused.value.message)
    assert setting.split("=")[0].split(".")[-1] in sentence
    # What is wrong, and not everything that was read.
    assert len(sentence) < 300 and "Value error" not in sentence


def test_losses_that_are_all_zero_are_refused() -> None:
    none = ["codebook=0", "commitment=0", "reconstruction=0"]
    path = PIPELINES / "paper/tokenizer.toml"
    load_config(TokenizerConfig, path, none[:2])
    with pytest.raises(UserError, match="are all 0: nothing is learned"):
        load_config(TokenizerConfig, path, none)


def test_more_codes_than_the_language_model_has_words_are_refused(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    sizes = test_tokenizer.SIZES.model_copy(update={"num_codes": 300})
    file = tmp_path / "tokenizer.toml"
    file.write_text(write_toml(TokenizerConfig(**test_tokenizer.SETTINGS | {"sizes": sizes})))
    start: dict[str, Any] = {"images": [pictures], "encoder": models["encoder"], "lm": models["lm"]}
    with pytest.raises(UserError, match=r"num_codes = 300, but only \d+ rows"):
        tokenizer.run(file, **start, out=tmp_path / "out")
    file.write_text(write_toml(TokenizerConfig(**test_tokenizer.SETTINGS | {"start_rank": 17})))
    with pytest.raises(UserError, match=r"start_rank = 17, but .* have 16 common directions"):
        tokenizer.run(file, **start, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("with_codes", [False, True])
def test_a_text_tokenizer_larger_than_the_table_is_refused(
    models: dict[str, Path], tmp_path: Path, with_codes: bool
) -> None:
    lm = tmp_path / "lm"
    shutil.copytree(models["lm"], lm)
    grown = Tokenizer.from_file(str(lm / "tokenizer.json"))
    grown.add_tokens([AddedToken(f"<new{number}>", special=False) for number in range(3)])
    grown.save(str(lm / "tokenizer.json"))
    chats = parts.write_chats(tmp_path / "chats", [[parts.chat_row("text", ("assistant", "a"))]])
    with pytest.raises(UserError, match="has 273 tokens, but the model has 270 embeddings"):
        mllm.run(
            test_mllm.config(tmp_path, ratio={"text": 1}),
            chats=[chats.path],
            tokenizer=models["tokenizer"] if with_codes else None,
            lm=lm,
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_a_scale_that_was_not_stored_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    made_by = {"tokenizer_sha256": parts.sha256(models["tokenizer"])}
    stored = parts.write_chats(
        tmp_path / "chats", [parts.mixed_chats(2)], **made_by, sides={"1": 4, "2": 2}
    )
    start: dict[str, Any] = {"chats": [stored.path], "tokenizer": models["tokenizer"]}
    for changes in ({}, {"scale_ratio": (1, 1, 0), "read_scale_ratio": (0, 0, 1)}):
        with pytest.raises(UserError, match="has no codes of scale 3"):
            mllm.run(test_mllm.config(tmp_path, **changes), **start, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
