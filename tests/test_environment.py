"""The same commands in two environments that differ in all a machine may set: the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KEPT = ("PATH", "OMP_NUM_THREADS", "PYTHONPATH")
ONE = {
    **{"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200", "TZ": "UTC"},
    **{"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"},
}
# A narrow, coloured terminal a day ahead, with a locale that knows ASCII alone.
OTHER = {
    **{"HF_HOME": "/nowhere", "FORCE_COLOR": "1", "COLUMNS": "40", "TZ": "Pacific/Kiritimati"},
    **{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONHASHSEED": "2"},
}
COMMANDS = (
    "curate render --set count=6 --set shard_size=3 --set seed=3 --out pictures",
    "encode pictures --tokenizer mini --out tokens",
    "curate chats tokens --out chats",
    "generate {prompt} --out drawn.png --seed 5",
    "inspect tokens --json",
)


def run(folder: Path, variables: dict[str, str], umask: int) -> dict[str, bytes]:
    """What the commands wrote, and what they printed, by name."""
    folder.mkdir()
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    results = {}
    for command in COMMANDS:
        words = [word.format(prompt="a photo of a blue ring") for word in command.split()]
        done = subprocess.run(
            [sys.executable, "-m", "tarkit.cli", *words],
            cwd=folder,
            env={**kept, **variables},
            umask=umask,
            capture_output=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        printed = done.stdout.replace(str(folder).encode(), b"FOLDER")
        results[f"stdout of {command}"] = printed
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return results | {name: path.read_bytes() for name, path in files.items()}


@pytest.mark.timeout(400)
def test_two_environments_make_the_same_bytes(tmp_path: Path) -> None:
    one = run(tmp_path / "one", ONE, umask=0o022)
    other = run(tmp_path / "other", OTHER, umask=0o077)
    assert {"drawn.png", "tokens/manifest.json", "chats/00000.parquet"} <= one.keys()
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize(("name", "value"), [("HF_HUB_OFFLINE", None), ("TZ", "UTC")])
def test_the_suite_has_an_environment_of_its_own(name: str, value: str | None) -> None:
    assert os.environ.get(name) == value
