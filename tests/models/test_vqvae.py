"""The image VQ: published sizes, quantising on the unit sphere by hand, pictures there and back."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tarkit.models.vqvae import AttnBlock, ResBlock, Vqvae, VqvaeArch

ARCH = VqvaeArch(
    channels=32,
    encoder_multipliers=(1, 1, 2),
    decoder_multipliers=(1, 2, 1),
    num_res_blocks=1,
    latent_channels=16,
    num_codes=12,
    code_dim=4,
)


@pytest.fixture
def vqvae() -> Vqvae:
    torch.manual_seed(0)
    return Vqvae(ARCH).eval()


def test_the_defaults_are_vq_16s_sizes() -> None:
    with torch.device("meta"):
        state = Vqvae(VqvaeArch()).state_dict()
    assert len(state) == 344
    assert sum(v.numel() for v in state.values()) == 71_948_939
    assert state["quantize.embedding.weight"].shape == (16384, 8)
    assert state["quantize.codebook_used"].shape == (65536,)
    assert VqvaeArch().downsampling == 16  # 256 px are 16 x 16 = 256 codes


def test_each_level_but_the_last_halves_and_folding_pixels_halves_again(vqvae: Vqvae) -> None:
    assert ARCH.downsampling == 4
    assert vqvae.encode(torch.rand(2, 3, 16, 24)).shape == (2, 4 * 6)
    folded = ARCH.model_copy(update={"unshuffle": 2})
    assert folded.downsampling == 8
    codes = Vqvae(folded).eval().encode(torch.rand(2, 3, 16, 16))
    assert codes.shape == (2, 4)
    assert Vqvae(folded).eval().decode(codes).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"pixels \(18, 16\) do not divide by 4"):
        vqvae.encode(torch.rand(1, 3, 18, 16))


def test_a_step_down_pads_on_the_right_and_below_only(vqvae: Vqvae) -> None:
    down: Any = vqvae.encoder.conv_blocks[0].get_submodule("downsample")
    x = torch.zeros(1, 32, 4, 4)
    x[0, 0] = torch.arange(16.0).view(4, 4)
    with torch.no_grad():
        for weight in down.parameters():
            weight.zero_()
        down.conv.weight[0, 0, 0, 0] = 1.0
        # The kernel's upper left corner stands on pixels (0, 0), (0, 2), (2, 0), (2, 2).
        assert down(x)[0, 0].tolist() == [[0, 2], [8, 10]]
        down.conv.weight[0, 0] = 0.0
        down.conv.weight[0, 0, 2, 2] = 1.0
        # Its lower right corner: pixel (2, 2), and beyond the picture zeros.
        assert down(x)[0, 0].tolist() == [[10, 0], [0, 0]]


def silence(block: ResBlock) -> None:
    """Let the second convolution give nothing, so that only the skip is left."""
    for weight in block.conv2.parameters():
        weight.zero_()


@torch.no_grad()
def test_a_block_is_a_residual_and_attention_is_one_head_over_all_cells() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 3, 2)
    block = ResBlock(32, 32)
    silence(block)
    assert_close(block(x), x)
    wider = ResBlock(32, 64)
    silence(wider)
    assert_close(wider(x), wider.nin_shortcut(x))
    attention = AttnBlock(32)
    h = F.group_norm(x, 32, attention.norm.weight, attention.norm.bias, 1e-6)
    q, k, v = (conv(h).flatten(2) for conv in (attention.q, attention.k, attention.v))
    # (B, cells, cells), scaled by 32**-.5; values weighted by it.
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * 32**-0.5, dim=-1)
    mixed = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
    assert_close(attention(x), x + attention.proj_out(mixed))


def set_codebook(vqvae: Vqvae, rows: list[list[float]]) -> None:
    with torch.no_grad():
        vqvae.quantize.embedding.weight.copy_(torch.tensor(rows))


def test_codes_are_chosen_in_float32_under_autocast(vqvae: Vqvae) -> None:
    table = vqvae.quantize.embedding.weight
    torch.manual_seed(0)
    with torch.no_grad():  # codes that bfloat16 cannot tell apart
        table.copy_(torch.randn(table.shape[1]) + 3e-2 * torch.randn(table.shape))
    z = vqvae.quantize.codebook().clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = vqvae.quantize.nearest(z)
        rounded = (z @ vqvae.quantize.codebook().T).argmax(dim=-1)
    assert codes.tolist() == list(range(len(table)))
    assert not torch.equal(rounded, codes)


def test_codes_are_the_nearest_by_angle_and_the_lowest_on_ties(vqvae: Vqvae) -> None:
    rows = [[float(i == j) for j in range(4)] for i in range(4)]
    # Rows 4..11 repeat the first four at other lengths.
    set_codebook(vqvae, [*rows, *[[5 * x for x in row] for row in rows + rows]])
    z = F.normalize(torch.tensor([[0.1, 0.9, 0.0, 0.2], [-1.0, -1.0, 0.1, -1.0]]), dim=-1)
    assert vqvae.quantize.nearest(z).tolist() == [1, 2]
    assert_close(vqvae.quantize.codebook()[4:8], torch.eye(4))


def test_losses_fade_in_and_gradients_by_hand(vqvae: Vqvae) -> None:
    set_codebook(vqvae, [[0.0, 0.0, 2.0, 0.0]] * 12)
    z = F.normalize(torch.tensor([[[3.0, 0.0, 4.0, 0.0]]]), dim=-1).requires_grad_()
    vqvae.latents = lambda x: (z, (1, 1))  # type: ignore[method-assign]
    seen: list[Tensor] = []
    vqvae.decode_latents = lambda q, size: seen.append(q) or q.sum()  # type: ignore
    out = vqvae(torch.zeros(1, 3, 4, 4), quantised=0.25)
    # z = (.6, 0, .8, 0), e = (0, 0, 1, 0): squares .36 and .04 over four dimensions: .1.
    assert_close(out.codebook_loss, torch.tensor(0.1))
    assert_close(out.commitment_loss, torch.tensor(0.1))
    # A quarter of the way from z to e.
    assert_close(seen[0], torch.tensor([[[0.45, 0.0, 0.85, 0.0]]]))
    (straight,) = torch.autograd.grad(out.pixels, [z], retain_graph=True)
    assert_close(straight, torch.ones(1, 1, 4))
    (pull,) = torch.autograd.grad(out.commitment_loss, [z], retain_graph=True)
    assert_close(pull, torch.tensor([[[0.3, 0.0, -0.1, 0.0]]]))  # 2 (z - e) / 4
    assert torch.autograd.grad(out.codebook_loss, [z], allow_unused=True, retain_graph=True) == (
        None,
    )
    out = vqvae(torch.zeros(1, 3, 4, 4))
    assert_close(seen[1], torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]))


@torch.no_grad()
def test_training_sees_what_encode_and_decode_give(vqvae: Vqvae) -> None:
    pictures = torch.rand(2, 3, 16, 16)
    out = vqvae(pictures * 2 - 1)
    codes = vqvae.encode(pictures)
    assert torch.equal(out.codes, codes) and codes.shape == (2, 16)
    assert_close(out.latents.norm(dim=-1), torch.ones(2, 16))
    decoded = vqvae.decode(codes)
    assert_close(decoded, (out.pixels * 0.5 + 0.5).clamp(0, 1))
    assert 0 <= float(decoded.min()) <= float(decoded.max()) <= 1


@torch.no_grad()
def test_codes_are_in_reading_order(vqvae: Vqvae) -> None:
    """Convolutions and attention mix cells, so the order is read off the latents' layout."""
    z, size = vqvae.latents(torch.rand(1, 3, 16, 24) * 2 - 1)
    assert size == (4, 6)
    shown: list[Tensor] = []
    vqvae.decoder.forward = lambda x: shown.append(x) or x  # type: ignore
    vqvae.post_quant_conv = torch.nn.Identity()  # type: ignore[assignment]
    vqvae.decode_latents(z, size)
    for row in range(4):
        for column in range(6):
            assert_close(shown[0][0, :, row, column], z[0, row * 6 + column])


def test_codes_of_no_square_picture_are_refused(vqvae: Vqvae) -> None:
    with pytest.raises(ValueError, match="24 codes are not a square grid"):
        vqvae.decode(torch.zeros(1, 24, dtype=torch.long))


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"decoder_multipliers": (1, 2)}, "encoder has 5 levels, the decoder 2"),
        ({"channels": 48}, "a level of 48 channels does not divide into 32 groups"),
    ],
)
def test_sizes_that_make_no_image_vq_are_refused(sizes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        VqvaeArch(**sizes)
