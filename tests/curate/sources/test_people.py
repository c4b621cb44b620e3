"""Data as people have it: the files of other programs are read, and nothing is lost in silence."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarkit.artifacts.tables import FileRow
from tarkit.curate.ingest import IngestPlan
from tarkit.curate.sources import add_captions, add_questions, list_source
from tarkit.curate.sources import parquet as parquet_source
from tarkit.curate.sources.annotation_rows import annotation_rows
from tarkit.curate.sources.text import TextSource
from tarkit.errors import UserError
from tarkit.images import decode, png_bytes

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(level: int) -> bytes:
    return png_bytes(np.full((20, 24, 3), level, np.uint8))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, level in (("1.png", 10), ("2.png", 20)):
        (folder / name).write_bytes(png(level))
    return folder


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def level_of(blob: bytes) -> int:
    return int(np.asarray(decode(blob))[0, 0, 0])


# ---- tables of captions


COCO = {
    "images": [{"id": 7, "file_name": "1.png"}, {"id": 8, "file_name": "2.png"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "one"},
        {"image_id": 7, "id": 2, "caption": "uno"},
        {"image_id": 8, "id": 3, "caption": "two"},
        {"image_id": 9, "id": 4, "caption": "lost"},
    ],
}


def test_coco_captions_are_captions_and_a_lost_image_is_a_row(two: Path, tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    items = add_captions(list_source(two).items, tmp_path / "coco.json")
    assert [(item.name, item.captions) for item in items] == [
        ("1.png", ("one", "uno")),
        ("2.png", ("two",)),
        ("coco.json#3", ()),
    ]
    assert "is about the image 9" in str(items[2].error)


def test_coco_ids_of_any_kind_are_rows_with_reasons(two: Path, tmp_path: Path) -> None:
    odd = {"images": [*COCO["images"], {"id": [1], "file_name": "1.png"}, 7]}
    odd["annotations"] = [{"image_id": [1], "caption": "x"}, {"image_id": 7, "caption": "one"}]
    (tmp_path / "coco.json").write_text(json.dumps(odd))
    items = add_captions(list_source(two).items, tmp_path / "coco.json")
    assert [item.captions for item in items if not item.error] == [("one",), ()]
    assert ["is about the image [1]" in str(item.error) for item in items if item.error] == [True]


def test_coco_without_captions_is_refused(two: Path, tmp_path: Path) -> None:
    boxes = {**COCO, "annotations": [{"image_id": 7, "bbox": [0, 0, 1, 1]}]}
    (tmp_path / "instances.json").write_text(json.dumps(boxes))
    with pytest.raises(UserError, match="has no caption: only captions are read"):
        add_captions(list_source(two).items, tmp_path / "instances.json")
    (tmp_path / "other.json").write_text('{"version": 1}')
    with pytest.raises(UserError, match="neither a list of rows, COCO's captions"):
        add_captions(list_source(two).items, tmp_path / "other.json")


def test_kohyas_table_of_captions_by_name_is_read(two: Path, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"1.png": {"caption": "one"}, "2.png": "two"}))
    items = add_captions(list_source(two).items, tmp_path / "meta.json")
    assert [item.captions for item in items] == [("one",), ("two",)]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_the_metadata_of_an_image_folder_is_found(two: Path, name: str) -> None:
    folder = two / "train"
    folder.mkdir()
    (folder / "3.png").write_bytes(png(30))
    if name.endswith("jsonl"):
        (folder / name).write_text('{"file_name": "3.png", "text": "three"}\n')
    elif name.endswith("csv"):
        (folder / name).write_text("file_name,text\n3.png,three\n")
    else:
        table(folder / name, file_name=["3.png"], text=["three"])
    listing = list_source(two)
    assert [item.captions for item in listing.items] == [(), (), ("three",)]
    assert listing.items[2].captions_from == (name,)
    assert listing.notes == (f"train/{name} is taken for the captions of its folder",)


def test_metadata_without_captions_is_a_note(two: Path) -> None:
    (two / "metadata.csv").write_text("file_name,label\n1.png,4\n2.png,5\n")
    listing = list_source(two)
    assert [item.captions for item in listing.items] == [(), ()]
    assert "metadata.csv gives no captions" in listing.notes[0]


def test_columns_in_capitals_are_the_same_columns(tmp_path: Path, two: Path) -> None:
    file = table(tmp_path / "l.parquet", URL=["http://a/b.png"], TEXT=["x"], jpg=[png(1)])
    (item,) = list_source(file).items
    assert item.captions == ("x",) and item.origin == {"url": "http://a/b.png"}
    (tmp_path / "c.csv").write_text("Image,TEXT\n1.png,x\n2.png,y\n")
    items = add_captions(list_source(two).items, tmp_path / "c.csv")
    assert [item.captions for item in items] == [("x",), ("y",)]


def test_a_bad_row_is_a_row_and_a_file_of_bad_rows_is_refused(two: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text('{"image": "1.png", "text": "x"}\n{"image"\n{"text": "of nothing"}\n')
    items = add_captions(list_source(two).items, file)
    assert items[0].captions == ("x",)
    assert {item.name: item.error is None for item in items} == {
        **{"1.png": True, "2.png": True},
        **{"c.jsonl#2": False, "c.jsonl#3": False},
    }
    file.write_text('{"image"\n{"text": "of nothing"}\n')
    with pytest.raises(UserError, match="c.jsonl line 1 is not JSON"):
        add_captions(list_source(two).items, file)


# ---- files beside pictures, and lists


def test_side_files_of_kohya_and_img2dataset_are_captions(two: Path) -> None:
    (two / "1.caption").write_text("one")
    (two / "2.json").write_text('{"caption": "two", "url": "http://x/2.png"}')
    (two / "3.json").write_text('{"shapes": []}')
    listing = list_source(two)
    assert [item.captions for item in listing.items] == [("one",), ("two",)]
    assert [item.captions_from for item in listing.items] == [(".caption",), (".json",)]
    assert listing.items[1].origin == {"url": "http://x/2.png"}
    assert listing.notes == ("1 files are not pictures: 1 .json",)


def test_a_list_of_pictures_is_a_source(two: Path, tmp_path: Path) -> None:
    (two / "1.txt").write_text("one")
    (tmp_path / "list.txt").write_text("pictures/2.png\npictures/1.png\npictures/9.png\n../x.png\n")
    items = list_source(tmp_path / "list.txt").items
    assert [(item.name, item.captions, item.error is None) for item in items] == [
        ("pictures/2.png", (), True),
        ("pictures/1.png", ("one",), True),
        ("pictures/9.png", (), False),
        ("../x.png", (), False),
    ]
    assert level_of(items[0].read()) == 20


# ---- containers


def gzipped(path: Path, count: int) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for number in range(count):
            for name, blob in ((f"{number}.png", png(number)), (f"{number}.txt", b"text")):
                member = tarfile.TarInfo(name)
                member.size = len(blob)
                tar.addfile(member, io.BytesIO(blob))
    return path


def test_a_compressed_tar_is_read_in_any_order(tmp_path: Path) -> None:
    items = list_source(gzipped(tmp_path / "g.tar.gz", 5)).items
    assert [item.captions for item in items] == [("text",)] * 5
    assert [level_of(items[place].read()) for place in (0, 3, 1, 4)] == [0, 3, 1, 4]


def test_a_damaged_compression_is_an_item(tmp_path: Path) -> None:
    whole = gzipped(tmp_path / "g.tar.gz", 5).read_bytes()
    for blob in (whole[: len(whole) // 2], gzip.compress(b"x"), b"\x1f\x8b" + bytes(50)):
        (tmp_path / "g.tar.gz").write_bytes(blob)
        items = list(list_source(tmp_path / "g.tar.gz").items)
        assert "damaged" in str(items[-1].error)


def test_a_list_of_pictures_in_a_row_is_a_group(tmp_path: Path) -> None:
    images = [[{"bytes": png(1), "path": None}], [{"bytes": png(2), "path": "a"}] * 2, [], None]
    file = table(tmp_path / "l.parquet", images=pa.array(images, pa.list_(STRUCT)))
    items = list_source(file).items
    assert [(item.name, item.about.get("group"), item.error is None) for item in items] == [
        ("l.parquet#0", None, True),
        ("l.parquet#1.0", "l.parquet#1", True),
        ("l.parquet#1.1", "l.parquet#1", True),
        ("l.parquet#2", None, False),
        ("l.parquet#3", None, False),
    ]
    assert [level_of(items[place].read()) for place in (2, 0)] == [2, 1]


def test_rows_of_parquet_are_read_one_at_a_time_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = [png(level) for level in range(40)]
    pq.write_table(pa.table({"image": blobs}), tmp_path / "p.parquet", row_group_size=16)
    items = list_source(tmp_path / "p.parquet").items
    order = [5, 6, 17, 39, 2, 3, 3, 38]
    assert [level_of(items[place].read()) for place in order] == order
    monkeypatch.setattr(parquet_source, "MAX_FILE_BYTES", 10)
    parquet_source._cursor.cache_clear()
    with pytest.raises(OSError, match="row group unpacks to .* bytes a picture, more than 10"):
        items[0].read()


# ---- conversations


@pytest.mark.parametrize(
    "row",
    [
        {"image": "1.png", "question": "what?", "answer": "grey"},
        {
            "image": ["1.png"],
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "<image>what?"},
                {"role": "assistant", "content": "grey"},
            ],
        },
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": "1.png"},
                        {"type": "text", "text": "what?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "grey"}]},
            ]
        },
        {
            "id": "x",
            "conversations": [
                {"from": "user", "value": "Picture 1: <img>1.png</img>\nwhat?"},
                {"from": "assistant", "value": "grey"},
            ],
        },
        {"images": ["1.png"], "query": "what?", "response": "grey"},
        {"images": ["1.png"], "instruction": "what?", "input": "", "output": "grey"},
    ],
    ids=["plain", "messages", "qwen2-vl", "qwen-vl", "swift", "alpaca"],
)
def test_questions_in_the_forms_of_other_programs(
    two: Path, tmp_path: Path, row: dict[str, Any]
) -> None:
    (tmp_path / "q.json").write_text(json.dumps([row]))
    items = add_questions(list_source(two).items, tmp_path / "q.json")
    assert [item.qa for item in items] == [(("what?", "grey"),), ()]


def test_alpacas_rows_are_chats_and_an_unknown_role_is_named(tmp_path: Path) -> None:
    rows = [
        {"instruction": "add", "input": "1 + 1", "output": "2"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    chat, bad = TextSource(tmp_path / "t.json").read(0, 2)
    assert chat.turns == (("user", "add\n1 + 1"), ("assistant", "2"))
    assert "one has the role 'tool'" in str(bad.error)


def test_rows_of_any_table_are_file_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,text\n1.png,x\n")
    assert all(isinstance(row, FileRow) for row in annotation_rows(tmp_path / "a.csv", ("text",)))


# ---- the command's last words


def test_ingest_ends_with_where_captions_came_from_and_what_it_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path / "p.parquet", image=[png(1), png(2)], caption=["x", None], when=[1, 2])
    IngestPlan(file, out=tmp_path / "o", overrides=["num_workers=1"]).run()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 of 2 pictures have captions; 1 from column caption; 2 column when left aside" in last
