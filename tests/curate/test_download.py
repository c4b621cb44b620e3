"""Downloads from a server of this process; a stand-in fetches, in the slow tier img2dataset."""

import csv
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.curate.download import DownloadPlan
from tarkit.curate.img2dataset import SET
from tarkit.errors import UserError
from tarkit.images import decode
from tests import parts
from tests.curate.picture_server import BODIES, JPEG, PictureServer, encoded, serving

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("stand_in.py")
REAL = os.environ.get("TARKIT_IMG2DATASET") or shutil.which("img2dataset")

# long.png has more bytes and pixels.png more pixels than are allowed; see BODIES.
LIMITS = ["max_bytes=14000", "max_pixels=19999", "timeout_s=5"]
SOUND = ["/good.jpg", "/good.png", "/good.webp", "/good.gif", "/name with blank.jpg"]
SOUND += ["/slow.jpg", "/text.txt", "/redirect"]
BROKEN = {
    "/lying.jpg": "not a picture",
    "/truncated.jpg": "truncated picture",
    "/short.jpg": "IncompleteRead(",
    "/small.png": "a side is below 16 px: 8 x 40",
    "/pixels.png": "200 x 100 = 20000 pixels, more than 19999",
    "/long.png": f"{len(BODIES['/long.png'])} bytes, more than 14000",
    "/loop": "HTTP Error 302",
    "/missing.jpg": "HTTP Error 404: Not Found",
}


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    words = shlex.join([sys.executable, str(STAND_IN)])
    return program(tmp_path / "stand_in", f'exec {words} "$@"')


def list_of(path: Path, urls: Sequence[str]) -> Path:
    path.write_text("\n".join(urls) + "\n")
    return path


Fetch = Callable[..., Artifact]


@pytest.fixture
def fetched(tmp_path: Path, server: PictureServer, stand_in: str) -> Fetch:
    """Downloads these paths of the server with the stand-in into tmp_path / out."""

    def fetch(paths: Sequence[str], *settings: str, out: str = "out", **options: Any) -> Artifact:
        urls = list_of(tmp_path / "urls.txt", [server.url(path) for path in paths])
        given: dict[str, Any] = {"img2dataset": stand_in, "allow_private": True} | options
        return DownloadPlan(urls, out=tmp_path / out, overrides=[*LIMITS, *settings], **given).run()

    return fetch


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [row for name in artifact.shards for row in artifact.rows(name)]


def outcomes(artifact: Artifact) -> dict[str, str | None]:
    """Error by the path of the URL, None for a picture."""
    return {"/" + row["source"].split("/", 3)[3]: row["error"] for row in rows_of(artifact)}


def fingerprints(path: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())
    }


def check_every_kind(artifact: Artifact, paths: Sequence[str]) -> None:
    """Every URL is one row, in order; good ones kept byte for byte, bad ones with their reason."""
    found = outcomes(artifact)
    assert list(found) == list(paths)
    assert {path for path, error in found.items() if error is None} == set(SOUND)
    for path, reason in BROKEN.items():
        assert (found[path] or "").startswith(reason), path
    for name in artifact.shards:
        for row, blob in artifact.read_images(name):
            if blob is None:
                continue
            path = "/" + row["source"].split("/", 3)[3]
            sent = JPEG if path == "/redirect" else BODIES[path]
            assert (blob == sent) == (path != "/good.gif")
            picture = decode(blob)
            assert picture.size == (row["width"], row["height"])
            assert (np.asarray(picture) == np.asarray(decode(sent))).all()


def test_every_url_is_one_row_with_its_picture_or_its_reason(
    fetched: Fetch, server: PictureServer
) -> None:
    paths = [*SOUND, *BROKEN]
    artifact = fetched(paths, "shard_size=6", "piece_size=4", "retries=0")
    # 16 urls in shards of 6: 6 + 6 + 4.
    assert artifact.counts == {"00000": 6, "00001": 6, "00002": 4}
    assert parts.status_counts(artifact) == {"ok": 8, "failed": 8}
    check_every_kind(artifact, paths)
    keys = [row["key"] for row in rows_of(artifact)]
    assert (keys[0], keys[7]) == ("00000-000000", "00001-000001")
    # Each asked once, good.jpg again by the redirect.
    assert {path for path, hits in server.hits.items() if hits > 1} == {"/good.jpg", "/loop"}
    names = {path.name for path in artifact.path.iterdir()}
    assert names == {"manifest.json"} | {f"{n}.{e}" for n in keys_of(3) for e in ("tar", "parquet")}


def keys_of(num_shards: int) -> list[str]:
    return [f"{number:05d}" for number in range(num_shards)]


def test_a_second_run_asks_nothing_and_needs_no_program(
    fetched: Fetch, server: PictureServer
) -> None:
    artifact = fetched([*SOUND, *BROKEN], "shard_size=6")
    before, hits = fingerprints(artifact.path), dict(server.hits)
    again = fetched([*SOUND, *BROKEN], "shard_size=6", "timeout_s=1", img2dataset="gone")
    assert (fingerprints(again.path), dict(server.hits)) == (before, hits)


def test_retry_failed_asks_for_the_failures_alone_and_keeps_the_rest_byte_for_byte(
    fetched: Fetch, server: PictureServer
) -> None:
    paths = ["/good.jpg", "/missing.jpg", "/good.gif", "/slow.jpg", "/small.png"]
    artifact = fetched(paths, "shard_size=3")
    before = fingerprints(artifact.path)
    again = fetched(paths, "shard_size=3", retry_failed=True)
    assert fingerprints(again.path) == before  # failed again, for the same reason

    old = [blob for name in artifact.shards for _, blob in artifact.read_images(name)]
    server.hits.clear()
    server.bodies["/missing.jpg"] = BODIES["/good.png"]
    mended = fetched(paths, "shard_size=3", retry_failed=True)
    assert set(server.hits) == {"/missing.jpg", "/small.png"}
    new = [blob for name in mended.shards for _, blob in mended.read_images(name)]
    assert new == [old[0], BODIES["/good.png"], *old[2:]]
    whole = fetched(paths, "shard_size=3", out="whole")
    assert fingerprints(whole.path) == fingerprints(mended.path)


def test_a_shard_is_mended_that_a_killed_retry_left_between_its_tar_and_its_index(
    fetched: Fetch, server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["/good.jpg", "/missing.jpg", "/good.gif", "/small.png"]
    fetched(paths)
    server.bodies["/missing.jpg"] = BODIES["/good.png"]
    whole = fetched(paths, out="whole")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Artifact, "_write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            fetched(paths, retry_failed=True)
    torn = open_artifact(whole.path.with_name("out"))
    assert torn.tar_path("00000").read_bytes() == whole.tar_path("00000").read_bytes()
    assert torn.missing() == ["00000"]  # and not a tar with the index of another

    shutil.rmtree(torn.path / ".download")  # which has what the killed run fetched
    server.hits.clear()
    assert fingerprints(fetched(paths).path) == fingerprints(whole.path)
    assert set(server.hits) == {"/small.png"}  # the tar's three pictures are kept

    # Of a tar that differs from its index nothing is kept.
    torn.tar_path("00000").write_bytes(torn.tar_path("00000").read_bytes() + bytes(512))
    server.hits.clear()
    assert fingerprints(fetched(paths).path) == fingerprints(whole.path)
    assert set(server.hits) == set(paths)

    # Of a damaged tar without an index the pictures before the damage are kept.
    third = int(torn.image_offsets("00000")[0][2])
    torn.shard_path("00000").unlink()
    with torn.tar_path("00000").open("r+b") as tar:
        tar.truncate(third)
    server.hits.clear()
    assert fingerprints(fetched(paths).path) == fingerprints(whole.path)
    assert set(server.hits) == {"/good.gif", "/small.png"}


def test_a_list_of_any_length_is_planned_and_cut_in_the_same_memory(tmp_path: Path) -> None:
    peaks, digests = [], []
    for num_urls in (2000, 20_000):
        urls = list_of(
            tmp_path / f"{num_urls}.txt", [f"http://a.example/{n:09d}.jpg" for n in range(num_urls)]
        )
        plan = DownloadPlan(urls, out=tmp_path / "out", overrides=["shard_size=500"])
        tracemalloc.start()
        assert plan.preview()["urls"] == num_urls
        artifact = Artifact(tmp_path, "images", {}, tuple(plan.shards), counts=dict(plan.shards))
        names = artifact.shards[2:]
        cut = plan.links_of(artifact, names)
        digests.append([(name, links[0].url) for name, links in zip(names, cut, strict=True)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert digests[1][:2] == digests[0]
    assert digests[1][-1] == ("00039", "http://a.example/000019500.jpg")  # 20,000 - 500
    # A row takes 200 bytes and more: 18,000 more rows, held, would be 4 MB more.
    assert peaks[1] - peaks[0] < 300_000, peaks


def test_a_list_that_changes_while_it_is_read_stops_the_run(
    fetched: Fetch, server: PictureServer, tmp_path: Path, stand_in: str
) -> None:
    more = f"echo {server.url('/good.png')} >> {tmp_path}/urls.txt"
    grows = program(tmp_path / "grows", f'{stand_in} "$@"; {more}')
    with pytest.raises(UserError, match=r"urls.txt was changed while it was read"):
        fetched(SOUND, "shard_size=3", img2dataset=grows)
    assert open_artifact(tmp_path / "out").missing() == ["00001", "00002"]


def test_what_is_fetched_how_does_not_change_a_byte(fetched: Fetch) -> None:
    paths = [*SOUND, *BROKEN]
    one = fetched(paths, "piece_size=3", "num_threads=1", "retries=0", out="one")
    other = fetched(paths, "piece_size=100", "num_threads=16", "num_workers=2", out="other")
    assert fingerprints(one.path) == fingerprints(other.path)


def test_a_limited_run_is_the_beginning_of_the_whole_one(fetched: Fetch) -> None:
    whole = fetched(SOUND, "shard_size=3", out="whole")
    part = fetched(SOUND, "shard_size=3", out="part", limit=4)
    assert rows_of(part) == rows_of(whole)[:4]
    assert fingerprints(part.path)["00000.tar"] == fingerprints(whole.path)["00000.tar"]


def test_a_url_of_this_machine_is_a_failed_row_and_is_never_asked(
    fetched: Fetch, server: PictureServer, tmp_path: Path
) -> None:
    refused = fetched(["/good.jpg"], allow_private=False)
    (row,) = rows_of(refused)
    assert row["error"] == "the host is a private address: 127.0.0.1 is 127.0.0.1"
    assert not server.hits
    # The same list may be allowed later.
    assert outcomes(fetched(["/good.jpg"], retry_failed=True)) == {"/good.jpg": None}

    urls = list_of(tmp_path / "u.txt", ["file:///etc/passwd", "ftp://8.8.8.8/a.jpg"])
    artifact = DownloadPlan(
        urls, out=tmp_path / "files", img2dataset=program(tmp_path / "none", "exit 1")
    ).run()
    found = [row["error"] for row in rows_of(artifact)]
    assert found == [f"only http and https are fetched: {scheme}" for scheme in ("file", "ftp")]


def test_captions_licences_and_rows_without_a_url_are_carried(
    server: PictureServer, stand_in: str, tmp_path: Path
) -> None:
    with (tmp_path / "urls.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["URL", "TEXT", "license"])
        table.writerow([server.url("/good.jpg"), " a  ring ", "CC BY 4.0"])
        table.writerow(["", "nothing", ""])
        table.writerow([server.url("/missing.jpg"), "", ""])
    artifact = DownloadPlan(
        tmp_path / "urls.csv",
        out=tmp_path / "out",
        img2dataset=stand_in,
        allow_private=True,
        overrides=["licence=unknown"],
    ).run()
    rows = rows_of(artifact)
    assert [row["prompt"] for row in rows] == ["a ring", None, None]
    assert [row["licence"] for row in rows] == ["CC BY 4.0", "unknown", "unknown"]
    assert [row["error"] for row in rows][:2] == [None, "the row has no URL"]
    assert rows[2]["source"] == server.url("/missing.jpg")


def test_a_torn_tar_of_a_killed_run_is_done_again_and_a_whole_one_is_taken(
    fetched: Fetch, server: PictureServer, tmp_path: Path, stand_in: str
) -> None:
    paths = ["/good.jpg", "/good.png", "/missing.jpg", "/good.webp", "/text.txt", "/slow.jpg"]
    whole = fetched(paths, "piece_size=2", out="whole")
    # A killed run: pieces 0 and 1 finished, 2 torn in its second picture, no shard written.
    kept = tmp_path / "kept"
    leave = program(tmp_path / "leave", f'{stand_in} "$@"; rm -rf {kept}; cp -r .. {kept}')
    fetched(paths, "piece_size=2", img2dataset=leave)
    output = kept / "0" / "out"
    (output / "00002_stats.json").unlink()
    (output / "00002.parquet").write_bytes(b"PAR1")
    with (output / "00002.tar").open("r+b") as tar:
        tar.truncate(512 + len(BODIES["/text.txt"]) // 2)
    (tmp_path / "out" / "00000.parquet").unlink()
    (tmp_path / "out" / "00000.tar").unlink()
    shutil.copytree(kept, tmp_path / "out" / ".download" / "00000")

    server.hits.clear()
    again = fetched(paths, "piece_size=2")
    # The failure is asked for again, once and once more, and so is the torn piece.
    assert set(server.hits) == {"/missing.jpg", "/text.txt", "/slow.jpg"}
    assert fingerprints(again.path) == fingerprints(whole.path)


def test_a_tar_whose_bytes_changed_is_not_taken(
    fetched: Fetch, server: PictureServer, tmp_path: Path, stand_in: str
) -> None:
    kept = tmp_path / "kept"
    leave = program(tmp_path / "leave", f'{stand_in} "$@"; cp -r .. {kept}')
    artifact = fetched(["/good.jpg", "/good.png"], img2dataset=leave)
    before = fingerprints(artifact.path)
    tar = kept / "0" / "out" / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(JPEG, JPEG[:-5] + b"wrong"))
    artifact.shard_path("00000").unlink()
    artifact.tar_path("00000").unlink()
    shutil.copytree(kept, artifact.path / ".download" / "00000")
    server.hits.clear()
    assert fingerprints(fetched(["/good.jpg", "/good.png"]).path) == before
    assert dict(server.hits) == {"/good.jpg": 1}


def test_a_server_that_never_ends_holds_up_its_piece_alone_and_not_for_ever(
    fetched: Fetch, server: PictureServer
) -> None:
    paths = ["/good.jpg", "/endless", "/good.png", "/good.webp"]
    started = time.monotonic()
    artifact = fetched(paths, "piece_size=2", "stall_s=2")
    assert time.monotonic() - started < 20
    found = outcomes(artifact)
    assert found["/endless"] == "timed out: no piece of the list was finished in 2 s"
    # What came before it was killed is kept, and the second piece is fetched by a second call.
    assert [found[path] for path in paths if path != "/endless"] == [None] * 3
    assert dict(server.hits) == dict.fromkeys(paths, 1)


def test_a_killed_run_leaves_nothing_running_and_the_next_one_finishes(
    fetched: Fetch, server: PictureServer, tmp_path: Path, stand_in: str
) -> None:
    paths = ["/good.jpg", "/slow.jpg"]
    server.slow_s = 60
    urls = list_of(tmp_path / "urls.txt", [server.url(path) for path in paths])
    words = [sys.executable, "-m", "tarkit.cli", "curate", "download", str(urls)]
    words += ["--out", str(tmp_path / "out"), "--img2dataset", stand_in, "--allow-private"]
    words += [word for setting in LIMITS for word in ("--set", setting)]
    noted = program(tmp_path / "noted", f'echo $$ > {tmp_path}/pid; exec {stand_in} "$@"')
    words[words.index(stand_in)] = noted
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:
        wait_until(lambda: server.hits["/slow.jpg"] > 0)
        process.send_signal(signal.SIGKILL)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not runs(pid))
    assert (tmp_path / "out" / ".download" / "00000" / "0" / "out" / "00000.tar").exists()
    server.slow_s = 0
    assert outcomes(fetched(paths)) == dict.fromkeys(paths)


def wait_until(come: Callable[[], bool]) -> None:
    ends = time.monotonic() + 30
    while not come():
        assert time.monotonic() < ends
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process is there that is no zombie (nobody may be left to bury it)."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return found.stdout.strip()[:1] not in ("", "Z")


def test_the_program_gets_bounds_proxies_and_nothing_else_of_the_environment(
    fetched: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("A_SECRET", "s3cret")
    told = program(tmp_path / "told", "ulimit -v; ulimit -f; env; echo last words")
    settings = ("memory_mb=3000", "piece_size=10")
    with pytest.raises(
        UserError, match="fetched nothing, .* status 0; its last line: last words"
    ) as e:
        fetched(["/good.jpg"], *settings, img2dataset=told)
    log = tmp_path / "out" / ".download" / "00000" / "0" / "log.txt"
    assert str(log) in e.value.hint
    lines = log.read_text().splitlines()
    # 3000 MiB in KiB; 10 pictures of 14,000 bytes in blocks of 512, rounded up.
    assert lines[:2] == [str(3000 * 1024), str(274)]
    names = {line.split("=")[0] for line in lines[2:-1]}
    assert "HTTPS_PROXY" in names and "NO_ALBUMENTATIONS_UPDATE" in names
    allowed = {"HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "HOME", "PWD", "_"}
    allowed |= {"OLDPWD", "SHLVL", "no_proxy"} | set(SET)
    assert names <= allowed


def test_a_program_that_is_not_there_is_told_with_what_to_install(
    fetched: Fetch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"pip install 'tarkit\[download\]'"):
        fetched(["/good.jpg"], img2dataset="no-such-program")


def test_a_changed_list_is_refused_instead_of_mixed_in(fetched: Fetch) -> None:
    fetched(["/good.jpg"])
    with pytest.raises(UserError, match=r"listing_sha256: .*num_urls: 1 there, 2 now"):
        fetched(["/good.jpg", "/good.png"])


def test_a_preview_counts_and_asks_nothing(server: PictureServer, tmp_path: Path) -> None:
    lines = [f'{{"url": "{server.url(path)}", "caption": "a"}}' for path in SOUND]
    (tmp_path / "urls.jsonl").write_text("\n".join([*lines, '{"url": null}']))
    counts = DownloadPlan(
        tmp_path / "urls.jsonl", out=tmp_path / "out", overrides=["shard_size=4"]
    ).preview()
    # 8 urls and a row without one, in shards of 4: 4 + 4 + 1.
    expected = {"urls": 9, "with_captions": 8, "known_unusable": 1}
    assert counts == expected | {"shards": 3, "shards_to_make": 3}
    assert not server.hits and not (tmp_path / "out").exists()


def test_ranks_share_the_shards(fetched: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fetched(SOUND, "shard_size=3", out="whole")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, missing in (("1", ["00000", "00002"]), ("0", [])):
        monkeypatch.setenv("RANK", rank)
        assert fetched(SOUND, "shard_size=3").missing() == missing
    assert fingerprints(open_artifact(whole.path.with_name("out")).path) == fingerprints(whole.path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(REAL is None, reason="img2dataset is not here; TARKIT_IMG2DATASET names it")
def test_img2dataset_itself_from_a_server_with_every_kind_of_picture(
    fetched: Fetch, server: PictureServer
) -> None:
    paths = [*SOUND, *BROKEN, "/huge"]
    settings = ("memory_mb=3000", "retries=0", "piece_size=10", "stall_s=120")
    started = time.monotonic()
    artifact = fetched(paths, *settings, img2dataset=REAL)
    print(f"{len(paths)} urls, one of them endless and fast: {time.monotonic() - started:.1f} s")
    found = outcomes(artifact)
    assert (found["/huge"] or "").startswith("no memory for its bytes")
    check_every_kind(artifact, [*SOUND, *BROKEN, "/huge"])

    before, hits = fingerprints(artifact.path), dict(server.hits)
    started = time.monotonic()
    fetched(paths, *settings, img2dataset=REAL)
    print(f"a second run: {time.monotonic() - started:.1f} s")
    assert (fingerprints(artifact.path), dict(server.hits)) == (before, hits)

    server.bodies |= {"/missing.jpg": JPEG, "/huge": JPEG}
    server.hits.clear()
    mended = outcomes(fetched(paths, *settings, img2dataset=REAL, retry_failed=True))
    assert set(server.hits) == set(BROKEN) | {"/huge"}
    assert mended["/missing.jpg"] is None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(REAL is None, reason="img2dataset is not here; TARKIT_IMG2DATASET names it")
def test_img2dataset_is_ended_where_a_server_is_slow_for_ever(
    fetched: Fetch, server: PictureServer
) -> None:
    first = ["/endless", *(f"/large.png?{number}" for number in range(7))]
    server.bodies["/large.png"] = encoded("PNG", (65, 65))  # above the 8 KiB of its file buffer
    paths = [*first, *SOUND, "/missing.jpg"]
    settings = ("piece_size=8", "num_processes=1", "stall_s=20", "retries=0")
    started = time.monotonic()
    found = outcomes(fetched(paths, *settings, img2dataset=REAL))
    print(f"{len(paths)} urls, one of them endless and slow: {time.monotonic() - started:.1f} s")
    timed_out = {path for path, error in found.items() if (error or "").startswith("timed out")}
    # Of the piece that was cut off, what the last buffer held is lost: one picture of this size.
    assert "/endless" in timed_out and timed_out <= set(first) and len(timed_out) <= 2
    assert {path for path in SOUND if found[path] is None} == set(SOUND)
    assert found["/missing.jpg"] == "HTTP Error 404: Not Found"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(REAL is None, reason="img2dataset is not here; TARKIT_IMG2DATASET names it")
def test_img2dataset_fetches_thousands(fetched: Fetch, server: PictureServer) -> None:
    paths = [f"/good.jpg?{number}" for number in range(3000)]
    paths[1::10] = [f"/missing.jpg?{number}" for number in range(300)]
    started = time.monotonic()
    artifact = fetched(paths, img2dataset=REAL)
    print(f"{len(paths)} urls: {time.monotonic() - started:.1f} s")
    assert parts.status_counts(artifact) == {"ok": 2700, "failed": 300}
    assert server.hits == {"/good.jpg": 2700, "/missing.jpg": 600}  # a failure is tried twice
