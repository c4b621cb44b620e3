"""Rows of every format: the same values, the exact place of a bad one, and bounded memory."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarkit.artifacts import files, tables
from tarkit.artifacts.tables import BATCH_ROWS, FileRow, read_json, read_json_lines, read_rows
from tarkit.errors import UserError

ROWS = [
    {"name": "a", "text": 'two\nlines, a comma and a "quote"'},
    {"name": "ö", "text": "z\u2028"},  # a line separator, which ends no line of a file
]
CSV = 'name,text\r\na,"two\nlines, a comma and a ""quote"""\r\n\r\nö,z\u2028\r\n'


def write(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    text = {
        "csv": "\ufeff" + CSV,
        "tsv": CSV.replace(",", "\t", 1).replace('a,"', 'a\t"').replace("ö,", "ö\t"),
        "jsonl": "\n".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
        "json": json.dumps(ROWS, indent=1),
    }[kind]
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        # A cell of two lines, then a blank line: the rows end on lines 3 and 5.
        ("csv", ["line 3", "line 5"]),
        ("tsv", ["line 3", "line 5"]),
        ("jsonl", ["line 1", "line 3"]),
        ("json", ["row 0", "row 1"]),
        ("parquet", ["row 0", "row 1"]),
    ],
)
def test_every_format_gives_the_same_rows_with_their_places(
    tmp_path: Path, kind: str, places: list[str]
) -> None:
    rows = list(read_rows(write(tmp_path, kind), columns=("text", "name")))
    assert [row.require() for row in rows] == ROWS
    assert [row.place for row in rows] == places


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "r.csv",
            b'a,b\n1,"x\ny"\n2,caf\xe9\n',
            "r.csv line 4 is not UTF-8: .* at byte 5\n.*iconv",
        ),
        (
            "r.csv",
            b'a,b\n1,"x\n2,y\n',
            "r.csv line 3 is not CSV: unexpected end of data\nsed -n 3p",
        ),
        ("r.csv", b'a,b\n1,"x"y\n', "r.csv line 2 is not CSV: ',' expected"),
        ("r.csv", b"c,d\n1,2\n", "r.csv has no column a or b; it has c, d\nrename"),
        (
            "r.json",
            b'[{"a": 1},\n{"a": }]',
            "r.json line 2 is not JSON: Expecting value\nsed -n 2p",
        ),
        ("r.json", b"[" * 100_000, "r.json is not JSON: nested too deeply\ncorrect"),
        ("r.json", b"{}", "r.json is not a list of rows, but dict"),
        ("r.json", b'["a",\n"\xff"]', "r.json:2 cannot be read: it is not UTF-8"),
        ("r.parquet", b"PAR1", "r.parquet cannot be read as Parquet: .*\nwrite or fetch r.parquet"),
        ("r.xlsx", b"", r"r.xlsx: the ending is \.xlsx, expected one of \.csv"),
    ],
)
def test_what_spoils_a_file_is_raised_with_its_line_and_what_to_do(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason):
        list(read_rows(tmp_path / name, columns=("a", "b")))


def test_a_bad_row_is_given_with_its_error_and_the_rows_after_it_are_read(tmp_path: Path) -> None:
    def rows_of(name: str, content: bytes) -> list[tuple[str, dict[str, Any], str | None]]:
        (tmp_path / name).write_bytes(content)
        return [(row.place, row.values, row.error) for row in read_rows(tmp_path / name)]

    lines = b'{"a": 1}\n3\n{"a": \n{"a": "\xff"}\n' + b"[" * 100_000 + b'\n{"a": 2}'
    (first, number, torn, bytes_, deep, last) = rows_of("r.jsonl", lines)
    assert (first, last) == (("line 1", {"a": 1}, None), ("line 6", {"a": 2}, None))
    assert number == ("line 2", {}, "is not a JSON object")
    assert torn[2] and torn[2].startswith("is not JSON: Expecting value")
    assert bytes_[2] == "is not UTF-8: invalid start byte at byte 7"
    assert deep[2] == "is not JSON: nested too deeply"

    few, many, sound = rows_of("r.csv", b"a,b\n1\n1,2,3\n1,2\n")
    assert {few[2], many[2]} == {"has not the 2 columns of the first line"}
    assert sound == ("line 4", {"a": "1", "b": "2"}, None)

    assert [error for *_, error in rows_of("r.json", b'[{"a": 1}, "x"]')] == [
        None,
        "is not a JSON object",
    ]
    texts = pa.array([b"fine", b"\xff", b"too"]).view(pa.string())
    pq.write_table(pa.table({"a": texts}), tmp_path / "r.parquet")
    one, bad, three = read_rows(tmp_path / "r.parquet")
    assert (one.values, three.values) == ({"a": "fine"}, {"a": "too"})
    assert bad.place == "row 1" and bad.error and "can't decode byte 0xff" in bad.error


def test_a_row_is_required_with_its_file_place_and_the_next_command(tmp_path: Path) -> None:
    path = tmp_path / "my rows.jsonl"
    path.write_text('{"a": 1}\n[]\n')
    sound, bad = read_rows(path)
    assert sound.require() == {"a": 1}
    with pytest.raises(UserError) as error:
        bad.require()
    assert error.value.message == f"{path} line 2 is not a JSON object"
    assert error.value.hint.startswith(f"sed -n 2p '{path}' shows the line; correct it")


def test_lines_of_json_are_read_whatever_the_ending_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "pope.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert [row.values["a"] for row in read_json_lines(tmp_path / "pope.json")] == [1, 2]
    (tmp_path / "one.json").write_text('\ufeff{"questions": []}')
    assert read_json(tmp_path / "one.json") == {"questions": []}


def test_a_cell_may_hold_a_picture_and_a_line_without_an_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.csv").write_text(f"a\n{'x' * 3_000_000}\n")
    (row,) = read_rows(tmp_path / "r.csv")
    assert len(row.require()["a"]) == 3_000_000
    monkeypatch.setattr(files, "MAX_LINE_CHARS", 1000)
    monkeypatch.setattr(tables, "MAX_LINE_CHARS", 1000)
    with pytest.raises(UserError, match="r.csv:2 is longer than 1000 characters"):
        list(read_rows(tmp_path / "r.csv"))
    # A quote that never ends is a cell of many lines.
    (tmp_path / "q.csv").write_text('a,b\n1,"x\n' + "2,y\n" * 1000)
    with pytest.raises(UserError, match=r"q.csv line \d+ is not CSV: field larger than"):
        list(read_rows(tmp_path / "q.csv"))


def test_a_big_parquet_file_is_read_in_batches_and_only_the_columns_that_are_named(
    tmp_path: Path,
) -> None:
    num_rows = 40 * BATCH_ROWS
    blobs = [bytes([number % 251]) * 4096 for number in range(num_rows)]
    table = pa.table({"blob": blobs, "n": range(num_rows), "more": blobs})
    pq.write_table(table, tmp_path / "r.parquet", compression="none", use_dictionary=False)
    del table
    before = pa.total_allocated_bytes()
    peak = 0
    for number, row in enumerate(read_rows(tmp_path / "r.parquet", columns=("n", "blob"))):
        assert row.values == {"blob": blobs[number], "n": number} and row.number == number
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert number == num_rows - 1
    # A column chunk is 42 MB; a batch of its rows is 1 MB.
    assert peak < 16 << 20


def test_rows_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n' + "\n" * 100 + "torn")
    rows = read_rows(path)
    assert next(rows) == FileRow(path, "line", 1, {"a": 1})
    path.unlink()  # the rest is read from the open file
    (last,) = rows
    assert (last.place, last.values) == ("line 102", {})


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_that_finds_the_columns(tmp_path: Path, delimiter: str) -> None:
    file = tmp_path / "r.csv"
    lines = [["image", '"caption"', "more, or less"[: 4 if delimiter == "," else None]]]
    lines += [["a.png", '"x;y, z|w"', "1"]]
    file.write_text("".join(delimiter.join(cells) + "\n" for cells in lines))
    (row,) = read_rows(file, columns=("image", "caption"))
    assert row.values["image"] == "a.png" and row.values["caption"] == "x;y, z|w"


def test_a_header_may_have_spaces_and_no_column_twice(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(" image , text,,\na.png,one,,\n")
    assert [row.require()["text"] for row in read_rows(file, columns=["image"])] == ["one"]
    file.write_text("image,text,text\na.png,one,two\n")
    with pytest.raises(UserError, match="has two columns 'text'"):
        list(read_rows(file))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_pipe_whose_end_may_never_come_is_refused(tmp_path: Path, ending: str) -> None:
    pipe = tmp_path / f"rows.{ending}"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="it is a pipe or a device, not a file"):
        list(read_rows(pipe))
