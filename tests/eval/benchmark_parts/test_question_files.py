"""Files of questions and prompts as strangers write them: a sentence with the place, or a row."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from tarkit.artifacts.files import text_encoding
from tarkit.errors import UserError
from tarkit.eval.benchmark_parts.detections import read_detections
from tarkit.eval.benchmark_parts.dsg import read_graphs
from tarkit.eval.benchmark_parts.question_files import file_inside, picture_fields
from tarkit.eval.benchmarks import load_benchmark

CLAUSE = {"class": "cow", "count": 1}
PROMPT = {"tag": "single_object", "include": [CLAUSE], "prompt": "a cow"}
QUESTION = {"image": "a.jpg", "text": "Is it red?", "label": "yes"}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1" * 5_000, "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a JSON object"),
        ({**PROMPT, "prompt": None}, "lacks GenEval's tag or prompt"),
        ({**PROMPT, "include": 3}, "include of the prompt's metadata is 3, not a list"),
        ({**PROMPT, "include": [None]}, "clause 0 .* is not GenEval's"),
        ({**PROMPT, "include": [CLAUSE | {"count": 1.5}]}, "clause 0 .* is not GenEval's"),
        ({**PROMPT, "include": [CLAUSE | {"class": ["cow"]}]}, "clause 0 .* is not GenEval's"),
        ({**PROMPT, "include": [CLAUSE | {"position": []}]}, "has position"),
        ({**PROMPT, "include": [CLAUSE | {"position": [None, "1"]}]}, "has position"),
        ({**PROMPT, "exclude": {"class": "cow"}}, "exclude of the prompt's metadata"),
    ],
)
def test_prompts_of_another_form_are_a_sentence(tmp_path: Path, line: Any, why: str) -> None:
    read = load_benchmark("geneval").read
    assert len(read(lines(tmp_path / "whole.jsonl", PROMPT), None)) == 1
    with pytest.raises(UserError, match=why):
        read(lines(tmp_path / "prompts.jsonl", PROMPT, line), None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"text": {"a": 1}}, "its text is dict, not text"),
        ({"image": 1.5}, "the picture 1.5 is not the name of a file"),
        ({"image": ["a.jpg"]}, "its image is list, not text"),
        ({"image": "a\0.jpg"}, "is not the name of a file"),
        ({"image": "a" * 300}, "is not the name of a file"),
        ({"image": "../../a.jpg"}, "is outside"),
        ({"image": "..\\..\\a.jpg"}, "is outside"),
    ],
)
def test_a_question_of_another_form_is_a_sentence(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        load_benchmark("pope").read(lines(tmp_path / "q.jsonl", QUESTION | change), tmp_path)


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_a_picture_is_found_under_the_name_of_another_system(
    tmp_path: Path, stored: Any, written: Any
) -> None:
    file = tmp_path / unicodedata.normalize(stored, "b\u00fccher/caf\u00e9.jpg")
    file.parent.mkdir()
    file.touch()
    name = unicodedata.normalize(written, "b\u00fccher\\caf\u00e9.jpg")
    assert file_inside(tmp_path, name, "q.jsonl:1").samefile(file)


def test_a_picture_that_is_no_base64_is_a_sentence() -> None:
    for text in ("\u00e9" * 600, "?" * 600):
        with pytest.raises(UserError, match="its picture is not base64"):
            picture_fields({"image": text}, None, "q.tsv:1")


def test_the_encoding_of_a_table_is_found_or_refused(tmp_path: Path) -> None:
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    row = "a,a caf\u00e9 \u201chere\u201d,1,0,entity (caf\u00e9),Is it?\n"
    file = tmp_path / "q.csv"
    for encoding in ("utf-8-sig", "cp1252", "utf-16"):
        file.write_bytes((head + row).encode(encoding))
        assert text_encoding(file) == encoding
        assert read_graphs(file)[0].prompt == "a caf\u00e9 \u201chere\u201d"
    file.write_bytes((head + row).encode() + b"\x81\xff")  # 0x81 is no letter of cp1252
    with pytest.raises(UserError, match="q.csv is not text in UTF-8, UTF-16 or Windows'"):
        read_graphs(file)


def test_a_cell_of_dpgs_table_may_be_long_and_a_number_must_be_one(tmp_path: Path) -> None:
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    file = tmp_path / "q.csv"
    file.write_text(head + f"a,{'z' * 200_000},1,0,entity,Is it?\n")
    assert len(read_graphs(file)[0].prompt) == 200_000
    file.write_text(head + f"a,b,{'1' * 5_000},0,entity,Is it?\n")
    with pytest.raises(UserError, match="q.csv:2: proposition_id"):
        read_graphs(file)


@pytest.mark.parametrize("line", ["[" * 100_000, "null", "7", '{"filename": "a", "detections": 1}'])
def test_a_line_that_is_no_detections_is_a_sentence(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(UserError, match=r"a\.jsonl:1 is not a line of detections"):
        read_detections(tmp_path / "a.jsonl")
