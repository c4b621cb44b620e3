"""Training AR-DTok: exact resume, dropped conditions, and parts that must fit."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import load_ar_dtok, load_ta_tok, load_vqvae
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.train import ar_dtok
from tarkit.train.ar_dtok import ArDtokConfig, ArDtokTask
from tarkit.train.streams import PictureRow, picture_stream
from tarkit.vocab import Scale
from tests import parts

SETTINGS: dict[str, Any] = {
    "arch": parts.AR_DTOK,
    "steps": 8,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "log_every": 1,
    "sample_every": 3,
}


def config(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "ar_dtok.toml"
    file.write_text(write_toml(ArDtokConfig(**SETTINGS | changes)))
    return file


def run(file: Path, pictures: Path, models: dict[str, Path], out: Path) -> Path:
    return ar_dtok.run(
        file, images=pictures, tokenizer=models["tokenizer"], vqvae=models["vqvae"], out=out
    )


def test_a_stopped_training_ends_with_the_same_bytes(
    pictures: Path, models: dict[str, Path], tmp_path: Path, resumes: Any
) -> None:
    # Dropout is on, so that the step's own random numbers count too.
    assert parts.AR_DTOK.token_dropout > 0
    file = config(tmp_path)
    resumes(ArDtokTask, lambda out: run(file, pictures, models, out), stops=(2, 5))
    out = tmp_path / "whole"
    assert load_ar_dtok(out).arch == parts.AR_DTOK
    made = read_config(out)
    assert made["tokenizer_sha256"] == parts.sha256(models["tokenizer"])
    assert made["vqvae_sha256"] == parts.sha256(models["vqvae"])
    assert sorted(p.name for p in (out / "samples").iterdir()) == [
        "0000003.png",
        "0000006.png",
        "0000008.png",
    ]


def task(pictures: Path, models: dict[str, Path], **changes: Any) -> ArDtokTask:
    torch.manual_seed(0)
    return ArDtokTask(
        ArDtokConfig(**SETTINGS | changes),
        picture_stream(open_artifact(pictures), seed=0),
        load_ta_tok(models["tokenizer"]),
        load_vqvae(models["vqvae"]),
        vqvae_sha256="",
    )


def test_a_batch_holds_the_condition_and_the_codes_of_the_same_pictures(
    pictures: Path, models: dict[str, Path]
) -> None:
    made = task(pictures, models, scale_ratio=(0, 1, 0))
    batch = made.batch(1, 3, 0, 1)
    raw = [made.stream[3 + i].pixels() for i in range(3)]
    images = torch.from_numpy(np.stack(raw)).permute(0, 3, 1, 2).float() / 255
    codes = made.ta_tok.encode_scales(images, [Scale.HALF])[Scale.HALF]
    assert torch.equal(batch.condition, made.ta_tok.condition(codes))
    assert torch.equal(batch.codes, made.vqvae.encode(images))
    assert batch.condition.shape == (3, 4, 16) and batch.codes.shape == (3, 16)


def test_remembered_codes_are_those_of_the_pictures(
    pictures: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task(pictures, models)
    encoded: list[int] = []
    real = made._encode

    def spy(rows: Sequence[PictureRow]) -> Any:
        encoded.append(len(rows))
        return real(rows)

    monkeypatch.setattr(made, "_encode", spy)
    # 12 pictures: the first epoch's three batches of four, and then never again.
    batches = [made.batch(step, 4, 0, 1) for step in range(9)]
    assert encoded == [4, 4, 4]
    forgetful = task(pictures, models, remember=0)
    for step, batch in enumerate(batches):
        again = forgetful.batch(step, 4, 0, 1)
        assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))
    # A batch with one new picture among four known ones is encoded whole.
    made._rows.clear()
    made.batch(0, 4, 0, 1)
    made.batch(0, 5, 0, 1)
    assert encoded == [4, 4, 4, 4, 5]
    # A sheet reads and leaves the memory as it is.
    before = dict(made._rows)
    made.samples(0)
    assert encoded[-1] == 8 and made._rows == before


def test_memory_is_emptied_when_it_is_full(pictures: Path, models: dict[str, Path]) -> None:
    small, forgetful = (task(pictures, models, remember=n) for n in (9, 0))
    for step in range(7):
        batch, again = small.batch(step, 4, 0, 1), forgetful.batch(step, 4, 0, 1)
        assert all(torch.equal(one, two) for one, two in zip(batch, again, strict=True))
        assert 0 < len(small._rows) <= 9


def test_a_dropped_condition_is_all_zeros_and_only_that(
    pictures: Path, models: dict[str, Path]
) -> None:
    made = task(pictures, models, condition_dropout=0.5)
    batch = made.batch(0, 4, 0, 1)._replace(dropped=torch.tensor([False, True, False, True]))
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, condition: Tensor, codes: Tensor) -> Tensor:
            seen.append(condition)
            return condition.sum()

    before = batch.condition.clone()
    made.loss(Spy(), batch, 0)
    assert float(seen[0][1].abs().sum()) == float(seen[0][3].abs().sum()) == 0
    assert torch.equal(seen[0][[0, 2]], before[[0, 2]])
    # The published program zeroes the caller's tensor.
    assert torch.equal(batch.condition, before)
    shares = [float(made.batch(step, 4, 0, 1).dropped.float().mean()) for step in range(60)]
    # 240 coins: standard error .032.
    assert sum(shares) / 60 == pytest.approx(0.5, abs=0.12)
    assert not task(pictures, models, condition_dropout=0.0).batch(0, 4, 0, 1).dropped.any()


def test_an_arch_that_fits_no_part_is_refused_with_the_flags_that_do(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    wrong = parts.AR_DTOK.model_copy(update={"vocab_size": 16, "condition_width": 8})
    with pytest.raises(
        UserError, match=r"vocab_size = 16 \(is 12\), condition_width = 8 \(is 16\)"
    ) as e:
        run(config(tmp_path, arch=wrong), pictures, models, tmp_path / "out")
    assert e.value.hint == (
        "--set arch.vocab_size=12 --set arch.condition_width=16 --set arch.max_condition=16"
    )
    odd = parts.AR_DTOK.model_copy(update={"num_codes": 15})
    with pytest.raises(UserError, match="arch.num_codes = 15 is not a square") as e:
        run(config(tmp_path, arch=odd), pictures, models, tmp_path / "out")
    assert e.value.hint == "--set arch.num_codes=16"


def test_an_unfinished_part_is_refused_with_the_command_that_finishes_it(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    from tarkit.artifacts.manifest import begin_directory

    begin_directory(tmp_path / "vq", "model", settings={})
    with pytest.raises(UserError, match=r"vq is no model directory: it holds no config.json") as e:
        run(config(tmp_path), pictures, {**models, "vqvae": tmp_path / "vq"}, tmp_path / "out")
    assert "its training is unfinished" in e.value.hint
    assert f"--out {tmp_path / 'vq'} again" in e.value.hint


def test_a_trained_one_goes_on_as_it_is_and_only_with_its_own_codes(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    whole = run(config(tmp_path), pictures, models, tmp_path / "first")
    given: dict[str, Any] = {"images": pictures, "tokenizer": models["tokenizer"], "start": whole}
    still = config(tmp_path, steps=1, learning_rate=0.0)
    out = ar_dtok.run(still, vqvae=models["vqvae"], out=tmp_path / "second", **given)
    for (name, weight), other in zip(
        load_ar_dtok(out).state_dict().items(),
        load_ar_dtok(whole).state_dict().values(),
        strict=True,
    ):
        assert torch.equal(weight, other), name

    other = tmp_path / "vqvae"
    shutil.copytree(models["vqvae"], other)
    made = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(made | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="was trained with vqvae .*, --vqvae is 000000000000"):
        ar_dtok.run(still, vqvae=other, out=tmp_path / "third", **given)

    wide = config(tmp_path, arch=parts.AR_DTOK.model_copy(update={"layers": 3}))
    with pytest.raises(UserError, match=r"arch is not that of .*: layers = 3 \(is") as error:
        ar_dtok.run(wide, vqvae=models["vqvae"], out=tmp_path / "fourth", **given)
    assert "leave --start out" in str(error.value.hint)
    assert not (tmp_path / "third").exists()
