"""The guard of the slow fuzzers sees what it is there to see."""

import random
import time
from pathlib import Path

import pytest

from tests.fuzz import trial
from tests.fuzz.damage import damaged


def fault_of(function: object, folder: Path) -> str | None:
    assert callable(function)
    return trial.run_forked(function, folder, folder / "log").fault()


def raises() -> None:
    raise KeyError("gone")


def ends(status: int) -> object:
    raise SystemExit(status)


def test_a_traceback_a_hang_and_memory_are_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fault_of(lambda: None, tmp_path) is None
    assert fault_of(lambda: ends(3), tmp_path) is None
    assert "KeyError: 'gone'" in str(fault_of(raises, tmp_path))
    assert fault_of(lambda: ends(1), tmp_path) == "status 1 without a sentence"
    assert fault_of(lambda: (print("error: no such file"), ends(1)), tmp_path) is None
    assert "takes" in str(fault_of(lambda: bytearray(trial.LIMIT_BYTES + (64 << 20)), tmp_path))
    monkeypatch.setattr(trial, "LIMIT_S", 0.2)
    assert "no end after" in str(fault_of(lambda: time.sleep(5), tmp_path))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b'{"a": [1, {"b": "c"}]}'),
        ("a.jsonl", b'{"a": 1}\n{"a": 2}\n'),
        ("a.toml", b"a = 1\n[b]\nc = 2\n"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"{}"),
        ("a.http", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
        ("a.png", bytes(range(200))),
    ],
)
def test_damage_changes_a_file_and_is_the_same_for_a_seed(name: str, data: bytes) -> None:
    made = [damaged(random.Random(seed), name, data) for seed in range(60)]
    assert all(each != data for each in made)
    assert len(set(made)) > 20
    assert made == [damaged(random.Random(seed), name, data) for seed in range(60)]
