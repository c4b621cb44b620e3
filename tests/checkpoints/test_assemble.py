"""`tarkit assemble`: four parts become one directory; parts that do not fit are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tarkit.artifacts.manifest import begin_directory
from tarkit.checkpoints import assemble
from tarkit.checkpoints.tar_config import Sampling
from tarkit.errors import UserError
from tarkit.inference.tar_model import Tar
from tarkit.vocab import Scale
from tests import parts


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    return parts.save_parts(tmp_path)


def refused(match: str, **given: Any) -> str:
    with pytest.raises(UserError, match=match) as error:
        assemble.run(**given)
    assert not (given["out"] / "config.json").exists()
    return error.value.hint


def test_the_parts_are_copied_whole(made: dict[str, Any], tmp_path: Path) -> None:
    out = assemble.run(**made, out=tmp_path / "tar")
    names = {"mllm": "mllm", "tokenizer": "ta_tok", "ar_dtok": "ar_dtok", "vqvae": "vqvae"}
    for given, part in names.items():
        for file in made[given].iterdir():
            assert (out / part / file.name).read_bytes() == file.read_bytes()
    assert json.loads((out / "config.json").read_text()) == {
        "kind": "tar",
        "default_scale": 1,
        "read_scale": None,
        "sampling": Sampling().model_dump(),
        "words": [],
    }
    # The published scripts' numbers.
    sampling = Tar.load(out).sampling
    assert (sampling.top_k, sampling.top_p, sampling.guidance) == (1200, 0.95, 4.0)


def test_the_card_says_what_every_part_was_trained_on(made: dict[str, Any], tmp_path: Path) -> None:
    begin_directory(tmp_path / "secret-place" / "photos", "images", settings={})
    parents = {"images": tmp_path / "secret-place" / "photos"}
    begin_directory(made["mllm"], "model", settings={}, parents=parents)
    made["vqvae"] = shutil.copytree(made["vqvae"], tmp_path / "from_elsewhere")
    out = assemble.run(**made, out=tmp_path / "tar")
    card = (out / "card.md").read_text()
    assert ModelCard(card).data.to_dict()["library_name"] == "tarkit"
    assert f"- mllm: `{made['mllm'].name}`\n  - images: `photos` (images, sha256 " in card
    assert "- vqvae: `from_elsewhere`, not known here" in card
    assert "secret-place" not in card and "arxiv.org/abs/2506.18898" in card
    (out / "card.md").write_text(card.replace("# tar\n", "# Mine\n"))
    assemble.run(**made, out=out, overrides=["default_scale=3"])
    assert "# Mine\n" in (out / "card.md").read_text()  # an edited card is kept
    # A model that takes a part of this one says again what that was trained on.
    again = assemble.run(**{**made, "mllm": out / "mllm"}, out=tmp_path / "again")
    text = (again / "card.md").read_text()
    assert "- mllm: `mllm`\n" in text and "    - images: `photos` (images, sha256 " in text


def test_how_it_draws_is_read_from_a_toml_and_overrides(
    made: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "assemble.toml"
    file.write_text("default_scale = 2\nread_scale = 1\n[sampling]\nguidance = 1.5\n")
    out = assemble.run(
        **made, out=tmp_path / "tar", config=file, overrides=["sampling.temperature=0.5"]
    )
    tar = Tar.load(out)
    assert (tar.default_scale, tar.read_scale) == (Scale.HALF, Scale.FULL)
    assert tar.sampling == Sampling(guidance=1.5, temperature=0.5)
    # Again with others: the directory says what was asked for last.
    assert Tar.load(assemble.run(**made, out=out)).default_scale is Scale.FULL
    drawn = assemble.run(**made, out=out, overrides=["default_scale=3"])
    assert Tar.load(drawn).read_scale is Scale.THIRD


def test_half_precision_halves_the_copies_and_leaves_the_parts(
    made: dict[str, Any], tmp_path: Path
) -> None:
    out = assemble.run(**made, out=tmp_path / "tar", half_precision=True)
    for part, given in (("vqvae", "vqvae"), ("mllm", "mllm")):
        copied = load_file(out / part / "model.safetensors")
        assert {v.dtype for v in copied.values()} == {torch.float16}
        own = load_file(made[given] / "model.safetensors")
        assert {v.dtype for v in own.values()} == {torch.float32}
        assert all(torch.equal(copied[key], own[key].half()) for key in own)
    tar = Tar.load(out)
    assert tar.sha256 == parts.sha256(made["tokenizer"])
    assert tar.imagine("a red ring").size == (16, 16)


def test_parts_of_another_tokenizer_or_image_vq_are_refused(
    made: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "tar"
    other = parts.save_ta_tok(tmp_path / "other", seed=1)
    mine, theirs = parts.sha256(made["tokenizer"])[:12], parts.sha256(other)[:12]
    hint = refused(
        f"mllm was trained with tokenizer {mine}, {other} is {theirs}",
        **{**made, "tokenizer": other},
        out=out,
    )
    assert "tokenizer" in hint
    stray = parts.save_ar_dtok(tmp_path / "stray", other, made["vqvae"])
    refused(
        f"stray was trained with tokenizer {theirs}, .*ta_tok is {mine}",
        **{**made, "ar_dtok": stray},
        out=out,
    )
    vqvae = parts.save_vqvae(tmp_path / "vq", seed=1)
    was, now = parts.sha256(made["vqvae"])[:12], parts.sha256(vqvae)[:12]
    hint = refused(
        f"ar_dtok was trained with image VQ {was}, {vqvae} is {now}",
        **{**made, "vqvae": vqvae},
        out=out,
    )
    assert "image VQ" in hint
    config = json.loads((made["ar_dtok"] / "config.json").read_text())
    shutil.copytree(made["ar_dtok"], tmp_path / "damaged")
    for value in (7, "", 0.5):
        text = json.dumps({**config, "vqvae_sha256": value})
        (tmp_path / "damaged/config.json").write_text(text)
        refused("was trained with image VQ", **{**made, "ar_dtok": tmp_path / "damaged"}, out=out)


def test_parts_in_each_others_place_or_unfinished_are_refused(
    made: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "tar"
    swapped = {**made, "vqvae": made["ar_dtok"], "ar_dtok": made["vqvae"]}
    hint = refused("is vqvae, where a model of kind ar_dtok is needed", **swapped, out=out)
    assert hint == f"tarkit inspect {made['vqvae']}"
    (made["vqvae"] / "model.safetensors").unlink()
    hint = refused(r"vqvae has no model\.safetensors: its training did not", **made, out=out)
    assert f"--out {made['vqvae']} again" in hint
    assert not out.exists()


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("default_skale=2", r"unknown key default_skale \(did you mean default_scale\?\)"),
        ("default_scale=4", "default_scale = 4: Input should be 1, 2 or 3"),
        ("sampling.heat=2", "unknown key sampling.heat"),
    ],
)
def test_settings_that_no_model_has_are_refused(
    made: dict[str, Any], tmp_path: Path, override: str, match: str
) -> None:
    hint = refused(match, **made, out=tmp_path / "tar", overrides=[override])
    assert "default_scale, read_scale, sampling" in hint


def test_a_folder_that_holds_another_model_is_refused(made: dict[str, Any], tmp_path: Path) -> None:
    out = assemble.run(**made, out=tmp_path / "tar")
    assert assemble.run(**made, out=out) == out
    before = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    other = parts.save_mllm(tmp_path / "other", made["tokenizer"], seed=7)
    with pytest.raises(UserError, match="was begun with other settings .*mllm"):
        assemble.run(**{**made, "mllm": other}, out=out)
    with pytest.raises(UserError, match="half_precision"):
        assemble.run(**made, out=out, half_precision=True)
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == before


def test_an_assembly_stopped_between_two_parts_is_no_model_and_goes_on(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tar"
    copyfile = shutil.copyfile

    def stopped(source: Path, target: Path) -> Any:
        if "ar_dtok" in str(source):
            raise KeyboardInterrupt
        return copyfile(source, target)

    monkeypatch.setattr(shutil, "copyfile", stopped)
    with pytest.raises(KeyboardInterrupt):
        assemble.run(**made, out=out)
    with pytest.raises(UserError):
        Tar.load(out)
    monkeypatch.undo()
    assert Tar.load(assemble.run(**made, out=out)).sha256 == parts.sha256(made["tokenizer"])


@pytest.mark.parametrize("part", ["mllm", "tokenizer", "ar_dtok", "vqvae"])
def test_weights_with_a_flipped_bit_are_not_copied(
    made: dict[str, Any], tmp_path: Path, part: str
) -> None:
    file = made[part] / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.write_bytes(data)
    refused(f"{file} is damaged or another file", **made, out=tmp_path / "tar")


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 1e-30), ("dtok_temperature", -1.0), ("guidance", 1e30), ("top_p", 1.5)],
)
def test_sampling_settings_that_make_no_finite_logits_are_a_sentence(
    name: str, value: float
) -> None:
    with pytest.raises(UserError, match=f"the sampling settings: {name}: "):
        Sampling().changed({name: value})
    assert Sampling().changed({"temperature": 0.0, "guidance": 0.0}).temperature == 0.0
