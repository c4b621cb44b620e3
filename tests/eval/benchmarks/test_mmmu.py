"""How MMMU reads choices and open answers."""

import pytest

from tarkit.eval.benchmarks.mmmu import normal_forms, open_correct, parse_choice

OPTIONS = {"A": "a red fox", "B": "a hen", "C": "snow"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("The answer is (A), not (B).", "B"),  # the last in brackets, whatever is meant
        ("A or rather (C)", "C"),  # brackets before bare letters
        ("It is B.", "B"),
        ("I think that what we see there is a hen", "B"),
        ("a hen", None),  # five words or fewer quote no option; "a" is no letter
        ("I cannot say", None),
        ("", None),
    ],
)
def test_mmmu_reads_the_last_letter_stated(answer: str, letter: str | None) -> None:
    assert parse_choice(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "truth", "correct"),
    [
        ("so the result is 1,234.50", "1234.5", True),
        ("1.2e3", "1200", True),
        ("It costs 7 dollars", "70", False),
        ("The capital is Paris.", "paris", True),
        ("x = 4", "4", True),
        ("b", "b", True),
        ("The cab", "b", False),  # one letter alone is not found within a word
        ("the answer is cat", ["dog", "cat"], True),
    ],
)
def test_mmmu_reads_open_answers(answer: str, truth: str | list[str], correct: bool) -> None:
    assert open_correct(answer, truth) is correct


def test_a_number_is_rounded_to_two_places_and_a_letter_stands_alone() -> None:
    assert normal_forms("3.14159") == [3.14]
    assert normal_forms("X") == [" x", "x "]
    assert normal_forms("Paris") == ["paris"]
