"""Completion of words by the shell: bash completes one here; zsh and fish get what they ask for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = f"""#!/bin/sh
exec {sys.executable} -c 'import sys; sys.argv[0] = "tarkit"
from tarkit.cli import main; main()' "$@"
"""
# What a shell runs when somebody has typed `tarkit cp mi` and a tab.
PRESSED = """
eval "$(_TARKIT_COMPLETE=source_bash tarkit)"
COMP_WORDS=({words}) COMP_CWORD={number} COMP_LINE='{words}'
$(complete -p tarkit | sed 's/.*-F \\([^ ]*\\).*/\\1/') tarkit
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """An environment with a command `tarkit`, which is this tree's."""
    (tmp_path / "tarkit").write_text(PROGRAM)
    (tmp_path / "tarkit").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def answered(variables: dict[str, str], **asked: str) -> str:
    done = subprocess.run(["tarkit"], env={**variables, **asked}, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("tarkit gen", {"generate"}),
        ("tarkit train v", {"vqvae"}),
        ("tarkit cp mi", {"mini"}),
        ("tarkit cat smoke/ml", {"smoke/mllm.toml"}),
        ("tarkit doctor --h", {"--hub", "--help"}),
    ],
)
def test_bash_completes_a_word(variables: dict[str, str], words: str, completed: set[str]) -> None:
    number = len(words.split()) - 1
    script = PRESSED.format(words=words, number=number)
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-c", script], env=variables, capture_output=True, text=True)
    assert set(done.stdout.split()) == completed, done.stderr


def test_zsh_gets_commands_with_their_help(variables: dict[str, str]) -> None:
    script = answered(variables, _TARKIT_COMPLETE="source_zsh")
    assert script.strip().startswith("#compdef tarkit") and "complete_zsh tarkit" in script
    asked = {"_TARKIT_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "tarkit "}
    answer = answered(variables, **asked)
    assert answer.startswith("_arguments") and '"doctor":"Check packages' in answer
    for command in ("generate", "curate", "train", "ls", "cp", "cat"):
        assert f'"{command}":' in answer


def test_fish_gets_commands_with_their_help(variables: dict[str, str]) -> None:
    script = answered(variables, _TARKIT_COMPLETE="source_fish")
    assert script.startswith("complete --command tarkit") and "complete_fish" in script
    asked = {"_TARKIT_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    answer = answered(variables, **asked, _TYPER_COMPLETE_ARGS="tarkit train ")
    assert {line.split("\t")[0] for line in answer.splitlines()} >= {"mllm", "ar-dtok", "grpo"}


def test_the_version_is_printed(variables: dict[str, str]) -> None:
    done = subprocess.run(["tarkit", "--version"], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()[0].isdigit()
