"""How lettered options are read from rows, and letters from answers."""

import json
from pathlib import Path

import pytest

from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.choices import first_letter, read_choices


@pytest.mark.parametrize(
    ("answer", "letter"), [("B. a hen", "B"), (" c", "C"), ("The A", None), ("", None)]
)
def test_seed_reads_the_first_character(answer: str, letter: str | None) -> None:
    assert first_letter(answer, ("A", "B", "C", "D")) == letter


def test_more_options_than_letters_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    row = {"question": "?", "answer": "A", "options": str(list(range(11)))}
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match="has 11 options, more than 10 letters"):
        read_choices(file, None)


def options_of(row: dict[str, object], tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "B", "image": "a.jpg"} | row))
    options: dict[str, str] = read_choices(file, tmp_path)[0]["meta"]["options"]
    return options


@pytest.mark.parametrize("absent", [None, "", "  ", "nan", float("nan")])
def test_an_absent_option_leaves_the_letters_of_the_others(absent: object, tmp_path: Path) -> None:
    letters = {"A": absent, "B": "one", "C": "two"}
    assert options_of(letters, tmp_path) == {"B": "one", "C": "two"}
    choices = {f"choice_{letter.lower()}": text for letter, text in letters.items()}
    assert options_of(choices, tmp_path) == {"B": "one", "C": "two"}
    assert options_of({"options": list(letters.values())}, tmp_path) == {"B": "one", "C": "two"}


def test_zero_is_an_option_and_a_fifth_letter_is_one(tmp_path: Path) -> None:
    numbers = dict(zip("ABCDE", range(5), strict=True))
    assert options_of(dict(numbers), tmp_path) == {a: str(n) for a, n in numbers.items()}


@pytest.mark.parametrize("answer", ["B", "b", "(B)", " B. "])
def test_the_true_letter_may_have_brackets_spaces_and_a_full_stop(
    answer: str, tmp_path: Path
) -> None:
    file = tmp_path / "q.jsonl"
    row = {"question": "?", "A": "x", "B": "y", "image": "a.jpg"}
    file.write_text(json.dumps(row | {"answer": answer}))
    assert read_choices(file, tmp_path)[0]["truth"] == '"B"'
    file.write_text(json.dumps(row | {"answer": "C"}))
    with pytest.raises(UserError, match="the answer 'C' is none of A, B"):
        read_choices(file, tmp_path)


def test_an_open_answer_may_be_a_list_written_by_python(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    for answer, truth in (("['3', 'three']", ["3", "three"]), ("[sic", "[sic"), ("fox", "fox")):
        file.write_text(json.dumps({"question": "?", "answer": answer, "image": "a.jpg"}))
        assert json.loads(str(read_choices(file, tmp_path)[0]["truth"])) == truth
