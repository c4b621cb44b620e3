"""Choosing among candidates with the embedded model, and with judges that are made up."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tarkit.errors import UserError
from tarkit.inference import self_reflect
from tarkit.inference.self_reflect import Reflection, best_of, candidate_seed, draw
from tarkit.inference.tar_model import Tar
from tarkit.vocab import Scale

PROMPTS = ["a photo of a red circle", "a photo of two rings"]


@pytest.fixture(scope="module")
def tar() -> Tar:
    return Tar.load("mini")


def judged(monkeypatch: pytest.MonkeyPatch, rounds: Sequence[Sequence[float]]) -> list[int]:
    """Candidates get these scores, round by round; returns how many were asked in each."""
    asked: list[int] = []
    left = list(rounds)

    def judge(_tar: Tar, codes: Tensor, prompts: Sequence[str], _by: str) -> list[float]:
        assert len(codes) == len(prompts)
        asked.append(len(prompts))
        return list(left.pop(0))

    monkeypatch.setattr(self_reflect, "judge", judge)
    return asked


def test_the_first_candidate_has_the_seed_of_the_picture_alone() -> None:
    assert candidate_seed(7, 0) == 7
    assert len({candidate_seed(7, number) for number in range(100)}) == 100
    assert candidate_seed(7, 3) == candidate_seed(7, 3) != candidate_seed(8, 3)


def test_the_best_is_kept_and_drawn_as_it_would_be_alone(
    tar: Tar, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = judged(monkeypatch, [[0.2, 0.9], [0.7, 0.1], [0.7, 0.3]])
    first, second = best_of(
        tar, PROMPTS, seeds=[5, 6], reflection=Reflection(n=3, by="yes", on="codes")
    )
    assert asked == [2, 2, 2]
    assert (first.number, first.score, first.tried) == (1, 0.7, 3)  # of equal ones the first
    assert (second.number, second.score, second.tried) == (0, 0.9, 3)
    assert first.seed == candidate_seed(5, 1) and second.seed == 6
    drawn = draw(tar, [first, second])
    alone = tar.imagine_many(PROMPTS, seeds=[first.seed, second.seed])
    assert [p.tobytes() for p in drawn] == [p.tobytes() for p in alone]


def test_until_yes_only_the_rejected_go_on(tar: Tar, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = judged(monkeypatch, [[0.2, 0.9], [0.1], [0.4]])
    first, second = best_of(
        tar, PROMPTS, seeds=[5, 6], reflection=Reflection(n=3, by="yes", on="codes", until_yes=True)
    )
    assert asked == [2, 1, 1]
    assert (first.number, first.tried) == (2, 3) and (second.number, second.tried) == (0, 1)


def test_both_judges_know_a_prompt_from_its_opposite(tar: Tar) -> None:
    # What the embedded model draws of a prompt is nearer to it than to another's, for most seeds.
    seeds = list(range(12))
    own, other = "a photo of a red circle", "a photo of a blue star"
    codes = tar.imagine_codes([own] * 12, seeds=seeds)
    for by in self_reflect.JUDGES:
        right = torch.tensor(self_reflect.judge(tar, codes, [own] * 12, by))
        wrong = torch.tensor(self_reflect.judge(tar, codes, [other] * 12, by))
        assert (right > wrong).float().mean() > 0.8, by


def test_no_judge_and_no_candidate_are_errors(tar: Tar) -> None:
    with pytest.raises(UserError, match="n is 1 or more"):
        best_of(tar, PROMPTS, seeds=[0, 1], reflection=Reflection(n=0))


def test_on_pixels_the_judge_reads_the_codes_of_what_was_drawn(
    tar: Tar, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Tensor] = []

    def judge(_tar: Tar, codes: Tensor, prompts: Sequence[str], _by: str) -> list[float]:
        read.append(codes)
        return [0.0] * len(prompts)

    monkeypatch.setattr(self_reflect, "judge", judge)
    (choice,) = best_of(tar, PROMPTS[:1], seeds=[5], reflection=Reflection(n=1))
    (picture,) = draw(tar, [choice])
    seen = tar.encode([picture], [tar.default_scale])[tar.default_scale]
    assert torch.equal(read[0], seen) and not torch.equal(read[0][0], choice.codes)
    # It is asked at the scale at which pictures are read.
    reads = replace(tar, read_scale=Scale.FULL)
    best_of(reads, PROMPTS[:1], seeds=[5], reflection=Reflection(n=1, by="yes"))
    assert torch.equal(read[1], tar.encode([picture], [Scale.FULL])[Scale.FULL])
    best_of(reads, PROMPTS[:1], seeds=[5], reflection=Reflection(n=1, by="gain"))
    assert torch.equal(read[2], seen)


def test_names_that_are_no_judge_are_refused() -> None:
    assert self_reflect.reflection_of(4, "yes", "codes", True) == Reflection(
        4, "yes", "codes", True
    )
    for by, on in (("taste", "codes"), ("yes", "paper")):
        with pytest.raises(UserError, match=f"the judge {by} on {on} is unknown"):
            self_reflect.reflection_of(4, by, on, False)
