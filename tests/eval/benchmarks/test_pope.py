"""POPE's files as people have them."""

import json
from pathlib import Path

import pytest

from tarkit.errors import UserError
from tarkit.eval.benchmarks.dpg import says_yes
from tarkit.eval.benchmarks.pope import read_pope


def test_a_label_with_a_full_stop_or_a_space_is_what_it_says(tmp_path: Path) -> None:
    labels = ["Yes.", " yes", "yes\n", "No", "no.", "no "]
    rows = [
        {"question_id": n, "image": "a.jpg", "text": "?", "label": a} for n, a in enumerate(labels)
    ]
    (tmp_path / "coco_pope_random.json").write_text("\ufeff" + "\n\n".join(map(json.dumps, rows)))
    (tmp_path / "._coco_pope_random.json").write_bytes(b"\0\5\x16\7")
    assert [row["truth"] for row in read_pope(tmp_path, tmp_path)] == ["yes"] * 3 + ["no"] * 3


def test_one_list_in_json_is_read_as_lines_are(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "image": "a.jpg", "text": "?", "label": "yes"}] * 2
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "list.json").write_text("\ufeff" + json.dumps(rows, indent=1))
    lines, listed = (
        [row["truth"] for row in read_pope(tmp_path / f"{name}.json", tmp_path)]
        for name in ("lines", "list")
    )
    assert lines == listed == ["yes", "yes"]


def test_a_picture_with_half_a_surrogate_in_its_name_is_a_sentence(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "\ud800", "text": "?", "label": "yes"}
    (tmp_path / "a.json").write_text(json.dumps(row))
    with pytest.raises(UserError, match="is not the name of a file"):
        read_pope(tmp_path / "a.json", tmp_path)


def test_a_judge_may_put_marks_around_its_yes() -> None:
    assert all(map(says_yes, ("yes", "Yes.", "**Yes**, it is", " yes!", '"Yes"')))
    assert not any(map(says_yes, ("no", "yesterday", "It is. Yes", "")))
