"""Data at URLs: what is fetched and when, what is checked and refused, the size of the cache."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tarkit.artifacts import remote
from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.manifest import begin_directory
from tarkit.artifacts.remote import (
    FetchAhead,
    clean_url,
    fetched,
    is_url,
    local_path,
    refuse_url,
    shown_path,
    with_urls,
)
from tarkit.artifacts.row_counts import row_counts
from tarkit.errors import UserError
from tests import parts
from tests.bucket import Bucket, Uses, new_bucket


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uses:
    monkeypatch.setattr(remote, "PAUSE_S", 0.0)
    return new_bucket(tmp_path, monkeypatch)


@pytest.fixture
def pictures(tmp_path: Path) -> Artifact:
    return parts.write_pictures(tmp_path / "pictures", [["train"] * 3, ["train"] * 2])


def chats(path: Path, num_shards: int) -> Artifact:
    rows = parts.mixed_chats(1)
    return parts.write_chats(path, [rows] * num_shards)


# ---- what is fetched


def test_of_an_artifact_the_manifest_is_fetched_and_a_shard_when_it_is_read(
    bucket: Uses, pictures: Artifact
) -> None:
    url = bucket.put(pictures.path, "data/pictures")
    path = local_path(Path(url))  # Path makes one slash of two
    artifact = open_artifact(path, "images")
    assert bucket.requests("fetch") == ["data/pictures/manifest.json"]
    assert artifact.missing() == [] and path.name == "pictures"
    assert list(artifact.read_images("00001")) == list(pictures.read_images("00001"))
    assert set(bucket.requests("fetch")[1:]) == {
        f"data/pictures/00001.{e}" for e in ("parquet", "tar")
    }
    bucket.forget()
    again = open_artifact(local_path(url), "images")
    assert list(again.read_images("00001")) == list(pictures.read_images("00001"))
    assert bucket.requests("fetch") == []


def test_rows_are_counted_without_fetching_a_shard_and_once(bucket: Uses, tmp_path: Path) -> None:
    made = chats(tmp_path / "chats", 12)
    artifact = open_artifact(local_path(bucket.put(made.path, "chats")))
    for _ in range(2):
        assert row_counts(artifact) == row_counts(made)
    assert [artifact.num_rows(name) for name in artifact.shards] == [3] * 12
    assert bucket.requests("fetch") == ["chats/manifest.json"]
    assert set(bucket.requests("ranges")) == {f"chats/{name}.parquet" for name in made.shards}
    assert len(bucket.requests("ranges")) == 2 * 12  # columns once, and the ends of files


def test_a_model_is_fetched_whole_without_what_its_training_resumes_from(
    bucket: Uses, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    begin_directory(model, "model", settings={})
    for name in ("config.json", "steps/0001/sheet.png", "state/0001/optimizer.bin", ".git/HEAD"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("{}")
    path = local_path(bucket.put(model, "model"))
    found = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    assert found == ["config.json", "manifest.json", "steps/0001/sheet.png"]


def test_what_changed_at_the_url_is_fetched_again_and_nothing_else(
    bucket: Uses, pictures: Artifact
) -> None:
    url = bucket.put(pictures.path, "pictures")
    artifact = open_artifact(local_path(url))
    for name in artifact.shards:
        artifact.read(name)
    os.utime(bucket.root / "pictures" / "00001.parquet", ns=(1, 1))
    bucket.forget()
    for name in open_artifact(local_path(url)).shards:
        artifact.read(name)
    assert bucket.requests("fetch") == ["pictures/00001.parquet"]


def test_files_are_fetched_ahead_of_their_reader(bucket: Uses, tmp_path: Path) -> None:
    artifact = open_artifact(local_path(bucket.put(chats(tmp_path / "chats", 4).path, "chats")))
    FetchAhead()([artifact.shard_path(name) for name in artifact.shards[:2]])
    deadline = time.monotonic() + 20
    while not all(artifact.shard_path(name).exists() for name in artifact.shards[:2]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(bucket.requests("fetch")) == 3


READ_ALL = """
import sys
from pathlib import Path
from tarkit.artifacts.artifact import open_artifact
artifact = open_artifact(Path(sys.argv[1]))
print(sum(len(list(artifact.read_images(name))) for name in artifact.shards))
"""


def test_two_processes_at_once_fetch_every_file_once(bucket: Uses, pictures: Artifact) -> None:
    path = local_path(bucket.put(pictures.path, "pictures"))
    command = [sys.executable, "-c", READ_ALL, str(path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["5\n", "5\n"]
    assert len(bucket.requests("fetch")) == len(set(bucket.requests("fetch"))) == 5


def test_of_a_damaged_shard_the_message_names_the_url_and_the_hint_fetches_it_anew(
    bucket: Uses, pictures: Artifact
) -> None:
    artifact = open_artifact(local_path(bucket.put(pictures.path, "pictures")))
    file = artifact.shard_path("00000")
    artifact.read("00000")
    file.write_bytes(bytes(file.stat().st_size))  # by a disk that fails, say
    with pytest.raises(UserError) as caught:
        artifact.read("00000")
    assert "bucket://pictures/00000.parquet is damaged" in with_urls(caught.value.message)
    assert caught.value.hint.startswith("tarkit verify bucket://pictures ")
    remote.forget(artifact.path)
    assert artifact.read("00000").equals(pictures.read("00000"))


# ---- the cache


def test_the_cache_is_bounded_and_what_was_removed_is_fetched_again(
    bucket: Uses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = chats(tmp_path / "chats", 10)
    size = made.shard_path("00000").stat().st_size
    monkeypatch.setenv("TARKIT_REMOTE_CACHE_GB", str(4.5 * size / 1e9))
    monkeypatch.setattr(remote, "KEPT_S", 0.0)
    artifact = open_artifact(local_path(bucket.put(made.path, "chats")))
    for name in artifact.shards:
        assert artifact.read(name).equals(made.read(name))
        cached = [path for path in artifact.path.iterdir() if path.suffix == ".parquet"]
        assert len(cached) <= 4
    assert artifact.shard_path("00009") in cached and (artifact.path / "manifest.json").exists()
    assert artifact.read("00000").equals(made.read("00000"))


def test_a_model_in_use_is_not_removed(
    bucket: Uses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}" + " " * 1000)
    model = local_path(bucket.put(tmp_path / "model", "model"))
    made = chats(tmp_path / "chats", 3)
    monkeypatch.setenv("TARKIT_REMOTE_CACHE_GB", str(made.shard_path("00000").stat().st_size / 1e9))
    monkeypatch.setattr(remote, "KEPT_S", 0.0)
    artifact = open_artifact(local_path(bucket.put(made.path, "chats")))
    for name in artifact.shards:
        artifact.read(name)
    assert (model / "config.json").exists()


def test_a_folder_larger_than_the_cache_is_refused(
    bucket: Uses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(bytes(2000))
    monkeypatch.setenv("TARKIT_REMOTE_CACHE_GB", "1e-6")
    with pytest.raises(UserError, match="in 1 files, and the cache"):
        local_path(bucket.put(tmp_path / "model", "model"))
    assert bucket.requests("fetch") == []


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_refused(
    text: str, bucket: Uses, pictures: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARKIT_REMOTE_CACHE_GB", text)
    with pytest.raises(UserError, match="not a number of gigabytes above 0"):
        local_path(bucket.put(pictures.path, "pictures"))


# ---- what can go wrong


def test_a_download_that_ends_early_is_tried_again_and_then_said(
    bucket: Uses, pictures: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = open_artifact(local_path(bucket.put(pictures.path, "pictures")))
    real, short = Bucket.get_file, iter([True] + [False] + 3 * [True])

    def get_file(self: Bucket, rpath: str, lpath: str, **_: Any) -> None:
        real(self, rpath, lpath)
        if next(short):
            os.truncate(lpath, 100)

    monkeypatch.setattr(Bucket, "get_file", get_file)
    artifact.read("00000")  # at the second try
    with pytest.raises(
        UserError, match="bucket://pictures/00001.parquet cannot be fetched: 100 of"
    ):
        artifact.read("00001")
    assert not artifact.shard_path("00001").exists()


def test_a_sha256_that_is_listed_is_compared(
    bucket: Uses, pictures: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Bucket._facts

    def facts(self: Bucket, path: Path) -> dict[str, Any]:
        known = real(self, path)
        if path.name == "manifest.json":
            known["lfs"] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        elif path.is_file():
            known["lfs"] = {"sha256": "0" * 64}
        return known

    monkeypatch.setattr(Bucket, "_facts", facts)
    artifact = open_artifact(local_path(bucket.put(pictures.path, "pictures")))
    with pytest.raises(UserError, match="not those whose sha256 is listed"):
        artifact.read("00000")


@pytest.mark.parametrize(
    "error, sentence, hint",
    [
        (PermissionError("Access Denied"), "may not be read: Access Denied", "AWS_ACCESS_KEY_ID"),
        (FileNotFoundError("x"), "does not exist", "letter"),
        (ConnectionError("no route"), "cannot be read: no route", "again"),
        (RuntimeError("https://h/x?sig=SECRET failed"), "cannot be read: https://h/x failed", ""),
        (ImportError("Install s3fs to access S3", name="s3fs"), "Install s3fs", "pip install s3fs"),
    ],
)
def test_what_a_filesystem_raises_is_one_sentence(
    error: Exception, sentence: str, hint: str, bucket: Uses, monkeypatch: pytest.MonkeyPatch
) -> None:
    def info(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Bucket, "info", info)
    with pytest.raises(UserError) as caught:
        local_path("bucket://data")
    assert sentence in caught.value.message and hint in caught.value.hint
    assert "SECRET" not in str(caught.value)


def test_a_missing_package_is_named_by_its_extra() -> None:
    for url, extra in (("s3://b/x", "tarkit[s3]"), ("gs://b/x", "tarkit[gcs]")):
        try:
            fsspec.url_to_fs(url)
        except ImportError:
            with pytest.raises(UserError) as caught:
                local_path(url)
            assert f"pip install '{extra}'" in caught.value.hint
    with pytest.raises(UserError, match="no filesystem is known by the name strange"):
        local_path("strange://x")
    with pytest.raises(UserError, match="lists no files"):
        local_path("https://example.com/x.parquet")


@pytest.mark.parametrize(
    "name", ["data/../../../evil", "data/..", "elsewhere/x", "data/a\\b", "data/a\0b"]
)
def test_a_listed_name_never_leaves_the_cache(
    name: str, bucket: Uses, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket.root / "data").mkdir()
    facts = {"name": name, "size": 1, "type": "file"}
    monkeypatch.setattr(Bucket, "find", lambda *_, **__: {name: facts})
    with pytest.raises(UserError, match="a file whose name leaves the folder"):
        local_path("bucket://data")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:SECRET@bucket/x",
        "s3://KEY:SEC/RET@bucket/x",
        "s3://bucket/x?X-Amz-Signature=SECRET",
        "simplecache::s3://SECRET",
        "bucket://a/../SECRET",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    assert url.startswith("simplecache") or is_url(url)
    if is_url(url):
        with pytest.raises(UserError) as caught:
            clean_url(url)
        assert "SECRET" not in str(caught.value) and "RET" not in str(caught.value)


def test_urls_and_paths() -> None:
    assert clean_url("HF:/datasets/a/b@main/c/") == "hf://datasets/a/b@main/c"
    assert clean_url("s3:///bucket//") == "s3://bucket"
    assert local_path("file:///tmp/x") == Path("/tmp/x") == local_path(Path("file:///tmp/x"))
    assert local_path("data/x") == Path("data/x")
    assert not any(map(is_url, ["c:/x", "/x:/y", "tar-1.5b", "a/b", "x: y", "python.module:name"]))
    with pytest.raises(UserError) as caught:
        refuse_url(Path("s3://bucket/data/out"))
    assert "s3://bucket/data/out" in caught.value.message and "--out out" in caught.value.hint


def test_the_copy_that_the_hint_gives_copies(bucket: Uses, pictures: Artifact) -> None:
    url = f"file://{bucket.root}/copied/pictures"
    with pytest.raises(UserError) as caught:
        refuse_url(url)
    code = caught.value.hint.partition('python -c "')[2].rstrip('"')
    subprocess.run([sys.executable, "-c", code], cwd=pictures.path.parent, check=True, timeout=60)
    assert open_artifact(local_path(url)).read("00000").equals(pictures.read("00000"))


def test_messages_and_manifests_name_the_url(
    bucket: Uses, pictures: Artifact, tmp_path: Path
) -> None:
    path = local_path(bucket.put(pictures.path, "data/pictures"))
    assert shown_path(path / "00000.tar") == "bucket://data/pictures/00000.tar"
    assert with_urls(f"{path}/00000.tar: bad") == "bucket://data/pictures/00000.tar: bad"
    begin_directory(tmp_path / "out", "model", settings={}, parents={"images": path})
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert json.loads(text)["parents"]["images"]["path"] == "bucket://data/pictures"
    assert "cache" not in text


def test_a_file_of_the_memory_filesystem(bucket: Uses) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/prompts/a.txt", b"a red ring\n")
    try:
        path = local_path("memory://prompts/a.txt")
        assert path.name == "a.txt" and path.read_bytes() == b"a red ring\n"
        memory.pipe("/prompts/a.txt", b"a blue ring\n")
        assert local_path("memory://prompts/a.txt").read_bytes() == b"a blue ring\n"
        assert fetched(path) == path
    finally:
        memory.rm("/prompts", recursive=True)
