"""TA-Tok: pooling by hand, one pass for all scales, and where its parts agree with each other."""

import pytest
import torch
from torch.testing import assert_close

from tarkit.models.encoder import EncoderArch
from tarkit.models.ta_tok import TaTok, TaTokArch, pool
from tarkit.vocab import Scale

ARCH = TaTokArch(
    encoder=EncoderArch(size_px=20, patch_px=4, width=16, layers=3, heads=2, mlp_width=24),
    num_codes=24,
    embedding_width=12,
    code_width=8,
    decoder_layers=1,
    decoder_heads=2,
    decoder_mlp_width=24,
    decoder_side=4,
)


@pytest.fixture
def ta_tok() -> TaTok:
    torch.manual_seed(0)
    model = TaTok(ARCH).eval()
    with torch.no_grad():
        # As initialised, positions outweigh pixels and all pictures get the same codes.
        model.encoder.embeddings.patch_embedding.weight.mul_(8)
    return model


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ---- pooling


def test_cells_are_averages_and_an_odd_row_and_column_are_dropped() -> None:
    # A grid of 5: position (y, x) holds 10 y + x and, in a second channel, its negative.
    grid = torch.tensor([[10.0 * y + x for x in range(5)] for y in range(5)])
    features = torch.stack([grid.flatten(), -grid.flatten()], dim=-1)[None]
    pooled = pool(features, Scale.HALF)
    # Cell (i, j) averages rows 2i, 2i + 1 and columns 2j, 2j + 1: 20 i + 5 + 2 j + .5.
    expected = [20 * i + 5 + 2 * j + 0.5 for i in range(2) for j in range(2)]
    assert pooled[0, :, 0].tolist() == expected == [5.5, 7.5, 25.5, 27.5]
    assert torch.equal(pooled[..., 1], -pooled[..., 0])
    # Of 5, one cell of 3 x 3 is left: the mean of rows and columns 0..2 is 11.
    assert pool(features, Scale.THIRD)[0, :, 0].tolist() == [11.0]
    assert pool(features, Scale.FULL) is features


def test_the_papers_grid_of_27_becomes_13_and_9() -> None:
    features = torch.zeros(1, 27, 27, 1)
    features[0, 26], features[0, :, 26] = 1e6, 1e6  # the last row and column
    flat = features.flatten(1, 2)
    assert pool(flat, Scale.HALF).shape == (1, 169, 1)
    assert float(pool(flat, Scale.HALF).abs().max()) == 0
    # 27 is three times nine: nothing is dropped, the last of nine columns has a third of it.
    thirds = pool(flat, Scale.THIRD).view(9, 9)
    assert thirds.shape == (9, 9)
    assert_close(thirds[0, 8], torch.tensor(1e6 / 3))
    assert float(thirds[:8, :8].abs().max()) == 0


# ---- encode


def test_all_scales_come_from_one_encoder_pass(ta_tok: TaTok, pixels: torch.Tensor) -> None:
    passes: list[int] = []
    ta_tok.encoder.embeddings.register_forward_hook(lambda *_: passes.append(1))
    codes = ta_tok.encode(pixels, list(Scale))
    assert passes == [1]
    # A grid of 5: 25, 4 and 1 codes.
    assert {s: tuple(c.shape) for s, c in codes.items()} == {1: (3, 25), 2: (3, 4), 3: (3, 1)}
    assert len({tuple(row) for row in codes[Scale.FULL].tolist()}) == 3
    for scale in Scale:
        assert torch.equal(codes[scale], ta_tok.encode(pixels, [scale])[scale])
        assert torch.equal(codes[scale][1:2], ta_tok.encode(pixels[1:2], [scale])[scale])
        assert codes[scale].dtype == torch.int64 and int(codes[scale].max()) < 24


def test_features_are_those_of_the_last_block_but_one(ta_tok: TaTok, pixels: torch.Tensor) -> None:
    # Three blocks: [embeddings, 0, 1, 2][-2] is block 1's, so the last block changes no code.
    before = ta_tok.encode(pixels, [Scale.FULL])[Scale.FULL]
    with torch.no_grad():
        for weight in ta_tok.encoder.encoder.layers[2].parameters():
            weight.add_(1)
        ta_tok.encoder.post_layernorm.weight.add_(1)
    assert torch.equal(ta_tok.encode(pixels, [Scale.FULL])[Scale.FULL], before)
    with torch.no_grad():
        for weight in ta_tok.encoder.encoder.layers[1].parameters():
            weight.add_(torch.randn_like(weight))
    assert not torch.equal(ta_tok.encode(pixels, [Scale.FULL])[Scale.FULL], before)


def test_sampling_is_asked_for_by_name_and_has_a_generator(
    ta_tok: TaTok, pixels: torch.Tensor
) -> None:
    def drawn(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        found = ta_tok.encode(pixels, [Scale.FULL], sample=True, generator=generator)
        return found[Scale.FULL].tolist()

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0) != ta_tok.encode(pixels, [Scale.FULL])[Scale.FULL].tolist()


def test_pictures_of_another_size_are_refused(ta_tok: TaTok) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, 20, 20\), got \(1, 3, 20, 24\)"):
        ta_tok.encode(torch.zeros(1, 3, 20, 24), [Scale.FULL])


# ---- decode


@torch.no_grad()
def test_the_condition_of_codes_is_what_training_decodes(
    ta_tok: TaTok, pixels: torch.Tensor
) -> None:
    features = ta_tok.features(pixels)
    for scale in Scale:
        out = ta_tok(features, scale)
        assert torch.equal(out.codes, ta_tok.encode(pixels, [scale])[scale])
        assert_close(out.features, ta_tok.condition(out.codes))
        assert out.features.shape == (3, scale.num_codes(5), 16)


@torch.no_grad()
def test_the_decoders_position_table_is_used_as_it_is_at_its_own_side(ta_tok: TaTok) -> None:
    embeddings = ta_tok.decoder.vision_model.embeddings
    x = torch.randn(1, 16, 8)  # 4 x 4 codes, and the table is 4 x 4
    expected = embeddings.patch_embedding(x) + embeddings.position_embedding.weight
    assert_close(embeddings(x), expected)
    # At 2 x 2, antialiased: of columns 0..3 the first code sees triangle weights .75 .75 .25 0,
    # (.75 + .5) / 1.75 = 5 / 7, the second 3 - 5 / 7. Without antialiasing: .5 and 2.5.
    columns = torch.arange(4.0).repeat(4)[:, None].expand(16, 16)
    embeddings.position_embedding.weight.copy_(columns)
    resized = embeddings(x[:, :4]) - embeddings.patch_embedding(x[:, :4])
    assert_close(resized[0, :, 3], torch.tensor([5 / 7, 16 / 7, 5 / 7, 16 / 7]))


def test_codes_that_make_no_square_or_are_not_in_the_book_are_refused(ta_tok: TaTok) -> None:
    with pytest.raises(ValueError, match="24 codes are not a square grid"):
        ta_tok.condition(torch.zeros(1, 24, dtype=torch.long))
    with pytest.raises(ValueError, match="codes span 0 to 24, K is 24"):
        ta_tok.condition(torch.tensor([[0, 1, 2, 24]]))
    with pytest.raises(ValueError, match="codes span -1 to 2, K is 24"):
        ta_tok.condition(torch.tensor([[0, 1, 2, -1]]))


def test_every_trained_part_gets_a_gradient_and_the_table_none(
    ta_tok: TaTok, pixels: torch.Tensor
) -> None:
    out = ta_tok.train()(ta_tok.features(pixels), Scale.FULL)
    (out.features.pow(2).mean() + out.codebook_loss + out.commitment_loss).backward()
    without = {name for name, p in ta_tok.named_parameters() if p.grad is None}
    # The last block, the final norm and the pooling head of the encoder take no part.
    unused = ("encoder.encoder.layers.2.", "encoder.post_layernorm.", "encoder.head.")
    assert {n for n in without if not n.startswith(unused)} == {
        "bottleneck.regularizer.embedding.weight"
    }


def test_the_defaults_are_the_released_models_sizes() -> None:
    with torch.device("meta"):
        state = TaTok(TaTokArch()).state_dict()
    # The released file holds 527 tensors of 591,032,006 values. Two, of 3 values each, only scale
    # pixels, and 11 are the decoder's unused pooling head: 1152 (probe) + 3456 * 1153 (in)
    # + 1152 * 1153 (out) + 2304 (norm) + 3072 * 1153 + 1152 * 3073 (MLP) = 12,398,592.
    assert len(state) == 527 - 2 - 11
    assert sum(v.numel() for v in state.values()) == 591_032_006 - 6 - 12_398_592
    assert state["decoder.vision_model.embeddings.patch_embedding.weight"].shape == (1152, 1536)
    assert state["decoder.vision_model.embeddings.position_embedding.weight"].shape == (256, 1152)
    assert state["bottleneck.regularizer.embedding.weight"].shape == (65536, 1536)
    assert state["encoder.embeddings.position_embedding.weight"].shape == (729, 1152)
