"""MME's sums by hand, and the paper's harmonic mean."""

from pathlib import Path

import pytest

from tarkit.errors import UserError
from tarkit.eval.benchmarks.base import ReadAnswer
from tarkit.eval.benchmarks.mme import (
    PERCEPTION,
    mme_correct,
    mme_figures,
    parse_mme,
    read_mme,
)
from tarkit.eval.run import BenchmarkItem
from tarkit.report.metrics import und


def read(task: str, picture: str, truth: str, text: str | None) -> ReadAnswer:
    item = BenchmarkItem(f"{picture}-{truth}", task, "?", truth=truth, meta={"group": picture})
    return ReadAnswer(item, text, text is not None and mme_correct(item, text))


@pytest.mark.parametrize(
    ("answer", "word"),
    [("Yes", "yes"), ("No, it is not", "no"), ("yes.", "yes"), ("I see no", None), ("", None)],
)
def test_only_the_first_four_characters_are_read(answer: str, word: str | None) -> None:
    assert parse_mme(answer) == word


def test_a_subtask_is_right_answers_and_right_pictures() -> None:
    # Two pictures: both right, and one of two right: acc 3/4, acc+ 1/2: 75 + 50.
    answers = [
        read("count", "a", "yes", "yes"),
        read("count", "a", "no", "no"),
        read("count", "b", "yes", "yes"),
        read("count", "b", "no", "perhaps"),
    ]
    found = mme_figures(answers)
    assert found["tasks"]["count"]["value"] == pytest.approx(125)
    assert found["perception"] is None and found["cognition"] is None
    assert found["unclear"] == 0.25 and found["coverage"] == 1.0


def test_perception_is_the_sum_of_its_ten_subtasks() -> None:
    answers = [read(task, "a", truth, truth) for task in PERCEPTION for truth in ("yes", "no")]
    assert mme_figures(answers)["perception"] == pytest.approx(2000)


def test_a_failed_answer_is_wrong_and_a_picture_with_one_question_is_an_error() -> None:
    found = mme_figures([read("count", "a", "no", None), read("count", "a", "yes", "yes")])
    assert found["tasks"]["count"]["value"] == pytest.approx(50) and found["coverage"] == 0.5
    with pytest.raises(UserError, match="a of count has 1 questions"):
        mme_figures([read("count", "a", "no", "no")])


def test_the_papers_und_is_of_raw_values() -> None:
    # Table 9c: GQA 61.0, MME 1428, POPE 87.4 with SEED 68.86 is the paper's 92.9.
    found = und(1428, 61.0, 68.86, 87.4)
    assert found["und_paper"] == pytest.approx(92.9, abs=0.05)
    # 4 / (1/71.4 + 1/61 + 1/68.86 + 1/87.4) = 4 / .056364
    assert found["und_norm"] == pytest.approx(70.97, abs=0.01)
    with pytest.raises(UserError, match="GQA = 0"):
        und(1428, 0, 68, 87)


def test_labels_and_files_as_people_have_them(tmp_path: Path) -> None:
    folder = tmp_path / "existence"
    folder.mkdir()
    (folder / "1.txt").write_bytes(b"\xef\xbb\xbfIs it red?\tYes.\r\n\r\nIs it blue?\t no \n")
    (folder / "2.txt").write_bytes(b"Is it a caf\xe9?\tyes\nIs it \x93new\x94?\tNO\n")
    (folder / "._1.txt").write_bytes(b"\0\5\x16\7")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "1.txt").write_text("no table")
    rows = read_mme(tmp_path, None)
    assert [row["prompt"].splitlines()[0] for row in rows] == [
        "Is it red?",
        "Is it blue?",
        "Is it a caf\xe9?",
        "Is it \u201cnew\u201d?",
    ]
    assert [row["truth"] for row in rows] == ["yes", "no", "yes", "no"]
    (folder / "1.txt").write_text("Is it red?\tperhaps\n")
    with pytest.raises(UserError, match="1.txt:1: the label 'perhaps' is neither yes nor no"):
        read_mme(tmp_path, None)
