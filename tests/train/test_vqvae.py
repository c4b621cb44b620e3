"""Training the image VQ: exact resume, killed or stopped; the codebook's start and restarts."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import load_vqvae
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.train import vqvae
from tarkit.train.streams import picture_stream
from tarkit.train.vqvae import VqvaeConfig, VqvaeTask, _far_latents
from tests import parts

SETTINGS: dict[str, Any] = {
    "arch": parts.VQVAE,
    "steps": 12,
    "batch_size": 3,
    "learning_rate": 1e-3,
    "warmup_unquantised": 0.25,
    "fade_in": 0.25,
    "restart_every": 2,
    "checkpoint_every": 4,
    "log_every": 1,
    "sample_every": 5,
}


def config(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "vqvae.toml"
    file.write_text(write_toml(VqvaeConfig(**SETTINGS | changes)))
    return file


def test_a_stopped_training_ends_with_the_same_bytes(
    pictures: Path, tmp_path: Path, resumes: Any
) -> None:
    file = config(tmp_path)
    # In the fade-in, after the codebook's start from data; then in the restarts of dead codes.
    resumes(VqvaeTask, lambda out: vqvae.run(file, images=[pictures], out=out), stops=(5, 10))


CHILD = """
import sys, threading
from pathlib import Path
from tarkit.train import vqvae
real = vqvae.VqvaeTask.loss
def loss(self, model, batch, step):
    print(step, flush=True)
    if step == 11:
        threading.Event().wait()  # killed before the end, however slow the parent is
    return real(self, model, batch, step)
vqvae.VqvaeTask.loss = loss
config, images, out = map(Path, sys.argv[1:])
vqvae.run(config, images=[images], out=out)
"""


def test_a_training_killed_at_any_moment_ends_with_the_same_bytes(
    pictures: Path, tmp_path: Path
) -> None:
    # A checkpoint at every step, so that many moments are in the middle of writing one.
    file = config(tmp_path, checkpoint_every=1)
    whole = vqvae.run(file, images=[pictures], out=tmp_path / "whole")
    killed = tmp_path / "killed"
    last = random.SystemRandom().randint(2, 10)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(file), str(pictures), str(killed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == last:
                break
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    vqvae.run(file, images=[pictures], out=killed)
    for name in ("model.safetensors", "config.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), f"killed at {last}"


def task(pictures: Path, **changes: Any) -> VqvaeTask:
    torch.manual_seed(0)
    settings = VqvaeConfig(**SETTINGS | changes)
    return VqvaeTask(settings, picture_stream(open_artifact(pictures), seed=0))


def test_quantising_starts_after_the_warm_up_and_fades_in(pictures: Path) -> None:
    made = task(pictures)
    # 12 steps: 3 without, then 3 of a third each.
    blends = [made.blend(step) for step in range(12)]
    assert blends == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1])


def test_the_codebook_starts_from_latents_and_dead_codes_move_to_them(pictures: Path) -> None:
    made = task(pictures)
    model = made.model
    latents = torch.nn.functional.normalize(torch.randn(1, 40, 4), dim=-1)

    def after(step: int, latents: Tensor) -> None:
        """A step of two micro-batches whose latents all have code 0."""
        made._latents = list(latents.view(2, 1, 20, 4))
        made._codes = [torch.zeros(1, 20, dtype=torch.long)] * 2
        made.after_step(step, model)

    table = model.quantize.embedding.weight.data
    before = table.clone()
    after(0, latents)
    after(1, latents)
    assert torch.equal(table, before)
    after(2, latents)  # the last of three steps without quantisation
    among = {tuple(row) for row in latents[0].tolist()}
    assert {tuple(row) for row in table.tolist()} <= among
    assert len({tuple(row) for row in table.tolist()}) == 12
    assert model.quantize.codebook_used[:12].tolist() == [1] * 12
    # Code 0 is used, code 5 has been unused for long; step 4 is no multiple of restart_every.
    model.quantize.codebook_used[5] = 0.005
    before = table.clone()
    after(4, latents)
    assert torch.equal(table, before)
    used = model.quantize.codebook_used
    assert float(used[0]) == pytest.approx(0.97 + 0.03 * 40)
    assert float(used[1]) == pytest.approx(0.97)
    latents = torch.nn.functional.normalize(torch.randn(1, 40, 4), dim=-1)
    after(5, latents)
    assert (table != before).any(1).nonzero()[:, 0].tolist() == [5]
    assert table[5].tolist() in latents[0].tolist()
    assert float(used[5]) == 1.0
    # After four fifths of the steps nothing restarts.
    used[5] = 0.0
    after(11, latents)
    assert float(used[5]) == 0.0


def test_without_a_warm_up_the_codebook_starts_after_the_first_step(pictures: Path) -> None:
    made = task(pictures, warmup_unquantised=0.0)
    latents = torch.nn.functional.normalize(torch.randn(1, 40, 4), dim=-1)
    made._latents, made._codes = [latents], [torch.zeros(1, 40, dtype=torch.long)]
    made.after_step(0, made.model)
    table = made.model.quantize.embedding.weight
    assert {tuple(row) for row in table.tolist()} <= {tuple(row) for row in latents[0].tolist()}


def test_dead_codes_restart_where_quantisation_is_worst(pictures: Path) -> None:
    made = task(pictures)
    table = made.model.quantize.embedding.weight.data
    # Forty latents at their codes but two: those alone have anything to gain.
    codes = torch.arange(40) % 12
    latents = table[codes].clone()
    latents[[7, 31]] += 1.0
    found = _far_latents(latents, codes, table, count=2)
    assert sorted(found.tolist()) == sorted(latents[[7, 31]].tolist())
    assert _far_latents(latents, codes, table, count=0).shape == (0, 4)
    # More dead codes than latents: some are drawn twice.
    assert _far_latents(latents, codes, table, count=50).shape == (50, 4)


def test_errors_within_the_tolerance_cost_nothing(pictures: Path) -> None:
    made = task(pictures, tolerance=500.0)
    batch = made.batch(0, 2, 0, 1)
    wide = made.loss(made.model, batch, 0)[1]["reconstruction"]
    exact = task(pictures).loss(made.model, batch, 0)[1]["reconstruction"]
    assert wide == 0.0 < exact
    error = (made.model(batch, quantised=0.0).pixels - batch).abs()
    some = task(pictures, tolerance=51.0).loss(made.model, batch, 0)[1]["reconstruction"]
    expected = (error - 51 / 127.5).clamp(min=0).pow(2).mean()
    assert some == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_model_directory_holds_what_was_measured(pictures: Path, tmp_path: Path) -> None:
    file = config(tmp_path, steps=2)
    out = vqvae.run(file, images=[pictures], out=tmp_path / "out", overrides=["seed=3"])
    figures = read_config(out, "vqvae")["figures"]
    assert figures["pictures"] == 12
    assert 1 <= figures["perplexity"] <= 12 and 0 <= figures["dead_codes"] < 12
    model = load_vqvae(out)
    stream = task(pictures, seed=3).stream
    x = torch.stack([torch.from_numpy(stream[i].pixels()) for i in range(12)])
    x = x.permute(0, 3, 1, 2).float() / 255
    errors = (model.decode(model.encode(x)) - x).pow(2).flatten(1).mean(1)
    assert figures["psnr_db"] == pytest.approx(float((-10 * errors.log10()).mean()), abs=0.05)
    assert "seed = 3" in (out / "run.toml").read_text()


def test_an_unknown_key_is_named_with_its_file_and_the_nearest(
    pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "vq.toml").write_text("steps = 1\nbatch_sise = 2\nlearning_rate = 1\n")
    with pytest.raises(UserError, match=r"vq\.toml.*unknown key batch_sise \(did you mean") as e:
        vqvae.run(tmp_path / "vq.toml", images=[pictures], out=tmp_path / "out")
    assert "batch_size" in e.value.hint
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_not_complete_are_refused(tmp_path: Path) -> None:
    made = parts.write_pictures(tmp_path / "pictures", [["train"], ["train"]])
    made.shard_path("00001").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of its 2 shards \(00001\)") as e:
        vqvae.run(config(tmp_path), images=[made.path], out=tmp_path / "out")
    assert f"--out {made.path}" in e.value.hint
