"""Many shards by one name, and shards at URLs: what is read, and what never is."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarkit.artifacts.manifest import read_manifest
from tarkit.curate import ingest, url_safety
from tarkit.curate.ingest import IngestPlan
from tarkit.curate.sources import list_source, remote
from tarkit.curate.sources.items import SourceItem
from tarkit.curate.sources.remote import RemoteReader, SourceLost
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tests.curate.sources.shard_server import ShardServer, serving


def tar_bytes(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def png(value: int) -> bytes:
    return png_bytes(np.full((16, 16, 3), value, np.uint8))


def shard(*numbers: int) -> bytes:
    members = []
    for n in numbers:
        members += [(f"{n:04d}.png", png(n)), (f"{n:04d}.txt", f"number {n}".encode())]
    return tar_bytes(*members)


def facts(items: tuple[SourceItem, ...]) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(item.name, item.captions, item.error) for item in items]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    with serving() as running:
        yield running


# ---- names


def test_braces_colons_and_a_list_name_the_same_shards(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"d-{n:02d}.tar").write_bytes(shard(n))
    (tmp_path / "list.txt").write_text("d-00.tar\n\nd-01.tar\n./d-02.tar\n")
    listing = list_source(f"{tmp_path}/d-{{00..02}}.tar")
    assert (listing.form, facts(listing.items)) == (
        "tar",
        [(f"d-{n:02d}.tar/{n:04d}.png", (f"number {n}",), None) for n in range(3)],
    )
    assert [item.read() for item in listing.items] == [png(n) for n in range(3)]
    joined = "::".join(f"{tmp_path}/d-{n:02d}.tar" for n in range(3))
    for source in (tmp_path / "list.txt", joined, tmp_path):
        assert facts(list_source(source).items) == facts(listing.items)


def test_shards_in_several_folders_keep_their_paths_and_parquet_has_patterns_too(
    tmp_path: Path,
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"image": [b"x"]}), tmp_path / name / "0.parquet")
    listing = list_source(f"{tmp_path}/{{a,b}}/0.parquet")
    assert [item.name for item in listing.items] == ["a/0.parquet#0", "b/0.parquet#0"]


def test_a_file_whose_name_has_braces_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "{0..9}.tar").write_bytes(shard(1))
    assert [i.name for i in list_source(tmp_path / "{0..9}.tar").items] == ["{0..9}.tar/0001.png"]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{dir}/d-{0..9}.tar", "d-3.tar does not exist .7 of 10 do not"),
        ("{dir}/d-{0..999999999}.tar", "stands for 1000000000 shards"),
        ("{dir}/d-{0..9.tar", "not a pattern of shard names"),
        ("{dir}/d-${{HOME}}.tar", "not a pattern of shard names: missing environment variable"),
        ("{dir}/d-{0..2}.tar::{dir}/x.parquet", "2 forms of shards are named: .parquet, .tar"),
        ("{dir}/d-{0..2}.tar.gz", "not a shard: .* .unpack the compression first"),
    ],
)
def test_a_wrong_pattern_is_an_error(tmp_path: Path, pattern: str, reason: str) -> None:
    for n in range(3):
        (tmp_path / f"d-{n}.tar").write_bytes(shard(n))
    source = pattern.replace("{dir}", str(tmp_path)).replace("{{", "{").replace("}}", "}")
    with pytest.raises(UserError, match=reason):
        list_source(source)


@pytest.mark.parametrize(
    "name",
    [
        "pipe:touch {made} #.tar",
        "PIPE:touch {made} #.tar",
        "file://{made}/x.tar",
        "ftp://127.0.0.1/x.tar",
        "gs://bucket/x.tar",
        "hf://datasets/a/b/x.tar",
        "s3://bucket/{{0..9}}.tar",
    ],
)
def test_no_other_scheme_is_opened_and_nothing_runs_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a process was begun: {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    name = name.replace("{{", "{").replace("}}", "}").replace("{made}", str(tmp_path / "made"))
    (tmp_path / "list.txt").write_text(name + "\n")
    for source in (name, tmp_path / "list.txt"):
        with pytest.raises(UserError, match="only files and http and https URLs are read"):
            list_source(source)
    assert not (tmp_path / "made").exists()


def test_a_list_names_nothing_outside_its_folder_and_expands_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.tar").write_bytes(shard(1))
    for line, reason in (
        ("../secret.tar", "list.txt:2 names .*, which is outside the folder"),
        (str(tmp_path / "secret.tar"), "list.txt:2 names .*, which is outside the folder"),
        ("d-{0..9}.tar", "{0..9}.tar does not exist"),
    ):
        (tmp_path / "in" / "list.txt").write_text(f"\n{line}\n")
        with pytest.raises(UserError, match=reason):
            list_source(tmp_path / "in" / "list.txt")


# ---- samples


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
    hidden = [("d/._e.png", b"5"), ("f.__bad__", b"6"), ("f.png", b"7")]
    (tmp_path / "x.tar").write_bytes(tar_bytes(*twice, *apart, *hidden))
    double = "its sample has two members with the suffix jpg"
    assert facts(list_source(tmp_path / "x.tar").items) == [
        ("x.tar/a.jpg", ("one",), double),
        ("x.tar/a.JPG", ("one",), double),
        ("x.tar/b.jpg", (), None),
        ("x.tar/c.jpg", (), None),
        # The item of a member without a key comes before that of the sample which it stands in.
        ("x.tar/d/._e.png", (), "its name has no key and suffix as in KEY.jpg"),
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


# ---- URLs


def test_shards_at_urls_give_the_rows_of_the_same_shards_here(
    server: ShardServer, tmp_path: Path
) -> None:
    for n in range(2):
        server.files[f"/d-{n}.tar"] = shard(2 * n, 2 * n + 1)
        (tmp_path / f"d-{n}.tar").write_bytes(shard(2 * n, 2 * n + 1))
    url = server.url("/d-{0..1}.tar?key=secret")
    made = IngestPlan(url, out=tmp_path / "far", allow_private=True).run()
    near = IngestPlan(f"{tmp_path}/d-{{0..1}}.tar", out=tmp_path / "near").run()
    far_rows, near_rows = made.rows("00000"), near.rows("00000")
    assert [row["source"] for row in far_rows] == [
        server.url(f"/d-{n // 2}.tar/{n:04d}.png") for n in range(4)
    ]
    assert [row | {"source": ""} for row in far_rows] == [row | {"source": ""} for row in near_rows]
    blobs = [[blob for _, blob in artifact.read_images("00000")] for artifact in (made, near)]
    assert blobs[0] == blobs[1] == [png(n) for n in range(4)]
    assert b"secret" not in b"".join(p.read_bytes() for p in made.path.rglob("*") if p.is_file())
    # Once to be listed, once to be read, each from one end to the other.
    paths = [path for path, _ in server.requests]
    assert paths == ["/d-0.tar", "/d-1.tar", "/d-0.tar", "/d-1.tar"]
    # The same command again, signed anew, goes on where this one ended.
    server.requests.clear()
    IngestPlan(
        server.url("/d-{0..1}.tar?key=other"), out=tmp_path / "far", allow_private=True
    ).run()
    assert [path for path, _ in server.requests] == ["/d-0.tar", "/d-1.tar"]


def test_workers_read_a_remote_shard_from_where_their_pictures_lie(
    server: ShardServer, tmp_path: Path
) -> None:
    server.files["/d.tar"] = shard(*range(6))
    made = IngestPlan(
        server.url("/d.tar"),
        out=tmp_path / "out",
        overrides=["shard_size=3", "num_workers=2"],
        allow_private=True,
    ).run()
    blobs = [blob for name in made.shards for _, blob in made.read_images(name)]
    assert blobs == [png(n) for n in range(6)]
    starts = {header for _, header in server.requests}
    assert starts == {None, "bytes=512-", f"bytes={server.files['/d.tar'].index(png(3))}-"}


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_reader_seeks_both_ways_and_holds_no_more_than_it_is_asked_for(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch, takes_ranges: bool
) -> None:
    body = np.random.default_rng(0).bytes(300_000)
    server.files["/x.tar"], server.takes_ranges = body, takes_ranges
    monkeypatch.setattr(remote, "SKIP_BYTES", 1000)
    monkeypatch.setattr(remote, "CHUNK_BYTES", 4096)
    reader = RemoteReader(server.url("/x.tar"), allow_private=True)
    for start, size in ((0, 10), (10, 500), (900, 9000), (200_000, 50), (5, 300), (299_990, 99)):
        assert reader.seek(start) == start
        assert reader.read(size) == body[start : start + size]
        assert reader.tell() == min(start + size, len(body))
    assert reader.read(9) == b""
    headers = [header for _, header in server.requests]
    if takes_ranges:
        assert headers == [None, "bytes=200000-", "bytes=5-", "bytes=299990-"]
    else:
        assert len(headers) == 2  # only the way back needs a new answer, which begins at 0
    with pytest.raises(OSError, match="bytes are announced, more than"):
        reader.read(1 << 40)


def test_a_broken_connection_is_taken_up_where_it_broke(server: ShardServer) -> None:
    server.files["/x.tar"] = shard(1, 2, 3)
    server.failures = 1
    server.breaks_after = [700, 100]
    listing = list_source(server.url("/x.tar"), allow_private=True)
    assert [item.captions for item in listing.items] == [(f"number {n}",) for n in (1, 2, 3)]
    assert len(server.requests) == 4
    server.breaks_after = [10] * 9
    with pytest.raises(SourceLost, match=r"x\.tar cannot be read: .*\nrun the same command again"):
        list_source(server.url("/x.tar?password=1"), allow_private=True)


def test_a_file_that_changed_or_was_lost_ends_the_run_and_makes_no_failed_rows(
    server: ShardServer, tmp_path: Path
) -> None:
    server.files["/x.tar"] = shard(1)
    (item,) = list_source(server.url("/x.tar"), allow_private=True).items
    assert item.read() == png(1)
    remote._last_reader.cache_clear()
    server.etag = '"2"'
    with pytest.raises(SourceLost, match="another file than when it was listed"):
        item.read()
    server.etag = '"1"'
    del server.files["/x.tar"]
    with pytest.raises(SourceLost, match="the server answers 404 Not Found"):
        item.read()
    with pytest.raises(SourceLost, match="404"):
        list_source(server.url("/x.tar"), allow_private=True)


def test_the_shard_of_a_run_that_lost_its_server_is_not_written(
    server: ShardServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/x.tar"] = shard(1, 2)
    remote._last_reader.cache_clear()
    listed = ingest.list_source

    def list_and_lose(*args: object, **kwargs: object) -> object:
        listing = listed(*args, **kwargs)  # type: ignore[arg-type]
        server.files.clear()
        return listing

    monkeypatch.setattr(ingest, "list_source", list_and_lose)
    with pytest.raises(SourceLost):
        IngestPlan(server.url("/x.tar"), out=tmp_path / "out", allow_private=True).run()
    assert not list((tmp_path / "out").glob("0*"))
    server.files["/x.tar"] = shard(1, 2)
    monkeypatch.setattr(ingest, "list_source", listed)
    made = IngestPlan(server.url("/x.tar"), out=tmp_path / "out", allow_private=True).run()
    assert [row["status"] for row in made.rows("00000")] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"says_length": False}, "does not say how long it is"),
        ({"headers": {"Content-Encoding": "gzip"}}, "sends it compressed"),
    ],
)
def test_an_answer_that_cannot_be_read_in_place_is_refused(
    server: ShardServer, change: dict[str, object], reason: str
) -> None:
    server.files["/x.tar"] = shard(1)
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(SourceLost, match=reason):
        list_source(server.url("/x.tar"), allow_private=True)


def test_another_part_than_requested_is_refused(server: ShardServer) -> None:
    server.files["/x.tar"], server.shift = shard(1), 512
    reader = RemoteReader(server.url("/x.tar"), allow_private=True)
    assert len(reader.read(600)) == 600
    reader.seek(512)
    with pytest.raises(SourceLost, match="the server sends another part of the file"):
        reader.read(10)


def test_a_shard_that_is_too_long_is_refused(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/x.tar"] = shard(1)
    monkeypatch.setattr(remote, "MAX_SHARD_BYTES", 1000)
    with pytest.raises(SourceLost, match="it has 10240 bytes, more than 1000"):
        list_source(server.url("/x.tar"), allow_private=True)


def test_a_server_that_only_trickles_is_left(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/x.tar"] = shard(1)
    ticks = iter(range(0, 10**6, 60))
    monkeypatch.setattr(remote.time, "monotonic", lambda: next(ticks))
    with pytest.raises(SourceLost, match="fewer than 1024 bytes a second came"):
        list_source(server.url("/x.tar"), allow_private=True)


# ---- addresses


def test_a_private_address_is_not_asked(server: ShardServer) -> None:
    server.files["/x.tar"] = shard(1)
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(SourceLost, match="private address.*\n--allow-private"):
            list_source(server.url("/x.tar", host))
    with pytest.raises(SourceLost, match="not a plain host"):
        list_source("http://user:word@example.com/x.tar")
    assert server.requests == []


def test_a_host_that_moves_to_a_private_address_after_the_check_is_sent_nothing(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/x.tar"] = shard(1)
    monkeypatch.setattr(url_safety, "_addresses", lambda host: ("93.184.216.34",))
    for scheme in ("http", "https"):
        url = server.url("/x.tar", "localhost").replace("http:", f"{scheme}:")
        with pytest.raises(SourceLost, match=r"private address: localhost is (127\.0\.0\.1|::1)"):
            list_source(url)
    assert server.requests == []


def test_redirects_are_followed_and_checked(
    server: ShardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/x.tar"] = shard(1)
    server.redirects["/latest.tar"] = server.url("/x.tar")
    items = list_source(server.url("/latest.tar"), allow_private=True).items
    assert [item.read() for item in items] == [png(1)]
    # 127.0.0.1 stands for the open internet from here on, and 127.0.0.2 is private.
    for module in (remote, url_safety):
        monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    assert len(list_source(server.url("/latest.tar")).items) == 1
    for target, reason in (
        (server.url("/x.tar", "127.0.0.2"), "private address"),
        ("http://169.254.169.254/latest/meta-data", "private address"),
        ("file:///etc/passwd", "not allowed"),
        ("ftp://127.0.0.1/x.tar", "only http and https"),
        (server.url("/latest.tar"), "infinite loop"),
    ):
        server.redirects["/latest.tar"] = target
        with pytest.raises(SourceLost, match=reason):
            list_source(server.url("/latest.tar"))


def test_hostile_members_of_a_remote_shard_are_items_with_reasons(server: ShardServer) -> None:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    body = link.tobuf() + tar_bytes(
        ("../evil.png", b"x"), ("a.pyd", b"cposix\nsystem\n"), ("ok.png", png(1))
    )
    server.files["/x.tar"] = body
    name = server.url("/x.tar")
    assert facts(list_source(name, allow_private=True).items) == [
        (f"{name}/link.png", (), "a link in a tar is not followed (to /etc/passwd)"),
        (f"{name}/../evil.png", (), "its name leaves the tar"),
        (f"{name}/a", (), "the sample has no picture, only pyd"),
        (f"{name}/ok.png", (), None),
    ]
    server.files["/x.tar"] = body[:-2000][: 512 * 6]  # the tar ends within the last picture
    last = list_source(name, allow_private=True).items[-1]
    assert last.error and ("truncated" in last.error or "damaged" in last.error)


def test_the_manifest_of_one_tar_names_it_as_a_parent_and_a_pattern_as_a_setting(
    tmp_path: Path,
) -> None:
    (tmp_path / "x.tar").write_bytes(shard(1))
    one = IngestPlan(tmp_path / "x.tar", out=tmp_path / "one").run()
    assert "source" not in one.settings
    assert read_manifest(one.path)["parents"]["source"]["path"] == "../x.tar"
    pattern = f"{tmp_path}/{{x,x}}.tar"
    two = IngestPlan(pattern, out=tmp_path / "two").run()
    assert two.settings["source"] == pattern and read_manifest(two.path)["parents"] == {}
