"""`tarkit verify`: names what is not as recorded, in a directory and its inputs, and repairs it."""

import json
import os
from pathlib import Path

import pytest

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.commands import append_command
from tarkit.checkpoints.directory import half
from tarkit.curate.render import RenderPlan
from tarkit.encode import EncodePlan
from tarkit.errors import UserError
from tarkit.report import verify
from tests import parts


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with drawn pictures, a tokenizer, and the pictures' codes."""
    monkeypatch.chdir(tmp_path)
    settings = ["count=6", "shard_size=2", "num_workers=1"]
    RenderPlan(out=Path("drawn"), overrides=settings).run()
    words = [word for setting in settings for word in ("--set", setting)]
    append_command(Path("drawn"), ["tarkit", "curate", "render", *words, "--out", "drawn"])
    tokenizer = parts.save_ta_tok(tmp_path / "tokenizer")
    EncodePlan(Path("drawn"), tokenizer=tokenizer, out=Path("codes")).run()
    return tmp_path


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_what_is_whole_passes(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.run(Path("codes"), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["faults"] == []
    assert [Path(folder).name for folder in facts["folders"]] == ["codes", "drawn", "tokenizer"]


def test_every_fault_of_a_lineage_is_named(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(Path("drawn/00001.tar"), 700)
    flip(Path("codes/00002.parquet"), 40)
    Path("codes/00000.parquet").unlink()
    flip(Path("tokenizer/model.safetensors"), -3)
    assert not verify.run(Path("codes"))
    shown = capsys.readouterr().out
    assert "codes/00000.parquet: is missing" in shown
    assert "codes/00002.parquet: is damaged: " in shown
    assert "drawn/00001.parquet: 00001.tar is not the tar that it describes" in shown
    assert "tokenizer/model.safetensors is not what config.json records" in shown
    assert "4 faults" in shown


def test_a_changed_byte_under_an_unchanged_time_is_found(chain: Path) -> None:
    tar = Path("drawn/00001.tar")
    list(open_artifact(Path("drawn")).read_images("00001"))
    before = tar.stat()
    flip(tar, 700)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [fault.shard for fault in verify.verify(Path("drawn"))] == ["00001"]


def test_a_changed_input_is_named(chain: Path) -> None:
    half(Path("tokenizer"))  # another config.json
    assert any("tokenizer" in fault.what for fault in verify.verify(Path("codes")))


def test_a_damaged_manifest_or_config_is_a_fault_among_others(
    chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("drawn/manifest.json").write_text("{")
    Path("tokenizer/config.json").write_text("[" * 100_000)
    Path("codes/00000.parquet").unlink()
    assert not verify.run(Path("codes"))
    shown = capsys.readouterr().out
    for fault in ("codes/00000.parquet: is missing", "manifest.json cannot", "config.json cannot"):
        assert fault in shown


def test_repair_makes_the_bad_shards_again_and_no_other(chain: Path) -> None:
    folder = Path("drawn")
    whole = {path.name: path.read_bytes() for path in folder.glob("0*")}
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("0*")}
    flip(folder / "00001.tar", 700)
    flip(folder / "00002.parquet", 40)
    assert verify.run(folder, repair=True)
    assert {path.name: path.read_bytes() for path in folder.glob("0*")} == whole
    same = {path.name for path in folder.glob("0*") if path.stat().st_mtime_ns == times[path.name]}
    assert same == {"00000.tar", "00000.parquet"}


def test_a_killed_repair_is_ended_by_the_next_one(chain: Path) -> None:
    folder = Path("drawn")
    whole = {path.name: path.read_bytes() for path in folder.glob("0*")}
    for name, made_again in (("00000.tar", True), ("00001.tar", False)):
        aside = folder / f"{name}.damaged"
        (folder / name).rename(aside)
        flip(aside, 700)
        if made_again:
            (folder / name).write_bytes(whole[name])
    assert verify.run(folder, repair=True)
    assert {path.name: path.read_bytes() for path in folder.glob("0*")} == whole


def test_a_repair_that_fails_leaves_every_file_and_names_the_command(chain: Path) -> None:
    folder = Path("drawn")
    flip(folder / "00001.parquet", 40)
    damaged = {path.name: path.read_bytes() for path in folder.glob("0*")}
    append_command(folder, ["tarkit", "curate", "render", "--set", "count=7", "--out", "drawn"])
    with pytest.raises(UserError, match="ended with status 1") as error:
        verify.run(folder, repair=True)
    assert error.value.hint == "tarkit curate render --set count=7 --out drawn"
    assert {path.name: path.read_bytes() for path in folder.glob("0*")} == damaged


def test_a_repair_needs_the_command_and_its_working_folder(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("codes/00000.parquet").unlink()
    with pytest.raises(UserError, match="does not record the command"):
        verify.run(Path("codes"), repair=True)
    append_command(Path("codes"), ["tarkit", "encode", "drawn", "--out", "codes"])
    (chain / "elsewhere").mkdir()
    monkeypatch.chdir(chain / "elsewhere")
    with pytest.raises(UserError, match="another working folder") as error:
        verify.run(Path("../codes"), repair=True)
    assert error.value.hint == "from that folder, run tarkit encode drawn --out codes"


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no directory that tarkit made"):
        verify.run(tmp_path)
