"""Drawing one symbol: filters in the published order, ties, and a generator for each row."""

import math

import pytest
import torch
from torch.testing import assert_close

from tarkit.models import sampling
from tarkit.models.sampling import draw


def kept(
    logits: list[float], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> dict[int, float]:
    """Share of each symbol in 20,000 draws; a symbol that was filtered out has none."""
    torch.manual_seed(0)
    rows = torch.tensor(logits).expand(20_000, -1)
    drawn = draw(rows, temperature=temperature, top_k=top_k, top_p=top_p, generator=None)
    counts = torch.bincount(drawn, minlength=len(logits)) / len(drawn)
    return {i: float(c) for i, c in enumerate(counts) if c}


def logs(*shares: float) -> list[float]:
    return [math.log(share) for share in shares]


def test_what_is_drawn_follows_the_softmax() -> None:
    # Standard error of a share of .5 in 20,000 draws is .0035.
    shares = kept(logs(0.5, 0.3, 0.2))
    assert shares == pytest.approx({0: 0.5, 1: 0.3, 2: 0.2}, abs=0.015)


def test_temperature_sharpens() -> None:
    # At a half: squares, .25 : .09 : .04 of .38.
    shares = kept(logs(0.5, 0.3, 0.2), temperature=0.5)
    assert shares == pytest.approx({0: 0.6579, 1: 0.2368, 2: 0.1053}, abs=0.015)


def test_top_k_keeps_the_best_and_every_tie_with_the_last_of_them() -> None:
    assert kept(logs(0.4, 0.3, 0.2, 0.1), top_k=2).keys() == {0, 1}
    # The second best has two equals: all three stay.
    assert kept(logs(0.1, 0.2, 0.3, 0.2, 0.2), top_k=2).keys() == {1, 2, 3, 4}
    assert kept(logs(0.7, 0.3), top_k=1200).keys() == {0, 1}
    assert kept(logs(0.7, 0.3), top_k=0).keys() == {0, 1}


def test_top_p_keeps_the_symbol_that_crosses_it() -> None:
    shares = (0.1, 0.5, 0.2, 0.15, 0.05)
    # In order .5 .7 .85 .95 1: at .6 the second crosses, at .4 the first, at .9 the fourth.
    assert kept(logs(*shares), top_p=0.6).keys() == {1, 2}
    assert kept(logs(*shares), top_p=0.4).keys() == {1}
    assert kept(logs(*shares), top_p=0.9).keys() == {0, 1, 2, 3}
    assert kept(logs(*shares), top_p=1.0).keys() == {0, 1, 2, 3, 4}
    # What is left is drawn by its own shares: .5 and .2 of .7.
    assert kept(logs(*shares), top_p=0.6) == pytest.approx({1: 0.714, 2: 0.286}, abs=0.015)


def test_top_p_counts_what_top_k_and_temperature_left() -> None:
    shares = (0.4, 0.3, 0.2, 0.1)
    # Top 3 make .444 .333 .222, of which .5 needs two; of all four it would need two as well,
    # but .75 needs two of the three (.777) and three of the four (.7 < .75).
    assert kept(logs(*shares), top_k=3, top_p=0.75).keys() == {0, 1}
    assert kept(logs(*shares), top_p=0.75).keys() == {0, 1, 2}
    # At temperature .5: squares .16 .09 .04 .01 of .30 = .533 .3 .133 .033, so .5 needs one.
    assert kept(logs(*shares), temperature=0.5, top_p=0.5).keys() == {0}
    assert kept(logs(*shares), temperature=1.0, top_p=0.5).keys() == {0, 1}


def test_no_temperature_or_one_candidate_is_the_argmax() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 4.9]])
    for temperature, top_k in ((0.0, 0), (1.0, 1), (0.0, 5)):
        drawn = draw(logits, temperature=temperature, top_k=top_k, top_p=1.0, generator=None)
        assert drawn.tolist() == [1, 0]


def test_a_row_with_its_own_generator_does_not_depend_on_the_others() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(7))

    def drawn(rows: list[int]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(100 + row) for row in rows]
        steps = [
            draw(logits[rows], temperature=1.0, top_k=20, top_p=0.9, generator=generators)
            for _ in range(5)
        ]
        return torch.stack(steps, dim=1).tolist()

    together = drawn([0, 1, 2])
    assert [together[2], together[0]] == drawn([2, 0])
    assert [together[1]] == drawn([1])
    with pytest.raises(ValueError):
        draw(logits, temperature=1.0, top_k=0, top_p=1.0, generator=[torch.Generator()])


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(2, 9)
    before = logits.clone()
    draw(logits, temperature=0.7, top_k=3, top_p=0.5, generator=None)
    assert_close(logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("first", [1, 7, 400])
def test_top_p_without_sorting_all_keeps_what_sorting_does(
    top_p: float, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First few in order, then eight times as many, then all: never other candidates."""
    monkeypatch.setattr(sampling, "FIRST_IN_ORDER", first)
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(1)) * 3
    p = sampling.probabilities(logits, temperature=1.0, top_k=0, top_p=top_p)
    ordered, order = logits.softmax(-1).sort(descending=True)
    for row in range(3):
        kept, total = set(), 0.0
        for share, index in zip(ordered[row].tolist(), order[row].tolist(), strict=True):
            if total > top_p:
                break
            kept.add(index)
            total += share
        assert set(p[row].nonzero()[:, 0].tolist()) == kept
