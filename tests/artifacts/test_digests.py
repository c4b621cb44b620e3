"""Changed bytes of shards, tars and weights are noticed, and files are hashed once."""

import hashlib
import os
import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tarkit.artifacts import digests
from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.digests import file_sha256, remembered_sha256, require_sha256
from tarkit.artifacts.parquet import FOOTER_DIGEST, read_num_rows, read_parquet
from tarkit.artifacts.resume import pending_shards
from tarkit.errors import UserError
from tests.parts import write_pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Artifact:
    return write_pictures(tmp_path / "pictures", [["train"] * 3, ["train", "failed"]])


def test_no_changed_bit_of_a_shard_is_read_as_other_rows(pictures: Artifact) -> None:
    path = pictures.shard_path(pictures.shards[0])
    table = read_parquet(path)
    data = path.read_bytes()
    rng = random.Random(0)
    noticed = 0
    for _ in range(400):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            rows = read_parquet(path)
        except UserError as error:
            assert "is damaged" in error.message
            noticed += 1
        else:  # a bit that decides nothing, such as a statistic
            assert rows.equals(table, check_metadata=True)
    assert noticed > 200


def test_other_readers_open_a_shard_and_old_shards_are_read(pictures: Artifact) -> None:
    path = pictures.shard_path(pictures.shards[0])
    assert FOOTER_DIGEST in path.read_bytes()
    table = pq.read_table(path)
    assert table.equals(read_parquet(path))
    pq.write_table(table, path)  # neither checksums nor a digest
    assert read_parquet(path).equals(table)
    assert read_num_rows(path) == table.num_rows


@pytest.mark.parametrize("length", [0, 3, 8, 100])
def test_a_shard_cut_short_is_an_error_with_the_next_command(
    pictures: Artifact, length: int
) -> None:
    path = pictures.shard_path(pictures.shards[0])
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match="is damaged") as error:
        read_num_rows(path)
    assert error.value.hint.startswith(f"rm {path} and run")


def test_a_tar_with_other_pictures_is_refused_and_made_again(pictures: Artifact) -> None:
    name = pictures.shards[0]
    assert pending_shards(pictures) == []
    tar = pictures.tar_path(name)
    data = bytearray(tar.read_bytes())
    data[600] ^= 1  # within the first picture
    tar.write_bytes(data)
    with pytest.raises(UserError, match="its sha256 is"):
        list(pictures.read_images(name))
    assert pending_shards(pictures) == [name]
    tar.unlink()
    assert pending_shards(pictures) == [name]
    with pytest.raises(UserError, match="No such file"):
        pictures.image_offsets(name)


def test_a_file_is_hashed_again_only_where_its_size_or_time_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    monkeypatch.setattr(digests, "file_sha256", counted)
    monkeypatch.setattr(digests, "LARGE_BYTES", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "file"
    file.write_bytes(b"first")
    first = hashlib.sha256(b"first").hexdigest()
    assert [remembered_sha256(file) for _ in range(3)] == [first] * 3
    assert len(hashed) == 1
    digests._remembered.clear()  # another process
    assert remembered_sha256(file) == first
    assert len(hashed) == 1
    file.write_bytes(b"other")
    os.utime(file, ns=(0, 1))
    assert remembered_sha256(file) == hashlib.sha256(b"other").hexdigest()
    assert len(hashed) == 2
    # A cache that is damaged or cannot be written is done without.
    digests._remembered.clear()
    for entry in (tmp_path / "cache" / "tarkit" / "sha256").iterdir():
        entry.write_text("[" * 100_000)
    assert remembered_sha256(file) == hashlib.sha256(b"other").hexdigest()
    digests._remembered.clear()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file, not a folder")
    assert remembered_sha256(file) == hashlib.sha256(b"other").hexdigest()


def test_another_digest_than_the_recorded_one_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    require_sha256(file, file_sha256(file), recorded_in=tmp_path / "config.json", hint="copy it")
    with pytest.raises(UserError, match=r"config\.json records 0000") as error:
        require_sha256(file, "0" * 64, recorded_in=tmp_path / "config.json", hint="copy it")
    assert error.value.hint == "copy it"


@pytest.mark.parametrize("kept", ["{}", "[1, 2]", "null", "7", '{"key": 1}', "[" * 100_000])
def test_a_damaged_cache_is_done_without(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE_BYTES", 1)
    (tmp_path / "file").write_bytes(b"x")
    digest = remembered_sha256(tmp_path / "file")
    (cached,) = (tmp_path / "cache").rglob("*.json")
    cached.write_text(kept)
    monkeypatch.setattr(digests, "_remembered", {})
    assert remembered_sha256(tmp_path / "file") == digest
