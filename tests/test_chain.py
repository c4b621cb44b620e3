"""Tiny, real and untrained: every command that uses a model, on a model of random weights.

What it draws is noise; that it draws the same noise every time is what is tested.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints import assemble
from tarkit.checkpoints.directory import TOKENIZER, save_model
from tarkit.cli.app import app
from tarkit.images import png_bytes
from tarkit.inference import generate
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.encoder import EncoderArch
from tarkit.models.mllm import LmArch, build, from_scratch
from tarkit.models.ta_tok import TaTok, TaTokArch
from tarkit.models.vqvae import Vqvae, VqvaeArch
from tarkit.vocab import VisualVocabulary, train_text_tokenizer

K, GRID, SIZE_PX = 32, 6, 24


def tarkit(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An assembled model: 24 px in, a grid of 6, 32 codes; 8 x 8 image codes, 16 px out."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    encoder = EncoderArch(size_px=SIZE_PX, patch_px=4, width=16, layers=2, heads=2, mlp_width=32)
    ta_tok = TaTokArch(
        encoder=encoder,
        num_codes=K,
        embedding_width=16,
        code_width=16,
        decoder_layers=1,
        decoder_heads=2,
        decoder_mlp_width=32,
        decoder_side=4,
    )
    save(folder / "ta_tok", TaTok(ta_tok), kind="ta_tok", arch=ta_tok.model_dump(mode="json"))
    made = json.loads((folder / "ta_tok/config.json").read_text())["sha256"]
    vqvae = VqvaeArch(
        channels=32,
        encoder_multipliers=(1, 1),
        decoder_multipliers=(1, 1),
        num_res_blocks=1,
        latent_channels=32,
        num_codes=16,
        code_dim=4,
    )
    save(folder / "vqvae", Vqvae(vqvae), kind="vqvae", arch=vqvae.model_dump(mode="json"))
    ar_dtok = ArDtokArch(
        layers=1,
        heads=2,
        width=32,
        multiple_of=16,
        condition_width=16,
        vocab_size=16,
        num_codes=64,
        max_condition=GRID**2,
    )
    arch = ar_dtok.model_dump(mode="json")
    save(folder / "ar_dtok", ArDtok(ar_dtok), kind="ar_dtok", arch=arch, tokenizer_sha256=made)
    text = train_text_tokenizer(["a photo of a ring"] * 4, vocab_size=270)
    first_id = len(json.loads(text)["model"]["vocab"]) + len(json.loads(text)["added_tokens"])
    visual = VisualVocabulary(first_id=first_id, num_codes=K)
    lm = from_scratch(
        LmArch(width=32, layers=1, heads=2, kv_heads=1, mlp_width=32), vocab_size=visual.size
    )
    save(
        folder / "mllm",
        build(lm),
        kind="mllm",
        arch=lm,
        visual={"first_id": first_id, "num_codes": K},
        system=None,
        tokenizer_sha256=made,
    )
    (folder / "mllm" / TOKENIZER).write_text(text)
    return assemble.run(
        mllm=folder / "mllm",
        tokenizer=folder / "ta_tok",
        ar_dtok=folder / "ar_dtok",
        vqvae=folder / "vqvae",
        out=folder / "tar",
    )


def save(path: Path, module: torch.nn.Module, **config: Any) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            # As initialised, logits are near zero and no prompt makes a difference.
            if config["kind"] in ("mllm", "ar_dtok") and weight.dim() == 2:
                weight.mul_(8)
    save_model(path, module, config)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    (tmp_path / "photo.png").write_bytes(png_bytes(pixels))
    return tmp_path / "photo.png"


def same_pixels(one: Path, two: Path) -> bool:
    with Image.open(one) as a, Image.open(two) as b:
        return a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


def draw(model: Path, out: Path, *words: object, prompt: str = "a ring") -> Path:
    done = tarkit("generate", prompt, "--model", model, "--out", out, *words, "--device", "cpu")
    assert done.exit_code == 0, done.output
    return out


def test_a_prompt_and_a_seed_draw_one_picture(model: Path, tmp_path: Path) -> None:
    one = draw(model, tmp_path / "one.png")
    assert Image.open(one).size == (16, 16)
    assert one.read_bytes() == draw(model, tmp_path / "two.png").read_bytes()
    assert not same_pixels(one, draw(model, tmp_path / "three.png", "--seed", 1))
    assert not same_pixels(one, draw(model, tmp_path / "four.png", "--scale", 3))
    assert not same_pixels(one, draw(model, tmp_path / "five.png", prompt="a heart"))


def test_a_file_of_prompts_draws_what_each_prompt_draws_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a ring\na much longer photo of two hearts\n")
    words = ["--prompts", tmp_path / "p.txt", "--n", 3, "--seed", 4, "--out", tmp_path / "many"]
    assert tarkit("generate", *words, "--model", model, "--device", "cpu").exit_code == 0
    lines = (tmp_path / "many/samples.jsonl").read_text().splitlines()
    assert len(lines) == 6
    for line in map(json.loads, lines):
        alone = draw(
            model, tmp_path / f"{line['seed']}.png", "--seed", line["seed"], prompt=line["prompt"]
        )
        with Image.open(alone) as a, Image.open(tmp_path / "many" / line["file"]) as b:
            away = np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int))
        # The same codes; a batch of another size rounds floats otherwise, and truncation to bytes
        # makes a level of that where a value lies on a boundary.
        assert away.max() <= 1 and (away > 0).mean() < 0.01, line


def test_a_killed_run_goes_on_to_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.txt").write_text("".join(f"{n} rings\n" for n in range(5)))
    monkeypatch.setattr(generate, "BATCH_SIZE", 4)

    def run(out: str) -> None:
        generate.run_file(tmp_path / "p.txt", out=tmp_path / out, model=str(model), n=2)

    run("whole")
    run("again")
    for lost in ("00001/0001.png", "00002/0000.png", "sheet.png"):
        (tmp_path / "again" / lost).unlink()
    run("again")
    for path in (tmp_path / "whole").rglob("*.*"):
        assert (
            path.read_bytes()
            == (tmp_path / "again" / path.relative_to(tmp_path / "whole")).read_bytes()
        )


def test_a_picture_takes_the_place_of_its_mark(
    model: Path, photograph: Path, tmp_path: Path
) -> None:
    prompt = "a ring above <image>"
    one = draw(model, tmp_path / "one.png", "--image", photograph, prompt=prompt)
    black = tmp_path / "black.png"
    black.write_bytes(png_bytes(np.zeros((24, 24, 3), np.uint8)))
    assert not same_pixels(one, draw(model, tmp_path / "two.png", "--image", black, prompt=prompt))


def test_describe_answers_the_same_words_every_time(model: Path, photograph: Path) -> None:
    words = ["describe", photograph, "What is it?", "--model", model, "--max-tokens", 5]
    done = tarkit(*words, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert done.stdout == tarkit(*words, "--device", "cpu").stdout


def test_reconstruct_and_encode_agree_on_a_folder_with_a_bad_file(
    model: Path, photograph: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(photograph, folder / "a.png")
    (folder / "b.png").write_text("this is text")
    pictures, tokens, sheet = tmp_path / "im", tmp_path / "tokens", tmp_path / "sheet.png"
    assert tarkit("curate", "ingest", folder, "--out", pictures).exit_code == 3
    words = [pictures, "--tokenizer", model / "ta_tok", "--out", tokens, "--device", "cpu"]
    assert tarkit("encode", *words).exit_code == 3
    good, bad = sorted(open_artifact(tokens).rows("00000"), key=lambda r: r["status"])[::-1]
    # A grid of 6 has 36, 9 and 4 codes.
    assert [len(good[f"codes_{scale}"]) for scale in (1, 2, 3)] == [36, 9, 4]
    assert "not a picture" in bad["error"]
    done = tarkit("reconstruct", folder, "--model", model, "--out", sheet, "--device", "cpu")
    assert (done.exit_code, done.stdout) == (3, f"{sheet}\n")
    assert "b.png" in done.stderr and sheet.exists()


def test_a_wrong_model_directory_is_told_in_words(model: Path, tmp_path: Path) -> None:
    words = ["generate", "a ring", "--out", tmp_path / "a.png", "--device", "cpu", "--model"]
    for wrong, said in (
        (model / "ta_tok", "is ta_tok, where a model of kind tar is needed"),
        (tmp_path / "gone", "neither a folder nor one of mini"),
        (tmp_path, "holds no config.json"),
    ):
        done = tarkit(*words, wrong)
        assert (done.exit_code, done.stdout) == (1, "")
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def run_offline(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`tarkit WORDS` in a process of its own in which every socket is an error."""
    code = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("no network in this test")
socket.socket.connect = socket.getaddrinfo = refuse
from tarkit.cli import main
main()
"""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        timeout=110,
    )


def test_the_embedded_model_draws_from_an_empty_folder_without_a_network(tmp_path: Path) -> None:
    prompt = "a photo of a red circle left of a blue square"
    done = run_offline(["generate", prompt, "--out", "picture.png"], tmp_path)
    assert (done.returncode, done.stdout) == (0, "picture.png\n"), done.stderr
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.info["prompt"] == prompt
        colours = picture.convert("RGB").getcolors(maxcolors=picture.width * picture.height)
    assert colours is not None and len(colours) > 16, "not a blank"


def test_the_codes_of_every_scale_are_probed_and_counted(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    words = ("--suite", "codes", "--limit", 4, "--model", model, "--out", out)
    assert tarkit("eval", "shapes", *words).exit_code == 0
    found = json.loads((out / "results.json").read_text())["metrics"]["codes@shapes"]
    # A grid of 6 gives 36, 9 and 4 codes of the 32 there are; 200 pictures in a limited run.
    assert [found[scale]["num_codes"] for scale in ("1", "2", "3")] == [36, 9, 4]
    for part in found.values():
        assert part["num_pictures"] == 200
        assert 1 <= part["perplexity"] <= part["used"] <= K
        assert 0 <= part["shape"] <= 1 and 0 <= part["colour"] <= 1 and part["position_px"] > 0
    assert "## codes@shapes" in (out / "report.md").read_text()
