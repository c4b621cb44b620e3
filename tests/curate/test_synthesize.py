"""Pictures of prompts: pairs, references, failures; a tiny random FLUX draws them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    T5Config,
    T5EncoderModel,
)

from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.curate import synthesize, text_to_image
from tarkit.curate.chats import ChatsPlan
from tarkit.curate.synthesize import SynthesizePlan
from tarkit.curate.text_to_image import PictureRequest, load_painter
from tarkit.encode import EncodePlan
from tarkit.errors import UserError
from tarkit.images import decode, to_uint8
from tests import parts
from tests.llm.tiny import save_tokenizer

SMALL = ["size_px=16", "steps=1", "max_prompt_tokens=16", "batch_size=2"]


def save_flux(folder: Path) -> Path:
    """A FLUX of one block of each kind; 16 px are 8 x 8 latents are 4 x 4 patches."""
    tokenizer = save_tokenizer(folder / "words")
    tokenizer.model_max_length = 16
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer), num_attention_heads=2, projection_dim=8, eos_token_id=2, **sizes
    )
    t5 = T5Config(vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformer = diffusers.FluxTransformer2DModel(
        **{"patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1},
        **{"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 8},
        **{"pooled_projection_dim": 8, "axes_dims_rope": [2, 2, 4]},
    )
    with torch.no_grad():  # loud enough for prompts to show
        for parameter in transformer.parameters():
            parameter.mul_(4.0)
    vae = diffusers.AutoencoderKL(
        **{"in_channels": 3, "out_channels": 3, "block_out_channels": (4,), "layers_per_block": 1},
        **{"latent_channels": 1, "norm_num_groups": 1, "use_quant_conv": False},
        **{"use_post_quant_conv": False, "shift_factor": 0.0, "scaling_factor": 1.0},
    )
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=CLIPTextModel(clip),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer,
        transformer=transformer,
        vae=vae,
    )
    pipeline.save_pretrained(folder / "flux")
    return folder / "flux"


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux(tmp_path_factory.mktemp("flux"))


def prompts(path: Path, shards: Sequence[str] = ("00000",)) -> Artifact:
    """A split prompt, a failed one and a plain one a shard."""
    artifact = begin_artifact(path, "prompts", settings={}, shards=shards)
    for number, name in enumerate(shards):
        rows = []
        for place, text in enumerate(["a fox in snow", None, "a ring"]):
            failed = artifact.failed_row(
                f"{number}-{place}", "no text", source=f"f:{place}", licence="MIT"
            )
            ok = {"prompt": text, "status": "ok", "error": None}
            rows.append(failed if text is None else failed | ok)
        rows[0] |= {"template": "<image> in snow", "phrase": "a fox"}
        artifact.write(name, rows)
    return artifact


def run(source: Artifact, flux: Path, out: Path, *more: str, **known: Any) -> Artifact:
    return SynthesizePlan(
        source.path, out=out, generator=str(flux), overrides=[*SMALL, *more], **known
    ).run()


def files(artifact: Artifact) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(artifact.path.iterdir())}


def test_a_prompt_becomes_a_group_of_target_similar_and_reference(
    flux: Path, tmp_path: Path
) -> None:
    artifact = run(prompts(tmp_path / "p"), flux, tmp_path / "o", "seeds=2", "licence=Apache-2.0")
    rows = artifact.rows("00000")
    assert [(row["key"], row["role"], row["prompt"]) for row in rows] == [
        ("0-0-0", "target", "a fox in snow"),
        ("0-0-1", "similar", "a fox in snow"),
        ("0-0-2", "reference", "a fox"),
        ("0-1-0", "target", None),
        ("0-2-0", "target", "a ring"),
        ("0-2-1", "similar", "a ring"),
    ]
    assert [row["template"] for row in rows] == ["<image> in snow"] + [None] * 5
    assert [row["group"] for row in rows] == ["0-0"] * 3 + ["0-1"] + ["0-2"] * 2
    assert rows[3]["error"] == "its prompts row failed: no text"
    assert {row["licence"] for row in rows} == {"Apache-2.0"} and rows[4]["source"] == "f:2"
    blobs = [blob for _, blob in artifact.read_images("00000")]
    drawn = [to_uint8(decode(blob)) for blob in blobs if blob]
    assert all(picture.shape == (16, 16, 3) for picture in drawn)
    assert len({picture.tobytes() for picture in drawn}) == 5
    assert len({row["seed"] for row in rows if row["status"] == "ok"}) == 5


def test_chats_of_the_group_are_of_every_task(flux: Path, tmp_path: Path) -> None:
    images = run(prompts(tmp_path / "p"), flux, tmp_path / "o", "seeds=2")
    tokenizer = parts.save_ta_tok(tmp_path / "ta_tok")
    tokens = EncodePlan(images.path, tokenizer=tokenizer, out=tmp_path / "tokens").run()
    made = ChatsPlan(tokens.path, out=tmp_path / "chats").run().rows("00000")
    ok = [(row["task"], row["key"]) for row in made if row["status"] == "ok"]
    # Each of the five pictures is drawn from its prompt; two pairs both ways; one split prompt.
    assert [sum(task == name for task, _ in ok) for name in ("t2i", "i2i", "ti2i")] == [5, 4, 1]


def test_two_runs_two_ranks_and_a_kill_give_the_same_bytes(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = prompts(tmp_path / "p", ["00000", "00001"])
    one = run(source, flux, tmp_path / "one")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        two = run(source, flux, tmp_path / "two")
    assert files(one) == files(two)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    before = files(one)
    one.shard_path("00001").unlink()
    assert files(run(source, flux, tmp_path / "one")) == before


def test_a_retry_draws_what_failed_and_keeps_the_rest(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = prompts(tmp_path / "p")
    painter = load_painter(str(flux), device="cpu", precision="float32")
    asked: list[PictureRequest] = []

    class Torn:
        def paint(self, requests: Sequence[PictureRequest], **known: Any) -> list[np.ndarray | str]:
            asked.extend(requests)
            return [
                "the pipeline failed" if request.prompt == "a ring" else image
                for request, image in zip(requests, painter.paint(requests, **known), strict=True)
            ]

    monkeypatch.setattr(synthesize, "load_painter", lambda *_, **__: Torn())
    torn = run(source, flux, tmp_path / "o")
    assert [row["error"] for row in torn.rows("00000")][-1] == "the pipeline failed"
    monkeypatch.setattr(synthesize, "load_painter", lambda *_, **__: painter)
    run(source, flux, tmp_path / "o")
    assert parts.status_counts(torn) == {"ok": 2, "failed": 2}  # a finished shard is left alone
    mended = run(source, flux, tmp_path / "o", retry_failed=True)
    assert files(mended) == files(run(source, flux, tmp_path / "whole"))


def test_embeddings_are_shared_by_equal_prompts_and_pictures_do_not_depend_on_the_batch(
    flux: Path,
) -> None:
    painter = load_painter(str(flux), device="cpu", precision="float32")
    assert painter.embed is not None
    size: dict[str, Any] = {"size_px": 16, "steps": 2, "guidance": 0.0, "max_prompt_tokens": 16}
    requests = [PictureRequest("a fox", 1), PictureRequest("a fox", 2), PictureRequest("a ring", 1)]
    together = painter.paint(requests, **size)
    alone = [painter.paint([request], **size)[0] for request in requests]
    assert all(np.array_equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not np.array_equal(together[0], together[1])
    plain = painter.pipeline(
        prompt="a fox",
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(1),
        max_sequence_length=16,
        output_type="np",
    ).images[0]
    assert np.array_equal(together[0], (plain * 255).round().astype(np.uint8))


def test_the_preview_counts_what_a_run_makes(flux: Path, tmp_path: Path) -> None:
    source = prompts(tmp_path / "p")
    counts = SynthesizePlan(
        source.path, generator=str(flux), out=tmp_path / "o", overrides=["seeds=2"]
    ).preview()
    # Two prompts twice, a reference, and the failed row.
    assert counts == {"rows": 3, "pictures": 6, "shards": 1, "shards_to_make": 1}


def test_what_is_no_pipeline_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded as a text-to-image pipeline"):
        load_painter(str(tmp_path), device="cpu", precision="float32")
    with pytest.raises(UserError, match="no whole model of that hub id") as error:
        load_painter("nobody/nothing", device="cpu", precision="float32")
    assert "hf download nobody/nothing" in error.value.hint


def test_offloaded_models_draw_the_same_pictures(
    flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the hooks of a GPU's offload, on the CPU, where `check_offload` refuses it."""
    sizes: dict[str, Any] = {"size_px": 16, "steps": 1, "guidance": 0.0, "max_prompt_tokens": 16}
    requests = [PictureRequest("a fox", 1), PictureRequest("a ring", 2), PictureRequest("a fox", 3)]
    whole = load_painter(str(flux), device="cpu", precision="float32").paint(requests, **sizes)
    monkeypatch.setattr(text_to_image, "check_offload", lambda *given: None)
    painter = load_painter(str(flux), device="cpu", precision="float32", offload="model")
    parts_of = painter.pipeline.components
    hooked = {name for name, part in parts_of.items() if hasattr(part, "_hf_hook")}
    assert hooked == {"text_encoder", "text_encoder_2", "transformer", "vae"}
    for _ in range(2):  # the second call finds the weights where the first one left them
        drawn = painter.paint(requests, **sizes)
        assert all(np.array_equal(one, other) for one, other in zip(drawn, whole, strict=True))


def test_sequential_offload_leaves_no_weight_on_the_device(
    flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the CPU onto itself the hooks cannot run, so that nothing is drawn here.
    monkeypatch.setattr(text_to_image, "check_offload", lambda *given: None)
    painter = load_painter(str(flux), device="cpu", precision="float32", offload="sequential")
    for name in ("text_encoder", "text_encoder_2", "transformer"):
        weights = list(painter.pipeline.components[name].parameters())
        assert weights and {weight.device.type for weight in weights} == {"meta"}, name


def test_offload_is_refused_on_the_cpu_and_is_no_part_of_the_plan(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = prompts(tmp_path / "prompts")
    with pytest.raises(UserError, match="offload = 'model' moves weights from a GPU"):
        run(source, flux, tmp_path / "out", "offload=model")
    assert not (tmp_path / "out").exists()
    made = run(source, flux, tmp_path / "out")
    assert "offload" not in made.settings
    # With a GPU the run that began without goes on.
    run(source, flux, tmp_path / "out", "offload=sequential", device="cuda")
