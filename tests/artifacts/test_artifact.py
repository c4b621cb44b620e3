import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tarkit.artifacts.artifact import Artifact, begin_artifact, open_artifact, shard_names
from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.manifest import begin_directory, read_manifest
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.resume import pending_shards
from tarkit.errors import UserError

TOKENS = {
    "tokenizer_sha256": "ab" * 32,
    "codebook_size": 65_536,
    "sides": {"1": 3, "3": 1},
    "resize": "squash",
    "dtype": "float32",
}


def prompts(out: Path, **settings: Any) -> Artifact:
    return begin_artifact(out, "prompts", settings=settings or {"n": 1}, shards=shard_names(3))


def prompt_row(key: str, **changes: Any) -> dict[str, Any]:
    row = dict.fromkeys(["parent_key", "template", "phrase", "source", "licence", "error"])
    return {"key": key, "prompt": "a photo of a ring", "status": "ok"} | row | changes


def image_row(key: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": key,
        "parent_key": None,
        "group": key,
        "role": "target",
        "split": "train",
        "source": "drawn",
        "width": 4,
        "height": 2,
        "prompt": "a photo of a ring",
        "captions": ["a ring"],
        "qa": [{"question": "Is there a ring?", "answer": "yes"}],
        "template": None,
        "scene": None,
        "seed": 1,
        "licence": "CC0",
        "status": "ok",
        "error": None,
    }
    return row | changes


def pictures(out: Path) -> Artifact:
    """Three rows of which the second failed; the blobs are any bytes: artifacts decode nothing."""
    artifact = begin_artifact(out, "images", settings={"seed": 0}, shards={"00000": 3})
    rows = [
        image_row("00000-000000"),
        artifact.failed_row("00000-000001", "truncated", group="00000-000001"),
        image_row("00000-000002"),
    ]
    artifact.write_pictures(
        "00000", zip(rows, [("png", b"first"), None, ("jpg", b"the third")], strict=True)
    )
    return artifact


# ---- the plan


def test_the_manifest_is_the_plan_and_opens_as_the_same_artifact(tmp_path: Path) -> None:
    parent = prompts(tmp_path / "prompts")
    made = begin_artifact(
        tmp_path / "work" / "x",
        "prompts",
        settings={"scale": 1, "ratios": (0.5, 0.5), "where": Path("a")},
        shards={"00000": 2, "00001": 1},
        parents={"prompts": parent},
    )
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest["counts"] == {"00000": 2, "00001": 1}
    assert manifest["settings"] == {"ratios": [0.5, 0.5], "scale": 1, "where": "a"}
    assert manifest["parents"] == {
        "prompts": {
            "path": "../../prompts",
            "kind": "prompts",
            "manifest_sha256": file_sha256(parent.path / "manifest.json"),
        }
    }
    assert open_artifact(made.path) == made == open_artifact(made.path, "prompts")
    assert made.missing() == ["00000", "00001"]
    assert not list(made.path.glob(".*"))  # no temporary file stays


def test_the_same_plan_is_accepted_and_leaves_the_first_workers_file_alone(tmp_path: Path) -> None:
    first = prompts(tmp_path / "x", scale=1)
    before = (first.path / "manifest.json").stat()
    assert prompts(tmp_path / "x", scale=1) == first
    after = (first.path / "manifest.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_other_settings_are_refused_with_both_values(tmp_path: Path) -> None:
    prompts(tmp_path / "x", scale=1, resize={"mode": "crop", "px": 96})
    with pytest.raises(UserError) as caught:
        prompts(tmp_path / "x", scale=2, resize={"mode": "squash", "px": 96}, seed=0)
    assert str(caught.value) == (
        f"{tmp_path}/x was begun with other settings (resize.mode: crop there, squash now; "
        "scale: 1 there, 2 now; seed: none there, 0 now); give another --out"
    )


def test_another_input_kind_or_number_of_shards_is_refused(tmp_path: Path) -> None:
    one, two = prompts(tmp_path / "one", n=1), prompts(tmp_path / "two", n=2)
    names = shard_names(1)
    begin_artifact(tmp_path / "x", "prompts", settings={}, shards=names, parents={"prompts": one})
    with pytest.raises(UserError, match=r"\(prompts: \.\./one .* there, \.\./two .* now\)"):
        begin_artifact(
            tmp_path / "x", "prompts", settings={}, shards=names, parents={"prompts": two}
        )
    with pytest.raises(UserError, match="already holds prompts, not chats"):
        begin_artifact(tmp_path / "x", "chats", settings={}, shards=names)
    with pytest.raises(UserError, match=r'shards: \["00000"\] there, \["00000", "00001"\] now'):
        parents = {"prompts": one}
        begin_artifact(
            tmp_path / "x", "prompts", settings={}, shards=shard_names(2), parents=parents
        )


def test_workers_that_begin_at_once_leave_one_plan(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tarkit.artifacts.artifact import begin_artifact\n"
        "sys.stdin.readline()\n"
        "try: begin_artifact(Path(sys.argv[1])"
        ", 'prompts', settings={'n': sys.argv[2]}, shards=['00000'])\n"
        "except Exception as error: sys.exit(3 if 'other settings' in str(error) else 4)\n"
    )
    out = tmp_path / "x"
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(out), n], stdin=subprocess.PIPE)
        for n in "1122"
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"go\n")
        worker.stdin.close()
    codes = [worker.wait() for worker in workers]
    winner = open_artifact(out).settings["n"]
    # The two that agree with the winner go on, the other two are refused.
    assert codes == [0 if n == winner else 3 for n in "1122"]


def test_what_is_not_an_artifact_is_named_with_those_beside_it(tmp_path: Path) -> None:
    prompts(tmp_path / "prompts")
    with pytest.raises(UserError, match="prompt does not exist\nartifacts in .*: prompts"):
        open_artifact(tmp_path / "prompt")
    with pytest.raises(UserError, match="is not an artifact: it has no manifest.json"):
        open_artifact(tmp_path)
    with pytest.raises(UserError, match="holds prompts, where images are wanted\ntarkit inspect"):
        open_artifact(tmp_path / "prompts", "images")
    begin_directory(tmp_path / "model", "model", settings={"steps": 1})
    with pytest.raises(UserError, match="is a model directory"):
        open_artifact(tmp_path / "model")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json cannot be read"):
        open_artifact(tmp_path / "bad")


def test_a_model_directory_has_a_manifest_that_refuses_other_settings(tmp_path: Path) -> None:
    images = prompts(tmp_path / "images")
    made = begin_directory(
        tmp_path / "m", "model", settings={"steps": 1}, parents={"images": images.path}
    )
    assert read_manifest(tmp_path / "m") == made
    assert made["parents"]["images"]["path"] == "../images"
    with pytest.raises(UserError, match=r"\(steps: 1 there, 2 now\)"):
        begin_directory(
            tmp_path / "m", "model", settings={"steps": 2}, parents={"images": images.path}
        )


# ---- shards


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "x")
    rows = [prompt_row("00001-000000", prompt="☃"), artifact.failed_row("00001-000001", "why")]
    artifact.write("00001", rows)
    assert artifact.rows("00001") == rows
    assert artifact.read("00001", ["key", "error"]).to_pydict() == {
        "key": ["00001-000000", "00001-000001"],
        "error": [None, "why"],
    }
    assert artifact.missing() == ["00000", "00002"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"promt": "x"}, r"row 0 has an unknown key 'promt' \(did you mean prompt\?\)"),
        ({"status": "fine"}, "status 'fine'"),
        ({"status": "failed"}, "a failed row needs an error"),
        ({"error": "but ok"}, "a failed row needs an error, and an ok row has none"),
        ({"key": "../../etc/passwd"}, "expected digits and dashes"),
        ({"key": None}, "expected digits and dashes"),
    ],
)
def test_a_bad_row_is_refused_and_nothing_is_written(
    tmp_path: Path, row: dict[str, Any], complaint: str
) -> None:
    artifact = prompts(tmp_path / "x")
    with pytest.raises(ValueError, match=complaint):
        artifact.write("00000", [prompt_row("00000-000000") | row])
    assert artifact.missing() == list(artifact.shards)


def test_a_missing_key_a_twice_used_key_and_an_unplanned_shard_are_refused(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "x")
    row = prompt_row("1")
    del row["licence"]
    with pytest.raises(ValueError, match="row 0 lacks the key 'licence'"):
        artifact.write("00000", [row])
    with pytest.raises(ValueError, match="occurs twice"):
        artifact.write("00000", [prompt_row("1"), prompt_row("1")])
    with pytest.raises(ValueError, match="'00009' is not in the plan"):
        artifact.write("00009", [prompt_row("1")])


def test_misspelt_keys_are_found_inside_nested_rows_too(tmp_path: Path) -> None:
    artifact = begin_artifact(tmp_path / "x", "images", settings={}, shards={"00000": 1})
    row = image_row("0", qa=[{"question": "Is there a ring?", "anser": "yes"}])
    with pytest.raises(ValueError, match=r"row 0 qa\[0\] has an unknown key 'anser'"):
        artifact.write_pictures("00000", zip([row], [("png", b"x")], strict=True))
    with pytest.raises(ValueError, match="role 'goal': expected one of"):
        artifact.write_pictures(
            "00000", zip([image_row("0", role="goal")], [("png", b"x")], strict=True)
        )
    with pytest.raises(ValueError, match="2 rows, the plan says 1"):
        rows = [image_row("0"), image_row("1")]
        artifact.write_pictures("00000", zip(rows, [("png", b"x"), ("png", b"y")], strict=True))


def test_a_chat_keeps_its_turns_and_the_codes_of_every_stored_scale(tmp_path: Path) -> None:
    artifact = begin_artifact(tmp_path / "x", "chats", settings={}, shards=["00000"])
    row = {
        "key": "0",
        "task": "t2i",
        "split": "train",
        "messages": [
            {"role": "user", "content": "a ring"},
            {"role": "assistant", "content": "<image>"},
        ],
        "images": [{"codes_1": [0, 65_535], "codes_2": None, "codes_3": [7]}],
        "status": "ok",
        "error": None,
    }
    artifact.write("00000", [row])
    assert artifact.rows("00000") == [row]
    with pytest.raises(ValueError, match="task 't2v'"):
        artifact.write("00000", [row | {"task": "t2v"}])
    with pytest.raises(ValueError, match=r"row 0 images\[0\] lacks the key 'codes_3'"):
        artifact.write("00000", [row | {"images": [{"codes_1": [1], "codes_2": None}]}])


def test_scores_have_the_columns_that_their_plan_names(tmp_path: Path) -> None:
    artifact = begin_artifact(
        tmp_path / "x", "scores", settings={"columns": ["beauty"]}, shards=["00000"]
    )
    rows = [{"key": "0", "beauty": 0.25, "status": "ok", "error": None}]
    artifact.write("00000", rows)
    assert artifact.rows("00000") == rows
    with pytest.raises(ValueError, match="need the setting 'columns'"):
        begin_artifact(tmp_path / "y", "scores", settings={}, shards=["00000"])


# ---- tokens


def token_row(key: str, codes_1: list[int] | None, codes_3: list[int] | None) -> dict[str, Any]:
    about = ["parent_key", "group", "split", "prompt", "captions", "qa", "template", "scene"]
    rest = {"role": "target", "status": "ok", "error": None}
    return {"key": key, "codes_1": codes_1, "codes_3": codes_3} | dict.fromkeys(about) | rest


def test_tokens_keep_every_code_of_sixteen_bits_beside_failed_rows(tmp_path: Path) -> None:
    artifact = begin_artifact(tmp_path / "x", "tokens", settings=TOKENS, shards=["00000"])
    rows = [
        token_row("0", [0, 1, 255, 256, 32_767, 32_768, 65_534, 65_535, 9], [65_535]),
        artifact.failed_row("1", "truncated", role="target"),
        token_row("2", list(range(9)), [0]),
    ]
    artifact.write("00000", rows, source_sha256="5a" * 32)
    assert artifact.rows("00000") == rows
    table = artifact.read("00000")
    assert table.schema.field("codes_1").type == pa.list_(pa.uint16(), 9)  # side 3: 9 codes
    assert table.schema.field("codes_3").type == pa.list_(pa.uint16(), 1)
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert metadata == {
        "tarkit.kind": "tokens",
        "tarkit.source_sha256": "5a" * 32,
        "tarkit.tokenizer_sha256": "ab" * 32,
        "tarkit.codebook_size": "65536",
        "tarkit.sides": '{"1": 3, "3": 1}',
        "tarkit.resize": "squash",
        "tarkit.dtype": "float32",
    }


@pytest.mark.parametrize(
    ("codes_1", "codes_3"),
    [
        ([0] * 8, [0]),  # 8 of 9 codes
        ([65_536] + [0] * 8, [0]),  # one past the range of uint16
        ([-1] + [0] * 8, [0]),
        (None, [0]),  # an ok row without codes
    ],
)
def test_too_few_codes_or_codes_out_of_range_are_refused(
    tmp_path: Path, codes_1: list[int] | None, codes_3: list[int]
) -> None:
    artifact = begin_artifact(tmp_path / "x", "tokens", settings=TOKENS, shards=["00000"])
    with pytest.raises((ValueError, pa.ArrowException, OverflowError)):
        artifact.write("00000", [token_row("0", codes_1, codes_3)])
    assert artifact.missing() == ["00000"]


def test_a_code_outside_the_codebook_is_refused(tmp_path: Path) -> None:
    settings = TOKENS | {"codebook_size": 1024}
    artifact = begin_artifact(tmp_path / "x", "tokens", settings=settings, shards=["00000"])
    artifact.write("00000", [token_row("0", [1023] * 9, [0])])
    with pytest.raises(ValueError, match="codes_1 has the code 1024 of a codebook of 1024"):
        artifact.write("00000", [token_row("0", [1024] + [0] * 8, [0])])


def test_random_codes_cost_little_more_than_their_sixteen_bits(tmp_path: Path) -> None:
    settings = TOKENS | {"sides": {"1": 27}}
    artifact = begin_artifact(tmp_path / "x", "tokens", settings=settings, shards=["00000"])
    codes = np.random.default_rng(0).integers(0, 65_536, (500, 729)).astype(np.uint16)
    columns: dict[str, Any] = {
        name: pa.nulls(500, artifact.schema.field(name).type) for name in artifact.schema.names
    }
    columns["key"] = pa.array([str(number) for number in range(500)])
    columns["role"] = pa.array(["target"] * 500)
    columns["status"] = pa.array(["ok"] * 500)
    columns["codes_1"] = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), 729)
    artifact.write("00000", pa.table(columns))
    # 729 codes x 2 bytes = 1458; plain Parquet stores 4 bytes a code, 2916 a picture.
    num_bytes = artifact.shard_path("00000").stat().st_size / 500
    assert 1458 < num_bytes < 1.03 * 1458
    read = artifact.read("00000")["codes_1"].combine_chunks().flatten().to_numpy()
    assert (read.reshape(500, 729) == codes).all()
    stored = pq.ParquetFile(artifact.shard_path("00000")).metadata.row_group(0)
    chunks = [stored.column(number) for number in range(stored.num_columns)]
    encodings = {chunk.path_in_schema: chunk.encodings for chunk in chunks}
    assert "BYTE_STREAM_SPLIT" in encodings["codes_1.list.element"]
    assert {chunk.compression for chunk in chunks} == {"ZSTD"}


# ---- pictures


def test_pictures_come_back_in_order_and_failed_rows_have_none(tmp_path: Path) -> None:
    artifact = pictures(tmp_path / "x")
    found = [(row["key"], row["status"], blob) for row, blob in artifact.read_images("00000")]
    assert found == [
        ("00000-000000", "ok", b"first"),
        ("00000-000001", "failed", None),
        ("00000-000002", "ok", b"the third"),
    ]
    assert artifact.rows("00000")[0] == image_row("00000-000000")


def test_offsets_point_at_the_bytes_of_each_good_picture(tmp_path: Path) -> None:
    artifact = pictures(tmp_path / "x")
    offsets, sizes = artifact.image_offsets("00000")
    # A tar member is a 512-byte header and its bytes, so the first picture begins at 512.
    assert offsets.dtype == np.int64 and offsets[0] == 512 and sizes.tolist() == [5, 9]
    file = os.open(artifact.tar_path("00000"), os.O_RDONLY)
    found = [os.pread(file, size, offset) for offset, size in zip(offsets, sizes, strict=True)]
    os.close(file)
    assert found == [b"first", b"the third"]


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    for name in ("00000.tar", "00000.parquet", "manifest.json"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    with tarfile.open(one.tar_path("00000")) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [
        "00000-000000.png",
        "00000-000000.json",
        "00000-000002.jpg",
        "00000-000002.json",
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }


def test_webdataset_reads_the_tar(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    artifact = pictures(tmp_path / "x")
    dataset = webdataset.WebDataset(str(artifact.tar_path("00000")), shardshuffle=False)
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == ["00000-000000", "00000-000002"]
    assert (samples[0]["png"], samples[1]["jpg"]) == (b"first", b"the third")
    assert json.loads(samples[1]["json"]) == image_row("00000-000002")


def test_an_images_row_and_its_picture_must_agree(tmp_path: Path) -> None:
    artifact = begin_artifact(tmp_path / "x", "images", settings={}, shards=["00000"])
    for blob in (None, ("json", b"x"), ("../x", b"x")):
        with pytest.raises(ValueError):
            artifact.write_pictures("00000", zip([image_row("0")], [blob], strict=True))
    assert list(artifact.path.iterdir()) == [artifact.path / "manifest.json"]


def hostile_tar(path: Path, *members: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type = kind
    for field, value in fields.items():
        setattr(found, field, value)
    return found


def test_a_tar_with_links_strange_names_or_other_pictures_is_refused(tmp_path: Path) -> None:
    artifact = pictures(tmp_path / "x")
    tar = artifact.tar_path("00000")
    passwd = member("00000-000000.png", tarfile.SYMTYPE, linkname="/etc/passwd")
    for bad in (
        [passwd],
        [member("../00000-000000.png")],
        [member("00000-000000.png", size=5)],  # one picture where the index lists two
        [member("00000-000000.png", tarfile.CHRTYPE)],
    ):
        hostile_tar(tar, *bad)
        with pytest.raises(UserError, match="is not the tar that 00000.parquet describes.*\nrm "):
            list(artifact.read_images("00000"))
    tar.write_bytes(b"no tar at all")
    with pytest.raises(UserError, match="is not the tar"):
        artifact.image_offsets("00000")
    tar.unlink()
    with pytest.raises(UserError, match="is not the tar"):
        artifact.image_offsets("00000")


# ---- progress and staleness


def test_pending_shards_are_the_missing_ones_of_this_rank(tmp_path: Path) -> None:
    artifact = begin_artifact(tmp_path / "x", "prompts", settings={}, shards=shard_names(5))
    artifact.write("00002", [prompt_row("2")])
    assert pending_shards(artifact) == ["00000", "00001", "00003", "00004"]
    # Rank 0 of 2 owns 0, 2, 4 and rank 1 owns 1, 3.
    assert pending_shards(artifact, rank=0, world=2) == ["00000", "00004"]
    assert pending_shards(artifact, rank=1, world=2) == ["00001", "00003"]


def test_a_shard_is_redone_when_its_input_shard_changes_and_only_then(tmp_path: Path) -> None:
    source = prompts(tmp_path / "source")
    out = begin_artifact(
        tmp_path / "out",
        "prompts",
        settings={},
        shards=source.shards,
        parents={"prompts": source},
    )
    for name in source.shards:
        source.write(name, [prompt_row(name)])
        out.write(name, [prompt_row(name)], source_sha256=source.shard_sha256(name))
    assert pending_shards(out, source) == []
    source.write("00001", [prompt_row("00001", prompt="changed")])
    assert pending_shards(out, source) == ["00001"]
    assert pending_shards(out, source, rank=0, world=2) == []
    assert out.source_sha256("00000") == file_sha256(source.shard_path("00000"))


def test_a_changed_picture_changes_the_fingerprint_of_its_shard(tmp_path: Path) -> None:
    artifact = pictures(tmp_path / "x")
    before = artifact.shard_sha256("00000")
    rows = artifact.rows("00000")
    artifact.write_pictures(
        "00000", zip(rows, [("png", b"FIRST"), None, ("jpg", b"the third")], strict=True)
    )
    assert artifact.shard_sha256("00000") != before  # though the index's rows are the same
    tar_sha256 = artifact.read("00000").schema.metadata[b"tarkit.tar_sha256"].decode()
    assert tar_sha256 == hashlib.sha256(artifact.tar_path("00000").read_bytes()).hexdigest()


def test_an_incomplete_artifact_names_its_missing_shards(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "x")
    artifact.write("00001", [prompt_row("1")])
    with pytest.raises(UserError, match=r"lacks 2 of its 3 shards \(00000, 00002\)\n.*same --out"):
        artifact.require_complete()
    with pytest.raises(UserError, match="00000.parquet is missing"):
        artifact.read("00000")
    with pytest.raises(UserError, match="no shard '00007' in its plan of 3"):
        artifact.read("00007")
    for name in ("00000", "00002"):
        artifact.write(name, [prompt_row("1")])
    artifact.require_complete()


def test_a_damaged_shard_or_an_unknown_column_is_named(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "x")
    artifact.write("00000", [prompt_row("1")])
    with pytest.raises(UserError, match="has no column 'promt'; it has key"):
        artifact.read("00000", ["promt"])
    path = artifact.shard_path("00000")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"00000.parquet is damaged: .*\nrm .*00000.parquet"):
        artifact.read("00000")


def test_what_a_killed_writer_left_is_swept_away_and_a_living_ones_is_not(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "x")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    left = artifact.path / f".00000.parquet.{host}.{dead.pid}.tmp"
    living = artifact.path / f".00000.parquet.{host}.{os.getppid()}.tmp"
    left.write_bytes(b"half")
    living.write_bytes(b"half")
    prompts(tmp_path / "x")  # sweeps, though this run may have nothing left to write
    assert not left.exists() and living.exists()


# ---- ranks


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "3"}, (1, 4)),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "3"}, (2, 3)),
        # In the batch script itself, outside srun, the same numbers mean one process.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, (0, 1)),
        # Array tasks 5..8: task 7 is place 2 of 4; with 2 processes each, process 1 is 2 x 2 + 1.
        ({"SLURM_ARRAY_TASK_ID": "7"}, (2, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "7",
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
            },
            (5, 8),
        ),
    ],
)
def test_rank_and_world_come_from_torchrun_or_slurm(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: tuple[int, int]
) -> None:
    clear_ranks(monkeypatch)
    array = {"MIN": "5", "MAX": "8", "COUNT": "4"} if "SLURM_ARRAY_TASK_ID" in environment else {}
    for name, value in array.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank_and_world() == expected


def clear_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


def test_half_a_rank_or_an_array_with_gaps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_ranks(monkeypatch)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="WORLD_SIZE is None: expected a number"):
        rank_and_world()
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UserError, match="process 1 of 1: expected 0 to 0"):
        rank_and_world()
    clear_ranks(monkeypatch)
    for name, value in {"ID": "3", "MIN": "1", "MAX": "5", "COUNT": "3"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)  # --array=1,3,5
    with pytest.raises(UserError, match="array 1-5 has 3 tasks: a gap"):
        rank_and_world()


def test_what_an_ended_process_left_goes_though_nobody_waited_for_it(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "x")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # a zombie: still in the table
    left = artifact.path / f".00000.parquet.{socket.gethostname()}.{ended.pid}.tmp"
    left.write_bytes(b"half")
    prompts(tmp_path / "x")
    assert not left.exists()
    ended.wait()


def test_a_shard_of_another_kind_names_the_missing_column(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "a")
    pq.write_table(pa.table({"image": ["x"]}), artifact.shard_path("00000"))
    with pytest.raises(UserError, match="00000.parquet has no column 'key'; it has image"):
        artifact.read("00000")


@pytest.mark.parametrize("size", [float("inf"), 0, 65_537, "many", True])
def test_a_codebook_of_no_possible_size_is_refused(tmp_path: Path, size: Any) -> None:
    begin_artifact(tmp_path / "a", "tokens", settings=TOKENS, shards=shard_names(1))
    file = tmp_path / "a/manifest.json"
    manifest = json.loads(file.read_text())
    manifest["settings"]["codebook_size"] = size
    file.write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match="codebook_size = .* is no whole number from 1 to 65536|is not finite"
    ):
        open_artifact(tmp_path / "a")
