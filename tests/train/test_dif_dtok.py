"""Training Dif-DTok: a small SANA learns a picture, exactly resumable, and draws it when loaded."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from tarkit import Tar
from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints import assemble
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.hub import NEGATIVE
from tarkit.checkpoints.load import load_ta_tok
from tarkit.checkpoints.sana import find_sana, load_sana
from tarkit.config import load_config, write_toml
from tarkit.encode import EncodePlan
from tarkit.errors import UserError
from tarkit.inference.dif_detokenizer import DifDetokenizer
from tarkit.report.inspect import _model
from tarkit.train import dif_dtok
from tarkit.train.batch_workers import without_networks
from tarkit.train.dif_dtok import DifBatch, DifDtokConfig, DifDtokTask, load_start, noise_schedule
from tarkit.train.latent_batches import PictureLatents, StoredLatents, require_latents
from tarkit.train.loop import begin_training, train
from tarkit.train.metrics import is_documented
from tarkit.train.plans import plan, start_of
from tarkit.train.streams import picture_stream
from tarkit.train.task import Amount
from tarkit.vocab import Scale
from tests import parts
from tests.checkpoints.test_hub import empty_cache, snapshot
from tests.train.conftest import metrics

__all__ = ["empty_cache"]  # the fixture of an empty cache without a network

SIDE = 32
TEXT_WIDTH = 24  # of the text embeddings that the small SANA was made for; TA-Tok's are 16
ROOT = Path(__file__).resolve().parents[2]


def save_sana(folder: Path, *, width: int = TEXT_WIDTH, seed: int = 0, **changes: Any) -> Path:
    """A small SANA with random weights, as diffusers writes it, without a text encoder."""
    torch.manual_seed(seed)
    transformer = diffusers.SanaTransformer2DModel(
        **{"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2},
        **{"num_attention_heads": 2, "attention_head_dim": 8, "sample_size": SIDE // 2},
        **{"num_cross_attention_heads": 2, "cross_attention_head_dim": 8},
        **{"cross_attention_dim": 16, "caption_channels": width, **changes},
    )
    # As SANA starts them. Random ones, of diffusers, are larger than what the condition adds.
    for layer in (transformer.caption_projection.linear_1, transformer.caption_projection.linear_2):
        torch.nn.init.zeros_(layer.bias)
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = diffusers.AutoencoderDC(
        **{"in_channels": 3, "latent_channels": 4, "attention_head_dim": 2},
        **{"encoder_block_types": blocks, "decoder_block_types": blocks},
        **{"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)},
        **{"encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,))},
        **{"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)},
        **{"downsample_block_type": "stride_conv", "upsample_block_type": "interpolate"},
        **{"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"},
        scaling_factor=0.41407,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    for name, part in {"transformer": transformer, "vae": vae, "scheduler": scheduler}.items():
        part.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sana(tmp_path_factory.mktemp("start") / "sana")


# The bias of keys has no effect on attention, so it is left out.
TRAINED = r"attn2\.(?!to_k\.bias)|caption_projection\.|caption_norm\."
SETTINGS: dict[str, Any] = {
    "steps": 7,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "log_every": 1,
    "sample_every": 3,
    "keep_every": 4,
    "sample_pictures": 2,
    "sample_steps": 2,
}


def run(
    tmp_path: Path, pictures: Path, models: dict[str, Path], sana: Path, out: Path, **changes: Any
) -> Path:
    file = tmp_path / "dif_dtok.toml"
    file.write_text(write_toml(DifDtokConfig(**SETTINGS | changes)))
    return dif_dtok.run(
        file, images=[pictures], tokenizer=models["tokenizer"], sana=str(sana), out=out
    )


def task(
    pictures: Path,
    models: dict[str, Path],
    sana: Path,
    negative: Tensor | None = None,
    **changes: Any,
) -> DifDtokTask:
    torch.manual_seed(0)
    config = DifDtokConfig(**SETTINGS | changes)
    ta_tok = load_ta_tok(models["tokenizer"])
    start, zeros = load_start(sana, ta_tok, config.size_px)
    source = PictureLatents(picture_stream(open_artifact(pictures), seed=0), ta_tok, start)
    return DifDtokTask(config, source, ta_tok, start, zeros if negative is None else negative)


# ---- a training


def test_a_stopped_training_ends_with_the_same_bytes_and_a_folder_that_draws(
    pictures: Path,
    models: dict[str, Path],
    sana: Path,
    tmp_path: Path,
    resumes: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    resumes(DifDtokTask, lambda out: run(tmp_path, pictures, models, sana, out), stops=(3, 5))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for file in sorted(whole.rglob("*.safetensors")):
        place = file.relative_to(whole)
        assert file.read_bytes() == (stopped / place).read_bytes(), place
    described = read_config(whole, "dif_dtok")
    assert described["tokenizer_sha256"] == parts.sha256(models["tokenizer"])
    assert described["arch"]["caption_channels"] == 16
    trained, count = described["figures"]["trained_parameters"], described["figures"]["parameters"]
    assert f"dif-dtok: trains {trained:,} of {count:,} parameters" in capsys.readouterr().err
    weights = load_file(whole / "model.safetensors")
    assert sum(w.numel() for w in weights.values()) == trained < count

    # Trained parameters alone are in model.safetensors; the folder holds them all, and no frozen
    # one has changed.
    transformer = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(sana / transformer), load_file(whole / transformer)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        moved = weight.shape != before[name].shape or not torch.equal(weight, before[name])
        is_trained = re.search(TRAINED, name) is not None
        assert moved == is_trained == (f"transformer.{name}" in weights), name
        if is_trained:
            assert torch.equal(weight, weights[f"transformer.{name}"])
    vae = "vae/diffusion_pytorch_model.safetensors"
    before, after = load_file(sana / vae), load_file(whole / vae)
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())

    # The published layout: it is loaded as any Dif-DTok is, and so is the model kept on the way.
    condition = torch.randn(1, 16, 16)
    drawn = []
    for folder in (whole, whole / "steps" / "0000004"):
        drawer = DifDetokenizer.load(folder)
        generator = torch.Generator().manual_seed(0)
        drawn.append(drawer.draw(condition, guidance=4.0, steps=2, generators=[generator]))
        assert drawn[-1].shape == (1, 3, SIDE, SIDE)
    assert not torch.equal(*drawn)
    sheets = [file.stem for file in sorted((whole / "samples").iterdir())]
    assert sheets == ["0000003", "0000006", "0000007"]

    # `inspect` counts what was trained, and beside it what the parts hold.
    facts = _model(whole)
    assert facts["num_parameters"] == trained and "unfinished" not in facts
    assert facts["parts"]["transformer"]["num_parameters"] == count
    assert not any("unfinished" in part for part in facts["parts"].values())

    # The same command again writes nothing; a folder that was not written to its end is completed.
    (whole / NEGATIVE).unlink()
    shutil.rmtree(whole / "vae")
    identity = (whole / "model.safetensors").read_bytes()
    run(tmp_path, pictures, models, sana, whole)
    assert (whole / "model.safetensors").read_bytes() == identity
    generator = torch.Generator().manual_seed(0)
    again = DifDetokenizer.load(whole).draw(
        condition, guidance=4.0, steps=2, generators=[generator]
    )
    assert torch.equal(again, drawn[0])


def test_another_sana_under_the_same_name_is_another_training(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    sana = save_sana(tmp_path / "sana")
    out = run(tmp_path, pictures, models, sana, tmp_path / "out", steps=1)
    weights = sana / "vae" / "diffusion_pytorch_model.safetensors"
    *most, last = weights.read_bytes()
    weights.write_bytes(bytes([*most, last ^ 1]))
    with pytest.raises(UserError, match=r"sana.vae/diffusion_pytorch_model.safetensors: "):
        run(tmp_path, pictures, models, sana, out, steps=1)


def test_a_dif_dtok_goes_on_with_its_own_condition_embedding_and_negatives(
    pictures: Path, models: dict[str, Path], sana: Path, tmp_path: Path
) -> None:
    first = run(tmp_path, pictures, models, sana, tmp_path / "first", steps=1, keep_every=None)
    negative = torch.randn(5, 16)
    torch.save(negative, first / NEGATIVE)
    still: dict[str, Any] = {"steps": 1, "learning_rate": 0.0, "keep_every": None}
    second = run(tmp_path, pictures, models, first, tmp_path / "second", size_px=64, **still)
    name = "transformer/diffusion_pytorch_model.safetensors"
    for key, weight in load_file(second / name).items():
        assert torch.equal(weight, load_file(first / name)[key]), key
    drawer = DifDetokenizer.load(second)
    assert torch.equal(drawer.negative, negative) and drawer.size_px == 64


def test_an_assembled_model_draws_with_it_and_knows_its_tokenizer(
    pictures: Path, models: dict[str, Path], sana: Path, tmp_path: Path
) -> None:
    trained = run(tmp_path, pictures, models, sana, tmp_path / "dif", steps=1, keep_every=None)
    others: dict[str, Any] = {
        name: models[name] for name in ("mllm", "tokenizer", "ar_dtok", "vqvae")
    }
    out = assemble.run(**others, dif_dtok=trained, out=tmp_path / "tar")
    tar = Tar.load(out, dtok="dif")
    how = tar.sampling.changed({"dif_steps": 2, "top_k": 0})
    drawn = [tar.imagine("a red ring", scale=scale, sampling=how) for scale in Scale]
    assert [picture.size for picture in drawn] == [(SIDE, SIDE)] * 3
    assert read_config(trained)["sha256"] in tar.identities()
    assert not (out / "dif_dtok" / "model.safetensors").exists()
    assert Tar.load(out).dtok is not None  # AR-DTok draws still

    # Another one takes its place; one that is not whole, or knows other codes, is refused.
    assemble.run(**others, dif_dtok=trained, out=out)
    assert Tar.load(out, dtok="dif").identities() == tar.identities()
    described = json.loads((trained / "config.json").read_text())
    (trained / NEGATIVE).unlink()
    with pytest.raises(UserError, match=f"is no whole Dif-DTok: it lacks {NEGATIVE}"):
        assemble.run(**others, dif_dtok=trained, out=tmp_path / "half")
    (trained / "config.json").write_text(json.dumps({**described, "tokenizer_sha256": "0" * 64}))
    with pytest.raises(UserError, match="dif was trained with tokenizer 000000000000"):
        assemble.run(**others, dif_dtok=trained, out=tmp_path / "strange")


# ---- from tokens


@pytest.fixture(scope="module")
def tokens(
    pictures: Path,
    models: dict[str, Path],
    sana: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What `tarkit encode --sana` makes of the pictures."""
    plan = EncodePlan(
        pictures,
        tokenizer=models["tokenizer"],
        sana=str(sana),
        out=tmp_path_factory.mktemp("tokens") / "tokens",
        overrides=[f"latent_size_px={SIDE}"],
    )
    return plan.run().path


def test_stored_latents_train_as_pictures_do(
    pictures: Path, models: dict[str, Path], sana: Path, tokens: Path, tmp_path: Path
) -> None:
    config = tmp_path / "dif_dtok.toml"
    config.write_text(write_toml(DifDtokConfig(**SETTINGS | {"keep_every": None})))
    common: dict[str, Any] = {"tokenizer": models["tokenizer"], "sana": str(sana)}
    on_the_fly = dif_dtok.run(config, images=[pictures], out=tmp_path / "fly", **common)
    stored = dif_dtok.run(config, tokens=[tokens], out=tmp_path / "stored", **common)
    losses = [[row["loss"] for row in metrics(out)] for out in (on_the_fly, stored)]
    assert len(losses[0]) == 7 and losses[0] == pytest.approx(losses[1], abs=1e-5)
    settings = json.loads((stored / "manifest.json").read_text())["settings"]
    assert (settings["rows"], settings["failed_rows"]) == (12, 1)
    assert list((stored / "samples").iterdir())
    every_name = set().union(*metrics(stored))
    assert all(map(is_documented, every_name))
    assert {"loss_by_scale/1", "loss_by_scale/2", "loss_by_scale/3"} & every_name
    # It never ran the encoder of TA-Tok, nor that of the VAE.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers.AutoencoderDC, "encode", None)
        patch.setattr("tarkit.models.ta_tok.TaTok.encode", None)
        again = dif_dtok.run(config, tokens=[tokens], out=tmp_path / "again", **common)
    for name in ("model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (stored / name).read_bytes()


def test_a_worker_process_reads_without_sana(
    pictures: Path, models: dict[str, Path], sana: Path, tokens: Path
) -> None:
    of_pictures = task(pictures, models, sana)
    stored = StoredLatents([open_artifact(tokens)], [*Scale], of_pictures.sana, seed=0)
    of_tokens = DifDtokTask(
        of_pictures.config,
        stored,
        of_pictures.ta_tok,
        of_pictures.sana,
        of_pictures.negative,
    )
    for made in (of_pictures, of_tokens):
        pickled = without_networks(made)
        assert len(pickled) < 100_000
        expected, read = (one.batch(7, 2, 1, 2) for one in (made, pickle.loads(pickled)))
        assert torch.equal(expected.targets, read.targets)
        assert torch.equal(expected.noise, read.noise)


def test_tokens_that_do_not_fit_are_refused(
    models: dict[str, Path], sana: Path, tokens: Path, tmp_path: Path
) -> None:
    other = save_sana(tmp_path / "other", seed=1)
    numbers = ["steps=1", "batch_size=1", "learning_rate=1e-3"]

    def refused(message: str, **changes: Any) -> str:
        given: dict[str, Any] = {"tokens": [tokens], "sana": str(sana), "overrides": numbers}
        given |= {"tokenizer": models["tokenizer"], "out": tmp_path / "out"}
        with pytest.raises(UserError, match=message) as error:
            dif_dtok.run(None, **given | changes)
        return error.value.hint

    hint = refused("was encoded with --sana .*, the --sana given is", sana=str(other))
    assert "name the --sana" in hint
    hint = refused(
        "latents of pictures of 32 px, and pictures of 64 px", overrides=[*numbers, "size_px=64"]
    )
    assert "--set size_px=32" in hint
    tok = parts.save_ta_tok(tmp_path / "tok", seed=9)
    assert "name the --tokenizer" in refused("was encoded with --tokenizer", tokenizer=tok)
    refused("from --tokens or from --images: name one", tokens=())
    refused("images_weights is for --images", overrides=[*numbers, "images_weights=[1]"])
    artifact = open_artifact(tokens, "tokens")
    plain = {k: v for k, v in artifact.settings.items() if not k.startswith("latent_")}
    for settings, message, expected in (
        (plain, r"no latents of a VAE \(column latents\)", "--set latent_size_px=32"),
        (artifact.settings | {"sides": {"1": 4, "2": 2}}, "no codes of scale 3", "scale_ratio"),
    ):
        with pytest.raises(UserError, match=message) as error:
            require_latents(
                replace(artifact, settings=settings),
                scales=list(Scale),
                tokenizer_sha256=str(settings["tokenizer_sha256"]),
                vae_sha256=str(settings["vae_sha256"]),
                size_px=32,
            )
        assert expected in error.value.hint


def test_all_of_the_transformer_is_trained_where_that_is_set(
    pictures: Path, models: dict[str, Path], sana: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"steps": 1, "keep_every": None, "trained": "all"}
    out = run(tmp_path, pictures, models, sana, tmp_path / "out", **changes)
    name = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(sana / name), load_file(out / name)
    same = [k for k, v in after.items() if v.shape == before[k].shape and torch.equal(v, before[k])]
    # Of a bias without effect the gradient is rounding.
    assert all(key.endswith("attn2.to_k.bias") for key in same) and len(same) == 2
    assert DifDtokConfig(**SETTINGS).recorded().keys() & {"trained"} == set()


# ---- rounding


class ExactSource:
    """Pictures whose latents are those of each by itself, in float64."""

    def __init__(self, source: PictureLatents) -> None:
        self.source = source
        self.stream = source.stream
        self.read = source.read
        self.codes = source.codes
        self.examples = source.examples

    def latents(self, targets: Tensor) -> Tensor:
        return torch.cat([self.source.latents(one[None]) for one in targets]).double()


class ExactTask(DifDtokTask):
    """The same training in float64."""

    def batch(self, step: int, size: int, part: int, parts: int) -> DifBatch:
        batch = super().batch(step, size, part, parts)
        return batch._replace(noise=batch.noise.double(), sigma=batch.sigma.double())


def exact_run(
    pictures: Path, tokenizer: Path, sana: Path, out: Path, micro: int | None = None
) -> Path:
    """Twenty steps of eight pictures in float64, with CAME."""
    begin_training(0)
    config = DifDtokConfig(
        steps=20, batch_size=8, micro_batch_size=micro, learning_rate=1e-3, sample_pictures=1
    )
    ta_tok, exact = load_ta_tok(tokenizer), load_ta_tok(tokenizer)
    start, negative = load_start(sana, ta_tok)
    stream = picture_stream(open_artifact(pictures), seed=0)
    source = ExactSource(PictureLatents(stream, ta_tok, start))
    exact.model.double()
    start.transformer.double()
    task = ExactTask(config, source, exact, start, negative.double())
    task.samples = lambda step: None  # type: ignore[method-assign,assignment,return-value]
    return train(task, config, out=out, name="dif-dtok", parents={})


def largest_difference(one: Path, other: Path) -> float:
    weights, expected = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert all(value.dtype == torch.float64 for value in weights.values())
    return max(float((value - expected[name]).abs().max()) for name, value in weights.items())


def test_micro_batches_differ_by_rounding_alone(
    pictures: Path, models: dict[str, Path], sana: Path, tmp_path: Path
) -> None:
    # In float32 weights are up to 1e-4 apart: CAME brings every gradient to one size, and of the
    # small ones rounding is a large share. In float64 that share is 2^29 times smaller.
    whole, split = (
        exact_run(pictures, models["tokenizer"], sana, tmp_path / str(micro), micro)
        for micro in (None, 2)
    )
    assert largest_difference(split, whole) < 1e-10
    assert largest_difference(whole, whole) == 0.0


@pytest.mark.slow
def test_two_processes_differ_by_rounding_alone(
    pictures: Path, models: dict[str, Path], sana: Path, tmp_path: Path
) -> None:
    whole = exact_run(pictures, models["tokenizer"], sana, tmp_path / "whole")
    arguments = [pictures, models["tokenizer"], sana, tmp_path / "shared"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "--module", __name__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert largest_difference(tmp_path / "shared", whole) < 1e-10


# ---- learning


def test_it_learns_to_draw_one_picture(models: dict[str, Path], tmp_path: Path, sana: Path) -> None:
    one = parts.write_pictures(tmp_path / "one", [["train"]]).path
    changes: dict[str, Any] = {"scale_ratio": (1, 0, 0), "condition_dropout": 0.0}
    changes |= {"steps": 40, "batch_size": 8, "learning_rate": 3e-3, "keep_every": None}
    changes |= {"sample_every": 1000, "checkpoint_every": 1000, "sample_pictures": 1}
    out = run(tmp_path, one, models, sana, tmp_path / "out", **changes)

    def errors(folder: Path) -> tuple[float, float]:
        """The loss on 32 noises and times, and the mean square distance of a drawn picture."""
        made = task(one, models, folder, **changes)
        batch = made.batch(10_000, 32, 0, 1)
        assert isinstance(batch.inputs, Tensor)
        generators = [torch.Generator().manual_seed(0)]
        with torch.no_grad():
            loss = float(made.loss(made.model, batch, 0)[0])
            decoded = made.sana.vae.decode(made.source.latents(batch.targets[:1]) / 0.41407).sample
            condition = made.condition(batch.inputs[:1], batch.scales[:1], batch.dropped[:1])[0]
        drawer = DifDetokenizer.of(made.sana, made.negative)
        drawn = drawer.draw(condition, guidance=1.0, steps=10, generators=generators)
        return loss, float((drawn - (decoded * 0.5 + 0.5).clamp(0, 1)).square().mean())

    (loss, distance), (learned, closer) = errors(sana), errors(out)
    # Measured: .61 of 1.33 (.46) and .025 of .039 (.65).
    assert learned < 0.6 * loss, (learned, loss)
    assert closer < 0.85 * distance, (closer, distance)
    drawer = DifDetokenizer.load(out)
    condition = torch.randn(1, 16, 16)
    drawn = drawer.draw(condition, guidance=4.0, steps=2, generators=[torch.Generator()])
    assert drawn.shape == (1, 3, SIDE, SIDE) and bool(drawn.isfinite().all())


# ---- a step


def test_the_velocity_that_is_learned_is_the_one_that_the_schedulers_follow(
    pictures: Path, models: dict[str, Path], sana: Path
) -> None:
    made = task(pictures, models, sana)
    batch = made.batch(0, 4, 0, 1)
    latents = made.source.latents(batch.targets)
    seen: list[Any] = []

    class Oracle(nn.Module):
        def forward(self, noised: Tensor, condition: Tensor, mask: Tensor, timestep: Tensor) -> Any:
            seen.append((noised, timestep))
            return batch.noise - latents

    assert float(made.loss(Oracle(), batch, 0)[0]) == 0.0
    noised, timestep = seen[0]
    share = batch.sigma[:, None, None, None]
    assert_close(noised, latents * (1 - share) + batch.noise * share)
    assert torch.equal(timestep, (batch.sigma.double() * 1000 + 1e-4).long())
    assert 0 <= batch.sigma.min() < batch.sigma.max() < 1
    # Following it from pure noise ends at the picture's latents, with either scheduler.
    for scheduler in (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        made.sana.scheduler,
    ):
        scheduler.set_timesteps(10)
        x = batch.noise
        for t in scheduler.timesteps:
            x = scheduler.step(batch.noise - latents, t, x).prev_sample
        assert_close(x, latents, atol=2e-2, rtol=0)


def test_latents_are_the_vaes_in_the_scale_that_the_pipeline_undoes(
    pictures: Path, models: dict[str, Path], sana: Path
) -> None:
    made = task(pictures, models, sana)
    pixels = made.batch(0, 2, 0, 1).targets
    raw = made.sana.vae.encode(pixels.float() / 127.5 - 1).latent
    assert_close(made.source.latents(pixels), raw * 0.41407)
    assert made.source.latents(pixels).std() > 0


def test_shares_of_noise_are_shifted_as_the_scheduler_does() -> None:
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    times = np.arange(1, 1001)[::-1] / 1000
    assert_close(torch.from_numpy(dif_dtok.shifted(times, 3.0)).float(), euler.sigmas)
    dpm = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.0)
    assert noise_schedule(euler) == (3.0, 1000) and noise_schedule(dpm) == (2.0, 1000)
    moving = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for other in (diffusers.DPMSolverMultistepScheduler(), moving):
        with pytest.raises(UserError, match="has no fixed flow shift"):
            noise_schedule(other)


def test_times_are_logit_normal(pictures: Path, models: dict[str, Path], sana: Path) -> None:
    made = task(pictures, models, sana, flow_shift=1.0, logit_mean=0.5, logit_std=2.0)
    sigma = made.batch(0, 400, 0, 1).sigma.double() + 0.0005
    normal = (sigma / (1 - sigma)).log()
    # 400 draws: standard errors .1 and .07.
    assert float(normal.mean()) == pytest.approx(0.5, abs=0.35)
    assert float(normal.std()) == pytest.approx(2.0, abs=0.3)


def test_what_a_row_draws_is_its_own_whatever_the_processes(
    pictures: Path, models: dict[str, Path], sana: Path
) -> None:
    made = task(pictures, models, sana)
    whole = made.batch(3, 4, 0, 1)
    names = made.row_names(whole, 12)
    assert names == [made.stream[12 + i].name for i in range(4)]
    halves = [made.batch(3, 2, rank, 2) for rank in range(2)]
    for name in DifBatch._fields:
        joined = torch.cat([getattr(half, name) for half in halves])
        assert torch.equal(getattr(whole, name), joined), name
    assert not torch.equal(made.batch(4, 4, 0, 1).noise, whole.noise)
    counted = made.batch(0, 400, 0, 1)
    shares = torch.bincount(counted.scales, minlength=4)[1:] / 400
    # Standard errors .025 and .015.
    assert_close(shares, torch.tensor([0.5, 0.25, 0.25]), atol=0.09, rtol=0)
    assert float(counted.dropped.float().mean()) == pytest.approx(0.1, abs=0.05)


def test_a_row_has_the_features_of_its_scale_or_the_negatives(
    pictures: Path, models: dict[str, Path], sana: Path
) -> None:
    negative = torch.randn(3, 16)
    made = task(pictures, models, sana, negative)
    pixels = made.batch(0, 4, 0, 1).inputs
    assert isinstance(pixels, Tensor)
    scales, dropped = torch.tensor([2, 1, 3, 1]), torch.tensor([False, True, False, False])
    condition, mask = made.condition(pixels, scales, dropped)
    assert mask.sum(1).tolist() == [4, 3, 1, 16] and condition.shape == (4, 16, 16)
    images = pixels.float() / 255
    for row, scale in ((0, Scale.HALF), (2, Scale.THIRD), (3, Scale.FULL)):
        expected = made.ta_tok.condition(
            made.ta_tok.encode_scales(images[row : row + 1], [scale])[scale]
        )[0]
        assert_close(condition[row, : len(expected)], expected)
    assert torch.equal(condition[1, :3], negative)
    # A row's loss does not depend on how long its neighbours are.
    batch = made.batch(0, 4, 0, 1)._replace(scales=scales, dropped=dropped)
    alone = [
        made.loss(made.model, DifBatch(*(field[[i]] for field in batch)), 0)[0]  # type: ignore[index]
        for i in range(4)
    ]
    assert_close(made.loss(made.model, batch, 0)[0], torch.stack(alone).mean())


def test_a_bias_of_keys_is_trained_where_it_has_an_effect_and_else_not(
    pictures: Path, models: dict[str, Path], sana: Path, tmp_path: Path
) -> None:
    normed = save_sana(tmp_path / "normed", qk_norm="rms_norm_across_heads")
    for start, has_effect in ((sana, False), (normed, True)):
        made = task(pictures, models, start)
        parameters = dict(made.model.named_parameters())
        biases = [name for name in parameters if name.endswith("attn2.to_k.bias")]
        assert len(biases) == 2
        for name in biases:
            parameters[name].requires_grad_()
            assert (name in made.model.state_dict()) == has_effect
        made.loss(made.model, made.batch(0, 4, 0, 1), 0)[0].backward()
        for name in biases:
            bias, weight = parameters[name].grad, parameters[name[: -len("bias")] + "weight"].grad
            assert bias is not None and weight is not None
            # Measured: .00003 of the weights' gradient without effect, .07 and .14 with one.
            share = float(bias.norm() / weight.norm())
            assert share > 0.01 if has_effect else share < 1e-3


def test_zero_negatives_are_the_same_condition_at_every_length(
    pictures: Path, models: dict[str, Path], sana: Path
) -> None:
    made = task(pictures, models, sana)
    assert torch.equal(made.negative, torch.zeros(16, 16))
    with torch.no_grad():
        made.model.transformer.caption_projection.linear_1.bias.normal_()
        predicted = [
            made.model(
                torch.ones(1, 4, 16, 16),
                torch.zeros(1, length, 16),
                torch.ones(1, length),
                torch.tensor([500]),
            )
            for length in (1, 4, 16)
        ]
    assert_close(predicted[0], predicted[1])
    assert_close(predicted[0], predicted[2])


def test_gradients_reach_every_trained_parameter_and_no_other(
    pictures: Path, models: dict[str, Path], sana: Path
) -> None:
    made = task(pictures, models, sana)
    made.loss(made.model, made.batch(0, 4, 0, 1), 0)[0].backward()
    for name, parameter in made.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
        else:
            assert parameter.grad is None, name
    assert {name for name, p in made.model.named_parameters() if p.requires_grad} == set(
        made.model.state_dict()
    )
    assert all(p.grad is None for p in made.sana.vae.parameters())
    # A state dict that lacks a trained parameter is refused still.
    state = dict(made.model.state_dict())
    del state["transformer.caption_norm.weight"]
    with pytest.raises(RuntimeError, match="caption_norm"):
        made.model.load_state_dict(state)


# ---- what is refused


def test_a_sana_is_found_in_a_folder_or_the_cache_and_nowhere_else(
    empty_cache: Path, tmp_path: Path, sana: Path
) -> None:
    assert find_sana(str(sana)) == sana
    with pytest.raises(UserError, match="no SANA of that hub id") as error:
        find_sana("Efficient/Sana_600M")
    assert str(error.value.hint).startswith("hf download Efficient/Sana_600M --include")
    cached = snapshot(empty_cache, "Efficient/Sana_600M")
    shutil.copytree(sana, cached, dirs_exist_ok=True)
    assert find_sana("Efficient/Sana_600M") == cached
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        find_sana(str(tmp_path / "gone"))
    with pytest.raises(UserError, match="is not a SANA: it lacks transformer, vae, scheduler"):
        load_sana(tmp_path, torch.float32, hint="")


def test_a_size_that_the_weights_do_not_allow_is_refused(
    models: dict[str, Path], sana: Path, tmp_path: Path
) -> None:
    ta_tok = load_ta_tok(models["tokenizer"])
    with pytest.raises(UserError, match="would draw 33 px"):
        load_start(sana, ta_tok, 33)
    placed = save_sana(tmp_path / "placed", interpolation_scale=1)
    with pytest.raises(UserError, match="cannot draw size_px = 64: it has a table of positions"):
        load_start(placed, ta_tok, 64)
    assert load_start(placed, ta_tok, SIDE)[0].size_px == SIDE


@pytest.mark.parametrize("ratio", [(0, 0, 0), (2, -1, 1)])
def test_odds_that_draw_no_scale_are_refused(ratio: tuple[int, int, int], tmp_path: Path) -> None:
    overrides = [f"scale_ratio={list(ratio)}", "steps=1", "batch_size=1", "learning_rate=0.1"]
    with pytest.raises(UserError, match="scale_ratio.*(are all 0|greater than or equal to 0)"):
        load_config(DifDtokConfig, None, overrides)


# ---- the paper


PAPER = {  # Table 8, column Dif-DTok 512px; Table 7 for the samples
    "learning_rate": 1e-4,
    "schedule": "constant",
    "optimizer": "came",
    "betas": (0.9, 0.999, 0.9999),
    "weight_decay": 0.0,
    "warmup": 0.01,
    "batch_size": 48,
    "clip": 0.1,
    "condition_dropout": 0.1,
    "scale_ratio": (2, 1, 1),
}


@pytest.mark.parametrize(("size_px", "samples"), [(512, 23_000_000), (1024, 3_000_000)])
def test_the_papers_cells(size_px: int, samples: int) -> None:
    file = ROOT / "pipelines" / "paper" / f"dif_dtok_{size_px}.toml"
    config = load_config(DifDtokConfig, file)
    cells = {**PAPER, "size_px": size_px, "steps": samples // 48}
    assert {name: getattr(config, name) for name in cells} == cells
    # Each is written down, none left to a default, and says where it is from.
    lines = dict(line.split(" = ", 1) for line in file.read_text().splitlines() if " = " in line)
    assert tomllib.loads(file.read_text()).keys() == lines.keys()
    for name in [*cells, "flow_shift", "logit_mean", "logit_std"]:
        assert re.search(r"# .*(Table|App\.|open|published)", lines[name]), name
    if size_px == 1024:
        from_table = [name for name, text in lines.items() if "Table" in text]
        assert all("# open" in lines[name] for name in from_table)


def test_defaults_are_the_papers() -> None:
    config = DifDtokConfig(**SETTINGS)
    for name in PAPER.keys() - {"learning_rate", "batch_size"}:
        assert getattr(config, name) == PAPER[name], name


def test_settings_are_recorded_with_the_shift_that_was_used(
    pictures: Path, models: dict[str, Path], sana: Path, tmp_path: Path
) -> None:
    out = run(tmp_path, pictures, models, sana, tmp_path / "out", steps=1, keep_every=None)
    settings = json.loads((out / "manifest.json").read_text())["settings"]
    assert settings["flow_shift"] == 3.0 and settings["optimizer"] == "came"


if __name__ == "__main__":
    shown, ta_tok_dir, sana_dir, out_dir = map(Path, sys.argv[1:])
    exact_run(shown, ta_tok_dir, sana_dir, out_dir)


def test_the_flops_that_are_logged_are_those_of_the_plan(
    pictures: Path, models: dict[str, Path], sana: Path
) -> None:
    made = task(pictures, models, sana, scale_ratio=(0, 1, 0), condition_dropout=0)
    batch = made.batch(0, 4, 0, 1)
    _, figures = made.loss(made.model, batch, 0)
    start = start_of(tokenizer=models["tokenizer"], sana=sana, from_images=True)
    settings = made.config.model_dump(mode="json")
    budget = plan("dif_dtok", settings, start, gpus=1, gpu="h100", mfu=0.4)
    flops, slow = figures["flops_per_s"], figures["float32_flops_per_s"]
    assert isinstance(flops, Amount) and isinstance(slow, Amount)
    planned = budget.flops_per_step + budget.frozen_flops_per_step
    assert flops.value == pytest.approx(planned)
    assert slow.value == pytest.approx(budget.float32_flops_per_step)
