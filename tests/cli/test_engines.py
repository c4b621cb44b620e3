"""A command as tasks of datatrove's executors: the same bytes, failed rows and failures told."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.commands import COMMANDS, read_commands
from tarkit.cli.command import guarded
from tarkit.cli.engines import EngineConfig, executor_of, spread
from tarkit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def tarkit(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tarkit.cli", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


def engine(folder: Path) -> Path:
    (folder / "engine.toml").write_text(f'tasks = 3\nworkers = 2\nlogs = "{folder / "logs"}"\n')
    return folder / "engine.toml"


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.iterdir() if path.name != COMMANDS)
    return {path.name: path.read_bytes() for path in files}


def test_tasks_of_the_local_executor_make_the_same_bytes(tmp_path: Path) -> None:
    lines = [f"prompt number {number}" for number in range(50)] + ["x"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    what = ("curate", "prompts", tmp_path / "prompts.txt", "--set", "shard_size=10", "--out")
    alone = tarkit(*what, tmp_path / "alone")
    shared = tarkit("--engine", engine(tmp_path), *what, tmp_path / "shared")
    # One prompt is too short: finished with failed rows, whoever made them.
    assert (alone.returncode, shared.returncode) == (3, 3), shared.stderr[-2000:]
    assert contents(tmp_path / "alone") == contents(tmp_path / "shared")
    # Every task records the command without --engine; the same command is recorded once.
    words = ["tarkit", *map(str, what), str(tmp_path / "shared")]
    assert read_commands(tmp_path / "shared") == [words]
    assert len(open_artifact(tmp_path / "shared").shards) == 6
    again = tarkit("--engine", engine(tmp_path), *what, tmp_path / "shared")
    assert again.returncode == 3


def test_a_task_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    done = tarkit("--engine", engine(tmp_path), "curate", "prompts", "/none", "--out", tmp_path)
    assert done.returncode == 1
    assert "ended with 1" in done.stderr and "error: " in done.stderr


def test_slurm_is_handed_what_the_toml_says(tmp_path: Path) -> None:
    known = {"engine": "slurm", "tasks": 8, "cpus": 4, "memory_gb": 30, "logs": tmp_path / "logs"}
    with pytest.raises(UserError, match="needs time and partition"):
        executor_of(EngineConfig.model_validate(known), ["encode"])
    known |= {"time": "1:00:00", "partition": "gpu", "gpus": 1, "setup": "source venv/bin/activate"}
    made = executor_of(EngineConfig.model_validate(known), ["encode", "PICTURES"])
    script = made.get_launch_file_contents(made.get_sbatch_args(), "true")
    assert "#SBATCH --partition=gpu" in script and "#SBATCH --time=1:00:00" in script
    assert "#SBATCH --cpus-per-task=4" in script and "source venv/bin/activate" in script
    # 30 GB for four processors: 8 for each.
    assert "mem-per-cpu=8G" in script


MISSING = {
    "local": ("datatrove", "pip install 'tarkit[scale]'"),
    "ray": ("ray", "pip install 'tarkit[scale]' 'datatrove[ray]'"),
}


@pytest.mark.parametrize("name", MISSING)
def test_an_engine_that_is_not_installed_is_a_sentence_with_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, hint = MISSING[name]
    find_spec = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda sought, *rest: None if sought == module else find_spec(sought, *rest),
    )
    config = tmp_path / "engine.toml"
    config.write_text(f'engine = "{name}"\nlogs = "{tmp_path / "logs"}"\n')
    assert guarded(lambda: spread(config, ["version"]), []) == 1
    printed = capsys.readouterr().err
    assert f"error: the engine {name} is not installed: " in printed
    assert f"next: {hint}\n" in printed


def test_slurm_without_its_programs_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = tmp_path / "engine.toml"
    text = f'engine = "slurm"\ntime = "1:00:00"\npartition = "p"\nlogs = "{tmp_path / "logs"}"\n'
    config.write_text(text)
    with pytest.raises(UserError, match="needs the program sbatch"):
        spread(config, ["version"])
