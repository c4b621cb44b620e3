"""Model directories: there and back to the bit, strictly, and every fault in words."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.manifest import begin_directory
from tarkit.checkpoints.directory import half, save_model
from tarkit.checkpoints.language_model import load_mllm, read_text_tokenizer
from tarkit.checkpoints.load import load_ar_dtok, load_encoder, load_ta_tok, load_vqvae
from tarkit.errors import UserError
from tarkit.models.mllm import build, from_scratch
from tarkit.vocab import Scale
from tests import parts


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return {
        **parts.save_parts(tmp_path),
        "encoder": parts.save_encoder(tmp_path / "encoder"),
        "lm": parts.save_mllm(tmp_path / "lm", None),
    }


LOADERS: dict[str, Callable[[Path], Any]] = {
    "tokenizer": lambda path: load_ta_tok(path).model,
    "vqvae": load_vqvae,
    "ar_dtok": load_ar_dtok,
    "encoder": load_encoder,
    "mllm": lambda path: load_mllm(path).model,
    "lm": lambda path: load_mllm(path).model,
}


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("name", LOADERS)
def test_a_model_comes_back_to_the_bit(models: dict[str, Path], name: str) -> None:
    path = models[name]
    loaded = LOADERS[name](path)
    assert not loaded.training
    state, saved = loaded.state_dict(), weights_of(path)
    # A tied head is the embedding under a second name and is saved once.
    assert set(state) - set(saved) == ({"lm_head.weight"} if "lm" in name else set())
    assert all(torch.equal(state[key], saved[key]) for key in saved)
    assert json.loads((path / "config.json").read_text())["sha256"] == file_sha256(
        path / "model.safetensors"
    )
    assert not list(path.glob(".*"))


def test_a_tied_head_follows_its_embedding(models: dict[str, Path]) -> None:
    model = load_mllm(models["lm"]).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    text = parts.text_tokenizer()
    arch = {**from_scratch(parts.LM, text.size), "tie_word_embeddings": False}
    model = build(arch)
    save_model(tmp_path, model, {"kind": "mllm", "arch": arch})
    (tmp_path / "tokenizer.json").write_text(text.json)
    head = load_mllm(tmp_path).model.get_output_embeddings().weight
    assert torch.equal(head, model.get_output_embeddings().weight)
    assert not torch.equal(head, model.get_input_embeddings().weight)


def test_half_precision_halves_the_file_and_keeps_the_models_identity(
    models: dict[str, Path],
) -> None:
    path = models["tokenizer"]
    before, size = load_ta_tok(path), (path / "model.safetensors").stat().st_size
    half(path)
    after = load_ta_tok(path)
    assert (path / "model.safetensors").stat().st_size < 0.6 * size
    assert after.sha256 == before.sha256
    saved = weights_of(path)
    assert {v.dtype for v in saved.values()} == {torch.float16}
    for key, value in after.model.state_dict().items():
        assert value.dtype == torch.float32
        # Eleven bits: at most one part in 2,048, and 2**-25 next to zero.
        assert_close(value, before.model.state_dict()[key], rtol=2**-11, atol=2**-25)


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(70_000.0)  # float16 ends at 65,504
    save_model(tmp_path, model, {"kind": "x", "arch": {}})
    with pytest.raises(UserError, match="beyond float16's range"):
        half(tmp_path)
    assert weights_of(tmp_path)["weight"].dtype == torch.float32


# ---- weights that are not those of their config.json


@pytest.mark.parametrize("part", ["encoder", "tokenizer", "vqvae", "ar_dtok", "mllm"])
def test_one_changed_bit_of_the_weights_is_refused(models: dict[str, Path], part: str) -> None:
    load = LOADERS[part]
    weights = models[part] / "model.safetensors"
    load(models[part])
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    hint = refused(load, models[part], "is damaged or another file: its sha256 is")
    assert "train it again" in hint
    data[-9] ^= 1
    weights.write_bytes(data)
    load(models[part])


def test_weights_of_another_model_are_refused_and_halved_ones_are_not(
    models: dict[str, Path], tmp_path: Path
) -> None:
    other = parts.save_encoder(tmp_path / "other", seed=5)
    half(other)
    identity = json.loads((other / "config.json").read_text())["sha256"]
    assert identity != file_sha256(other / "model.safetensors")
    load_encoder(other)
    shutil.copy(models["encoder"] / "model.safetensors", other)
    refused(load_encoder, other, "is damaged or another file")


# ---- what does not fit


def unsigned(path: Path) -> None:
    """Take the weights' sha256 from a config.json, as of directories that record none."""
    config = json.loads((path / "config.json").read_text())
    del config["weights_sha256"]
    (path / "config.json").write_text(json.dumps(config))


def refused(load: Callable[[Path], Any], path: Path, match: str) -> str:
    """The next command that the error names."""
    with pytest.raises(UserError, match=match) as error:
        load(path)
    assert str(path) in error.value.message
    assert error.value.hint
    return error.value.hint


def test_missing_misshapen_and_unknown_weights_are_named(models: dict[str, Path]) -> None:
    path = models["encoder"]
    unsigned(path)
    state = weights_of(path)
    del state["post_layernorm.weight"]
    state["post_layernorm.bias"] = torch.zeros(7)
    state["surprise"] = torch.zeros(1)
    save_file(state, path / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_encoder(path)
    for fault in (
        f"{path}/model.safetensors does not fit the sizes it comes with",
        "missing post_layernorm.weight",
        "unexpected surprise",
        "post_layernorm.bias is [7], expected [16]",
    ):
        assert fault in error.value.message
    assert error.value.hint
    for key in list(state)[:12]:
        del state[key]
    save_file(state, path / "model.safetensors")
    refused(load_encoder, path, r"and \d+ more$|and \d+ more\n")


def test_a_language_model_without_its_table_is_refused(models: dict[str, Path]) -> None:
    path = models["lm"]
    unsigned(path)
    state = weights_of(path)
    del state["model.embed_tokens.weight"]
    save_file(state, path / "model.safetensors")
    refused(load_mllm, path, "missing model.embed_tokens.weight")


def test_an_arch_that_is_not_ours_is_refused(models: dict[str, Path]) -> None:
    path = models["encoder"]
    config = json.loads((path / "config.json").read_text())
    config["arch"] |= {"depth": 3, "width": "wide"}
    (path / "config.json").write_text(json.dumps(config))
    refused(load_encoder, path, "config.json: arch is not one of tarkit's EncoderArch: .*width: ")
    refused(load_encoder, path, "depth: Extra inputs are not permitted")
    del config["arch"]
    (path / "config.json").write_text(json.dumps(config))
    refused(load_encoder, path, "arch is not one of tarkit's EncoderArch")


def test_a_damaged_file_is_refused_and_no_pickle_is_opened(models: dict[str, Path]) -> None:
    path = models["vqvae"]
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-100])
    refused(load_vqvae, path, r"vqvae/model\.safetensors is damaged")

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("a pickle was opened",))

    (path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(load_vqvae, path, r"vqvae/model\.safetensors is damaged")


def test_directories_that_are_no_model_of_the_kind_say_what_they_are(
    models: dict[str, Path], tmp_path: Path
) -> None:
    hint = refused(load_vqvae, tmp_path / "gone", "no such folder")
    assert hint == "name the --out of a training, or mini; tarkit models lists the known names"
    (tmp_path / "empty").mkdir()
    hint = refused(load_vqvae, tmp_path / "empty", "holds no config.json")
    assert hint == f"tarkit inspect {tmp_path / 'empty'}"
    path = models["encoder"]
    hint = refused(load_vqvae, path, "encoder is encoder, where a model of kind vqvae is needed")
    assert hint == f"tarkit inspect {path}"
    (path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    refused(load_vqvae, path, "is a siglip model, where a model of kind vqvae")
    for text in ("{not json", "[1, 2]"):
        (path / "config.json").write_text(text)
        refused(load_vqvae, path, r"config\.json cannot be read: it (is not JSON|holds a)")


def test_a_model_without_an_identity_is_refused(models: dict[str, Path]) -> None:
    file = models["tokenizer"] / "config.json"
    config = json.loads(file.read_text())
    for sha256 in (None, 5):
        file.write_text(json.dumps({**config, "sha256": sha256}))
        refused(load_ta_tok, models["tokenizer"], "has no sha256")


def test_an_unfinished_training_says_how_to_finish_it(
    models: dict[str, Path], tmp_path: Path
) -> None:
    begin_directory(tmp_path / "begun", "model", settings={})
    hint = refused(load_vqvae, tmp_path / "begun", "holds no config.json")
    assert hint.endswith(f"`tarkit train` command with --out {tmp_path / 'begun'} again")
    # An artifact has a manifest as well, and no training finishes it.
    begin_directory(tmp_path / "pictures", "images", settings={})
    hint = refused(load_vqvae, tmp_path / "pictures", "holds no config.json")
    assert hint.startswith("tarkit inspect")
    (models["vqvae"] / "model.safetensors").unlink()
    hint = refused(load_vqvae, models["vqvae"], r"has no model\.safetensors: its training did not")
    assert f"--out {models['vqvae']} again" in hint


# ---- words


def test_a_language_model_reads_the_words_it_was_saved_with(models: dict[str, Path]) -> None:
    loaded = load_mllm(models["mllm"])
    visual = loaded.vocabulary.visual
    assert visual is not None and visual.num_codes == parts.K
    assert loaded.model.config.vocab_size == visual.size
    assert loaded.vocabulary.text.json == (models["mllm"] / "tokenizer.json").read_text()
    (models["mllm"] / "tokenizer.json").unlink()
    hint = refused(load_mllm, models["mllm"], r"mllm has no tokenizer\.json")
    assert hint == f"tarkit inspect {models['mllm']}"


def test_a_tokenizer_file_that_is_none_or_has_no_chat_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    for text in ("", "[]", '{"model": 3}'):
        file.write_text(text)
        refused(read_text_tokenizer, tmp_path, r"tokenizer\.json is not a tokenizer")
    file.write_text(parts.text_tokenizer().json.replace("<|im_start|>", "<s>"))
    refused(read_text_tokenizer, tmp_path, r"tokenizer\.json has no <\|im_start\|>:")


# ---- TA-Tok as it is used


def test_a_tokenizer_takes_pictures_from_zero_to_one(models: dict[str, Path]) -> None:
    loaded = load_ta_tok(models["tokenizer"])
    assert (loaded.size_px, loaded.grid, loaded.num_codes) == (16, 4, 16)
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    codes = loaded.encode_scales(pictures, list(Scale))
    assert {s: c.shape[1] for s, c in codes.items()} == {1: 16, 2: 4, 3: 1}
    inside = loaded.model.encode(pictures * 2 - 1, list(Scale))
    assert all(torch.equal(codes[s], inside[s]) for s in Scale)
    assert loaded.condition(codes[Scale.HALF]).shape == (2, 4, 16)


# ---- sizes that no file can have


@pytest.mark.parametrize(
    ("part", "arch", "match"),
    [
        ("vqvae", {"num_res_blocks": 10**9}, "less than or equal to 1024"),
        ("vqvae", {"channels": 10**12}, "less than or equal to 16777216"),
        ("vqvae", {"encoder_multipliers": [1] * 10**5}, "at most 16 items"),
        ("encoder", {"layers": 10**9}, "less than or equal to 1024"),
        ("encoder", {"patch_px": 0}, "greater than or equal to 1"),
        ("encoder", {"heads": 3}, "heads = 3 must divide width = 16"),
        ("tokenizer", {"decoder_heads": 3}, "decoder_heads = 3 must divide"),
        ("vqvae", {"channels": 33}, "a level of 33 channels does not divide into 32 groups"),
        ("ar_dtok", {"layers": 10**9}, "less than or equal to 1024"),
        ("tokenizer", {"decoder_layers": 10**9}, "less than or equal to 1024"),
        ("mllm", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is above 1024"),
        ("mllm", {"hidden_size": 10**12}, "hidden_size = 1000000000000 is above"),
        ("mllm", {"num_attention_heads": 0}, "makes no model"),
        ("mllm", {"hidden_act": "nope"}, "makes no model"),
        ("mllm", {"model_type": "nope"}, "makes no model"),
        ("mllm", {"model_type": "gpt2"}, "does not fit|makes no model"),
    ],
)
def test_a_claim_of_any_size_is_refused_before_it_is_built(
    models: dict[str, Path], part: str, arch: dict[str, Any], match: str
) -> None:
    path = models[part]
    config = json.loads((path / "config.json").read_text())
    config["arch"] |= arch
    (path / "config.json").write_text(json.dumps(config))
    refused(LOADERS[part], path, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"arch": None}, "has no table `arch`"),
        ({"visual": [1]}, "visual is not first_id and num_codes"),
        ({"visual": {"first_id": "x", "num_codes": 3}}, "visual is not first_id and num_codes"),
    ],
)
def test_a_language_model_that_is_none_is_refused(
    models: dict[str, Path], change: dict[str, Any], match: str
) -> None:
    path = models["mllm"]
    config = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(config))
    refused(load_mllm, path, match)


def test_weights_of_another_kind_of_number_are_refused(models: dict[str, Path]) -> None:
    path = models["encoder"]
    unsigned(path)
    save_file({k: v.long() for k, v in weights_of(path).items()}, path / "model.safetensors")
    refused(load_encoder, path, "holds torch.int64, expected torch.float32")
