"""Many shards by one name: which shards a name stands for."""

import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarkit.curate.sources import list_source
from tarkit.errors import UserError
from tests.curate.sources.shards import facts, png, shard


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
        ("{dir}/d-{0..2}.tar.zst", "not a shard: .* .unpack the compression first"),
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
    # A list may be a stranger's. A URL that a person gives is read through fsspec.
    sources: list[str | Path] = [tmp_path / "list.txt", *([name] if "://" not in name else [])]
    for source in sources:
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
        ("a\0b.tar", "list.txt:2 names .*, which no file can have"),
    ):
        (tmp_path / "in" / "list.txt").write_text(f"\n{line}\n")
        with pytest.raises(UserError, match=reason):
            list_source(tmp_path / "in" / "list.txt")
