import io
import json
import os
import tarfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarkit.curate.sources import list_source
from tarkit.curate.sources.annotations import add_captions, add_questions
from tarkit.curate.sources.items import SourceItem
from tarkit.curate.sources.urls import Link, read_urls
from tarkit.errors import UserError


def by_name(items: Sequence[SourceItem]) -> dict[str, SourceItem]:
    assert len({item.name for item in items}) == len(items)
    return {item.name: item for item in items}


def text(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---- folders


def test_a_folder_is_listed_in_order_with_the_captions_beside_its_pictures(tmp_path: Path) -> None:
    text(tmp_path / "b.PNG", "bee")
    text(tmp_path / "a" / "c.jpg", "sea")
    text(tmp_path / "a" / "c.txt", "\ufeff a ring\n above a heart \n")
    text(tmp_path / "a" / "alone.txt", "beside nothing")
    text(tmp_path / "film.mp4", "")
    listing = list_source(tmp_path)
    assert listing.form == "folder"
    assert [(item.name, item.captions, item.read()) for item in listing.items] == [
        ("a/c.jpg", ("a ring above a heart",), b"sea"),
        ("b.PNG", (), b"bee"),
    ]
    assert listing.notes == ("2 files are not pictures: 1 .mp4, 1 .txt",)


def test_links_out_of_the_folder_pipes_and_lost_files_become_items_with_reasons(
    tmp_path: Path,
) -> None:
    text(tmp_path / "secret" / "key.png", "secret")
    root = tmp_path / "in"
    text(root / "ok.png", "fine")
    (root / "inside.png").symlink_to("ok.png")
    (root / "outside.png").symlink_to(tmp_path / "secret" / "key.png")
    (root / "folder").symlink_to(tmp_path / "secret")
    (root / "dangling.png").symlink_to("nothing")
    (root / "loop.png").symlink_to("loop.png")
    (root / "captioned.png").write_bytes(b"x")
    (root / "captioned.txt").symlink_to(tmp_path / "secret" / "key.png")
    os.mkfifo(root / "pipe.png")
    items = by_name(list_source(root).items)
    assert items["inside.png"].read() == b"fine"
    assert items["outside.png"].error == "a link that leaves the folder is not followed"
    assert items["folder"].error == "a link to a folder is not followed"
    assert items["dangling.png"].error == "No such file or directory"
    assert items["loop.png"].error == "a loop of links"
    assert items["captioned.png"].error == (
        "its caption captioned.txt is a link that leaves the folder"
    )
    with pytest.raises(OSError, match="pipe.png is not a regular file"):
        items["pipe.png"].read()  # and does not wait for somebody to write into the pipe


def test_a_name_that_is_not_utf8_and_a_caption_that_is_not_are_shown(tmp_path: Path) -> None:
    text(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")), "x")
    text(tmp_path / "y.png", "y")
    text(tmp_path / "y.txt", b"caf\xe9")
    items = list_source(tmp_path).items
    assert [item.name for item in items] == ["\\udcff.png", "y.png"]
    assert items[0].read() == b"x"
    assert items[1].error == "y.txt is not UTF-8 text: unexpected end of data"


def test_an_empty_or_absent_folder_or_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list_source(tmp_path / "none")
    text(tmp_path / "notes.md", "x")
    with pytest.raises(UserError, match="holds no pictures.*1 files are not pictures: 1 .md"):
        list_source(tmp_path)
    with pytest.raises(
        UserError, match="notes.md is neither a folder, a .parquet, a .tar nor a .tar.gz"
    ):
        list_source(tmp_path / "notes.md")
    text(tmp_path / "manifest.json", '{"kind": "tokens", "settings": {}}')
    with pytest.raises(UserError, match="was made by tarkit already: it holds tokens\ntarkit ins"):
        list_source(tmp_path)


# ---- captions and questions


@pytest.fixture
def two(tmp_path: Path) -> Path:
    text(tmp_path / "in" / "a.png", "a")
    text(tmp_path / "in" / "b" / "b.png", "b")
    return tmp_path / "in"


def test_captions_come_from_csv_jsonl_and_parquet_alike(two: Path, tmp_path: Path) -> None:
    items = list_source(two).items
    rows = [
        {"image": "b/b.png", "caption": "one, and two"},
        {"image": "./a.png", "caption": "three"},
        {"image": "a.png", "caption": "four"},
    ]
    csv_text = 'image,caption\nb/b.png,"one, and two"\n./a.png,three\na.png,four\n'
    jsonl = "".join(json.dumps(row) + "\n\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    for path in (
        text(tmp_path / "c.csv", "\ufeff" + csv_text),
        text(tmp_path / "c.jsonl", jsonl),
        tmp_path / "c.parquet",
    ):
        found = add_captions(items, path)
        assert [item.captions for item in found] == [("three", "four"), ("one, and two",)]


def test_the_prompt_comes_first_and_lists_of_captions_are_taken_whole(
    two: Path, tmp_path: Path
) -> None:
    line = {"file_name": "a.png", "captions": ["second", "third"], "prompt": "first"}
    found = add_captions(list_source(two).items, text(tmp_path / "c.jsonl", json.dumps(line)))
    assert found[0].captions == ("first", "second", "third")


def test_a_name_that_leaves_the_folder_or_is_not_there_becomes_a_failed_item(
    two: Path, tmp_path: Path
) -> None:
    table = "image,text\n../../etc/passwd,x\n/etc/passwd,x\nmissing.png,y\na.png,z\n"
    found = by_name(add_captions(list_source(two).items, text(tmp_path / "c.csv", table)))
    assert len(found) == 5  # the two pictures and three names without one
    assert found["../../etc/passwd"].error == "named in c.csv line 2, but it leaves the source"
    assert found["/etc/passwd"].error == "named in c.csv line 3, but it leaves the source"
    assert found["missing.png"].error == "named in c.csv line 4, but it is not in the source"
    assert found["a.png"].error is None and found["a.png"].captions == ("z",)


def test_questions_gather_on_their_picture_and_half_a_pair_costs_itself_alone(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "image,question,answer\na.png,Is it red?,yes\na.png,How many?,2\na.png,Why?,\n"
    found = add_questions(list_source(two).items, text(tmp_path / "q.csv", table))
    assert found[0].qa == (("Is it red?", "yes"), ("How many?", "2"))
    assert found[0].error is None
    assert "1 questions are left out; the first: q.csv line 4 has a pair without an answer" in (
        capsys.readouterr().err
    )


Said = list[dict[str, str]]
ASKED: Said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}],
        [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": ""}],
        [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": None}],
        [{"from": "human", "value": "Why?"}],
        [{"from": "cat", "value": "Why?"}, {"from": "gpt", "value": "So."}],
        [{"from": "gpt", "value": "So."}, {"from": "gpt", "value": "So."}],
        "no turns",
    ],
)
def test_a_conversation_that_cannot_be_used_leaves_the_others_of_its_picture(
    two: Path, tmp_path: Path, turns: object, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": "a.png", "conversations": said} for said in (turns, ASKED)]
    found = add_questions(list_source(two).items, text(tmp_path / "q.json", json.dumps(rows)))
    assert found[0].qa == (("What?", "A cat."),) and found[0].error is None
    assert "1 questions are left out; the first: q.json row 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "where", [{"image": ["a.png"]}, {"images": ["a.png"]}, {"images": "a.png"}]
)
def test_a_list_of_one_picture_names_it(two: Path, tmp_path: Path, where: dict[str, Any]) -> None:
    rows = [where | {"id": "x", "conversations": ASKED}]
    found = add_questions(list_source(two).items, text(tmp_path / "q.json", json.dumps(rows)))
    assert found[0].qa == (("What?", "A cat."),)


@pytest.mark.parametrize(
    ("shows", "reason"),
    [
        ({"images": ["a.png", "b/b.png"]}, "q.json row 0: it shows 2 pictures"),
        ({"image": ["a.png", "b/b.png"]}, "q.json row 0: it shows 2 pictures"),
        ({"video": "v.mp4"}, "q.json row 0: it has a video"),
        ({"image": "a.png", "audio": "a.wav"}, "q.json row 0: it has a audio"),
        ({"images": [{"bytes": None, "path": None}]}, "q.json row 0: its picture has no name"),
    ],
)
def test_a_conversation_that_is_not_about_one_picture_is_a_row_of_its_own(
    two: Path, tmp_path: Path, shows: dict[str, Any], reason: str
) -> None:
    file = text(tmp_path / "q.json", json.dumps([shows | {"conversations": ASKED}]))
    items = add_questions(list_source(two).items, file)
    assert [item.error for item in items[:2]] == [None, None] and not items[0].qa
    assert items[2].name == "q.json#0" and str(items[2].error).startswith(reason)


def test_nan_of_pandas_is_no_caption_no_picture_and_no_name(two: Path, tmp_path: Path) -> None:
    lines = '{"image": "a.png", "text": NaN, "caption": ["a cat", NaN], "group": NaN}\n'
    found = add_captions(list_source(two).items, text(tmp_path / "c.jsonl", lines))
    assert found[0].captions == ("a cat",) and found[0].error is None and not found[0].about
    row = {"image": float("nan"), "conversations": ASKED}
    add_questions(found, text(tmp_path / "q.json", json.dumps([row])))  # shows no picture


Form = Literal["NFC", "NFD"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_a_name_written_on_another_system_finds_its_file(
    tmp_path: Path, form: Form, stored: Form
) -> None:
    root, name = tmp_path / "in", "b\u00fccher/caf\u00e9.png"
    text(root / unicodedata.normalize(stored, name), "x")
    text(root / unicodedata.normalize(form, "b\u00fccher/caf\u00e9.txt"), "beside")
    written = unicodedata.normalize(form, name).replace("/", "\\")
    table = text(tmp_path / "c.csv", f"image,caption\n{written},a caf\u00e9\n")
    (item,) = add_captions(list_source(root).items, table)
    assert item.error is None and item.captions[-1] == "a caf\u00e9"


def test_a_name_that_two_files_can_mean_is_refused_unless_it_is_exact(tmp_path: Path) -> None:
    root = tmp_path / "in"
    nfc, nfd = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFC", "NFD"))
    text(root / nfc, "x")
    text(root / nfd, "y")
    found = by_name(
        add_captions(list_source(root).items, text(tmp_path / "c.csv", f"image,caption\n{nfd},z\n"))
    )
    assert (found[nfc].captions, found[nfd].captions) == ((), ("z",))
    with pytest.raises(UserError, match="the name of 2 pictures"):
        add_captions(
            list_source(root).items, text(tmp_path / "d.csv", f"image,caption\n.\\{nfd},z\n")
        )


def test_files_that_macos_and_windows_add_are_no_pictures(tmp_path: Path) -> None:
    text(tmp_path / "a.png", "x")
    text(tmp_path / "._a.png", "x")
    text(tmp_path / "__MACOSX" / "._a.png", "x")
    text(tmp_path / ".DS_Store", "x")
    listing = list_source(tmp_path)
    assert [item.name for item in listing.items] == ["a.png"]
    assert listing.notes == ("3 files that macOS, Windows or WebDataset adds are left out",)


def test_conversations_of_llava_are_questions_of_their_picture(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*values: str) -> list[dict[str, str]]:
        speakers = ("human", "gpt", "human", "gpt")
        return [{"from": who, "value": value} for who, value in zip(speakers, values, strict=False)]

    rows = [
        {"id": "1", "image": "a.png", "conversations": said("<image>\nWhat is it?", "A cat.")},
        {"id": "2", "image": "b/b.png", "conversations": said("Where?\n<image>", "Here.", "Why?")},
        {"id": "3", "conversations": said("Hello", "Hi")},
    ]
    found = add_questions(list_source(two).items, text(tmp_path / "q.json", json.dumps(rows)))
    assert found[0].qa == (("What is it?", "A cat."),)
    assert found[1].qa == (("Where?", "Here."),) and found[1].error is None
    err = capsys.readouterr().err
    assert "1 conversations show no picture" in err
    assert "1 questions are left out; the first: q.json row 1 has a pair without an answer" in err


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("c.csv", "image,caption\na.png\n", "c.csv line 2 has not the 2 columns"),
        ("c.csv", "picture,caption\na.png,x\n", "c.csv line 2 names no picture: .*picture"),
        ("c.csv", "image,words\na.png,x\n", "has none of the columns prompt, caption"),
        ("c.csv", b"image,caption\na.png,caf\xe9\n", "c.csv line 2 is not UTF-8: .* at byte 9"),
        ("c.jsonl", '{"image": "a.png"\n', "c.jsonl line 1 is not JSON"),
        ("c.jsonl", "[" * 100_000, "c.jsonl line 1 is not JSON: nested too deeply"),
        ("c.jsonl", "3\n", "c.jsonl line 1 is not a JSON object"),
        ("c.parquet", "PAR1", "c.parquet cannot be read"),
        ("c.xlsx", "", "none of the endings .csv, .tsv, .jsonl, .json, .parquet"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_its_line(
    two: Path, tmp_path: Path, name: str, content: str | bytes, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        add_captions(list_source(two).items, text(tmp_path / name, content))


def test_a_caption_that_is_no_text_fails_its_picture_alone(two: Path, tmp_path: Path) -> None:
    lines = '{"image": "a.png", "text": 3}\n{"image": "b/b.png", "text": "\\ud800"}\n'
    found = add_captions(list_source(two).items, text(tmp_path / "c.jsonl", lines))
    assert found[0].error == "c.jsonl line 1: text is int, not text"
    assert found[1].error and "is not UTF-8" in found[1].error


# ---- Parquet


def test_parquet_with_the_struct_of_bytes_and_path_or_plain_binary(tmp_path: Path) -> None:
    struct = pa.table(
        {
            "image": [{"bytes": b"one", "path": "1.png"}, {"bytes": None, "path": "2.png"}, None],
            "text": ["first", "second", None],
        }
    )
    pq.write_table(struct, tmp_path / "s.parquet", row_group_size=2)
    items = list_source(tmp_path / "s.parquet").items
    assert [(item.name, item.aliases, item.captions) for item in items] == [
        ("s.parquet#0", ("1.png",), ("first",)),
        ("s.parquet#1", ("2.png",), ("second",)),
        ("s.parquet#2", (), ()),
    ]
    assert items[0].read() == b"one"
    for item in items[1:]:
        with pytest.raises(OSError, match="no image bytes"):
            item.read()
    pq.write_table(pa.table({"jpg": [b"x", b"y"], "id": ["k1", "k2"]}), tmp_path / "b.parquet")
    items = list_source(tmp_path / "b.parquet").items
    assert [(item.aliases, item.read()) for item in items] == [(("k1",), b"x"), (("k2",), b"y")]


def test_captions_find_parquet_rows_by_their_path_and_an_ambiguous_name_is_refused(
    tmp_path: Path,
) -> None:
    for name in ("x", "y"):
        table = pa.table({"image": [{"bytes": b"1", "path": "1.png"}]})
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "0.parquet")
    listing = list_source(tmp_path)
    assert [item.name for item in listing.items] == ["x/0.parquet#0", "y/0.parquet#0"]
    captions = text(tmp_path / "c.csv", "image,text\n1.png,a\n")
    with pytest.raises(UserError, match="names '1.png', the name of 2 pictures"):
        add_captions(listing.items, captions)
    captions = text(tmp_path / "c.csv", "image,text\ny/0.parquet#0,a\n")
    assert [item.captions for item in add_captions(listing.items, captions)] == [(), ("a",)]


def test_a_parquet_without_pictures_says_what_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://x"]}), tmp_path / "u.parquet")
    with pytest.raises(UserError, match=r"0 columns of image bytes.*url \(string\)"):
        list_source(tmp_path / "u.parquet")


def test_a_damaged_parquet_is_an_item_and_the_others_beside_it_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "good.parquet")
    text(tmp_path / "bad.parquet", "PAR1 but not really")
    bad, good = list_source(tmp_path).items
    assert bad.name == "bad.parquet#0" and "damaged" in str(bad.error)
    assert good.read() == b"x"


# ---- tars


def tar(path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def test_webdataset_samples_give_pictures_with_their_captions(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "00.tar",
        [
            ("./a/1.jpg", b"one"),
            ("./a/1.txt", b"a ring"),
            ("./a/1.json", b'{"caption": "a red ring", "prompt": "a ring"}'),
            ("2.txt", b"no picture"),
            ("3.0.png", b"three"),
        ],
    )
    listing = list_source(path)
    items = by_name(listing.items)
    assert listing.form == "tar"
    one = items["00.tar/./a/1.jpg"]
    assert (one.captions, one.aliases) == (("a ring", "a red ring"), ("a/1.jpg", "a/1"))
    assert one.read() == b"one"
    assert items["00.tar/2"].error == "the sample has no picture, only txt"
    # The key ends at the first dot, so 3.0.png is the key 3 with the suffix 0.png.
    assert items["00.tar/3.0.png"].aliases == ("3.0.png", "3")
    questions = text(tmp_path / "q.csv", "image,question,answer\n3,Is it?,yes\n")
    found = by_name(add_questions(listing.items, questions))
    assert found["00.tar/3.0.png"].qa == (("Is it?", "yes"),)


def test_hostile_members_are_items_with_reasons_and_nothing_is_unpacked(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "x.tar",
        [
            ("../../evil.png", b"evil"),
            ("/etc/evil.png", b"evil"),
            special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
            special("hard.png", tarfile.LNKTYPE, "ok.png"),
            special("pipe.png", tarfile.FIFOTYPE),
            special("folder", tarfile.DIRTYPE),
            ("README", b"no suffix"),
            ("ok.png", b"fine"),
            ("ok.json", b'{"caption": 3}'),
        ],
    )
    before = sorted(tmp_path.rglob("*"))
    items = by_name(list_source(path).items)
    assert {name: item.error for name, item in items.items()} == {
        "x.tar/../../evil.png": "its name leaves the tar",
        "x.tar//etc/evil.png": "its name leaves the tar",
        "x.tar/link.png": "a link in a tar is not followed (to /etc/passwd)",
        "x.tar/hard.png": "a link in a tar is not followed (to ok.png)",
        "x.tar/pipe.png": "a device, pipe or sparse file in a tar is not read",
        "x.tar/README": "its name has no key and suffix as in KEY.jpg",
        "x.tar/ok.png": "its ok.json: caption is int, not text",
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_a_truncated_tar_keeps_what_comes_before_the_tear(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", [("1.png", b"1" * 2000), ("2.png", b"2" * 2000)])
    # A header of 512 and 2000 bytes in four blocks of 512: the second header begins at 2560.
    path.write_bytes(path.read_bytes()[: 2560 + 512 + 100])
    items = by_name(list_source(path).items)
    assert items["x.tar/1.png"].read() == b"1" * 2000
    assert items["x.tar/2.png"].error == "truncated: 2000 bytes are announced, the tar ends before"
    path.write_bytes(path.read_bytes()[: 2560 + 100])  # inside the second header
    errors = [item.error for item in list_source(path).items]
    assert errors[0] is None and str(errors[1]) == (
        "the tar is damaged from here on: there is no end mark and no sound header"
    )


def test_a_folder_with_two_forms_is_asked_about_and_its_own_tables_are_set_apart(
    tmp_path: Path,
) -> None:
    text(tmp_path / "a.png", "a")
    table = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"image": ["a.png"], "caption": ["a ring"]}), table)
    with pytest.raises(UserError, match="holds several kinds: pictures, .parquet"):
        list_source(tmp_path)
    listing = list_source(tmp_path, exclude=[table])
    assert [item.name for item in listing.items] == ["a.png"] and listing.notes == ()
    assert add_captions(listing.items, table)[0].captions == ("a ring",)


def test_a_tar_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", [("1.png", b"1")])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "y.tar").symlink_to(tmp_path / "x.tar")
    with pytest.raises(UserError, match="y.tar is a link that leaves"):
        list_source(tmp_path / "in")


def test_urls_come_from_txt_csv_jsonl_and_parquet_alike(tmp_path: Path) -> None:
    rows = [
        {"url": "http://a.example/1.jpg", "caption": "a  ring", "licence": "CC0"},
        {"url": "http://a.example/2.jpg", "caption": "", "licence": ""},
    ]
    links = (Link(rows[0]["url"], ("a ring",), "CC0"), Link(rows[1]["url"]))
    (tmp_path / "u.txt").write_text("\ufeffhttp://a.example/1.jpg\n\n http://a.example/2.jpg \n")
    (tmp_path / "u.csv").write_text(
        "".join(",".join(line) + "\n" for line in [list(rows[0]), *(r.values() for r in rows)])
    )
    (tmp_path / "u.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loud = {"URL": "url", "TEXT": "caption", "LICENSE": "licence"}
    table = {name: [row[quiet] for row in rows] for name, quiet in loud.items()}
    pq.write_table(pa.table(table | {"other": [b"1", b"2"]}), tmp_path / "u.parquet")
    assert [link.url for link in read_urls(tmp_path / "u.txt")] == [link.url for link in links]
    for name in ("u.csv", "u.jsonl", "u.parquet"):
        assert tuple(read_urls(tmp_path / name)) == links, name


def test_of_two_columns_of_urls_the_pictures_is_taken(tmp_path: Path) -> None:
    row = {"url": "http://a.example/page", "image_url": "http://a.example/1.jpg"}
    (tmp_path / "u.jsonl").write_text(json.dumps(row))
    assert tuple(read_urls(tmp_path / "u.jsonl")) == (Link("http://a.example/1.jpg"),)


def test_a_row_that_cannot_be_used_stays_in_the_list_with_its_reason(tmp_path: Path) -> None:
    rows = [{"url": None}, {"url": 3, "license": "CC0"}, {"url": "http://a.example/", "text": 3}]
    (tmp_path / "u.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert tuple(read_urls(tmp_path / "u.jsonl")) == (
        Link("", error="the row has no URL"),
        Link("", licence="CC0", error="the row has no URL"),
        Link("http://a.example/", error="text is int, not text"),
    )


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("gone.txt", None, "gone.txt does not exist"),
        ("u.txt", "\n", "holds no URL"),
        ("u.tsv", "url\n", "ends in none of .txt, .csv, .jsonl, .parq"),
        ("u.csv", "link,text\nhttp://a.example/,a\n", "line 2 has no image_url .* it has link, te"),
    ],
)
def test_a_list_without_urls_is_refused(
    tmp_path: Path, name: str, text: str | None, complaint: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint):
        list(read_urls(tmp_path / name))


@pytest.mark.parametrize("kind", ["dictionary", "view"])
def test_parquet_columns_of_a_dictionary_or_a_view_are_read(tmp_path: Path, kind: str) -> None:
    columns: dict[str, pa.Array] = {
        "image": pa.array([b"one", b"two"], pa.binary()),
        "id": pa.array(["a", "b"]),
        "caption": pa.array(["a cat", None]),
    }
    if kind == "dictionary":
        columns = {name: column.dictionary_encode() for name, column in columns.items()}
    else:
        views = {"image": pa.binary_view(), "id": pa.string_view(), "caption": pa.string_view()}
        columns = {name: column.cast(views[name]) for name, column in columns.items()}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    items = list_source(tmp_path / "x.parquet").items
    assert [(item.aliases, item.captions, item.read()) for item in items] == [
        (("a",), ("a cat",), b"one"),
        (("b",), (), b"two"),
    ]


@pytest.mark.parametrize("absent", ["null", "NaN"])
def test_a_row_whose_caption_is_absent_leaves_its_picture_without_one(
    two: Path, tmp_path: Path, absent: str
) -> None:
    line = f'{{"image": "a.png", "text": {absent}}}\n'
    items = list_source(two).items
    found = add_captions(items, text(tmp_path / "c.jsonl", line))
    assert [(item.captions, item.error) for item in found] == [((), None)] * len(items)


def test_captions_of_a_tsv_are_read(two: Path, tmp_path: Path) -> None:
    table = text(tmp_path / "c.tsv", "image\ttext\na.png\tone, and more\n")
    assert by_name(add_captions(list_source(two).items, table))["a.png"].captions == (
        "one, and more",
    )
