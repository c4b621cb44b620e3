"""The text-aligned codebook by hand: representative rows, Eq. 1-3, gradients, usage."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tarkit.models.codebook import TextAlignedCodebook, distinct_codes, representative_rows, usage

# Four unit directions in the plane: three near 0 degrees, one at 90, one at 180.
DEGREES = (0.0, 10.0, 350.0, 90.0, 180.0)


def table() -> Tensor:
    angles = torch.tensor(DEGREES).deg2rad()
    # Lengths differ: only directions may count.
    lengths = torch.tensor([1.0, 3.0, 0.5, 2.0, 4.0])
    return torch.stack([angles.cos(), angles.sin()], dim=1) * lengths[:, None]


def book(rows: list[list[float]], **options: bool) -> TextAlignedCodebook:
    """A codebook of these rows: W is the identity, b is zero."""
    made = TextAlignedCodebook(
        num_codes=len(rows), embedding_width=len(rows[0]), width=len(rows[0]), **options
    )
    with torch.no_grad():
        made.embedding.weight.copy_(torch.tensor(rows))
        made.embedding_proj.weight.copy_(torch.eye(len(rows[0])))
        made.embedding_proj.bias.zero_()
    return made.eval()


# ---- which rows


def test_rows_are_ranked_by_their_mean_cosine_distance_to_all() -> None:
    # The mean direction is (1 + 2 cos 10 + 0 - 1, 0 + 1) / 5 = (.3939, .2). Distance 1 - <row, it>:
    #   0: .606   10: .577 (.388 + .035 near)   350: .647   90: .800   180: 1.394
    mean = ((1 + 2 * math.cos(math.radians(10)) - 1) / 5, 1 / 5)
    angles = [math.radians(d) for d in DEGREES]
    distance = [1 - mean[0] * math.cos(a) - mean[1] * math.sin(a) for a in angles]
    assert [round(d, 3) for d in distance] == [0.606, 0.577, 0.647, 0.8, 1.394]
    assert representative_rows(table(), 2, how="far").tolist() == [3, 4]
    assert representative_rows(table(), 3, how="far").tolist() == [2, 3, 4]
    assert representative_rows(table(), 2, how="near").tolist() == [0, 1]
    assert representative_rows(table(), 4, how="first").tolist() == [0, 1, 2, 3]


def test_it_is_the_mean_over_all_pairs() -> None:
    rows = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(rows, dim=-1)
    distance = (1 - unit @ unit.T).mean(1)
    expected = distance.argsort(descending=True)[:11].sort().values
    assert torch.equal(representative_rows(rows, 11), expected)


def test_ties_go_to_the_lower_index_and_too_few_rows_are_refused() -> None:
    same = torch.ones(6, 3)
    assert representative_rows(same, 2, how="far").tolist() == [0, 1]
    assert representative_rows(same, 2, how="near").tolist() == [0, 1]
    with pytest.raises(ValueError, match="num_codes = 7, but the table has 6 usable rows"):
        representative_rows(same, 7)


# ---- which code


def test_the_nearest_code_is_by_angle_and_by_distance_without_normalising() -> None:
    rows = [[1.0, 0.0], [0.0, 0.1], [3.0, 3.0]]
    z = torch.tensor([[0.2, 0.3], [5.0, 0.1], [0.1, 0.9]])
    # Angles of z: 56, 1 and 84 degrees; of the rows: 0, 90, 45.
    assert book(rows).nearest(z).tolist() == [2, 0, 1]
    # Distances: [.2 .3] to row 1 is |(.2, .2)| = .28; [5, .1] is nearest to [3, 3]: 3.5 < 4.0.
    assert book(rows, l2_normalized=False).nearest(z).tolist() == [1, 2, 1]


@pytest.mark.parametrize("l2_normalized", [True, False])
def test_the_lowest_of_equal_codes_wins(l2_normalized: bool) -> None:
    rows = [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
    made = book(rows, l2_normalized=l2_normalized)
    assert made.nearest(torch.tensor([[2.0, 0.0]])).tolist() == [1]


def test_rows_are_the_projected_table_with_its_bias_at_unit_length() -> None:
    made = book([[1.0, 0.0], [0.0, 1.0]])
    with torch.no_grad():
        made.embedding_proj.weight.copy_(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
        made.embedding_proj.bias.copy_(torch.tensor([1.0, 3.0]))
    made.train()
    # W e + b: (2, 1) + (1, 3) = (3, 4) / 5 and (0, 1) + (1, 3) = (1, 4) / sqrt 17.
    expected = torch.tensor([[0.6, 0.8], [17**-0.5, 4 * 17**-0.5]])
    assert_close(made.projected(), expected)
    assert_close(made.lookup(torch.tensor([[1, 0]])), expected[[1, 0]][None])


def test_sampled_codes_follow_the_softmax_of_cosine_over_temperature() -> None:
    made = book([[1.0, 0.0], [0.0, 1.0]])
    made.temperature = 0.5
    angle = math.radians(30)
    z = torch.tensor([math.cos(angle), math.sin(angle)]).expand(20_000, 2)
    codes = made.sample(z, torch.Generator().manual_seed(0))
    # Cosines .866 and .5 over .5: 1 / (1 + exp(-.732)) = .675. Standard error .0033.
    assert float((codes == 0).float().mean()) == pytest.approx(0.675, abs=0.012)
    assert torch.equal(codes, made.sample(z, torch.Generator().manual_seed(0)))


def test_the_projection_is_kept_in_eval_and_forgotten_when_training_goes_on() -> None:
    made = book([[1.0, 0.0], [0.0, 1.0]])
    with torch.no_grad():
        before = made.projected()
        assert made.projected() is before
        made.train()
        made.embedding_proj.weight.neg_()
        assert_close(made.projected(), -before)
        made.eval()
        assert_close(made.projected(), -before)


# ---- Eq. 3


def test_both_losses_are_squared_distances_to_the_code_and_differ_in_whom_they_pull() -> None:
    made = book([[1.0, 0.0], [0.0, 1.0]])
    z = torch.tensor([[3.0, 4.0], [2.0, 0.0]], requires_grad=True)
    out = made(z)
    # Unit z: (.6, .8) goes to (0, 1): .36 + .04 = .4; (1, 0) is on its code: 0. Mean .2.
    assert out.codes.tolist() == [1, 0]
    assert_close(out.codebook_loss, torch.tensor(0.2))
    assert_close(out.commitment_loss, torch.tensor(0.2))
    weight = made.embedding_proj.weight
    (towards_z,) = torch.autograd.grad(out.codebook_loss, [weight], retain_graph=True)
    assert float(towards_z.abs().sum()) > 0
    assert torch.autograd.grad(out.codebook_loss, [z], allow_unused=True, retain_graph=True) == (
        None,
    )
    (towards_c,) = torch.autograd.grad(out.commitment_loss, [z], retain_graph=True)
    assert float(towards_c[0].abs().sum()) > 0
    assert torch.autograd.grad(
        out.commitment_loss, [weight], allow_unused=True, retain_graph=True
    ) == (None,)
    assert made.embedding.weight.requires_grad is False


def test_the_gradient_passes_straight_through_the_choice() -> None:
    made = book([[1.0, 0.0], [0.0, 1.0]], l2_normalized=False)
    z = torch.tensor([[0.2, 0.9]], requires_grad=True)
    out = made(z)
    assert_close(out.z_q, torch.tensor([[0.0, 1.0]]))
    (out.z_q * torch.tensor([[3.0, 5.0]])).sum().backward()
    # As if z_q were z itself.
    assert_close(z.grad, torch.tensor([[3.0, 5.0]]))
    assert made.embedding_proj.weight.grad is None


def test_with_normalising_the_gradient_is_that_of_the_unit_vector() -> None:
    made = book([[1.0, 0.0], [0.0, 1.0]])
    z = torch.tensor([[3.0, 4.0]], requires_grad=True)
    (made(z).z_q * torch.tensor([[1.0, 0.0]])).sum().backward()
    # d(x / |z|)/dz at (3, 4), |z| = 5: (1 / 5 - 9 / 125, -12 / 125) = (.128, -.096).
    assert_close(z.grad, torch.tensor([[0.128, -0.096]]))


def test_training_draws_codes_and_eval_takes_the_nearest() -> None:
    rows = [[math.cos(a), math.sin(a)] for a in (0.0, 0.01, 0.02, 0.03)]
    made = book(rows)
    z = torch.tensor([[1.0, 0.0]]).expand(200, 2)
    assert set(made(z).codes.tolist()) == {0}
    made.train()
    torch.manual_seed(0)
    # Cosines differ by less than .0005: at temperature .03 the four are near equal.
    assert set(made(z).codes.tolist()) == {0, 1, 2, 3}
    made.stochastic = False
    assert set(made(z).codes.tolist()) == {0}


# ---- usage


def test_usage_counts_and_perplexity_is_the_effective_number_of_codes() -> None:
    assert usage(torch.tensor([[3, 1], [3, 1]]), 5) == (2, 3, pytest.approx(2.0))
    assert usage(torch.arange(8), 8) == (8, 0, pytest.approx(8.0))
    # Shares .5 .25 .25: exp(.5 ln 2 + .5 ln 4) = exp(1.0397) = 2 sqrt 2.
    found = usage(torch.tensor([0, 0, 1, 2]), 3)
    assert found == (3, 0, pytest.approx(2 * math.sqrt(2)))


def test_of_near_copies_the_most_used_stays() -> None:
    turned = [0.0, 5.0, 10.0, 90.0, 180.0]  # degrees; cosines of neighbours: .996, .996, .17, 0
    rows = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in turned])
    counts = torch.tensor([1, 7, 3, 0, 7])
    # 1 is gone through first and takes 0 and 2; 3 stays although no picture uses it.
    assert distinct_codes(rows, counts, cosine=0.99).tolist() == [1, 3, 4]
    # Used alike, 0 comes first and takes 1, but 2 is too far from 0.
    assert distinct_codes(rows, torch.ones(5), cosine=0.99).tolist() == [0, 2, 3, 4]
    assert distinct_codes(rows, counts, cosine=0.999).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("free", [False, True])
def test_kept_codes_are_numbered_anew(free: bool) -> None:
    torch.manual_seed(0)
    codebook = TextAlignedCodebook(num_codes=9, embedding_width=6, width=4).eval()
    codebook.embedding.weight.requires_grad_(free)
    before = codebook.projected()
    codebook.keep(torch.tensor([1, 4, 8]))
    assert_close(codebook.projected(), before[[1, 4, 8]])
    assert codebook.embedding.weight.requires_grad is free
    with torch.no_grad():
        assert codebook.nearest(before[[8, 1]]).tolist() == [2, 0]


def test_what_is_kept_of_the_codebook_moves_with_it() -> None:
    made = book([[3.0, 4.0], [1.0, 0.0]])
    with torch.no_grad():
        assert made.projected().dtype == torch.float32
        assert made.double().projected().dtype == torch.float64
        assert made.to("meta").projected().device.type == "meta"


# ---- the paper's own codebook, and precision


def test_without_bias_and_norm_the_codebook_is_e_times_w_and_codes_are_the_nearest_rows() -> None:
    torch.manual_seed(0)
    codebook = TextAlignedCodebook(
        num_codes=9, embedding_width=5, width=3, bias=False, l2_normalized=False, stochastic=False
    )
    assert set(codebook.state_dict()) == {"embedding.weight", "embedding_proj.weight"}
    E, W = codebook.embedding.weight, codebook.embedding_proj.weight.T  # noqa: N806
    z = torch.randn(4, 6, 3, requires_grad=True)
    quantised = codebook(z)
    rows = (E @ W).detach()
    assert torch.equal(codebook.projected().detach(), rows)
    # Eq. "argmin |z - c|^2" by all distances.
    nearest = torch.cdist(z.detach().flatten(0, 1), rows).argmin(1).view(4, 6)
    assert torch.equal(quantised.codes, nearest)
    assert_close(quantised.z_q.detach(), rows[nearest])
    # Eq. 3: both halves are the mean squared distance; one pulls W, the other z.
    distance = (rows[nearest] - z.detach()).pow(2).sum(-1).mean()
    assert_close(quantised.codebook_loss.detach(), distance)
    assert_close(quantised.commitment_loss.detach(), distance)
    quantised.codebook_loss.backward()
    assert z.grad is None and codebook.embedding.weight.grad is None
    assert codebook.embedding_proj.weight.grad is not None


def test_codes_are_chosen_in_float32_under_autocast_too() -> None:
    torch.manual_seed(0)
    codebook = TextAlignedCodebook(num_codes=512, embedding_width=32, width=32, stochastic=False)
    z = torch.randn(2000, 32).bfloat16()
    plain = codebook(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = codebook(z)
        rough = codebook.embedding_proj(codebook.embedding.weight)
        again = codebook.nearest(z)
    assert rough.dtype == torch.bfloat16  # autocast does reach such a layer
    assert torch.equal(mixed.codes, plain.codes) and torch.equal(again, plain.codes)
    assert torch.equal(mixed.codebook_loss, plain.codebook_loss)
    # In bfloat16 1.6 % would be others.
    unit = torch.nn.functional.normalize
    others = (unit(z, dim=-1) @ unit(rough, dim=-1).T).argmax(-1) != plain.codes
    assert float(others.float().mean()) > 0.01
