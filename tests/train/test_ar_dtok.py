"""Training AR-DTok: exact resume, dropped conditions, and parts that must fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.manifest import read_manifest
from tarkit.artifacts.picture_tar import PicturePlace
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import load_ar_dtok, load_ta_tok, load_vqvae
from tarkit.config import write_toml
from tarkit.encode import EncodePlan
from tarkit.errors import UserError
from tarkit.models.ar_dtok import resize_positions
from tarkit.models.ta_tok import TaTok
from tarkit.models.vqvae import Vqvae
from tarkit.train import ar_dtok, vqvae
from tarkit.train.ar_dtok import ArDtokConfig, ArDtokTask, DtokBatch, _start_from
from tarkit.train.code_batches import Codes, PictureCodes, SizedPixels
from tarkit.train.streams import PictureRow, picture_stream
from tarkit.train.vqvae import VqvaeConfig
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
        file, images=[pictures], tokenizer=models["tokenizer"], vqvae=models["vqvae"], out=out
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
    settings = ArDtokConfig(**SETTINGS | changes)
    ta_tok, vqvae = load_ta_tok(models["tokenizer"]), load_vqvae(models["vqvae"])
    source = PictureCodes(
        picture_stream(open_artifact(pictures), seed=0),
        settings.scales,
        ta_tok,
        vqvae,
        vq_size_px=parts.SIZE_PX,
        square=settings.square,
        remember=settings.remember,
    )
    return ArDtokTask(settings, source, ta_tok, vqvae, vqvae_sha256="")


def picture_codes(made: ArDtokTask) -> PictureCodes:
    assert isinstance(made.source, PictureCodes)
    return made.source


def codes_of(made: ArDtokTask, batch: DtokBatch) -> tuple[Tensor, Tensor]:
    """The condition's and the image VQ's codes of a batch, encoded as a step does."""
    codes = made.source.codes(batch.codes)
    return codes[batch.scale], codes[None]


def test_a_batch_holds_the_codes_of_the_same_pictures(
    pictures: Path, models: dict[str, Path]
) -> None:
    made = task(pictures, models, scale_ratio=(0, 1, 0))
    batch = made.batch(1, 3, 0, 1)
    raw = [made.stream[3 + i].pixels() for i in range(3)]
    images = torch.from_numpy(np.stack(raw)).permute(0, 3, 1, 2).float() / 255
    condition, codes = codes_of(made, batch)
    assert torch.equal(condition, made.ta_tok.encode_scales(images, [Scale.HALF])[Scale.HALF])
    assert torch.equal(codes, made.vqvae.encode(images))
    assert condition.shape == (3, 4) and codes.shape == (3, 16)
    assert made._condition(condition).shape == (3, 4, 16)


class Oblong(PictureRow):
    """20 x 12 pixels whose bytes count up."""

    def pixels(self) -> np.ndarray:
        return (np.arange(12 * 20 * 3) % 256).astype(np.uint8).reshape(12, 20, 3)


@pytest.mark.parametrize("square", ["crop", None])
def test_a_picture_is_cropped_or_squashed_for_both_models(
    pictures: Path, models: dict[str, Path], square: str | None
) -> None:
    row = Oblong({"key": "0"}, PicturePlace("", 0, 0))
    made = picture_codes(task(pictures, models, square=square)).read([row])
    assert isinstance(made, SizedPixels)
    # The middle square of 20 x 12 is columns 4 to 15.
    seen = row.pixels()[:, 4:16] if square else row.pixels()
    expected = np.asarray(Image.fromarray(seen).resize((16, 16), Image.Resampling.BICUBIC))
    for pixels in (made.ta_tok, made.vqvae):
        assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), expected)


def test_remembered_codes_are_those_of_the_pictures(
    pictures: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task(pictures, models)
    encoded: list[int] = []
    source = picture_codes(made)
    real = source.encode

    def spy(pixels: SizedPixels) -> Codes:
        encoded.append(len(pixels.names))
        return real(pixels)

    monkeypatch.setattr(source, "encode", spy)
    # 12 pictures: the first epoch's three batches of four, and then never again.
    batches = [codes_of(made, made.batch(step, 4, 0, 1)) for step in range(9)]
    assert encoded == [4, 4, 4]
    forgetful = task(pictures, models, remember=0)
    for step, codes in enumerate(batches):
        again = codes_of(forgetful, forgetful.batch(step, 4, 0, 1))
        assert all(torch.equal(one, two) for one, two in zip(codes, again, strict=True))
    # A batch with one new picture among four known ones is encoded whole.
    source._rows.clear()
    codes_of(made, made.batch(0, 4, 0, 1))
    codes_of(made, made.batch(0, 5, 0, 1))
    assert encoded == [4, 4, 4, 4, 5]
    # A sheet reads and leaves the memory as it is.
    before = dict(source._rows)
    made.samples(0)
    assert encoded[-1] == 8 and source._rows == before


def test_memory_is_emptied_when_it_is_full(pictures: Path, models: dict[str, Path]) -> None:
    small, forgetful = (task(pictures, models, remember=n) for n in (9, 0))
    for step in range(7):
        codes, again = (codes_of(made, made.batch(step, 4, 0, 1)) for made in (small, forgetful))
        assert all(torch.equal(one, two) for one, two in zip(codes, again, strict=True))
        assert 0 < len(picture_codes(small)._rows) <= 9


def test_encoders_run_in_the_step_in_float32_and_not_in_the_thread_that_reads(
    pictures: Path, models: dict[str, Path]
) -> None:
    made = task(pictures, models)
    calls: list[str] = []
    patches = made.ta_tok.model.encoder.embeddings.patch_embedding
    patches.register_forward_hook(lambda *given: calls.append("ta_tok"))
    made.vqvae.encoder.register_forward_hook(lambda *given: calls.append("vqvae"))
    batch = made.batch(0, 4, 0, 1)
    assert isinstance(batch.codes, SizedPixels) and not calls
    plain = codes_of(made, batch)
    assert sorted(calls) == ["ta_tok", "vqvae"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = codes_of(made, batch)
        condition = made._condition(plain[0])
        # What the switch prevents: the same models under bfloat16 choose other codes.
        images = batch.codes.vqvae.float() / 255
        assert not torch.equal(made.vqvae.encode(images), plain[1])
    assert all(torch.equal(one, two) for one, two in zip(plain, under_autocast, strict=True))
    assert torch.equal(condition, made.ta_tok.condition(plain[0]))


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

    before = made.ta_tok.condition(codes_of(made, batch)[0])
    made.loss(Spy(), batch, 0)
    assert float(seen[0][1].abs().sum()) == float(seen[0][3].abs().sum()) == 0
    assert torch.equal(seen[0][[0, 2]], before[[0, 2]])
    assert float(before.abs().sum(dim=(1, 2)).min()) > 0
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
    given: dict[str, Any] = {"images": [pictures], "tokenizer": models["tokenizer"], "start": whole}
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


# ---- from tokens


def encoded(pictures: Path, models: dict[str, Path], out: Path, size_px: int = 16) -> Path:
    """Pictures as tokens with the image VQ's codes."""
    overrides = [f"vq_size_px={size_px}", "batch_size=4"]
    tokenizer, vqvae = models["tokenizer"], models["vqvae"]
    plan = EncodePlan(pictures, tokenizer=tokenizer, vqvae=vqvae, out=out, overrides=overrides)
    return plan.run().path


def run_tokens(
    file: Path, tokens: Path, models: dict[str, Path], out: Path, start: Path | None = None
) -> Path:
    tokenizer, vqvae = models["tokenizer"], models["vqvae"]
    return ar_dtok.run(
        file, tokens=[tokens], tokenizer=tokenizer, vqvae=vqvae, out=out, start=start
    )


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_tokens_train_as_the_pictures_do_and_no_encoder_runs(
    pictures: Path,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = config(tmp_path)
    tokens = encoded(pictures, models, tmp_path / "tokens")
    of_pictures = run(file, pictures, models, tmp_path / "of_pictures")

    def forbidden(*given: Any, **named: Any) -> Tensor:
        raise AssertionError("an encoder ran")

    monkeypatch.setattr(Vqvae, "encode", forbidden)
    monkeypatch.setattr(TaTok, "features", forbidden)
    of_tokens = run_tokens(file, tokens, models, tmp_path / "of_tokens")
    assert losses(of_tokens) == losses(of_pictures) and len(losses(of_tokens)) == 8
    weights = "model.safetensors"
    assert (of_tokens / weights).read_bytes() == (of_pictures / weights).read_bytes()
    # The pictures hold one failed row; the row of another split is not failed.
    settings = read_manifest(of_tokens)["settings"]
    assert (settings["rows"], settings["failed_rows"]) == (12, 1)
    assert f"{tokens}: 1 failed rows are left out" in caplog.text


def test_a_stopped_training_from_tokens_ends_with_the_same_bytes(
    pictures: Path, models: dict[str, Path], tmp_path: Path, resumes: Any
) -> None:
    tokens = encoded(pictures, models, tmp_path / "tokens")
    file = config(tmp_path)
    resumes(ArDtokTask, lambda out: run_tokens(file, tokens, models, out), stops=(2, 5))


def test_just_one_of_tokens_and_images_is_named(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"tokenizer": models["tokenizer"], "vqvae": models["vqvae"]}
    sources: list[dict[str, Any]] = [{}, {"images": [pictures], "tokens": [pictures]}]
    for source in sources:
        with pytest.raises(UserError, match="from --tokens or from --images: name one"):
            ar_dtok.run(config(tmp_path), out=tmp_path / "out", **given, **source)


def test_tokens_are_not_made_square_again(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    tokens = encoded(pictures, models, tmp_path / "tokens")
    with pytest.raises(UserError, match="square = 'crop' is for --images"):
        run_tokens(config(tmp_path, square="crop"), tokens, models, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_resumed_from_tokens_with_another_number_of_rows(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    tokens = encoded(pictures, models, tmp_path / "tokens")
    file = config(tmp_path, steps=1)
    run_tokens(file, tokens, models, tmp_path / "out")
    artifact = open_artifact(tokens)
    rows = artifact.rows("00002")
    artifact.write("00002", [*rows[:3], artifact.failed_row(rows[3]["key"], "torn")])
    with pytest.raises(UserError, match=r"failed_rows: 1 there, 2 now; rows: 12 there, 11 now"):
        run_tokens(file, tokens, models, tmp_path / "out")


# ---- from another resolution

WIDE = parts.AR_DTOK.model_copy(update={"num_codes": 64})  # 32 px


def test_another_resolution_changes_the_position_table_alone(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    tokens = encoded(pictures, models, tmp_path / "tokens", size_px=32)
    still = config(tmp_path, arch=WIDE, steps=1, learning_rate=0.0)
    out = run_tokens(still, tokens, models, tmp_path / "out", start=models["ar_dtok"])
    before, after = (load_ar_dtok(path).state_dict() for path in (models["ar_dtok"], out))
    assert load_ar_dtok(out).arch == WIDE
    table = resize_positions(before.pop("abs_pe"), max_condition=16, num_codes=64)
    assert torch.equal(after.pop("abs_pe"), table)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_of_16_px_goes_on_at_32_px_below_the_loss_of_a_new_one(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    small, large = (
        encoded(pictures, models, tmp_path / f"tokens_{px}", size_px=px) for px in (16, 32)
    )
    quick: dict[str, Any] = {"learning_rate": 1e-2, "sample_every": 99}
    at_16 = config(tmp_path, steps=40, **quick)
    trained = run_tokens(at_16, small, models, tmp_path / "at_16")
    at_32 = config(tmp_path, arch=WIDE, steps=4, **quick)
    fresh = losses(run_tokens(at_32, large, models, tmp_path / "fresh"))
    went_on = losses(run_tokens(at_32, large, models, tmp_path / "went_on", start=trained))
    # A new model guesses: ln 12 = 2.48.
    assert fresh[0] == pytest.approx(np.log(12), abs=0.1)
    assert went_on[0] < fresh[0] - 0.1, (went_on, fresh)


def test_a_published_file_starts_a_training_without_naming_its_parts(tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "goldens/ar_dtok_tiny.pth"
    arch = load_ar_dtok(file).arch
    assert torch.equal(
        _start_from(file, arch, "a", ("b", None)).abs_pe, load_ar_dtok(file).state_dict()["abs_pe"]
    )


def test_it_goes_on_with_another_tokenizer_only_where_that_is_asked_for(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    other = parts.save_ta_tok(tmp_path / "other", seed=1)
    given: dict[str, Any] = {"images": [pictures], "vqvae": models["vqvae"], "tokenizer": other}
    given["start"] = models["ar_dtok"]
    with pytest.raises(UserError, match="was trained with tokenizer") as refused:
        ar_dtok.run(config(tmp_path, steps=1), out=tmp_path / "refused", **given)
    assert "--set start_tokenizer=any" in str(refused.value.hint)
    asked = config(tmp_path, steps=1, start_tokenizer="any")
    mine = ar_dtok.run(asked, out=tmp_path / "mine", **given)
    assert read_config(mine)["tokenizer_sha256"] == parts.sha256(other)


def test_it_goes_on_with_an_image_vq_that_went_on_from_its_own(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    settings = VqvaeConfig(arch=parts.VQVAE, steps=1, batch_size=2, learning_rate=1e-3)
    (tmp_path / "vqvae.toml").write_text(write_toml(settings))
    went_on = vqvae.run(
        tmp_path / "vqvae.toml", images=[pictures], start=models["vqvae"], out=tmp_path / "vqvae"
    )
    other = vqvae.run(tmp_path / "vqvae.toml", images=[pictures], out=tmp_path / "other")
    mine = ar_dtok.run(
        config(tmp_path, steps=1),
        images=[pictures],
        tokenizer=models["tokenizer"],
        vqvae=went_on,
        start=models["ar_dtok"],
        out=tmp_path / "ar_dtok",
    )
    assert read_config(mine)["vqvae_sha256"] == parts.sha256(went_on)
    with pytest.raises(UserError, match="was trained with vqvae"):
        ar_dtok.run(
            config(tmp_path, steps=1),
            images=[pictures],
            tokenizer=models["tokenizer"],
            vqvae=other,
            start=models["ar_dtok"],
            out=tmp_path / "refused",
        )
