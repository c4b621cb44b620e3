"""The vision encoder against the library's SigLIP, and the contrastive loss by hand."""

import math

import pytest
import torch
from torch.testing import assert_close
from transformers import SiglipVisionConfig, SiglipVisionModel

from tarkit.models.encoder import EncoderArch, TextTower, VisionEncoder, sigmoid_contrastive_loss

# 30 px in patches of 7: a grid of 4, two pixels are dropped on each axis, as 384 = 27 * 14 + 6.
ARCH = EncoderArch(size_px=30, patch_px=7, width=24, layers=4, heads=4, mlp_width=40)


@pytest.fixture(scope="module")
def siglip() -> SiglipVisionModel:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=30,
        patch_size=7,
    )
    model = SiglipVisionModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Every bias and norm away from where it starts, or a forgotten one would not show.
            weight.add_(torch.randn_like(weight) * 0.2)
    return model


def published(siglip: SiglipVisionModel) -> dict[str, torch.Tensor]:
    """Its weights by the names of the published files: transformers < 5 prefixed them."""
    return {k.removeprefix("vision_model."): v for k, v in siglip.state_dict().items()}


def test_names_and_shapes_are_the_librarys(siglip: SiglipVisionModel) -> None:
    own = {k: v.shape for k, v in VisionEncoder(ARCH).state_dict().items()}
    assert own == {k: v.shape for k, v in published(siglip).items()}


@torch.no_grad()
def test_features_and_picture_vectors_are_the_librarys(siglip: SiglipVisionModel) -> None:
    model = VisionEncoder(ARCH).eval()
    model.load_state_dict(published(siglip))
    pixels = torch.rand(2, 3, 30, 30) * 2 - 1
    theirs = siglip(pixels, output_hidden_states=True)
    # [embeddings, block 0, 1, 2, 3]: five states, and -2 is what block 2 gives.
    assert len(theirs.hidden_states) == 5
    for layer in (-2, -1, 0, 3):
        assert_close(model.features(pixels, layer=layer), theirs.hidden_states[layer])
    assert torch.equal(model.features(pixels, layer=-2), model.features(pixels, layer=3))
    states = model.hidden_states(pixels)
    assert len(states) == 5 and torch.equal(states[-2], model.features(pixels, layer=-2))
    assert not torch.allclose(model.features(pixels, layer=-2), model.features(pixels))
    assert model.features(pixels).shape == (2, 16, 24)
    assert_close(model.pool(model.features(pixels)), theirs.pooler_output)


@torch.no_grad()
def test_pixels_that_fill_no_patch_change_nothing() -> None:
    model = VisionEncoder(ARCH).eval()
    pixels = torch.rand(1, 3, 30, 30)
    edge, inside = pixels.clone(), pixels.clone()
    edge[:, :, 28:], edge[:, :, :, 28:] = 0.5, 0.5
    inside[:, :, 27] = 0.5
    assert torch.equal(model.features(edge), model.features(pixels))
    assert not torch.equal(model.features(inside), model.features(pixels))


@torch.no_grad()
def test_a_stem_leaves_the_grid_as_it_is() -> None:
    arch = ARCH.model_copy(update={"size_px": 32, "patch_px": 8, "stem_channels": (4, 8)})
    model = VisionEncoder(arch)
    # Two halvings leave 8 of 32 pixels, patches of 2 of them: a grid of 4.
    assert model.embeddings.patch_embedding.weight.shape == (24, 8, 2, 2)
    assert model.features(torch.rand(2, 3, 32, 32)).shape == (2, arch.grid**2, 24)
    with pytest.raises(ValueError, match="2 stem steps do not divide patch_px=7"):
        VisionEncoder(ARCH.model_copy(update={"stem_channels": (4, 8)}))


def test_the_contrastive_loss_of_two_pairs_by_hand() -> None:
    # Unit vectors after scaling: picture 0 is caption 0 (cosine 1), picture 1 is at right angles
    # to caption 0 (cosine 0) and against caption 1 (cosine -1).
    pictures = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    captions = torch.tensor([[5.0, 0.0], [0.0, -1.0]])
    same = torch.eye(2, dtype=torch.bool)
    loss = sigmoid_contrastive_loss(
        pictures, captions, same, torch.tensor(2.0).log(), torch.tensor(-1.0)
    )
    # Logits are 2 cos - 1: [[1, -1], [-1, -3]]; signs [[+, -], [-, +]]; so the four terms are
    # -log s(1), -log s(1), -log s(1), -log s(-3), summed and divided by two pictures.
    softplus = [math.log1p(math.exp(-x)) for x in (1, 1, 1, -3)]
    assert_close(loss, torch.tensor(sum(softplus) / 2))
    both = sigmoid_contrastive_loss(
        pictures, captions, torch.ones_like(same), torch.tensor(2.0).log(), torch.tensor(-1.0)
    )
    softplus = [math.log1p(math.exp(-x)) for x in (1, -1, -1, -3)]
    assert_close(both, torch.tensor(sum(softplus) / 2))


@torch.no_grad()
def test_a_captions_vector_does_not_depend_on_what_stands_in_its_padding() -> None:
    torch.manual_seed(0)
    tower = TextTower(vocab_size=20, length=6, width=8, layers=1, heads=2, out_width=4).eval()
    mask = torch.tensor([[1.0, 1, 1, 0, 0]])
    one = tower(torch.tensor([[5, 6, 7, 0, 0]]), mask)
    two = tower(torch.tensor([[5, 6, 7, 9, 3]]), mask)
    assert_close(one, two)
    assert not torch.allclose(one, tower(torch.tensor([[5, 6, 8, 0, 0]]), mask))
