"""Published files: what is refused, and that nothing in a refused file has run."""

import argparse
import json
import os
import pickle
import shutil
import socket
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tarkit.artifacts.digests import file_sha256
from tarkit.checkpoints import convert
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import load_ar_dtok, load_ta_tok, load_vqvae
from tarkit.checkpoints.published_pth import SIGLIP2, read_published
from tarkit.errors import UserError
from tarkit.models.ar_dtok import ArDtokArch
from tarkit.models.ta_tok import TaTokArch
from tarkit.models.vqvae import VqvaeArch

GOLDENS = Path(__file__).parents[1] / "goldens"
FILES = {"ta_tok": "ta_tok_tiny.pth", "ar_dtok": "ar_dtok_tiny.pth", "vqvae": "vq_tiny.pt"}
LOADERS: dict[str, Callable[[Path], Any]] = {
    "ta_tok": load_ta_tok,
    "ar_dtok": load_ar_dtok,
    "vqvae": load_vqvae,
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Copies of the three files, and the teacher's folder beside them."""
    shutil.copytree(GOLDENS / "siglip_tiny", tmp_path / "siglip_tiny")
    return {
        kind: Path(shutil.copyfile(GOLDENS / name, tmp_path / name)) for kind, name in FILES.items()
    }


def changed(file: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with its content changed by `change`, written as plain containers."""
    with torch.serialization.safe_globals([(OrderedDict, "easydict.EasyDict")]):
        content = plain(torch.load(file, weights_only=True))
    change(content)
    torch.save(content, file)
    return file


def plain(value: Any) -> Any:
    return {k: plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def refused(file: Path, *words: str, load: Callable[[Path], Any] = read_published) -> UserError:
    with pytest.raises(UserError) as error:
        load(file)
    for word in words:
        assert word in error.value.message, error.value.message
    assert str(file) in error.value.message or str(file.parent) in error.value.message
    assert error.value.hint
    return error.value


def test_sizes_are_read_from_args_names_and_shapes(files: dict[str, Path]) -> None:
    ta_tok, ar_dtok, vqvae = (read_published(files[kind]).arch for kind in FILES)
    assert isinstance(ta_tok, TaTokArch) and isinstance(ar_dtok, ArDtokArch)
    assert isinstance(vqvae, VqvaeArch)
    assert (ta_tok.encoder.size_px, ta_tok.encoder.width, ta_tok.encoder.layers) == (130, 24, 4)
    assert (ta_tok.num_codes, ta_tok.code_width, ta_tok.decoder_heads) == (128, 32, 12)
    assert (ta_tok.decoder_layers, ta_tok.decoder_mlp_width, ta_tok.decoder_side) == (2, 3072, 16)
    assert (ar_dtok.layers, ar_dtok.width, ar_dtok.num_codes) == (2, 48, 16)
    assert (ar_dtok.max_condition, ar_dtok.condition_width) == (81, 24)
    assert (vqvae.channels, vqvae.num_codes, vqvae.latent_channels) == (32, 64, 32)
    assert vqvae.encoder_multipliers == (1, 1, 1, 1, 1)
    assert vqvae.decoder_multipliers == (2, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("llama-abs-LP", (30, 20, 1280)), ("llama-abs-B", (12, 12, 768))],
)
def test_a_published_name_says_depth_heads_and_width(
    files: dict[str, Path], name: str, sizes: tuple[int, int, int]
) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["model"]["name"] = name

    arch = read_published(changed(files["ar_dtok"], rename)).arch
    assert isinstance(arch, ArDtokArch)
    assert (arch.layers, arch.heads, arch.width) == sizes


def test_a_known_teacher_needs_no_folder(files: dict[str, Path]) -> None:
    def released(content: dict[str, Any]) -> None:
        content["model"]["args"] |= {"teacher": SIGLIP2, "input_size": 384}

    arch = read_published(changed(files["ta_tok"], released)).arch
    assert isinstance(arch, TaTokArch)
    assert (arch.encoder.layers, arch.encoder.heads, arch.encoder.mlp_width) == (27, 16, 4304)


def test_weights_are_mapped_and_halves_become_float32(files: dict[str, Path]) -> None:
    stored = read_published(files["ta_tok"]).state["encoder.embeddings.patch_embedding.weight"]
    assert stored.dtype == torch.float16
    loaded = load_ta_tok(files["ta_tok"]).model.encoder.embeddings.patch_embedding.weight
    assert loaded.dtype == torch.float32
    assert_close(loaded, stored.float())


@pytest.mark.parametrize("old", [True, False])
def test_prefixes_of_other_transformers_versions_are_understood(
    files: dict[str, Path], old: bool
) -> None:
    before = load_ta_tok(files["ta_tok"]).model.state_dict()

    def rename(content: dict[str, Any]) -> None:
        renamed = {}
        for key, value in content["model"]["sd"].items():
            if old and key.startswith("encoder."):
                key = key.replace("encoder.", "encoder.vision_model.", 1)
            elif not old:
                key = key.replace("decoder.vision_model.", "decoder.")
            renamed[key] = value
        content["model"]["sd"] = renamed

    after = load_ta_tok(changed(files["ta_tok"], rename)).model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_training_file_with_its_arguments_and_its_optimiser_is_read(
    files: dict[str, Path],
) -> None:
    before = load_vqvae(files["vqvae"]).state_dict()

    def train(content: dict[str, Any]) -> None:
        content["args"] = argparse.Namespace(lr=1e-4, cloud="elsewhere")
        content["optimizer"] = {"state": {}, "param_groups": [{"lr": 1e-4}]}
        content["steps"] = 5

    after = load_vqvae(changed(files["vqvae"], train)).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


# - hostile -


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("kind", FILES)
def test_a_pickle_that_would_run_code_is_refused_before_it_runs(
    files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    mark = tmp_path / "ran"

    def arm(content: dict[str, Any]) -> None:
        content["extra"] = Bomb(mark)

    file = changed(files[kind], arm)
    error = refused(file, "mkdir", "would run", load=LOADERS[kind])
    assert not mark.exists()
    assert "only tensors" in str(error.hint)
    # The same outside of an archive, as torch wrote before 1.6.
    file.write_bytes(pickle.dumps({"model": Bomb(mark)}))
    refused(file, "not a whole torch file", load=LOADERS[kind])
    assert not mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(files: dict[str, Path], share: float) -> None:
    for kind, file in files.items():
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * share)])
        refused(file, "not a whole torch file", load=LOADERS[kind])


def test_a_zip_bomb_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(files["vqvae"]) as archive, zipfile.ZipFile(bomb, "w") as packed:
        for entry in archive.infolist():
            body = archive.read(entry)
            packed.writestr(entry.filename, body)
        packed.writestr("archive/data/0", bytes(2**24), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**22
    refused(bomb, "compressed entries", "archive/data/0")


def test_tensors_that_claim_more_than_the_file_holds_are_refused(files: dict[str, Path]) -> None:
    def claim(content: dict[str, Any]) -> None:
        content["model"]["quantize.embedding.weight"] = torch.zeros(1, 1).expand(10**7, 8)

    refused(changed(files["vqvae"], claim), "its tensors claim 32")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda v: v.to_sparse(), "is not a plain tensor: sparse_coo"),
        (lambda v: v.to("meta"), "is not a plain tensor"),
    ],
)
def test_only_plain_tensors_are_read(
    files: dict[str, Path], change: Callable[[torch.Tensor], torch.Tensor], word: str
) -> None:
    def swap(content: dict[str, Any]) -> None:
        state = content["model"]
        state["encoder.conv_in.weight"] = change(state["encoder.conv_in.weight"])

    refused(changed(files["vqvae"], swap), word)


@pytest.mark.parametrize(("name", "value"), [("n_layer", 10**9), ("dim", 10**30)])
def test_sizes_beyond_any_model_are_refused(files: dict[str, Path], name: str, value: int) -> None:
    def claim(content: dict[str, Any]) -> None:
        content["model"]["name"] = "x"
        content["model"]["args"] |= {"n_layer": 2, "n_head": 2, "dim": 64} | {name: value}

    refused(changed(files["ar_dtok"], claim), "less than or equal to")


def test_one_wrong_shape_is_named(files: dict[str, Path]) -> None:
    def misshape(content: dict[str, Any]) -> None:
        content["model"]["sd"]["bottleneck.in_linear.bias"] = torch.zeros(7)

    file = changed(files["ta_tok"], misshape)
    refused(file, "bottleneck.in_linear.bias is [7], expected [32]", load=load_ta_tok)


def test_missing_and_unexpected_keys_are_named(files: dict[str, Path]) -> None:
    def swap(content: dict[str, Any]) -> None:
        state = content["model"]["sd"]
        state["norm.scale"] = state.pop("norm.weight")

    file = changed(files["ar_dtok"], swap)
    refused(file, "missing norm.weight", "unexpected norm.scale", load=load_ar_dtok)


@pytest.mark.parametrize(
    "teacher",
    ["../siglip_tiny", "/etc", "someone/else", "missing", "siglip_tiny/", "", ".", 5],
)
def test_a_teacher_elsewhere_is_refused(files: dict[str, Path], teacher: Any) -> None:
    def name(content: dict[str, Any]) -> None:
        content["model"]["args"]["teacher"] = teacher

    error = refused(changed(files["ta_tok"], name), "teacher", load=load_ta_tok)
    assert "config.json" in str(error.hint)


def test_a_teachers_folder_holds_a_config_and_nothing_else(files: dict[str, Path]) -> None:
    folder = files["ta_tok"].parent / "siglip_tiny"
    (folder / "model.py").write_text("raise SystemExit")
    refused(files["ta_tok"], "model.py", "nothing else")
    (folder / "model.py").unlink()
    (folder / "config.json").write_text(json.dumps({"vision_config": {"image_size": 130}}))
    refused(files["ta_tok"], "not a SigLIP config")
    # Neither folder nor file may be a link to another place.
    shutil.move(folder, folder.with_name("real"))
    folder.symlink_to("real")
    refused(files["ta_tok"], "teacher")


def test_files_of_another_kind_say_what_they_are(files: dict[str, Path], tmp_path: Path) -> None:
    refused(files["vqvae"], "is a published vqvae, where", "ta_tok", load=load_ta_tok)
    other = tmp_path / "other.pth"
    torch.save({"state_dict": {}}, other)
    refused(other, "has no key `model`; it has state_dict")
    torch.save([1, 2], other)
    refused(other, "holds a list")
    torch.save({"model": {"args": {}, "sd": {}}}, other)
    refused(other, "neither TA-Tok nor AR-DTok")
    refused(tmp_path / "none.pth", "does not exist")
    refused(files["vqvae"].parent / "siglip_tiny", "is a folder")


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("ar_dtok", {"model_type": "class_cond"}, "conditioned on 'class_cond'"),
        ("ar_dtok", {"max_seq_len": 17}, "max_seq_len = 17"),
        ("ar_dtok", {"dim": "wide"}, "args do not fit ArDtokArch"),
        ("ta_tok", {"input_size": 384}, "input_size is 384, but its teacher reads 130 px"),
        ("ta_tok", {"bottleneck": {"name": "bottleneck"}}, "args have no bottleneck.args"),
    ],
)
def test_args_that_do_not_fit_are_named(
    files: dict[str, Path], kind: str, change: dict[str, Any], words: str
) -> None:
    def apply(content: dict[str, Any]) -> None:
        content["model"]["args"] |= change

    refused(changed(files[kind], apply), words)


# - converted -


@pytest.mark.parametrize("kind", FILES)
def test_a_converted_file_is_the_same_model(
    files: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    out = convert.run(files[kind], out=tmp_path / "out")
    before, after = LOADERS[kind](files[kind]), LOADERS[kind](out)
    if kind == "ta_tok":
        assert before.sha256 == after.sha256 == file_sha256(files[kind])
        before, after = before.model, after.model
    assert read_config(out, kind)["sha256"] == file_sha256(files[kind])
    state = after.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in before.state_dict().items())
    # Of a process that was killed when the weights had their name.
    left = out / f".model.safetensors.{socket.gethostname()}.4194305.tmp"
    left.touch()
    with pytest.raises(UserError, match="already holds a model"):
        convert.run(files[kind], out=out)
    assert not left.exists()


def test_a_conversion_keeps_or_changes_the_precision(
    files: dict[str, Path], tmp_path: Path
) -> None:
    dtypes = {}
    for precision in ("stored", "float32", "bfloat16"):
        out = convert.run(files["ta_tok"], out=tmp_path / precision, precision=precision)
        dtypes[precision] = {t.dtype for t in load_file(out / "model.safetensors").values()}
    assert dtypes == {
        "stored": {torch.float16},
        "float32": {torch.float32},
        "bfloat16": {torch.bfloat16},
    }

    def grow(content: dict[str, Any]) -> None:
        content["model"]["sd"]["norm.weight"] *= 1e6

    with pytest.raises(UserError, match="beyond float16's range"):
        convert.run(changed(files["ar_dtok"], grow), out=tmp_path / "half", precision="float16")
    assert not (tmp_path / "half").exists()


def test_what_does_not_fit_is_not_converted(files: dict[str, Path], tmp_path: Path) -> None:
    def misshape(content: dict[str, Any]) -> None:
        content["model"]["sd"]["norm.weight"] = torch.zeros(7)

    with pytest.raises(UserError, match=r"norm\.weight is \[7\], expected \[48\]"):
        convert.run(changed(files["ar_dtok"], misshape), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
