"""AR-DTok: its sizes, causality, cached sampling against teacher forcing, guidance by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tarkit.models.ar_decoding import CodeSampling, sample_codes
from tarkit.models.ar_dtok import ArDtok, ArDtokArch, RMSNorm, resize_positions

ARCH = ArDtokArch(
    layers=2,
    heads=2,
    width=16,
    multiple_of=8,
    condition_width=6,
    vocab_size=20,
    num_codes=9,
    max_condition=16,
)


@pytest.fixture
def ar_dtok() -> ArDtok:
    torch.manual_seed(0)
    model = ArDtok(ARCH)
    with torch.no_grad():
        for weight in model.parameters():
            # Strong enough that no two candidates tie.
            weight.copy_(torch.randn_like(weight) * (0.5 if weight.dim() > 1 else 1.0))
    return model.eval()


@pytest.fixture
def condition() -> Tensor:
    return torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))


def arch(layers: int, heads: int, width: int, **others: Any) -> ArDtokArch:
    return ArDtokArch(layers=layers, heads=heads, width=width, **others)


@pytest.mark.parametrize(
    ("sizes", "values", "ffn_width"),
    [
        (ArDtokArch(), 654_241_280, 3584),  # llama-abs-LP
        (arch(36, 20, 1280), 776_153_600, 3584),  # XL
        (arch(12, 12, 768), 111_760_896, 2048),  # B
        (arch(12, 6, 384), 34_646_784, 1024),  # S
    ],
)
def test_the_published_sizes(sizes: ArDtokArch, values: int, ffn_width: int) -> None:
    # int(2 * (4 * 1280) / 3) = 3413, rounded up to a multiple of 256: 3584.
    assert sizes.ffn_width == ffn_width
    with torch.device("meta"):
        state = ArDtok(sizes).state_dict()
    assert sum(v.numel() for v in state.values()) == values
    # Seven tensors a layer, and six: positions, condition (2), codes, last norm, output.
    assert len(state) == 7 * sizes.layers + 6
    assert state["abs_pe"].shape == (1, 729 + 256 - 1, sizes.width)


def test_the_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(2, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    # rms(3, 4) = sqrt(12.5)
    expected = torch.tensor([[3 / 12.5**0.5, 40 / 12.5**0.5]])
    assert_close(norm(torch.tensor([[3.0, 4.0]])), expected)


@torch.no_grad()
def test_a_code_is_predicted_from_the_condition_and_earlier_codes_alone(
    ar_dtok: ArDtok, condition: Tensor
) -> None:
    codes = torch.randint(20, (3, 9), generator=torch.Generator().manual_seed(2))
    logits = ar_dtok.logits(condition, codes)
    assert logits.shape == (3, 9, 20)
    changed = codes.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 20
    after = ar_dtok.logits(condition, changed)
    # Code 4 is an input of positions 5 and on; the prediction of code 4 itself does not see it.
    assert torch.equal(after[:, :5], logits[:, :5])
    assert not torch.isclose(after[:, 5:], logits[:, 5:]).all(-1).any()
    # The last code is nobody's input.
    changed = codes.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 20
    assert torch.equal(ar_dtok.logits(condition, changed), logits)
    # And every code depends on the condition.
    assert not torch.isclose(ar_dtok.logits(condition + 0.1, codes), logits).all(-1).any()


@torch.no_grad()
def test_the_loss_is_the_mean_surprise_at_all_codes(ar_dtok: ArDtok, condition: Tensor) -> None:
    codes = torch.randint(20, (3, 9), generator=torch.Generator().manual_seed(2))
    p = ar_dtok.logits(condition, codes).log_softmax(-1)
    said = [p[b, t, codes[b, t]] for b in range(3) for t in range(9)]
    assert_close(ar_dtok(condition, codes), -torch.stack(said).mean())


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("num_conditions", [4, 16])
def test_sampling_with_a_cache_is_teacher_forcing_step_by_step(
    ar_dtok: ArDtok, guidance: float, num_conditions: int
) -> None:
    condition = torch.randn(2, num_conditions, 6, generator=torch.Generator().manual_seed(3))
    drawn = sample_codes(ar_dtok, condition, CodeSampling(guidance=guidance, temperature=0))
    assert drawn.shape == (2, 9)
    logits = ar_dtok.logits(condition, drawn)
    if guidance > 1:
        null = ar_dtok.logits(torch.zeros_like(condition), drawn)
        logits = null + (logits - null) * guidance
    assert torch.equal(logits.argmax(-1), drawn)


class Fixed(torch.nn.Module):
    """An output layer that gives one row of logits to conditions and another to their absence."""

    def __init__(self, rows: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[: len(x)]


@torch.no_grad()
def test_the_arithmetic_of_guidance(ar_dtok: ArDtok) -> None:
    one = torch.zeros(1, 4, 6)
    ar_dtok.output = Fixed([[1.0, 2.0, 0.0], [0.0, 1.9, 0.0]])  # type: ignore[assignment]
    # u + (c - u) g: at 1 it is c, (1, 2, 0); at 4 it is (4, 2.3, 0).
    assert set(
        sample_codes(ar_dtok, one, CodeSampling(guidance=1.0, temperature=0))[0].tolist()
    ) == {1}
    assert set(
        sample_codes(ar_dtok, one, CodeSampling(guidance=4.0, temperature=0))[0].tolist()
    ) == {0}
    # They meet where g = 1.9 + .1 g, at 2.11.
    assert set(
        sample_codes(ar_dtok, one, CodeSampling(guidance=2.0, temperature=0))[0].tolist()
    ) == {1}
    assert set(
        sample_codes(ar_dtok, one, CodeSampling(guidance=2.2, temperature=0))[0].tolist()
    ) == {0}


@torch.no_grad()
def test_guidance_is_kept_for_the_first_code_and_the_next_k_plus_one(ar_dtok: ArDtok) -> None:
    # As above: 0 wherever guidance is on, 1 where it is off.
    ar_dtok.output = Fixed([[1.0, 2.0, 0.0], [0.0, 1.9, 0.0]])  # type: ignore[assignment]
    for k, expected in ((0, [0] * 2 + [1] * 7), (2, [0] * 4 + [1] * 5), (None, [0] * 9)):
        drawn = sample_codes(
            ar_dtok, torch.zeros(1, 4, 6), CodeSampling(guidance=4.0, temperature=0, guided_steps=k)
        )
        assert drawn[0].tolist() == expected


@torch.no_grad()
def test_a_picture_depends_on_its_own_condition_and_seed_alone(
    ar_dtok: ArDtok, condition: Tensor
) -> None:
    def drawn(rows: list[int]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return sample_codes(
            ar_dtok, condition[rows], CodeSampling(guidance=2.0), generator=generators
        ).tolist()

    together = drawn([0, 1, 2])
    assert drawn([2, 1]) == [together[2], together[1]]
    assert all(0 <= code < 20 for row in together for code in row)


@torch.no_grad()
def test_fewer_key_heads_serve_groups_of_query_heads(condition: Tensor) -> None:
    torch.manual_seed(0)
    few = ArDtok(ARCH.model_copy(update={"heads": 4, "kv_heads": 2})).eval()
    many = ArDtok(ARCH.model_copy(update={"heads": 4})).eval()
    # (4 + 2 * 2) * 4 = 32 rows instead of 48; repeating each key and value head makes it full.
    state = dict(few.state_dict())
    assert state["layers.0.attention.wqkv.weight"].shape == (32, 16)
    for layer in range(2):
        name = f"layers.{layer}.attention.wqkv.weight"
        q, k, v = state[name].split([16, 8, 8])
        twice = [part.view(2, 4, 16).repeat_interleave(2, 0).reshape(16, 16) for part in (k, v)]
        state[name] = torch.cat([q, *twice])
    many.load_state_dict(state)
    codes = torch.arange(9).expand(3, 9)
    assert_close(few.logits(condition, codes), many.logits(condition, codes))
    assert torch.equal(
        sample_codes(few, condition, CodeSampling(guidance=1, temperature=0)),
        sample_codes(many, condition, CodeSampling(guidance=1, temperature=0)),
    )


def test_training_starts_near_chance_with_no_position_at_zero() -> None:
    torch.manual_seed(0)
    model = ArDtok(ARCH)
    model.reset_parameters()
    loss = model.eval()(torch.randn(4, 4, 6), torch.randint(20, (4, 9)))
    # ln 20 = 2.996
    assert float(loss.detach()) == pytest.approx(2.996, abs=0.1)
    assert float(model.clip_proj.bias.detach().abs().max()) == 0
    assert float(model.abs_pe.detach().std()) == pytest.approx(0.02, rel=0.2)
    # Residual outputs are smaller by sqrt(2 * layers) = 2.
    w2 = model.state_dict()["layers.0.feed_forward.w2.weight"]
    assert float(w2.std()) == pytest.approx(0.01, rel=0.2)
    assert_close(model.norm.weight.detach(), torch.ones(16))


# ---- another resolution


def position_table(cells: Tensor, condition: Tensor) -> Tensor:
    """(1, n + N - 1, D) from the codes' rows (s, s, D), the last left out, and (n, D)."""
    return torch.cat([condition, cells.flatten(0, 1)[:-1]])[None]


def test_positions_are_interpolated_over_the_grid_of_codes() -> None:
    # 2 x 2 codes; row (i, j) is (10 i + j), the condition's rows are -1 and -2.
    condition = torch.tensor([[-1.0], [-2.0]])
    cells = torch.tensor([[[0.0], [1.0]], [[10.0], [11.0]]])
    made = resize_positions(position_table(cells, condition), max_condition=2, num_codes=16)
    assert made.shape == (1, 2 + 15, 1)
    assert made[0, :2].flatten().tolist() == [-1, -2]
    # The last cell has no row and takes its left neighbour's: 10 in place of 11. New cell i lies
    # at (i + .5) / 2 - .5 = -.25, .25, .75, 1.25 of the old ones, clamped to 0, .25, .75, 1.
    places = [0.0, 0.25, 0.75, 1.0]
    # The upper row is x at place x, the lower one 10 everywhere.
    expected = [[x + (10 - x) * y for x in places] for y in places]
    assert_close(made[0, 2:, 0], torch.tensor(expected).flatten()[:-1])


def test_positions_of_the_same_resolution_are_the_same() -> None:
    table = torch.randn(1, 5 + 15, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_positions(table, max_condition=5, num_codes=16), table)


def test_positions_that_are_linear_in_the_place_stay_so_within_the_grid() -> None:
    # A plane a i + b j is its own bilinear interpolation, away from the edges and the last cell.
    side, new = 8, 16
    i, j = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    cells = torch.stack([i.float(), j.float()], dim=-1)
    table = position_table(cells, torch.zeros(3, 2))
    made = resize_positions(table, max_condition=3, num_codes=new**2)[0, 3:]
    grid = torch.cat([made, made[-1:]]).unflatten(0, (new, new))
    places = (torch.arange(new) + 0.5) / 2 - 0.5
    assert_close(grid[1:13, 1:13, 0], places[1:13, None].expand(12, 12))
    assert_close(grid[1:13, 1:13, 1], places[None, 1:13].expand(12, 12))


def test_codes_that_are_no_square_have_no_positions() -> None:
    with pytest.raises(ValueError, match="16 and 15 codes: each must be a square number"):
        resize_positions(torch.zeros(1, 20, 8), max_condition=5, num_codes=15)
