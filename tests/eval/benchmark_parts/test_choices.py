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
