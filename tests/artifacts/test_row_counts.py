"""Counts of rows: by hand, remembered between starts, and never older than the shards."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.row_counts import FILE, RowKind, row_counts
from tarkit.errors import UserError
from tests import parts

SAID = ("assistant", "words")


def chats(out: Path) -> Artifact:
    first = [parts.chat_row("text", SAID, split=split) for split in ("train", "test", None)]
    second = [parts.chat_row(task, SAID) for task in ("text", "i2t", "i2t")]
    return parts.write_chats(out, [first, second, []])


EXPECTED = [
    {RowKind("text", split, "ok"): 1 for split in ("train", "test", None)},
    {RowKind("text", "train", "ok"): 1, RowKind("i2t", "train", "ok"): 2},
    {},
]


def test_rows_are_counted_by_task_split_and_status(tmp_path: Path) -> None:
    assert row_counts(chats(tmp_path / "chats")) == EXPECTED
    pictures = parts.write_pictures(tmp_path / "p", [["train", "train", None], ["test", "failed"]])
    assert row_counts(pictures) == [
        {RowKind(None, "train", "ok"): 2, RowKind(None, None, "ok"): 1},
        {RowKind(None, "test", "ok"): 1, RowKind(None, "train", "failed"): 1},
    ]


def test_no_shard_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chats(tmp_path / "chats")
    reads: Counter[str] = Counter()
    real = Artifact.read_few

    def read_few(self: Artifact, name: str, columns: list[str]) -> object:
        reads[name] += 1
        return real(self, name, columns)

    monkeypatch.setattr(Artifact, "read_few", read_few)
    for _ in range(2):
        assert row_counts(made) == EXPECTED
        assert reads == {"00000": 1, "00001": 1, "00002": 1}
    # A shard that was made again, by `--retry-failed` say, is counted again, and no other.
    made.write("00001", [{**parts.chat_row("t2i", SAID), "key": "00001-000000"}])
    changed = [EXPECTED[0], {RowKind("t2i", "train", "ok"): 1}, {}]
    assert row_counts(made) == changed
    assert reads == {"00000": 1, "00001": 2, "00002": 1}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"00000": [[0, 0], []]}', "[" * 100_000])
def test_a_torn_or_foreign_file_of_counts_is_replaced(tmp_path: Path, text: str) -> None:
    made = chats(tmp_path / "chats")
    (made.path / FILE).write_text(text)
    assert row_counts(made) == EXPECTED
    assert json.loads((made.path / FILE).read_text()).keys() == {"00000", "00001", "00002"}


def test_an_artifact_that_cannot_be_written_to_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = chats(tmp_path / "chats")

    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(path)

    monkeypatch.setattr("tarkit.artifacts.row_counts.write_whole", refuse)
    assert row_counts(made) == EXPECTED == row_counts(made)


def test_an_incomplete_artifact_is_refused_and_a_copied_one_is_not(tmp_path: Path) -> None:
    made = chats(tmp_path / "chats")
    assert row_counts(made) == EXPECTED
    # A copy without times: the shards are other files, and are counted again.
    shutil.copytree(made.path, tmp_path / "copy", copy_function=shutil.copyfile)
    assert row_counts(Artifact(tmp_path / "copy", "chats", {}, made.shards)) == EXPECTED
    made.shard_path("00001").unlink()
    with pytest.raises(UserError, match="lacks 1 of its 3 shards"):
        row_counts(made)


@pytest.mark.parametrize("entry", [None, [[]], [0, 1], ["x"], [[None, "train", "ok"]], [[1] * 4]])
def test_remembered_counts_of_another_shape_are_counted_anew(tmp_path: Path, entry: object) -> None:
    made = chats(tmp_path / "chats")
    assert row_counts(made) == EXPECTED
    remembered = json.loads((made.path / FILE).read_text())
    remembered["00001"][1] = entry
    (made.path / FILE).write_text(json.dumps(remembered))
    assert row_counts(made) == EXPECTED
