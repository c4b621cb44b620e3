"""The representations of Sec. 4.3: each is encoded, trained, assembled, drawn and asked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints import assemble
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import load_vqvae
from tarkit.checkpoints.tar_config import Sampling
from tarkit.config import write_toml
from tarkit.curate.chats import ChatsPlan
from tarkit.encode import EncodePlan
from tarkit.errors import UserError
from tarkit.eval import shapes
from tarkit.inference import generate
from tarkit.inference.tar_model import Tar
from tarkit.models.pixel_range import from_unit_truncated, to_unit
from tarkit.train import mllm
from tarkit.train.mllm import MllmConfig, MllmTask
from tarkit.vocab import Scale
from tests import parts

SETTINGS: dict[str, Any] = {
    "lm": parts.LM,
    "steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "optimizer": "muon",
    "checkpoint_every": 2,
    "log_every": 1,
    "length": 128,
    "ratio": {"t2i": 2, "i2t": 2, "text": 1},
    "scale_ratio": (1, 0, 0),
    "embedding_start": "random",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures, the parts of a Tar, a language model of text, and chats of both kinds of codes."""
    folder = tmp_path_factory.mktemp("representations")
    pictures = parts.write_pictures(folder / "pictures", [["train"] * 4, ["train"] * 3]).path
    models = parts.save_parts(folder / "models")
    lm = parts.save_mllm(folder / "models/lm", None)
    tokens = EncodePlan(
        input_path=pictures,
        out=folder / "tokens",
        tokenizer=models["tokenizer"],
        vqvae=models["vqvae"],
        overrides=["vq_size_px=16"],
    ).run()
    documents = folder / "text.txt"
    documents.write_text("\n".join(parts.CAPTIONS))
    chats = ChatsPlan(out=folder / "chats", tokens=tokens.path, overrides=["codes=vq"]).run()
    aligned = ChatsPlan(out=folder / "aligned", tokens=tokens.path).run()
    text = ChatsPlan(out=folder / "text", text=documents).run()
    return {
        **models,
        "lm": lm,
        "pictures": pictures,
        "tokens": tokens.path,
        "chats": chats.path,
        "aligned": aligned.path,
        "text": text.path,
    }


def config(folder: Path, **changes: Any) -> Path:
    file = folder / "mllm.toml"
    file.write_text(write_toml(MllmConfig(**SETTINGS | changes)))
    return file


def train(made: dict[str, Path], folder: Path, out: Path, **changes: Any) -> Path:
    return mllm.run(
        config(folder, **{"representation": "vq"} | changes),
        chats=[made["chats"], made["text"]],
        lm=made["lm"],
        vqvae=made["vqvae"],
        out=out,
    )


@pytest.fixture(scope="module")
def vq(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An assembled model of pixel codes."""
    folder = tmp_path_factory.mktemp("vq")
    trained = train(made, folder, folder / "mllm", sample_every=3)
    return assemble.run(mllm=trained, vqvae=made["vqvae"], out=folder / "tar")


# ---- chats


def test_chats_of_pixel_codes_hold_the_codes_of_the_image_vq_and_the_pictures_key(
    made: dict[str, Path],
) -> None:
    tokens, chats = open_artifact(made["tokens"], "tokens"), open_artifact(made["chats"], "chats")
    assert chats.settings["tokenizer_sha256"] == parts.sha256(made["vqvae"])
    assert chats.settings["codebook_size"] == 12 and chats.settings["sides"] == {"1": 4}
    codes = {row["key"]: row["vq_codes"] for row in tokens.rows("00000")}
    pictures = [picture for row in chats.rows("00000") for picture in row["images"]]
    assert len(pictures) >= 8 and {picture["key"] for picture in pictures} == set(codes)
    assert all(picture["codes_1"] == codes[picture["key"]] for picture in pictures)
    # By default there is nothing of all this.
    aligned = open_artifact(made["aligned"], "chats")
    assert "codes" not in aligned.settings and "key" not in aligned.rows("00000")[0]["images"][0]


def test_chats_of_pixel_codes_need_them_in_the_tokens(
    made: dict[str, Path], tmp_path: Path
) -> None:
    tokens = EncodePlan(
        input_path=made["pictures"], out=tmp_path / "tokens", tokenizer=made["tokenizer"]
    ).run()
    with pytest.raises(UserError, match="needs codes of an image VQ, and .*tokens has none"):
        ChatsPlan(out=tmp_path / "chats", tokens=tokens.path, overrides=["codes=vq"]).run()


# ---- training


def test_a_stopped_training_on_pixel_codes_ends_with_the_same_bytes(
    made: dict[str, Path], tmp_path: Path, resumes: Any
) -> None:
    resumes(MllmTask, lambda out: train(made, tmp_path, out), stops=(3,))
    written = read_config(tmp_path / "whole")
    assert written["representation"] == "vq" and written["grid"] == 4
    assert written["tokenizer_sha256"] == parts.sha256(made["vqvae"])
    assert written["visual"]["num_codes"] == 12


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, {"vqvae": None}, "draws with an image VQ, and there is no --vqvae"),
        ({}, {"tokenizer": "tokenizer"}, "does not use --tokenizer"),
        ({}, {"chats": "aligned"}, "needs chats with pixel codes of one size, and they have none"),
        ({"representation": "hybrid"}, {}, "was trained on pixels alone, which is not .* hybrid"),
        (
            {"representation": "text-aligned"},
            {"vqvae": None, "tokenizer": "tokenizer"},
            "holds pixel codes of an image VQ, and the representation is text-aligned",
        ),
        ({}, {"lm": "mllm"}, "was trained with representation = text-aligned, and this .* has vq"),
        ({"embedding_start": "codebook"}, {}, "codes are 4 wide, the language model's embeddings"),
    ],
)
def test_parts_that_do_not_fit_the_representation_are_refused(
    changes: dict[str, Any],
    given: dict[str, str | None],
    message: str,
    made: dict[str, Path],
    tmp_path: Path,
) -> None:
    named: dict[str, str | None] = {"chats": "chats", "lm": "lm", "vqvae": "vqvae", **given}
    paths = {option: made[name] for option, name in named.items() if name}
    chats = paths.pop("chats")
    with pytest.raises(UserError, match=message) as error:
        mllm.run(
            config(tmp_path, **{"representation": "vq", "ratio": {"t2i": 1}} | changes),
            chats=[chats],
            out=tmp_path / "out",
            **paths,  # type: ignore[arg-type]
        )
    assert error.value.hint


def test_another_scale_or_another_image_vq_is_refused(
    made: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"scale 1 alone: scale_ratio must be \[1, 0, 0\]"):
        MllmConfig(**SETTINGS | {"representation": "vq", "scale_ratio": (1, 1, 0)})
    other = parts.save_vqvae(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="holds codes of tokenizer .* --vqvae is"):
        train({**made, "vqvae": other}, tmp_path, tmp_path / "out")


# ---- the assembled model


def noise(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))


def pixels(pictures: Sequence[Image.Image]) -> list[bytes]:
    return [picture.tobytes() for picture in pictures]


def test_a_model_of_pixel_codes_draws_by_its_image_vq_alone(
    vq: Path, made: dict[str, Path]
) -> None:
    tar = Tar.load(vq)
    assert (tar.representation, tar.scales, tar.grid, tar.size_px) == ("vq", (Scale.FULL,), 4, 16)
    codes = tar.imagine_codes(["a red ring"], seeds=[0])
    assert codes.shape == (1, 16) and int(codes.max()) < 12
    decoded = load_vqvae(made["vqvae"]).decode(codes)
    [expected] = from_unit_truncated(decoded)
    assert np.array_equal(np.asarray(tar.imagine("a red ring", seed=0)), expected)
    # What it reads are the codes of the picture, as `encode` stores them.
    read = tar.encode([noise(0)], [Scale.FULL])[Scale.FULL]
    own = load_vqvae(made["vqvae"]).encode(to_unit([np.asarray(noise(0))]))
    assert torch.equal(read, own)


def test_a_model_of_pixel_codes_answers_and_edits(vq: Path) -> None:
    tar = Tar.load(vq, dtok=None)
    answers = tar.describe_many([noise(0), noise(1)], ["What is it?"] * 2, max_tokens=4)
    assert answers == [tar.describe(noise(n), "What is it?", max_tokens=4) for n in (0, 1)]
    tar.imagine("like <image>", images=[noise(2)], sampling=Sampling(prompt_guidance=2.0))
    assert 0 <= tar.yes_probability(tar.imagine_codes(["a ring"], seeds=[0]), ["a?"])[0] <= 1


def test_what_pixel_codes_lack_is_refused_in_a_sentence(vq: Path, made: dict[str, Path]) -> None:
    tar = Tar.load(vq)
    with pytest.raises(UserError, match="have scale 1 alone, not scale 2"):
        tar.imagine("a ring", scale=Scale.HALF)
    with pytest.raises(UserError, match="draws with its image VQ .representation vq.: it has no"):
        Tar.load(vq, dtok="dif")
    with pytest.raises(UserError, match="draws with its image VQ alone"):
        Tar.load(vq, draft=made["ar_dtok"])
    with pytest.raises(UserError, match="has no TA-Tok: it draws with pixel codes"):
        _ = tar.ta_tok


def test_parts_that_do_not_belong_together_are_not_assembled(
    vq: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"mllm": vq / "mllm", "vqvae": made["vqvae"], "out": tmp_path / "tar"}
    with pytest.raises(UserError, match="representation vq, which .* does not use --ar-dtok"):
        assemble.run(**given, ar_dtok=made["ar_dtok"])
    with pytest.raises(UserError, match="was trained with tokenizer"):
        assemble.run(**{**given, "vqvae": parts.save_vqvae(tmp_path / "other", seed=1)})
    with pytest.raises(UserError, match="default_scale = 2: pixel codes have scale 1 alone"):
        assemble.run(**given, overrides=["default_scale=2"])
    with pytest.raises(UserError, match="is text-aligned: it needs --tokenizer"):
        assemble.run(**{**given, "mllm": made["mllm"]}, ar_dtok=made["ar_dtok"])


def test_generate_and_eval_shapes_take_a_model_of_pixel_codes(vq: Path, tmp_path: Path) -> None:
    [file] = generate.run("a red ring", out=tmp_path / "ring.png", model=str(vq))
    assert Image.open(file).size == (16, 16)
    shapes.run(out=tmp_path / "shapes", model=vq, limit=2)
    metrics = json.loads((tmp_path / "shapes/results.json").read_text())["metrics"]
    ceilings = {name for name in metrics if name.startswith("ceiling_")}
    assert ceilings == {"ceiling_truth@shapes", "ceiling_pixel_vq@shapes"}
    assert list(metrics["codes@shapes"]) == ["1"]
