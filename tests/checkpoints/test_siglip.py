"""SigLIP and SigLIP 2 from folders that transformers saved, against transformers' own numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tarkit.checkpoints.load import load_encoder
from tarkit.errors import UserError
from tarkit.models.encoder import EncoderArch

# 30 px in patches of 7: a grid of 4, two pixels are dropped on each axis, as 384 = 27 * 14 + 6.
VISION: dict[str, Any] = {
    **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "image_size": 30, "patch_size": 7},
}
TEXT: dict[str, Any] = {
    **{"hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "vocab_size": 16, "max_position_embeddings": 4},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
ARCH = EncoderArch(size_px=30, patch_px=7, width=24, layers=3, heads=4, mlp_width=40)


def stirred(model: Any) -> Any:
    """The model with every bias and norm away from where it starts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model.eval()


def whole_model() -> SiglipModel:
    """As google/siglip2-so400m-patch14-384 is one: SigLIP 2 of a fixed resolution is `siglip`."""
    return stirred(SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)))


def changed(path: Path, **changes: Any) -> None:
    """Change keys of a folder's config.json, in the vision config where there is one."""
    config = json.loads((path / "config.json").read_text())
    config.get("vision_config", config).update(changes)
    (path / "config.json").write_text(json.dumps(config))


@torch.no_grad()
def check_equal(path: Path, vision: Any) -> None:
    """The encoder in a folder has the hidden states and picture vectors of transformers' model."""
    encoder = load_encoder(path)
    assert encoder.arch == ARCH and not encoder.training
    pixels = torch.rand(2, 3, 30, 30, generator=torch.Generator().manual_seed(1)) * 2 - 1
    theirs = vision(pixels, output_hidden_states=True)
    own = encoder.hidden_states(pixels)
    assert len(own) == len(theirs.hidden_states) == 4
    for mine, reference in zip(own, theirs.hidden_states, strict=True):
        assert_close(mine, reference, atol=1e-5, rtol=1e-5)
    assert_close(encoder.pool(own[-1]), theirs.pooler_output, atol=1e-5, rtol=1e-5)


def test_a_whole_model_gives_its_vision_tower(tmp_path: Path) -> None:
    model = whole_model()
    model.save_pretrained(tmp_path / "one")
    check_equal(tmp_path / "one", model.vision_model)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    check_equal(tmp_path / "shards", model.vision_model)


@pytest.mark.parametrize("prefix", ["", "vision_model."], ids=["new names", "old names"])
def test_a_vision_tower_alone_is_read_by_old_and_new_names(tmp_path: Path, prefix: str) -> None:
    model = stirred(SiglipVisionModel(SiglipVisionConfig(**VISION)))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    plain = {k.removeprefix("vision_model."): v for k, v in load_file(file).items()}
    save_file({prefix + name: tensor for name, tensor in plain.items()}, file)
    check_equal(tmp_path, model)


def test_a_siglip2_config_with_a_fixed_size_is_read(tmp_path: Path) -> None:
    model = whole_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "siglip2"}))
    check_equal(tmp_path, model.vision_model)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    model = stirred(SiglipVisionModel(SiglipVisionConfig(**VISION))).bfloat16()
    model.save_pretrained(tmp_path)
    check_equal(tmp_path, model.float())


def test_sizes_that_a_published_config_leaves_out_are_the_librarys(tmp_path: Path) -> None:
    # As google/siglip-base-patch16-224's: {"model_type": "siglip_vision_model"} and no more.
    config = SiglipVisionConfig(num_hidden_layers=1)
    with torch.device("meta"):
        shapes = SiglipVisionModel(config).state_dict()
    save_file({k: torch.zeros(v.shape) for k, v in shapes.items()}, tmp_path / "model.safetensors")
    sparse = {"model_type": "siglip", "vision_config": {"num_hidden_layers": 1}}
    (tmp_path / "config.json").write_text(json.dumps(sparse))
    arch = load_encoder(tmp_path).arch
    assert (arch.size_px, arch.patch_px, arch.grid) == (config.image_size, config.patch_size, 14)
    assert (arch.width, arch.heads) == (config.hidden_size, config.num_attention_heads)
    assert arch.mlp_width == config.intermediate_size


def refused(path: Path, match: str) -> str:
    with pytest.raises(UserError, match=match) as error:
        load_encoder(path)
    assert str(path) in error.value.message
    return error.value.hint or ""


def test_naflex_is_refused_by_name(tmp_path: Path) -> None:
    vision = {k: v for k, v in VISION.items() if k != "image_size"}
    config = Siglip2Config(text_config=TEXT, vision_config={**vision, "num_patches": 16})
    Siglip2Model(config).save_pretrained(tmp_path)
    assert "siglip2-so400m-patch14-384" in refused(tmp_path, "is SigLIP 2 NaFlex")
    # Its patch embedding is a matrix over flattened patches: no config can hide that.
    changed(tmp_path, image_size=28)
    refused(tmp_path, "is SigLIP 2 NaFlex")


def test_what_is_not_a_siglip_that_can_be_computed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "siglip"
    stirred(SiglipVisionModel(SiglipVisionConfig(**VISION))).save_pretrained(path)
    whole = (path / "config.json").read_text()
    for changes, match in (
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'gelu_pytorch_tanh'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, only 1e-06"),
        ({"num_channels": 1}, "num_channels is 1, only 3"),
        ({"hidden_size": "wide"}, r"no sizes of SigLIP: width = 'wide'"),
        ({"image_size": 60}, r"position_embedding\.weight is \[16, 24\], expected \[64, 24\]"),
        ({"num_hidden_layers": 4}, r"missing encoder\.layers\.3"),
        ({"num_hidden_layers": 2}, r"unexpected encoder\.layers\.2"),
    ):
        (path / "config.json").write_text(whole)
        changed(path, **changes)
        refused(path, match)
    (path / "config.json").write_text(whole)
    weights = load_file(path / "model.safetensors")
    save_file(weights | {"classifier.weight": torch.zeros(2, 2)}, path / "model.safetensors")
    refused(path, r"unexpected classifier\.weight")
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin")
    refused(path, "holds no safetensors weights")
    clip = tmp_path / "clip"
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(clip)
    refused(clip, "is a clip_vision_model model, where a model of kind encoder")
