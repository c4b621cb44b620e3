"""GenEval's verdict, clause by clause, on boxes small enough to check by hand."""

import math
from typing import Any

import pytest

from tarkit.errors import UserError
from tarkit.scoring.geneval import OFFICIAL_RULES, Detection, check, relations_between


def found(cls: str, x: float, y: float, *, score: float = 0.95, colour: str = "red") -> Detection:
    """A 10 x 10 px object centred at (x, y)."""
    return Detection(cls, (x - 5, y - 5, x + 5, y + 5), score, colour)


def prompt(*include: dict[str, Any], tag: str = "two_object", **more: Any) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), **more}


def one(cls: str, **more: Any) -> dict[str, Any]:
    return {"class": cls, "count": 1, **more}


def test_one_object_anywhere_fulfils_a_single_object_prompt() -> None:
    assert check(prompt(one("star")), [found("ring", 9, 9), found("star", 50, 9)]).correct
    verdict = check(prompt(one("star")), [found("ring", 9, 9)])
    assert not verdict.correct
    assert verdict.reason == "expected at least 1 star, found 0"
    assert verdict.clauses == (False,)


def test_extra_objects_fail_in_counting_only() -> None:
    three = [found("ring", x, 9) for x in (9, 29, 49)]
    two_rings = {"class": "ring", "count": 2}
    at_most = [{"class": "ring", "count": 3}]
    assert check(prompt(two_rings), three).correct
    verdict = check(prompt(two_rings, tag="counting", exclude=at_most), three)
    assert verdict.clauses == (True, False)
    assert verdict.reason == "expected fewer than 3 ring, found 3"
    assert check(prompt(two_rings, tag="counting", exclude=at_most), three[:2]).correct
    assert check(
        prompt(two_rings, tag="counting", exclude=at_most), [*three[:2], found("star", 9, 40)]
    ).correct


def test_colour_is_asked_of_the_most_confident_objects() -> None:
    # .95 > .80: only the blue star is looked at, though a red one is there too
    stars = [found("star", 9, 9, score=0.80), found("star", 40, 9, score=0.95, colour="blue")]
    assert check(prompt(one("star", color="blue")), stars).correct
    verdict = check(prompt(one("star", color="red")), stars)
    assert not verdict.correct
    assert verdict.reason == "expected 1 red star, found blue"


def test_every_one_of_count_objects_needs_the_colour() -> None:
    clause = {"class": "star", "count": 2, "color": "red"}
    assert not check(
        prompt(clause), [found("star", 9, 9), found("star", 40, 9, colour="blue")]
    ).correct
    assert check(prompt(clause), [found("star", 9, 9), found("star", 40, 9)]).correct


def test_a_relation_is_asked_of_the_second_object_to_the_first() -> None:
    clauses = one("star"), one("ring", position=["left of", 0])
    assert check(prompt(*clauses), [found("star", 50, 9), found("ring", 9, 9)]).correct
    verdict = check(prompt(*clauses), [found("star", 9, 9), found("ring", 50, 9)])
    assert verdict.clauses == (True, False)
    assert verdict.reason == "expected ring left of star, found right of it"


def test_a_relation_fails_when_its_target_failed() -> None:
    clauses = one("star", color="blue"), one("ring", position=["left of", 0])
    verdict = check(prompt(*clauses), [found("star", 50, 9), found("ring", 9, 9)])
    assert verdict.clauses == (False, False)
    assert "itself was not found" in verdict.reason


def test_any_pair_that_lacks_the_relation_fails_it() -> None:
    clauses = {"class": "star", "count": 2}, one("ring", position=["left of", 0])
    stars = [found("star", 50, 9), found("star", 30, 9)]
    assert check(prompt(*clauses), [*stars, found("ring", 9, 9)]).correct
    assert not check(prompt(*clauses), [*stars, found("ring", 40, 9)]).correct


def test_relation_thresholds_are_those_of_the_published_program() -> None:
    # 10 x 10 boxes: slack .1 (10 + 10) = 2 px an axis. Offset (20, y): dx = 18 / |o|, dy = (y - 2)
    # / |o|. At y = 14, |o| = 24.41: dy = .4915, one relation; at y = 15, |o| = 25: dy = .52, two.
    box = (0.0, 0.0, 10.0, 10.0)
    assert relations_between((20, 14, 30, 24), box) == {"right of"}
    assert relations_between((20, 15, 30, 25), box) == {"right of", "below"}
    assert relations_between(box, (20, 15, 30, 25)) == {"left of", "above"}
    assert (15 - 2) / math.hypot(20, 15) == pytest.approx(0.52)


def test_overlapping_objects_stand_in_no_relation() -> None:
    # offset (2, 1) is within the slack of 2 px: nothing is left of it
    assert relations_between((2, 1, 12, 11), (0, 0, 10, 10)) == frozenset()
    # offset (4, 0): o' / |o| = (4 - 2) / 4 = .5 exactly, and the test is strict
    assert relations_between((4, 0, 14, 10), (0, 0, 10, 10)) == frozenset()
    assert relations_between((4.1, 0, 14.1, 10), (0, 0, 10, 10)) == {"right of"}


def test_a_detectors_scores_are_cut_at_its_own_thresholds() -> None:
    # GenEval's rules: above .3, but above .9 in counting
    unsure = [found("ring", 9, 9, score=0.9), found("star", 40, 9, score=0.3)]
    assert check(prompt(one("ring")), unsure, rules=OFFICIAL_RULES).correct
    assert not check(prompt(one("star")), unsure, rules=OFFICIAL_RULES).correct
    assert not check(prompt(one("ring"), tag="counting"), unsure, rules=OFFICIAL_RULES).correct
    assert check(prompt(one("ring"), tag="counting"), unsure).correct


def test_at_most_sixteen_objects_a_class_are_counted() -> None:
    crowd = [found("ring", 9, 9) for _ in range(20)]
    below_17 = [{"class": "ring", "count": 17}]
    assert check(prompt(one("ring"), tag="counting", exclude=below_17), crowd).correct
    below_16 = [{"class": "ring", "count": 16}]
    assert not check(prompt(one("ring"), tag="counting", exclude=below_16), crowd).correct


@pytest.mark.parametrize(
    "clause",
    [
        {"class": "ring"},
        {"class": "ring", "count": 1, "colour": "red"},
        {"class": "ring", "count": 1, "position": ["near", 0]},
        {"class": "ring", "count": 1, "position": ["above", 1]},
    ],
)
def test_metadata_that_is_not_genevals_is_refused(clause: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="clause 1"):
        check(prompt(one("star"), clause), [found("star", 9, 9), found("ring", 9, 40)])


def test_metadata_that_asks_for_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="asks for nothing"):
        check({"tag": "two_object", "include": []}, [])
