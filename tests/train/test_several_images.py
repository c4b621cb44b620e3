"""Trainings on several --images: drawn by weight, each a parent, and one read as ever."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.load import load_ta_tok, load_vqvae
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.train import ar_dtok, dif_dtok, encoder, vqvae
from tarkit.train.code_batches import PictureCodes
from tarkit.train.loop_config import LoopConfig
from tarkit.train.streams import MixedStream, PictureRow, mixed_pictures
from tarkit.vocab import Scale
from tests import parts
from tests.train import test_ar_dtok, test_dif_dtok, test_encoder, test_vqvae

Train = Callable[[Path, Sequence[Path], Path], Path]


@pytest.fixture(params=["vqvae", "encoder", "ar-dtok", "dif-dtok"])
def trainer(
    request: pytest.FixtureRequest, models: dict[str, Path], tmp_path: Path
) -> tuple[type[LoopConfig], dict[str, Any], Train]:
    """The config of a trainer, small settings of it, and its run of (TOML, images, out)."""
    tok: dict[str, Any] = {"tokenizer": models["tokenizer"]}
    runs: dict[str, tuple[type[LoopConfig], dict[str, Any], Train]] = {
        "vqvae": (
            vqvae.VqvaeConfig,
            test_vqvae.SETTINGS,
            lambda file, images, out: vqvae.run(file, images=images, out=out),
        ),
        "encoder": (
            encoder.EncoderConfig,
            test_encoder.SETTINGS,
            lambda file, images, out: encoder.run(file, images=images, out=out),
        ),
        "ar-dtok": (
            ar_dtok.ArDtokConfig,
            test_ar_dtok.SETTINGS,
            lambda file, images, out: ar_dtok.run(
                file, images=images, vqvae=models["vqvae"], out=out, **tok
            ),
        ),
    }
    if request.param == "dif-dtok":
        sana = test_dif_dtok.save_sana(tmp_path / "sana")
        return (
            dif_dtok.DifDtokConfig,
            test_dif_dtok.SETTINGS,
            lambda file, images, out: dif_dtok.run(
                file, images=images, sana=str(sana), out=out, **tok
            ),
        )
    return runs[request.param]


def test_images_are_mixed_by_weight_and_each_is_a_parent(
    trainer: tuple[type[LoopConfig], dict[str, Any], Train],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, settings, run = trainer
    second = parts.write_pictures(tmp_path / "second", [["train"] * 3]).path
    file = tmp_path / "settings.toml"
    changes = {"steps": 2, "batch_size": 4, "sample_every": 100, "checkpoint_every": 2}

    def config(**more: Any) -> Path:
        file.write_text(write_toml(kind(**settings | changes | more)))
        return file

    seen: Counter[str] = Counter()
    batch = MixedStream.batch

    def counted(stream: MixedStream[PictureRow], *place: int, **process: int) -> list[PictureRow]:
        rows = batch(stream, *place, **process)
        seen.update(Path(row.name.source).name for row in rows)
        return rows

    monkeypatch.setattr(MixedStream, "batch", counted)
    run(config(images_weights=(3, 1)), [pictures, second], tmp_path / "out")
    # Two steps of four pictures; of every four, three of the first and one of the second.
    assert dict(seen) == {"pictures": 6, "second": 2}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {"images", "images_1"} <= set(manifest["parents"])
    assert manifest["settings"]["images_weights"] == [3, 1]

    with pytest.raises(UserError, match="images_weights has 1 weights, but there are 2 --images"):
        run(config(images_weights=(1,)), [pictures, second], tmp_path / "wrong")
    # A training on one has the manifest that it had before there could be several.
    run(config(), [pictures], tmp_path / "one")
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert "images_weights" not in manifest["settings"] and "images_1" not in manifest["parents"]


def test_codes_of_equal_keys_in_two_artifacts_are_not_confused(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    # The same keys as in `pictures`, and other pictures.
    second = parts.write_pictures(tmp_path / "second", [["train"] * 5], size_px=24).path
    stream = mixed_pictures([open_artifact(path) for path in (pictures, second)], None, seed=0)
    source, forgetful = (
        PictureCodes(
            stream,
            [Scale.FULL],
            load_ta_tok(models["tokenizer"]),
            load_vqvae(models["vqvae"]),
            vq_size_px=parts.SIZE_PX,
            remember=remember,
        )
        for remember in (100, 0)
    )
    rows = [stream[i] for i in range(24)]
    keys = {
        name: {r["key"] for r in rows if Path(r.name.source).name == name}
        for name in ("pictures", "second")
    }
    assert keys["pictures"] & keys["second"]
    remembered = source.codes(source.read(rows)), source.codes(source.read(rows))
    fresh = forgetful.codes(forgetful.read(rows))
    for codes in remembered:
        assert all(torch.equal(codes[name], fresh[name]) for name in fresh)


def test_weights_of_images_are_refused_with_tokens(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    tokens = test_ar_dtok.encoded(pictures, models, tmp_path / "tokens")
    file = test_ar_dtok.config(tmp_path, images_weights=(1,))
    with pytest.raises(UserError, match="images_weights is for --images"):
        test_ar_dtok.run_tokens(file, tokens, models, tmp_path / "out")
