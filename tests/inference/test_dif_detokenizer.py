"""Dif-DTok: a small SANA from a published folder, at every scale, and what is refused."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from typer.testing import CliRunner

from tarkit import Tar
from tarkit.checkpoints import hub
from tarkit.checkpoints.hub import DIF_DTOK, NEGATIVE, find
from tarkit.cli.app import app
from tarkit.errors import UserError
from tarkit.inference.dif_detokenizer import DifDetokenizer
from tarkit.vocab import Scale
from tests.checkpoints.test_hub import empty_cache, fill, snapshot

__all__ = ["empty_cache"]  # the fixture of an empty cache without a network

WIDTH = 24  # of the features of the small published TA-Tok, which is conditioned on 81, 16 or 9
SIDE = 32


def publish(folder: Path, *, length: int = 81, width: int = WIDTH, latents: int = 4) -> Path:
    """A folder as the publisher writes it, and a pipeline description that nothing reads."""
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        **{"patch_size": 1, "in_channels": latents, "out_channels": latents, "num_layers": 1},
        **{"num_attention_heads": 2, "attention_head_dim": 4, "sample_size": SIDE // 2},
        **{"num_cross_attention_heads": 2, "cross_attention_head_dim": 4},
        **{"cross_attention_dim": 8, "caption_channels": WIDTH},
    )
    with torch.no_grad():  # loud enough for the condition to show
        for parameter in transformer.parameters():
            parameter.mul_(3.0)
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = diffusers.AutoencoderDC(
        **{"in_channels": 3, "latent_channels": latents, "attention_head_dim": 2},
        **{"encoder_block_types": blocks, "decoder_block_types": blocks},
        **{"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)},
        **{"encoder_qkv_multiscales": ((), (5,)), "decoder_qkv_multiscales": ((), (5,))},
        **{"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)},
        **{"downsample_block_type": "stride_conv", "upsample_block_type": "interpolate"},
        **{"decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"},
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    parts = {"transformer": transformer.to(torch.bfloat16), "vae": vae, "scheduler": scheduler}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    torch.save(torch.randn(length, width).to(torch.bfloat16), folder / NEGATIVE)
    described = {"_class_name": "Strange", "text_encoder": ["strange_module", "Strange"]}
    (folder / "model_index.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return publish(tmp_path / "sana")


def draw(dtok: DifDetokenizer, condition: torch.Tensor, *seeds: int, **how: Any) -> torch.Tensor:
    how = {"guidance": 4.0, "steps": 3, **how}
    return dtok.draw(
        condition, generators=[torch.Generator().manual_seed(seed) for seed in seeds], **how
    )


def features(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(5)) * 4


def test_pictures_have_their_size_and_depend_on_their_own_codes_and_seed(folder: Path) -> None:
    dtok = DifDetokenizer.load(folder)
    assert dtok.size_px == SIDE and dtok.condition_width == WIDTH
    # In float64: through random weights a batch's float32 rounding grows to .004 on some machines.
    dtok.pipeline.to(torch.float64)
    condition = features(3, 16).double()
    drawn = draw(dtok, condition, 1, 2, 3)
    assert drawn.shape == (3, 3, SIDE, SIDE) and 0 <= drawn.min() < drawn.max() <= 1
    assert_close(draw(dtok, condition[1:2], 2)[0], drawn[1], atol=1e-6, rtol=0)
    for changed in (
        draw(dtok, condition[1:2], 7),
        draw(dtok, condition[:1], 2),
        draw(dtok, condition[1:2], 2, guidance=1.0),
        draw(dtok, condition[1:2], 2, steps=5),
    ):
        assert (changed[0] - drawn[1]).abs().max() > 1e-3


def test_what_is_filled_up_changes_nothing(tmp_path: Path) -> None:
    long, short = (
        DifDetokenizer.load(publish(tmp_path / str(length), length=length)) for length in (81, 4)
    )
    condition = features(1, 4)
    # Without guidance the negative embeddings are not asked, only filled up to. Other lengths are
    # summed in another order: in float32 that is 1e-5 of a pixel on some processors, and what a
    # lost mask does (below) is ten times as much.
    unguided = [draw(dtok, condition, 1, guidance=1.0) for dtok in (long, short)]
    assert_close(unguided[0], unguided[1], atol=3e-5, rtol=0)
    # Equal lengths are what the published program can do; there, whatever stands behind a mask is
    # not read. Without the mask it would be.
    dtok = DifDetokenizer(long.pipeline, short.negative)
    same = draw(dtok, condition, 1)
    unmasked = DifDetokenizer(long.pipeline, torch.cat([short.negative, torch.ones(3, WIDTH)]))
    assert (draw(unmasked, condition, 1) - same).abs().max() > 3e-4
    padded = long.pipeline(
        prompt_embeds=torch.cat([condition, torch.full((1, 3, WIDTH), 9.0)], dim=1),
        prompt_attention_mask=torch.tensor([[1] * 4 + [0] * 3]),
        negative_prompt=None,
        negative_prompt_embeds=torch.cat([short.negative, torch.ones(3, WIDTH)])[None],
        negative_prompt_attention_mask=torch.tensor([[1] * 4 + [0] * 3]),
        **{"guidance_scale": 4.0, "num_inference_steps": 3, "height": SIDE, "width": SIDE},
        use_resolution_binning=False,
        generator=[torch.Generator().manual_seed(1)],
        output_type="pt",
    ).images
    assert_close(same, padded, atol=3e-5, rtol=0)


def test_the_transformer_alone_may_be_kept_in_half_precision(folder: Path) -> None:
    halved = DifDetokenizer.load(folder, torch.bfloat16)
    assert {p.dtype for p in halved.pipeline.transformer.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in halved.pipeline.vae.parameters()} == {torch.float32}
    drawn = draw(halved, features(1, 4), 1)
    assert drawn.dtype == torch.float32 and bool(drawn.isfinite().all())


def test_weights_are_read_in_float32_and_the_pipelines_description_is_not_read(
    folder: Path,
) -> None:
    dtok = DifDetokenizer.load(folder)
    assert {p.dtype for p in dtok.pipeline.transformer.parameters()} == {torch.float32}
    assert dtok.negative.dtype == torch.float32
    assert dtok.pipeline.text_encoder is None


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as error:
        DifDetokenizer.load(folder)
    for word in (str(folder), *words):
        assert word in error.value.message, error.value.message
    assert "tarkit models fetch" in (error.value.hint or "") or "publisher" in error.value.hint


def test_a_folder_that_lacks_a_part_or_a_key_is_refused(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["proj_out.bias"]
    save_file(state | {"strange": torch.zeros(1)}, weights)
    refused(folder, "missing proj_out.bias", "unexpected strange")
    save_file({**load_file(weights), "proj_out.weight": torch.zeros(1)}, weights)
    refused(folder, "transformer")
    weights.write_bytes(b"no weights")
    refused(folder, "transformer")
    (folder / NEGATIVE).unlink()
    refused(folder, "lacks", NEGATIVE)


def test_an_unknown_scheduler_and_strange_negatives_are_refused(folder: Path) -> None:
    scheduler = folder / "scheduler" / "scheduler_config.json"
    sound = scheduler.read_text()
    values = '{"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": "many"}'
    large = json.dumps(json.loads(sound) | {"solver_order": 10**30})
    for spoilt in ('{"_class_name": "AutoPipeline"}', "{", "[]", values, large):
        scheduler.write_text(spoilt)
        refused(folder, "scheduler")
    scheduler.write_text(sound)
    for strange in (torch.zeros(3, WIDTH + 1), torch.zeros(WIDTH), torch.ones(2, 2).long()):
        torch.save(strange, folder / NEGATIVE)
        refused(folder, NEGATIVE)
    torch.save(torch.zeros(1).expand(10**6, WIDTH), folder / NEGATIVE)
    refused(folder, "claims more bytes")


def test_without_diffusers_the_error_names_the_extra(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="needs diffusers") as error:
        DifDetokenizer.load(folder)
    assert "tarkit[dif]" in (error.value.hint or "")


@pytest.mark.parametrize("size", [16_384, 15, -16, 16.5])
def test_a_folder_that_would_draw_what_no_sana_draws_is_refused(folder: Path, size: float) -> None:
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": size}))
    refused(folder, "would draw")


def test_a_vae_of_other_latents_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "vae")
    shutil.copytree(publish(tmp_path / "other", latents=8) / "vae", folder / "vae")
    refused(folder, "8 latent channels, the transformer 4")


class Runs:
    """A pickle that would leave a file where it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_hostile_negatives_are_refused_before_they_run(folder: Path, tmp_path: Path) -> None:
    torch.save(Runs(tmp_path / "ran"), folder / NEGATIVE)
    refused(folder, "mkdir")
    (folder / NEGATIVE).write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    refused(folder)
    assert not (tmp_path / "ran").exists()


# ---- by name, from the command line


def test_a_named_model_draws_by_diffusion_at_every_scale(empty_cache: Path, tmp_path: Path) -> None:
    fill(empty_cache, without="vq_ds16_t2i.pt")  # what AR-DTok needs is not asked for
    with pytest.raises(UserError, match="Tar-SANA-600M-512px/negative_prompt_embeds.pth") as error:
        find("tar-1.5b", dtok="dif")
    assert (error.value.hint or "").endswith("--size 512 --dtok dif")
    sana = publish(snapshot(empty_cache, DIF_DTOK[1024].repo))
    found = find("tar-1.5b", dtok="dif")
    assert found.dif_dtok == sana and found.ar_dtok is None
    tar = Tar.load("tar-1.5b", dtok="dif")
    assert len(tar.identities()) == 3
    assert {
        f"dif_dtok/{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae")
    } <= tar.fingerprints().keys()
    known_by = tar.identities()
    torch.save(torch.zeros(81, WIDTH), sana / NEGATIVE)
    assert Tar.load("tar-1.5b", dtok="dif").identities() != known_by
    how = tar.sampling.changed({"dif_steps": 2})
    drawn = [tar.imagine("a macaw", scale=scale, sampling=how) for scale in Scale]
    assert [picture.size for picture in drawn] == [(SIDE, SIDE)] * 3
    out = tmp_path / "macaw.png"
    said = invoke("generate", "a macaw", "--model", "tar-1.5b", "--out", str(out),
                  "--dtok", "dif", "--size", "1024", "--steps", "2", "--guidance", "3")  # fmt: skip
    assert said == 0
    sampling = json.loads(Image.open(out).info["sampling"])
    assert sampling["dif_steps"] == 2 and sampling["guidance"] == 3.0
    sheet = tmp_path / "sheet.png"
    words = ["--out", str(sheet), "--model", "tar-1.5b", "--dtok", "dif", "--steps", "2"]
    assert invoke("reconstruct", str(out), *words) == 0 and sheet.exists()


def invoke(*words: str) -> int:
    return CliRunner().invoke(app, words).exit_code


@pytest.mark.parametrize(
    "words",
    [
        ["--dtok", "dif"],  # the embedded model has none
        ["--dtok", "diffusion"],
        ["--steps", "4"],
        ["--model", "tar-1.5b", "--dtok", "dif", "--size", "256"],
    ],
)
def test_what_cannot_be_drawn_is_said(
    empty_cache: Path, tmp_path: Path, words: Sequence[str]
) -> None:
    out = tmp_path / "a.png"
    result = CliRunner().invoke(app, ["generate", "a ring", "--out", str(out), *words])
    assert result.exit_code in (1, 2) and not out.exists()
    assert "dtok" in result.output.lower() and "Traceback" not in result.output


def test_parts_of_other_features_are_refused(empty_cache: Path) -> None:
    fill(empty_cache)
    folder = publish(snapshot(empty_cache, DIF_DTOK[512].repo))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "caption_channels": 32}))
    with pytest.raises(UserError, match="transformer"):
        Tar.load("tar-1.5b", dtok="dif")


def test_the_list_and_the_fetch_know_it(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(empty_cache)
    asked: list[str] = []

    def snapshot_download(repo: str, **kwargs: Any) -> None:
        asked.append(repo)
        if repo == DIF_DTOK[512].repo:
            assert {"transformer/*", "vae/*", "scheduler/*"} <= set(kwargs["allow_patterns"])
            assert not any("text_encoder" in p for p in kwargs["allow_patterns"])
            publish(snapshot(empty_cache, repo))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: None)
    hub.fetch("tar-1.5b", dtok="dif")
    assert asked == ["csuhan/Tar-1.5B", DIF_DTOK[512].repo]
    listed = {row.part: row for row in hub.known()}
    assert listed["dif_dtok 512 px"].num_bytes > 1000 and listed["dif_dtok 1024 px"].path is None
