"""MMVP from its csv to its figures, by hand, and exported as its grader reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tarkit.artifacts.manifest import begin_directory
from tarkit.errors import UserError
from tarkit.eval import export, prepare, score
from tarkit.eval.benchmarks.mmvp import parse_mmvp, read_mmvp
from tarkit.eval.run import open_run

OPTIONS = {"A": "Open", "B": "Closed"}
ROWS = [
    "1,Is the door open?,(a) Open (b) Closed,(a)",
    "2,Is the door open?,(a) Open (b) Closed,(b)",
    '3,"Which way, left or right?",(a) To the left (b) To the right,(b)',
    '4,"Which way, left or right?",(a) To the left (b) To the right,(a)',
]


def mmvp(folder: Path, rows: list[str], index: str = "Index") -> Path:
    (folder / "MMVP Images").mkdir(parents=True)
    for number in range(1, len(rows) + 1):
        Image.new("RGB", (8, 8)).save(folder / "MMVP Images" / f"{number}.jpg")
    head = f"{index},Question,Options,Correct Answer"
    (folder / "Questions.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def answered(out: Path, answers: list[str | None]) -> Path:
    begin_directory(out / "answers", "answers", settings={"batch_size": 100})
    lines = [json.dumps({"answer": text, "error": None if text else "why"}) for text in answers]
    (out / "answers" / "00000.jsonl").write_text("\n".join(lines) + "\n")
    return out


def figures(run: Path, **options: Any) -> Any:
    results = json.loads((score.run(run, **options).path / "results.json").read_text())
    return results["metrics"]["mmvp@stated-letter"]


@pytest.mark.parametrize("index", ["Index", "lndex"])
def test_a_row_becomes_a_lettered_question_of_a_pair(tmp_path: Path, index: str) -> None:
    prepare.run("mmvp", out=tmp_path / "run", data=mmvp(tmp_path / "data", ROWS, index))
    items = open_run(tmp_path / "run").items
    assert [(item.id, item.group, item.truth) for item in items] == [
        ("1", "1", "A"),
        ("2", "1", "B"),
        ("3", "2", "B"),
        ("4", "2", "A"),
    ]
    assert items[2].prompt == (
        "Which way, left or right?\nA. To the left\nB. To the right\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert items[2].picture == str(tmp_path / "data" / "MMVP Images" / "3.jpg")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("b.", "B"),
        ("(b) Closed", "B"),
        ("The answer is (a).", "A"),
        ("The answer is B", "B"),
        ("Closed.", "B"),
        ("It is (a), not (b)", None),  # both are stated
        ("a dog", None),  # an article
        ("The answer is a dog", None),
        ("the camera", None),  # a word that ends with an option's letter
        ("The door is open", None),  # more than the option's text
        ("", None),
    ],
)
def test_an_answer_must_state_one_letter_or_repeat_one_option(
    answer: str, letter: str | None
) -> None:
    assert parse_mmvp(answer, OPTIONS) == letter


def test_a_pair_counts_only_if_both_its_questions_are_correct(tmp_path: Path) -> None:
    data = mmvp(tmp_path / "data", ROWS)
    prepare.run("mmvp", out=tmp_path / "run", data=data)
    # The first pair is correct; of the second only question 3: pairs 1/2, questions 3/4.
    run = answered(tmp_path / "run", ["A", "Closed", "(b)", "I cannot tell"])
    found = figures(run)
    assert found["pair_accuracy"]["value"] == 0.5 and found["pair_accuracy"]["num_prompts"] == 2
    # Two pairs redrawn with replacement: none, one or both of them are the correct one.
    assert (found["pair_accuracy"]["low"], found["pair_accuracy"]["high"]) == (0.0, 1.0)
    assert found["accuracy"]["value"] == 0.75
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (0.5, 1.0)
    assert found["unclear"] == 0.25 and found["num_pairs"] == 2


def test_a_failed_answer_costs_its_pair_and_lowers_coverage(tmp_path: Path) -> None:
    prepare.run("mmvp", out=tmp_path / "run", data=mmvp(tmp_path / "data", ROWS))
    run = answered(tmp_path / "run", ["A", None, "B", "A"])
    with pytest.raises(UserError, match="25.0% of"):
        score.run(run)
    found = figures(run, allow_missing=True)
    assert (found["pair_accuracy"]["value"], found["coverage"]) == (0.5, 0.75)
    with pytest.raises(UserError, match="the answer to 2 failed: why"):
        export.run(run, out=tmp_path / "out", layout="mmvp-jsonl")


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    data = mmvp(tmp_path / "data", ROWS)
    prepare.run("mmvp", out=tmp_path / "run", data=data, limit=3)
    with pytest.raises(UserError, match="both questions of every pair") as error:
        score.run(answered(tmp_path / "run", ["A", "B", "A"]))
    assert "an even --limit" in str(error.value.hint)
    with pytest.raises(UserError, match="both questions of every pair"):
        prepare.run("mmvp", out=tmp_path / "no", data=mmvp(tmp_path / "odd", ROWS[:3]))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("1,Is it?,(a) Yes (b) No,(c)", r"'\(c\)' is not one of two or more options"),
        ("1,Is it?,Yes,(a)", "is not one of two or more options in 'Yes'"),
        ("one,Is it?,(a) Yes (b) No,(a)", "Index 'one' is not a number"),
    ],
)
def test_a_row_that_asks_nothing_is_refused(tmp_path: Path, row: str, fault: str) -> None:
    with pytest.raises(UserError, match=f"Questions.csv:2: .*{fault}"):
        read_mmvp(mmvp(tmp_path, [row]), None)


def pairs_as_published(file: Path) -> float:
    """`gpt_grader.py`, with a grader that accepts exactly the true letter in brackets."""
    num_correct = num_pairs = 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        num_pairs += 1
        num_correct += all(line["answer"] == line["response"] for line in (first, second))
    return num_correct / num_pairs


def test_the_grader_reads_prompts_and_truths_as_published(tmp_path: Path) -> None:
    prepare.run("mmvp", out=tmp_path / "run", data=mmvp(tmp_path / "data", ROWS))
    run = answered(tmp_path / "run", ["(a)", "(b)", "(b)", "(b)"])
    out = export.run(run, out=tmp_path / "out", layout="mmvp-jsonl")
    assert json.loads((out / "answer.jsonl").read_text().splitlines()[2]) == {
        "question_id": 3,
        "prompt": "Which way, left or right? (a) To the left (b) To the right",
        "answer": "(b)",
        "response": "(b)",
    }
    assert pairs_as_published(out / "answer.jsonl") == figures(run)["pair_accuracy"]["value"] == 0.5
