"""What files and arguments hold is shown on the terminal and not obeyed."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tarkit.terminal import print_note, print_result, printable

TITLE = "\x1b]0;owned\x07"
TURNED = "safe\u202egnp.exe"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (TITLE, "\\u001b]0;owned\\u0007"),
        (TURNED, "safe\\u202egnp.exe"),
        ("a\rb\x9bc\x7f", "a\\u000db\\u009bc\\u007f"),
        ("lone \udc80", "lone \\udc80"),
        ("a\tb\nc, é 猫 👩‍🚀", "a\tb\nc, é 猫 👩‍🚀"),
    ],
)
def test_unsafe_characters_are_escaped_and_others_kept(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_json_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"name": TITLE + TURNED + "\x9b"}
    print_result(json.dumps(facts, ensure_ascii=False))
    shown = capsys.readouterr().out
    assert json.loads(shown) == facts
    assert not {"\x1b", "\u202e", "\x9b"} & set(shown)
    print_note(TITLE)
    assert "\x1b" not in capsys.readouterr().err


def tarkit(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tarkit.cli", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_no_command_lets_an_escape_through(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "manifest.json").write_text(json.dumps({"kind": TITLE, "settings": {}}))
    for words in (
        ("describe", f"{TITLE}.png", "what", "--model", "mini"),
        ("inspect", "m"),
        ("curate", "chats", "m", "--out", "o"),
        ("generate", "x", "--out", f"{TITLE}/x.txt"),
        ("curate", "render", "--set", f"{TITLE}=1", "--out", "o"),
        ("curate", TITLE),
        ("generate", "x", f"--{TITLE}"),
    ):
        done = tarkit(*words, cwd=tmp_path)
        assert done.returncode != 0 or words[0] == "inspect", words
        assert "\x1b]0" not in done.stdout + done.stderr, words
        assert "owned" in done.stdout + done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr


def test_logged_warnings_are_printable(tmp_path: Path) -> None:
    code = (
        "import logging; from tarkit.terminal import print_warnings; print_warnings();"
        "logging.getLogger('tarkit').warning('%s', '\\x1b[31m')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "\\u001b[31m\n"
    assert logging.getLogger("tarkit").propagate
