"""Recipes: each is listed, a copy is whole and works where it lies, nothing is written over."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tarkit import recipes
from tarkit.cli.app import app
from tarkit.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.name for path in (ROOT / "pipelines").iterdir() if path.is_dir())
IN_A_SCRIPT = re.compile(r"\$(?:here|mini)\b[\w./-]*(?![\w./$-])")


def tarkit(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_every_recipe_is_listed_with_a_line() -> None:
    done = tarkit("ls")
    assert [line.split()[0] for line in done.stdout.splitlines()] == NAMES
    lines = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]
    # A line, not a paragraph, and no beginning of a sentence.
    assert all(20 < len(line) <= 100 and line.count("(") == line.count(")") for line in lines)
    assert "run.sh" in tarkit("ls", "smoke").stdout.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_has_every_file_that_its_scripts_name(name: str, tmp_path: Path) -> None:
    assert tarkit("cp", name, str(tmp_path)).exit_code == 0
    for file in (ROOT / "pipelines" / name).rglob("*"):
        copy = tmp_path / name / file.relative_to(ROOT / "pipelines" / name)
        assert (
            "__pycache__" in file.parts or copy.is_dir() or copy.read_bytes() == file.read_bytes()
        )
    for script in tmp_path.rglob("*.sh"):
        assert script.stat().st_mode & 0o111 or script.name == "launch.sh"
        text = script.read_text()
        assert not re.search(r"BASH_SOURCE\[0\]}\"\)/\.\.", text)  # it knows its own folder alone
        mini = "$here/../mini" if "mini=$here/../mini" in text else "$here"
        for used in IN_A_SCRIPT.findall(text):
            place = used.replace("$mini", mini).replace("$here", str(script.parent)).rstrip(".")
            assert Path(place).exists() or place.endswith("/../.."), f"{script}: {used}"
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_a_copied_script_runs_where_it_lies(tmp_path: Path) -> None:
    """That of the paper begins each of its steps, with the words that it is given."""
    recipes.copy("paper", tmp_path / "a b")  # a folder with a space
    folder = tmp_path / "a b" / "paper"
    for step in folder.glob("[0-9]-*.sh"):
        step.write_text('#!/usr/bin/env bash\necho "$(basename "$0")" "$@"\n')
    done = subprocess.run(
        [folder / "run.sh", "sources", "work"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == "" and done.stdout.splitlines() == [
        "1-curate.sh sources work",
        "2-tokenizer.sh work",
        "3-encode.sh sources work",
        "4-ar_dtok.sh work",
        "5-dif_dtok.sh work",
        "6-mllm.sh work",
    ]


def test_a_recipe_brings_those_that_it_uses(tmp_path: Path) -> None:
    done = tarkit("cp", "gpu", str(tmp_path))
    # gpu uses files of grpo, paper and smoke, and grpo uses files of mini.
    copied = {Path(line).name for line in done.stdout.splitlines()}
    assert copied == {path.name for path in tmp_path.iterdir()}
    assert copied == {"gpu", "grpo", "mini", "paper", "smoke"}


def test_nothing_is_written_over(tmp_path: Path) -> None:
    tarkit("cp", "mini", str(tmp_path))
    (tmp_path / "mini" / "mllm.toml").write_text("steps = 3\n")
    done = tarkit("cp", "mini", str(tmp_path))
    assert done.exit_code == 1 and "mini is there already, and is not written over" in done.stderr
    done = tarkit("cp", "emoji", str(tmp_path))  # uses mini, of which there is a copy already
    assert done.exit_code == 0 and "mini, which is there already and was kept" in done.stderr
    assert (tmp_path / "mini" / "mllm.toml").read_text() == "steps = 3\n"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        recipes.copy("mini", tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "smoke").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is there already"):
        recipes.copy("smoke", tmp_path / "other")


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(recipes.shutil, "copyfile", full)
    done = tarkit("cp", "smoke", str(tmp_path / "copies"))
    assert done.exit_code == 1 and "free some space" in done.stderr
    assert list((tmp_path / "copies").iterdir()) == []


def test_cat_prints_a_file_and_the_script_by_default() -> None:
    smoke = ROOT / "pipelines" / "smoke"
    assert tarkit("cat", "smoke").stdout == (smoke / "run.sh").read_text()
    assert tarkit("cat", "smoke/mllm.toml").stdout == (smoke / "mllm.toml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cat", "smokes"], "no recipe 'smokes'; there are: ablations, dif_dtok"),
        (["cat", "smoke/../../README.md"], "has no file '../../README.md'"),
        (["cat", "smoke//etc/passwd"], "has no file '/etc/passwd'"),
        (["cat", "mini/drawn.png"], "mini/drawn.png is no text"),
        (["ls", "mini/run.sh"], "no recipe 'mini/run.sh'"),
        (["cp", "..", "x"], "no recipe '..'"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_next_command(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tarkit(*words)
    assert done.exit_code == 1 and message in done.stderr and "next: tarkit" in done.stderr
    assert not list(tmp_path.iterdir())
