"""`tarkit doctor` names planted faults, each with what mends it; no connection unless asked."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from tarkit import doctor
from tarkit.cli.app import app
from tarkit.doctor import CheckResult

ROOT = Path(__file__).resolve().parents[1]
Usage = namedtuple("Usage", "total used free")


def plant(
    folder: Path, name: str, version: str, requires: Sequence[str] = (), extras: Sequence[str] = ()
) -> None:
    """A package as pip records it, to be found before the installed one of that name."""
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    lines += [f"Provides-Extra: {each}" for each in extras]
    (place / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages with tarkit's own record, as of a wheel made now."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requires = list(project["dependencies"])
    for extra, needs in extras.items():
        for each in needs:
            requirement, _, marker = each.partition(";")
            condition = f"extra == '{extra}'" + (f" and ({marker.strip()})" if marker else "")
            requires.append(f"{requirement}; {condition}")
    folder = tmp_path / "site"
    plant(folder, "tarkit", project["version"], requires, list(extras))
    return folder


def ask(site: Path, *words: str, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """(exit status, findings by check) of a process that finds the packages of `site` first."""
    done = subprocess.run(
        [sys.executable, "-m", "tarkit.cli", "doctor", "--json", *words],
        env={**os.environ, "PYTHONPATH": f"{site}:{ROOT}", **variables},
        cwd=site,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert not done.stderr, done.stderr
    facts = json.loads(done.stdout)
    assert facts["broken"] is (done.returncode == 1)
    return done.returncode, {each["check"]: each for each in facts["findings"]}


def test_planted_faults_are_named_each_with_what_mends_it(site: Path) -> None:
    """In one environment, as pip and a broken download would leave it; nothing else is broken."""
    (site / "torchvision").mkdir()
    code = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
    (site / "torchvision" / "__init__.py").write_text(code)
    plant(site, "torchvision", "0.28.0", ["torch==2.13.0"])
    plant(site, "webdataset", "0.1.62")
    (site / "cache").write_text("a file where a folder should be")
    # Nothing listens at port 9 of this machine.
    places = {"HF_HUB_CACHE": str(site / "cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    status, found = ask(site, "--hub", **places)
    assert status == 1
    assert found["torchvision"] == {
        "check": "torchvision",
        "state": "broken",
        "text": "it does not import: RuntimeError: operator torchvision::nms does not exist",
        "fix": "pip uninstall torchvision",
    }
    assert found["webdataset"]["state"] == "broken"
    assert found["webdataset"]["text"].startswith("0.1.62 is installed, and tarkit needs ")
    assert found["webdataset"]["fix"] == "pip install 'webdataset<2,>=0.2.100'"
    assert found["cache"]["state"] == "broken"
    assert found["cache"]["text"].startswith("it cannot be read: ")
    assert str(site / "cache") in found["cache"]["fix"]
    assert found["hub"]["state"] == "broken"
    assert found["hub"]["text"].startswith("http://127.0.0.1:9 does not answer: ")
    # No test installs img2dataset, which needs another webdataset than the newest.
    assert found["extra download"]["state"] == "note"
    assert found["extra download"]["text"].startswith("not installed: img2dataset")
    assert found["extra download"]["fix"] == "pip install 'tarkit[download]'"
    assert {found[name]["state"] for name in ("python", "torch", "cpu", "model mini")} == {"ok"}
    assert "GFLOP/s" in found["cpu"]["text"]


def finding(check: str, findings: Sequence[CheckResult]) -> CheckResult:
    (one,) = [each for each in findings if each.check == check]
    return one


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1 << 40, 1 << 40, 4096))
    found = finding("disk of this folder", list(doctor._disks()))
    assert (found.state, found.fix) == ("broken", "free some space on this disk")
    assert found.text == f"full: 0.0 GB free at {Path.cwd()}"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1 << 40, 0, 5 << 30))
    found = finding("disk of temporary files", list(doctor._disks()))
    assert found.state == "note" and found.text.startswith("5.4 GB free")


def test_a_disk_within_whose_quota_nothing_fits_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Free space does not tell; a file that is written does."""

    def refused(**options: Any) -> Any:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    monkeypatch.chdir(tmp_path)
    found = finding("disk of this folder", list(doctor._disks()))
    assert found.state == "broken" and "Disk quota exceeded" in found.text
    assert found.fix == "free some space within your quota"
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_cache_that_may_not_be_read_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blob = tmp_path / "models--a--b" / "blobs" / "abc"
    blob.parent.mkdir(parents=True)
    (tmp_path / "models--a--b" / "snapshots").mkdir()
    (tmp_path / "models--a--b" / "refs").mkdir()
    blob.write_text("x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert [each.state for each in doctor._cache()] == ["ok"]
    real = os.access  # root may read everything
    monkeypatch.setattr(
        os, "access", lambda path, mode: "abc" not in str(path) and real(path, mode)
    )
    (closed, whole) = doctor._cache()
    assert closed.state == "broken" and closed.text == f"{blob} cannot be read"
    assert whole.state == "ok"


def test_a_torchvision_of_another_torch_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    plant(tmp_path, "torchvision", "0.19.0", ["torch==2.4.0"])
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.ops, "torchvision", SimpleNamespace(nms=None), raising=False)
    try:
        (found,) = doctor._torchvision()
    finally:
        sys.modules.pop("torchvision", None)
    assert found.state == "broken" and "it is made for torch==2.4.0" in found.text


def test_a_damaged_embedded_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tarkit.checkpoints import hub

    shutil.copytree(hub.EMBEDDED["mini"], tmp_path / "mini")
    weights = tmp_path / "mini" / "vqvae" / "model.safetensors"
    config = json.loads((weights.parent / "config.json").read_text())
    (weights.parent / "config.json").write_text(json.dumps({**config, "weights_sha256": "0" * 64}))
    (tmp_path / "mini" / "ar_dtok" / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "EMBEDDED", {"mini": tmp_path / "mini"})
    (found,) = doctor._embedded()
    assert found.state == "broken" and f"{weights} is damaged" in found.text
    assert "ar_dtok/model.safetensors is not there" in found.text


def test_a_check_that_fails_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "/closed")
        yield

    monkeypatch.setattr(doctor, "_cache", failing)
    monkeypatch.setattr("tarkit.train.machine.SIDE", 16)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "this check ended early: /closed: Permission denied" in done.stdout
    assert "model tar-1.5b" in done.stdout and done.stdout.endswith("broken\n")


def test_no_connection_is_opened_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*given: Any, **named: Any) -> Any:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", opened)
    monkeypatch.setattr("socket.getaddrinfo", opened)
    monkeypatch.setattr("tarkit.train.machine.SIDE", 16)
    assert all("connection" not in each.text for each in doctor.run())
    (asked,) = doctor._hub()
    assert asked.state == "broken" and "a connection was opened" in asked.text
