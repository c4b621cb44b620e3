"""Samples of a tar: what is read from it, and what never is."""

import tarfile
import unicodedata
from pathlib import Path

import pytest

from tarkit.curate.ingest import IngestPlan
from tarkit.curate.sources import list_source
from tests.curate.sources.shards import facts, png, shard, tar_bytes


def test_samples_are_those_of_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    members = [
        ("a/1.left.png", b"l"),
        ("a/1.Right.PNG", b"r"),
        ("a/1.txt", b"two"),
        ("b/1.jpg", b"b"),
    ]
    (tmp_path / "x.tar").write_bytes(tar_bytes(*members))
    samples = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))
    keys = {"a/1": {"left.png": b"l", "right.png": b"r"}, "b/1": {"jpg": b"b"}}
    assert {
        sample["__key__"]: {k: v for k, v in sample.items() if k[0] != "_" and k != "txt"}
        for sample in samples
    } == keys
    items = list_source(tmp_path / "x.tar").items
    assert [(item.aliases[1], item.captions, item.read()) for item in items] == [
        ("a/1", ("two",), b"l"),
        ("a/1", ("two",), b"r"),
        ("b/1", (), b"b"),
    ]


def test_a_sample_with_two_of_one_suffix_or_torn_apart_has_an_error(tmp_path: Path) -> None:
    twice = [("a.jpg", b"1"), ("a.txt", b"one"), ("a.JPG", b"2")]
    apart = [("b.jpg", b"3"), ("c.jpg", b"4"), ("b.txt", b"three")]
    hidden = [("d/.e.png", b"5"), ("f.__bad__", b"6"), ("f.png", b"7")]
    (tmp_path / "x.tar").write_bytes(tar_bytes(*twice, *apart, *hidden))
    double = "its sample has two members with the suffix jpg"
    assert facts(list_source(tmp_path / "x.tar").items) == [
        ("x.tar/a.jpg", ("one",), double),
        ("x.tar/a.JPG", ("one",), double),
        ("x.tar/b.jpg", (), None),
        ("x.tar/c.jpg", (), None),
        # The item of a member without a key comes before that of the sample which it stands in.
        ("x.tar/d/.e.png", (), "its name has no key and suffix as in KEY.jpg"),
        (
            "x.tar/b",
            ("three",),
            "the sample has no picture, only txt: other members of its key stand elsewhere in the "
            "tar, and not next to it",
        ),
        ("x.tar/f.png", (), None),
    ]


def test_a_header_that_announces_more_than_a_picture_may_have_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 7 << 30
    with (tmp_path / "x.tar").open("wb") as file:  # sparse: 7 GiB that take no place on the disk
        file.write(shard(1)[: 4 * 512] + info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(8 << 30)
    items = list_source(tmp_path / "x.tar").items
    assert items[0].name == "x.tar/0001.png"
    assert "a header announces 7516192768 bytes, more than" in str(items[-1].error)


def test_webdataset_reads_what_ingest_writes_with_keys_and_extensions(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    (tmp_path / "in.tar").write_bytes(shard(1, 2, 3))
    made = IngestPlan(tmp_path / "in.tar", out=tmp_path / "out", overrides=["shard_size=2"]).run()
    shards = str(tmp_path / "out" / "{00000..00001}.tar")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [(s["__key__"], set(s) - {"__key__", "__url__", "__local_path__"}) for s in samples] == [
        ("00000-000000", {"png", "json"}),
        ("00000-000001", {"png", "json"}),
        ("00001-000000", {"png", "json"}),
    ]
    assert [sample["png"] for sample in samples] == [png(1), png(2), png(3)]
    # And so does ingest itself, which a folder with a manifest would not be given to.
    again = list_source(shards)
    assert [item.read() for item in again.items] == [png(1), png(2), png(3)]
    assert [item.captions for item in again.items] == [(f"number {n}",) for n in (1, 2, 3)]
    assert made.counts == {"00000": 2, "00001": 1}


def test_members_that_macos_and_webdataset_add_are_left_out_and_counted(tmp_path: Path) -> None:
    added = [("._0.png", b"x"), ("__MACOSX/._0.png", b"x"), ("__info__.json", b"{}")]
    (tmp_path / "x.tar").write_bytes(tar_bytes(*added, ("0.png", b"1"), ("__a__.png", b"2")))
    (tmp_path / "._x.tar").write_bytes(b"no tar")
    for source in (tmp_path, tmp_path / "x.tar"):
        listing = list_source(source)
        assert facts(listing.items) == [
            ("x.tar/0.png", (), None),
            ("x.tar/__a__.png", (), None),  # a picture, whatever its name
        ]
        assert listing.notes == ("3 files that macOS, Windows or WebDataset adds are left out",)


def test_members_of_one_sample_may_be_spelt_by_two_systems(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    members = [(f"{apart}.png", png(1)), (f"{composed}.txt", b"a cup")]
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(*members))
    (item,) = list_source(path).items
    assert (item.captions, item.error) == (("a cup",), None)
