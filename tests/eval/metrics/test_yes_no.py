"""POPE's reading of answers and its figures, by hand."""

import pytest

from tarkit.eval.metrics.yes_no import is_unclear, parse_yes_no, score_yes_no


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("yes, there is no doubt", False),  # the word no decides, as in the official program
        ("No, there is not.", False),
        ("There is not a star.", False),
        ("Yes. No star is missing", True),  # only the first sentence counts
        ("NO", True),  # neither No, not nor no: the official reading is yes
        ("nothing", True),
        ("", True),
    ],
)
def test_the_official_reading_is_kept_with_its_quirks(answer: str, yes: bool) -> None:
    assert parse_yes_no(answer) is yes


def test_answers_with_neither_word_are_counted_as_unclear() -> None:
    assert is_unclear("a red star")
    assert is_unclear("")
    assert not is_unclear("Yes!")
    assert not is_unclear("NO")


def test_figures_by_hand() -> None:
    # yes yes yes no no | truth yes yes no no yes: TP 2, FP 1, FN 1, TN 1
    scores = score_yes_no(["yes", "Yes.", "yes", "no", "No"], [True, True, False, False, True])
    assert scores.accuracy == pytest.approx(3 / 5)
    assert scores.precision == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 / 3)
    assert scores.yes_share == pytest.approx(3 / 5)
    assert scores.unclear == 0
    assert scores.num_questions == 5


def test_an_answer_that_could_not_be_had_is_wrong_whatever_the_truth() -> None:
    scores = score_yes_no([None, None], [True, False])
    assert scores.accuracy == 0
    assert scores.f1 == 0
    assert scores.unclear == 1


def test_always_yes_is_half_right_on_balanced_questions() -> None:
    # precision 1/2, recall 1: F1 = 2 (.5)(1) / 1.5 = 2/3, the floor that F1 hides
    scores = score_yes_no(["yes"] * 4, [True, False, True, False])
    assert (scores.accuracy, scores.yes_share) == (0.5, 1.0)
    assert scores.f1 == pytest.approx(2 / 3)


def test_as_many_answers_as_questions_are_needed() -> None:
    with pytest.raises(ValueError, match="1 answers to 2 questions"):
        score_yes_no(["yes"], [True, False])
