"""Training the image VQ: exact resume, killed or stopped; the codebook's start and restarts; the
perceptual and the adversarial loss; sizes of pictures."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tarkit.artifacts.artifact import begin_artifact, open_artifact
from tarkit.artifacts.digests import file_sha256
from tarkit.checkpoints.directory import read_config
from tarkit.checkpoints.load import load_vqvae
from tarkit.config import write_toml
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.models.lpips import Lpips
from tarkit.models.pixel_range import to_signed
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


# Pictures of 16 px: two halvings, then 2 x 2 patches.
ADVERSARY: dict[str, Any] = {
    "discriminator_from": 6,
    "discriminator_channels": 16,
    "discriminator_layers": 2,
}


def test_a_stopped_training_against_a_discriminator_ends_with_the_same_bytes(
    pictures: Path, tmp_path: Path, resumes: Any
) -> None:
    # Resumed before the weight is measured, when the discriminator joins, and later.
    file = config(tmp_path, checkpoint_every=1, **ADVERSARY)
    resumes(VqvaeTask, lambda out: vqvae.run(file, images=[pictures], out=out), stops=(5, 6, 10))
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    # Step 5 measures the weight, step 6 uses it.
    assert [row["step"] for row in rows if "adversarial" in row] == list(range(6, 13))
    assert [row["step"] for row in rows if "discriminator" in row] == list(range(7, 13))
    assert [row["adaptive_weight"] > 0 for row in rows[5:]] == [False] + [True] * 6
    # What is saved is the image VQ alone.
    assert read_config(tmp_path / "whole", "vqvae")["arch"] == parts.VQVAE.model_dump(mode="json")
    load_vqvae(tmp_path / "whole")


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


def task(pictures: Path, *, parts_of: dict[str, Any] | None = None, **changes: Any) -> VqvaeTask:
    """`parts_of`: a start and LPIPS, for the task."""
    torch.manual_seed(0)
    settings = VqvaeConfig(**SETTINGS | changes)
    return VqvaeTask(settings, picture_stream(open_artifact(pictures), seed=0), **(parts_of or {}))


def test_quantising_starts_after_the_warm_up_and_fades_in(pictures: Path) -> None:
    made = task(pictures)
    # 12 steps: 3 without, then 3 of a third each.
    blends = [made.blend(step) for step in range(12)]
    assert blends == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1])


def test_the_codebook_starts_from_latents_and_dead_codes_move_to_them(pictures: Path) -> None:
    made = task(pictures)
    model = made.vqvae
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
    table = made.vqvae.quantize.embedding.weight
    assert {tuple(row) for row in table.tolist()} <= {tuple(row) for row in latents[0].tolist()}


def test_dead_codes_restart_where_quantisation_is_worst(pictures: Path) -> None:
    made = task(pictures)
    table = made.vqvae.quantize.embedding.weight.data
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


# ---- a start


def test_a_published_image_vq_goes_on_with_its_codes(pictures: Path, tmp_path: Path) -> None:
    published = Path(__file__).parents[1] / "goldens" / "vq_tiny.pt"
    arch = load_vqvae(published).arch
    file = config(tmp_path, arch=arch, steps=1, learning_rate=0.0, size_px=16)
    out = vqvae.run(file, images=[pictures], out=tmp_path / "out", start=published)
    before, after = load_vqvae(published).state_dict(), load_vqvae(out).state_dict()
    used = after.pop("quantize.codebook_used")
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    # Every code counts as used at the start: it restarts when it has been unused for long.
    counted = used[: arch.num_codes]
    assert torch.equal(counted[counted < 1], torch.full_like(counted[counted < 1], 0.97))


def test_with_a_start_quantisation_is_whole_and_no_codebook_is_drawn(
    pictures: Path, models: dict[str, Path]
) -> None:
    start = load_vqvae(models["vqvae"])
    table = start.quantize.embedding.weight.clone()
    made = task(pictures, parts_of={"start": start}, restart_every=100)
    assert [made.blend(step) for step in range(12)] == [1.0] * 12
    for step in range(12):
        made.loss(made.model, made.batch(step, 3, 0, 1), step)
        made.after_step(step, made.model)
    assert torch.equal(start.quantize.embedding.weight, table)


def test_a_start_of_other_sizes_is_refused(
    pictures: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    other = parts.VQVAE.model_copy(update={"code_dim": 8})
    with pytest.raises(UserError, match=r"arch is not that of .*: code_dim = 8 \(is 4\)"):
        vqvae.run(
            config(tmp_path, arch=other),
            images=[pictures],
            out=tmp_path / "o",
            start=models["vqvae"],
        )


# ---- how pictures look


@pytest.fixture
def small_lpips(monkeypatch: pytest.MonkeyPatch) -> Lpips:
    monkeypatch.setattr("tarkit.models.lpips.BLOCKS", ((4,), (4,), (8,), (8,), (8,)))
    torch.manual_seed(5)
    return Lpips()


def test_the_perceptual_loss_is_added_with_its_weight(pictures: Path, small_lpips: Lpips) -> None:
    plain = task(pictures)
    batch = plain.batch(0, 3, 0, 1)
    loss, _ = plain.loss(plain.model, batch, 0)
    made = task(pictures, parts_of={"lpips": small_lpips}, perceptual=0.5)
    with_it, figures = made.loss(made.model, batch, 0)
    distance = small_lpips(made.vqvae(batch, quantised=0.0).pixels, batch).mean().item()
    assert figures["perceptual"] == pytest.approx(distance) and abs(distance) > 1e-4
    assert with_it.item() == pytest.approx(loss.item() + 0.5 * distance)


def test_lpips_and_its_weight_go_together(
    pictures: Path, tmp_path: Path, small_lpips: Lpips
) -> None:
    weights = tmp_path / "lpips.pth"
    torch.save(small_lpips.state_dict(), weights)
    file, out = config(tmp_path, steps=1, perceptual=1.0), tmp_path / "out"
    with pytest.raises(UserError, match=r"perceptual = 1.0 is .*, and there is no --lpips"):
        vqvae.run(file, images=[pictures], out=out)
    none = ["perceptual=0"]
    with pytest.raises(UserError, match=r"lpips.pth: the weight of LPIPS .* perceptual, is 0"):
        vqvae.run(file, images=[pictures], out=out, lpips=[weights], overrides=none)
    vqvae.run(file, images=[pictures], out=out, lpips=[weights])
    # The file is an input of the model: its fingerprint is in the manifest.
    recorded = json.loads((out / "manifest.json").read_text())["parents"]["lpips_0"]
    assert recorded["manifest_sha256"] == file_sha256(weights)


# ---- sizes


@pytest.fixture
def of_two_sizes(tmp_path: Path) -> Path:
    """Three pictures of 40 x 24 px and one of 16 x 16 px; a failed row has no size."""
    rng = np.random.default_rng(0)
    artifact = begin_artifact(tmp_path / "mixed", "images", settings={}, shards=["00000"])
    rows: list[dict[str, Any]] = [artifact.failed_row("9", "truncated", split="train")]
    blobs: list[tuple[str, bytes] | None] = [None]
    for number, (width, height) in enumerate([(40, 24)] * 3 + [(16, 16)]):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        blank = dict.fromkeys(artifact.schema.names)
        known = {"key": str(number), "status": "ok", "width": width, "height": height}
        rows.append(blank | known | {"role": "target", "source": "x"})
        blobs.append(("png", png_bytes(pixels)))
    artifact.write_pictures("00000", zip(rows, blobs, strict=True))
    return artifact.path


def test_pictures_of_several_sizes_need_a_size(of_two_sizes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 sizes, from 16 x 16 to 40 x 24 px") as error:
        vqvae.run(config(tmp_path), images=[of_two_sizes], out=tmp_path / "out")
    assert error.value.hint.startswith("--set size_px=256")
    assert not (tmp_path / "out").exists()
    file = config(tmp_path, steps=1, size_px=16)
    vqvae.run(file, images=[of_two_sizes], out=tmp_path / "out")
    assert load_vqvae(tmp_path / "out").arch == parts.VQVAE


def test_a_picture_is_squashed_or_its_middle_is_kept(of_two_sizes: Path) -> None:
    squashed, cropped = (task(of_two_sizes, size_px=16, square=square) for square in (None, "crop"))
    for made, mode in ((squashed, "squash"), (cropped, "crop")):
        expected = []
        for position in range(4):
            picture = Image.fromarray(made.stream[position].pixels())
            if picture.size != (16, 16):
                left = (40 - 24) // 2
                box = (0, 0, 40, 24) if mode == "squash" else (left, 0, left + 24, 24)
                picture = picture.crop(box).resize((16, 16), Image.Resampling.BICUBIC)
            expected.append(np.asarray(picture))
        assert torch.equal(made.batch(0, 4, 0, 1), to_signed(expected))
    assert not torch.equal(squashed.batch(0, 4, 0, 1), cropped.batch(0, 4, 0, 1))


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"size_px": 18}, "18 x 18 px do not divide by 4, the side of a code", "size_px=16"),
        ({"square": "crop"}, "square = 'crop' .*, and size_px is not set", "size_px=256"),
        (
            {"discriminator_from": 0},
            "16 x 16 px have no patch for a discriminator of 3 layers, which needs 24 px",
            "discriminator_layers=2",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        vqvae.run(config(tmp_path, **changes), images=[pictures], out=tmp_path / "out")
    assert f"--set {hint}" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_training_of_an_older_version_is_gone_on_with() -> None:
    # The manifest of a config without the later keys is what it was.
    recorded = VqvaeConfig(**SETTINGS).recorded()
    assert not recorded.keys() & VqvaeConfig.later_keys()
    assert VqvaeConfig(**SETTINGS, perceptual=1.0).recorded()["perceptual"] == 1.0
