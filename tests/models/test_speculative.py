"""Speculative drawing: the same distribution, the same greedy codes, and what was accepted."""

import itertools

import pytest
import torch
from torch import Tensor

from tarkit.models.ar_decoding import CodeSampling, sample_codes
from tarkit.models.ar_dtok import ArDtok, ArDtokArch
from tarkit.models.sampling import pick, probabilities
from tarkit.models.speculative import Acceptance, sample_codes_speculatively, settle

TINY = ArDtokArch(
    layers=1,
    heads=1,
    width=8,
    multiple_of=8,
    condition_width=4,
    vocab_size=3,
    num_codes=4,
    max_condition=4,
)
WIDER = TINY.model_copy(update={"vocab_size": 50, "num_codes": 36})


def strong(arch: ArDtokArch, seed: int, scale: float = 0.7) -> ArDtok:
    torch.manual_seed(seed)
    model = ArDtok(arch)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (scale if weight.dim() > 1 else 1.0))
    return model.eval()


def generators(seeds: range) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def sequence_probabilities(model: ArDtok, condition: Tensor, sampling: CodeSampling) -> Tensor:
    """p (81,) of each of the 3^4 pictures, from teacher-forced logits."""
    codes = torch.tensor(list(itertools.product(range(3), repeat=4)))
    rows = condition.expand(len(codes), -1, -1)
    null = model.logits(torch.zeros_like(rows), codes)
    logits = null + (model.logits(rows, codes) - null) * sampling.guidance
    p = probabilities(logits.flatten(0, 1), **sampling.filters()).view(len(codes), 4, 3)
    return p.gather(-1, codes[..., None])[..., 0].double().prod(-1)


@pytest.mark.parametrize(
    "sampling",
    [
        CodeSampling(guidance=1.5),
        CodeSampling(guidance=1.3, temperature=1.4, top_k=2),
        CodeSampling(guidance=1.5, temperature=0.8, top_p=0.9),
    ],
)
@pytest.mark.parametrize("proposed", [None, 3])
def test_the_distribution_is_the_large_model_s(
    sampling: CodeSampling, proposed: int | None
) -> None:
    model, draft = strong(TINY, 0), strong(TINY, 1)
    condition = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(5))
    count = 20_000
    acceptance = Acceptance()
    drawn = sample_codes_speculatively(
        model,
        draft,
        condition.expand(count, -1, -1),
        sampling,
        acceptance=acceptance,
        generator=torch.Generator().manual_seed(0),
        proposed=proposed,
    )
    p = sequence_probabilities(model, condition, sampling)
    index = (drawn * torch.tensor([27, 9, 3, 1])).sum(-1)
    found = torch.bincount(index, minlength=81).double()
    assert found[p == 0].sum() == 0
    # Cells with few expected pictures are one cell.
    few = p * count < 8
    wanted = torch.cat([p[~few], p[few].sum()[None]]) * count
    counted = torch.cat([found[~few], found[few].sum()[None]])
    wanted, counted = wanted[wanted > 0], counted[wanted > 0]
    chi_square = float(((counted - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    # Its mean is the degrees of freedom, its standard deviation sqrt(2 freedom).
    assert freedom >= 4
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5
    # The draft's own pictures are others: it was tested, and often refused.
    other = sequence_probabilities(draft, condition, sampling)
    assert float((p - other).abs().sum()) > 0.2
    assert acceptance.rate < 0.95


def test_greedily_the_codes_are_those_without_a_draft() -> None:
    model, draft = strong(WIDER, 0), strong(WIDER, 1)
    condition = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))
    for guidance in (1.0, 3.0):
        sampling = CodeSampling(guidance=guidance, temperature=0.0)
        plain = sample_codes(model, condition, sampling)
        for proposed in (None, 1, 7):
            acceptance = Acceptance()
            drawn = sample_codes_speculatively(
                model, draft, condition, sampling, acceptance=acceptance, proposed=proposed
            )
            assert torch.equal(drawn, plain)


def test_a_picture_depends_on_its_seed_and_not_on_the_batch_or_the_number_proposed() -> None:
    model, draft = strong(WIDER, 0), strong(WIDER, 1)
    condition = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))

    def drawn(rows: slice, proposed: int | None) -> Tensor:
        return sample_codes_speculatively(
            model,
            draft,
            condition[rows],
            CodeSampling(guidance=1.5),
            acceptance=Acceptance(),
            generator=generators(range(10)[rows]),
            proposed=proposed,
        )

    together = drawn(slice(0, 3), None)
    assert len({tuple(row) for row in together.tolist()}) == 3
    for row, proposed in itertools.product(range(3), (None, 1, 2, 11)):
        assert torch.equal(drawn(slice(row, row + 1), proposed), together[row : row + 1])


def test_a_draft_that_is_the_model_is_always_accepted() -> None:
    model = strong(WIDER, 0)
    acceptance = Acceptance()
    sample_codes_speculatively(
        model,
        model,
        torch.randn(2, 4, 4),
        CodeSampling(guidance=1.5),
        acceptance=acceptance,
        generator=generators(range(2)),
        proposed=5,
    )
    assert acceptance.rate == 1
    # After the first code of each picture, 35 are settled by 7 passes of 5.
    assert (acceptance.codes, acceptance.passes, acceptance.mean_length) == (70, 14, 5)


def test_the_rule_by_hand() -> None:
    # q = (.5, .5, 0), p = (.2, .3, .5): 0 is kept with .4, 1 with .6; else 2, the only one of
    # which p has more.
    p, q = torch.tensor([[[0.2, 0.3, 0.5]]]), torch.tensor([[[0.5, 0.5, 0.0]]])

    def settled(proposal: int, test: float) -> tuple[int, int]:
        numbers = torch.tensor([[[0.9, test, 0.0]]], dtype=torch.float64)
        codes, kept = settle(p, q, torch.tensor([[proposal]]), numbers)
        return int(codes[0, 0]), int(kept[0])

    assert settled(0, 0.39) == (0, 1) and settled(0, 0.41) == (2, 0)
    assert settled(1, 0.59) == (1, 1) and settled(1, 0.61) == (2, 0)


def test_a_number_picks_by_cumulative_weight_and_never_a_weight_of_zero() -> None:
    p = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    numbers = torch.tensor([0.0, 0.2499, 0.25, 0.9999, 1 - 2**-53], dtype=torch.float64)
    assert pick(p.expand(5, -1), numbers).tolist() == [1, 1, 3, 3, 3]


def test_every_picture_needs_its_generator() -> None:
    model = strong(WIDER, 0)
    with pytest.raises(ValueError, match="1 generators for 2 pictures"):
        sample_codes_speculatively(
            model,
            model,
            torch.randn(2, 4, 4),
            CodeSampling(),
            acceptance=Acceptance(),
            generator=generators(range(1)),
        )
