"""Manifests that are damaged or hostile: one sentence, never a traceback, no path outside."""

import json
from pathlib import Path
from typing import Any

import pytest

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.manifest import begin_directory, read_manifest
from tarkit.errors import UserError
from tests.parts import write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", [["train"]]).path


@pytest.mark.parametrize(
    "change",
    [
        {"kind": None},
        {"kind": ["images"]},
        {"settings": []},
        {"settings": None},
        {"settings": {"temperature": float("nan")}},
        {"parents": [1]},
        {"parents": {"images": {}}},
        {"parents": {"images": {"path": 1, "kind": "x", "manifest_sha256": ""}}},
        {"parents": {"images": {"path": "a\0b", "kind": "x", "manifest_sha256": ""}}},
        {"shards": {"00000": 1}},
        {"shards": ["../../etc/passwd"]},
        {"shards": ["00000", "00000"]},
        {"shards": [0]},
        {"shards": [["00000"]]},
        {"shards": ["9" * 5_000]},
        {"counts": {"00000": "many"}},
        {"counts": {"00000": -1}},
        {"counts": {"x": 1}},
        {"counts": []},
    ],
    ids=str,
)
def test_a_changed_manifest_is_refused(folder: Path, change: dict[str, Any]) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match="is not a tarkit manifest") as error:
        open_artifact(folder)
    assert error.value.hint


@pytest.mark.parametrize("key", ["settings", "parents", "shards", "counts"])
def test_a_manifest_without_a_key_is_refused(folder: Path, key: str) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest[key]
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"has no {key}"):
        open_artifact(folder)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1]", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 99 + b"1" + b"}" * 99]
    + [b"9" * 5_000],
    ids=range(7),
)
def test_what_is_no_json_object_is_refused(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(UserError, match="cannot be read"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("tokens", {}),
        ("tokens", {"sides": [1], "codebook_size": 4, "tokenizer_sha256": "x", "resize": "squash"}),
        ("tokens", {"sides": {"1": "x"}, "codebook_size": 4, "tokenizer_sha256": "x"}),
        ("tokens", {"sides": {"1": float("inf")}, "codebook_size": 4, "tokenizer_sha256": "x"}),
        ("scores", {"columns": 3}),
        ("scores", {}),
    ],
)
def test_settings_of_another_kind_are_refused(
    folder: Path, kind: str, settings: dict[str, Any]
) -> None:
    file = folder / "manifest.json"
    changed = json.loads(file.read_text()) | {"kind": kind, "settings": settings}
    file.write_text(json.dumps(changed))
    with pytest.raises(
        UserError, match="its settings are not those of|a number that is not finite"
    ):
        open_artifact(folder)


def test_a_shard_with_columns_of_another_type_is_refused(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    artifact = open_artifact(folder)
    path = artifact.shard_path("00000")
    table = pq.read_table(path)
    place = table.schema.get_field_index("width")
    pq.write_table(table.set_column(place, "width", pa.array(["wide"])), path)
    with pytest.raises(UserError, match="has width as string, where images have int"):
        artifact.read("00000")


@pytest.mark.parametrize("key", ["parents", "settings", "shards", "counts"])
def test_a_directory_whose_manifest_lacks_a_key_is_not_gone_on_with(folder: Path, key: str) -> None:
    file = folder / "manifest.json"
    whole = json.loads(file.read_text())
    settings = {**whole["settings"], "a": 1}
    parent = folder.parent / "parent.txt"
    parent.write_text("x")
    plan = {"shards": whole["shards"], "counts": whole["counts"]}
    begin: dict[str, Any] = {"settings": settings, "parents": {"text": parent}, "plan": plan}
    out = folder.parent / "begun"
    manifest = begin_directory(out, "images", **begin)
    del manifest[key]
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was begun with other settings|has no settings"):
        begin_directory(out, "images", **begin)
