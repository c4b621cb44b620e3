"""Shards at URLs: what is read, and what never is."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tarkit.artifacts.manifest import read_manifest
from tarkit.curate import ingest, url_safety
from tarkit.curate.ingest import IngestPlan
from tarkit.curate.sources import list_source, remote
from tarkit.curate.sources.remote import RemoteReader, SourceLost
from tests.curate.sources.shard_server import ShardServer, serving
from tests.curate.sources.shards import facts, png, shard, tar_bytes


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    with serving() as running:
        yield running


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
