"""Text sources: what is a document, what is a failed one, and reading in ranges."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarkit.curate.sources.text import Document, TextSource
from tarkit.errors import UserError


def said(*texts: str) -> list[Document]:
    return [Document(turns=(("assistant", text),)) for text in texts]


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_txt_has_a_document_a_line_and_none_where_a_line_is_blank(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\n\n  two \n\nthree", encoding="utf-8")
    source = TextSource(path)
    assert source.num_documents == 3
    assert source.read(0, 3) == said("one", "two", "three")
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_ranges_are_read_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a\nb\nc\nd\ne\n")
    source = TextSource(path)
    assert source.read(0, 2) == said("a", "b")
    assert source.read(3, 5) == said("d", "e")
    assert source.read(1, 3) == said("b", "c")


def test_the_limit_takes_the_first_documents(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a\nb\nc\n")
    assert TextSource(tmp_path / "text.txt", limit=2).num_documents == 2
    assert TextSource(tmp_path / "text.txt", limit=9).num_documents == 3


def test_a_jsonl_row_has_text_or_turns_of_its_own(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = write_lines(tmp_path / "text.jsonl", {"text": "one"}, {"messages": turns, "id": 7})
    assert TextSource(path).read(0, 2) == [
        Document(turns=(("assistant", "one"),)),
        Document(turns=(("user", "hi"), ("assistant", "hello"))),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"txt": "x"}, "line 1 has neither text nor messages"),
        ({"text": "  "}, "line 1 has neither text nor messages"),
        (["text"], "line 1 is not a JSON object"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "needs a role of system, user"),
        ({"messages": [{"role": "user"}]}, "needs a role of system, user"),
        ({"messages": ["user"]}, "needs a role of system, user"),
        ({"text": "half \ud800 pair"}, "half a surrogate pair"),
    ],
)
def test_an_unusable_row_is_a_document_with_its_reason(
    tmp_path: Path, row: object, reason: str
) -> None:
    (document,) = TextSource(write_lines(tmp_path / "text.jsonl", row)).read(0, 1)
    assert document.turns == ()
    assert reason in str(document.error)


def test_broken_json_and_broken_utf8_keep_their_place(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n{"text": \n{"text": "c"}\n')
    first, second, third = TextSource(tmp_path / "text.jsonl").read(0, 3)
    assert [first, third] == said("a", "c")
    assert "line 2 is not JSON" in str(second.error)
    (tmp_path / "text.txt").write_bytes(b"fine\nbad \xff byte\n")
    _, bad = TextSource(tmp_path / "text.txt").read(0, 2)
    # `bad ` is 4 bytes long, so the wrong one is number 4.
    assert bad.error == "line 2 is not UTF-8: invalid start byte at byte 4"


def test_a_parquet_is_read_by_its_text_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", None]}), tmp_path / "text.parquet")
    first, second = TextSource(tmp_path / "text.parquet").read(0, 2)
    assert [first] == said("a")
    assert second.error == "row 1 has neither text nor messages"


def test_what_is_no_text_source_is_told_by_its_value(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"notes\.doc is not a text source: its ending is \.doc"):
        TextSource(tmp_path / "notes.doc")
    with pytest.raises(UserError, match="does not exist"):
        TextSource(tmp_path / "text.txt")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="holds no document"):
        TextSource(tmp_path / "empty.txt")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(UserError, match="no column text, messages, .*; it has body"):
        TextSource(tmp_path / "text.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        TextSource(tmp_path / "torn.parquet")


def test_conversations_of_sharegpt_are_turns_and_rows_with_pictures_are_counted(
    tmp_path: Path,
) -> None:
    said = [{"from": "system", "value": "be kind"}, {"from": "human", "value": " hi "}]
    said += [{"from": "gpt", "value": "hello"}]
    rows: list[object] = [
        {"id": "a", "conversations": said},
        {"id": "b", "image": "b.jpg", "conversations": said},
        {"id": "c", "conversations": [{"from": "cat", "value": "miaow"}]},
        {"id": "d", "conversations": [{"from": "gpt", "value": ""}]},
        "no row",
    ]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    write_lines(tmp_path / "chats.jsonl", *rows)
    pq.write_table(pa.Table.from_pylist(rows[1::-1]), tmp_path / "chats.parquet")
    turns = (("system", "be kind"), ("user", "hi"), ("assistant", "hello"))
    for name in ("chats.json", "chats.jsonl"):
        source = TextSource(tmp_path / name)
        assert (source.num_documents, source.num_with_pictures) == (4, 1)
        found = source.read(0, 4)
        assert found[0] == Document(turns=turns)
        reasons = [document.error or "" for document in found[1:]]
        assert "turn 0 is said by 'cat', not by human or gpt" in reasons[0]
        assert "turn 0 has no words" in reasons[1]
        assert "is not a JSON object" in reasons[2]
    parquet = TextSource(tmp_path / "chats.parquet")
    assert (parquet.num_with_pictures, parquet.read(0, 9)) == (1, [Document(turns=turns)])


def test_what_is_no_list_of_rows_is_said(tmp_path: Path) -> None:
    for text in ("{", "{}", "[" * 100_000):
        (tmp_path / "chats.json").write_text(text)
        with pytest.raises(UserError, match="is not JSON|is not a list of rows"):
            TextSource(tmp_path / "chats.json")


@pytest.mark.parametrize("column", ["video", "videos", "audio", "audios"])
def test_a_row_with_a_film_or_a_sound_is_a_failed_document(tmp_path: Path, column: str) -> None:
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A clip."}]
    rows = [{column: "v.mp4", "conversations": turns}, {"image": float("nan"), "text": "Hello."}]
    file = tmp_path / "t.json"
    file.write_text(json.dumps(rows))
    clip, hello = TextSource(file).read(0, 2)
    assert clip.error == f"row 0 has a {column}, of which tarkit can learn nothing"
    assert hello.turns == (("assistant", "Hello."),)
