"""Completion of words by bash, zsh and fish.

The shells themselves complete where they are installed; what zsh and fish ask for is tested
without them too.
"""

import os
import pty
import shutil
import subprocess
import sys
import time
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


WORDS = [
    ("tarkit gen", {"generate"}),
    ("tarkit train v", {"vqvae"}),
    ("tarkit cp mi", {"mini"}),
    ("tarkit cat smoke/ml", {"smoke/mllm.toml"}),
    ("tarkit doctor --h", {"--hub", "--help"}),
]


@pytest.mark.parametrize(("words", "completed"), WORDS)
def test_bash_completes_a_word(variables: dict[str, str], words: str, completed: set[str]) -> None:
    number = len(words.split()) - 1
    script = PRESSED.format(words=words, number=number)
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-c", script], env=variables, capture_output=True, text=True)
    assert set(done.stdout.split()) == completed, done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
@pytest.mark.parametrize(("words", "completed"), WORDS)
def test_fish_completes_a_word(
    variables: dict[str, str], words: str, completed: set[str], tmp_path: Path
) -> None:
    script = f"_TARKIT_COMPLETE=source_fish tarkit | source; complete -C '{words}'"
    variables = {**variables, "HOME": str(tmp_path)}
    done = subprocess.run(["fish", "-c", script], env=variables, capture_output=True, text=True)
    found = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert found == completed, done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
@pytest.mark.parametrize("words", [words for words, completed in WORDS if len(completed) == 1])
def test_zsh_completes_a_word(variables: dict[str, str], words: str, tmp_path: Path) -> None:
    # As a person: in a terminal, a tab after the word. Then the line is printed by echo before it.
    (completed,) = dict(WORDS)[words]
    variables = {**variables, "HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "xterm"}
    (tmp_path / ".zshrc").write_text(
        "PS1='ready> '; autoload -Uz compinit; compinit -u\n"
        'eval "$(_TARKIT_COMPLETE=source_zsh tarkit)"\n'
    )
    here, there = pty.openpty()
    zsh = ["zsh", "-d", "-i"]  # -d: nothing of the machine's own settings
    with subprocess.Popen(zsh, stdin=there, stdout=there, stderr=there, env=variables) as shell:
        try:
            typed(here, "", "ready> ")
            typed(here, f"{words}\t", completed)
            expected = " ".join([*words.split()[:-1], completed])
            typed(here, "\x01echo said: \r", f"said: {expected}")
        finally:
            shell.kill()
            os.close(here)
            os.close(there)


def typed(terminal: int, keys: str, expected: str) -> None:
    """Press some keys, and wait until the terminal shows a text."""
    os.write(terminal, keys.encode())
    shown, end = "", time.monotonic() + 60
    os.set_blocking(terminal, False)
    while expected not in shown:
        assert time.monotonic() < end, shown
        try:
            shown += os.read(terminal, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            time.sleep(0.05)


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
