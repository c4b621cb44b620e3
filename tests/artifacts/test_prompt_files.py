"""Prompt files of every kind give the same list, and a bad row names itself."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarkit.artifacts.artifact import begin_artifact
from tarkit.artifacts.prompt_files import read_prompts
from tarkit.errors import UserError

PROMPTS = ["a photo of a ring", 'a "red" heart, left', "zwei Herzen für dich"]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"prompts.{kind}"
    if kind == "txt":
        path.write_text("\n".join([PROMPTS[0], "", *PROMPTS[1:]]), encoding="utf-8")
    elif kind == "jsonl":
        rows = [
            '{"prompt": "a photo of a ring", "tag": 1}',
            '{"prompt": "a \\"red\\" heart, left"}',
        ]
        path.write_text(
            "\n".join([*rows, '{"prompt": "zwei Herzen für dich"}\n']), encoding="utf-8"
        )
    elif kind == "csv":
        text = 'id,prompt\n1,a photo of a ring\n2,"a ""red"" heart, left"\n3,zwei Herzen für dich\n'
        path.write_text("\ufeff" + text, encoding="utf-8")  # spreadsheets write a byte order mark
    else:
        pq.write_table(pa.table({"prompt": PROMPTS}), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_every_kind_gives_the_same_prompts(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    assert read_prompts(path) == PROMPTS
    assert read_prompts(path, limit=2) == PROMPTS[:2]


def test_a_prompts_artifact_gives_its_sound_rows(tmp_path: Path) -> None:
    artifact = begin_artifact(tmp_path / "p", "prompts", settings={}, shards=["00000", "00001"])
    blank = dict.fromkeys(artifact.schema.names) | {"status": "ok"}
    artifact.write("00000", [blank | {"key": "00000-000000", "prompt": "one"}])
    failed = artifact.failed_row("00001-000000", "the captioner gave up")
    artifact.write("00001", [failed, blank | {"key": "00001-000001", "prompt": "two"}])
    assert read_prompts(tmp_path / "p") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "line 2 has no prompt: None"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ("p.jsonl", '["a"]\n', "line 1 is not a JSON object"),
        ("p.csv", "text\na\n", "has no column prompt; it has text"),
        ("p.csv", "prompt,n\na,1\n,2\n", "line 3 has no prompt: ''"),
        ("p.csv", "prompt,n\na cat, asleep,1\n", "p.csv line 2 has not the 2 columns"),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.doc", "a", r"the ending is \.doc, expected \.txt, \.jsonl, \.csv or \.parquet"),
    ],
)
def test_a_bad_row_is_named_with_its_place(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=reason):
        read_prompts(tmp_path / name)


def test_bytes_that_are_no_text_and_a_missing_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"fine\nabc\xff")
    with pytest.raises(UserError, match="p.txt line 2 is not UTF-8: .* at byte 3"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(UserError, match="do not exist"):
        read_prompts(tmp_path / "q.txt")
