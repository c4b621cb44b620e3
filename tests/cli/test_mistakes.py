"""A person's mistakes: each gives a sentence that says what to do next, and the right exit status.

Status 1 is for what is wrong with files or settings, 2 for a command line that cannot be read.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image
from typer.testing import CliRunner

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.prompt_files import read_prompts
from tarkit.cli.app import app

RENDER = ("curate", "render", "--set", "count=4")
PROMPT = "a photo of a red circle"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's folder, with the files that the mistakes are about."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), "red").save("red.png")
    whole = Path("red.png").read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])
    Path("a_file").write_text("")
    Path("a_folder").mkdir()
    Path("empty.txt").write_text("\n")
    Path("utf16.txt").write_bytes(f"{PROMPT}\n".encode("utf-16"))
    Path("latin.txt").write_bytes("a photo of a café\n".encode("cp1252"))
    Path("keys.toml").write_text("cuont = 4\n")
    Path("broken.toml").write_text("count = \n")
    return tmp_path


MISTAKES = [
    # the command line
    (2, ["generate", PROMPT, "--oot", "x.png"], "No such option", "--out"),
    (2, ["generat", PROMPT], "No such command", "generate"),
    (2, ["generate", "--out", "x.png"], "either a PROMPT or --prompts"),
    (2, ["generate", PROMPT, "--out", "x.png", "--seed", "9" * 23], "--seed", "less than or equal"),
    (2, ["generate", PROMPT, "--out", "x.png", "--judge", "yes"], "--best-of N"),
    (2, ["curate", "render", "--config", "no.toml", "--out", "x"], "no.toml", "does not exist"),
    # devices
    (1, ["generate", PROMPT, "--out", "x.png", "--device", "banana"], "banana", "cpu", "auto"),
    (1, ["describe", "red.png", "--device", "cuda:7"], "cuda:7", "cpu", "auto"),
    # settings
    (1, [*RENDER, "--config", "keys.toml", "--out", "x"], "cuont", "count"),
    (1, [*RENDER, "--config", "broken.toml", "--out", "x"], "broken.toml is not TOML"),
    # outputs
    (1, [*RENDER, "--out", "a_file"], "a_file", "name another path"),
    (1, [*RENDER, "--out", "a_file/x"], "a_file", "name another path"),
    (1, ["generate", PROMPT, "--out", "picture.jpg"], ".png", "--out picture.png"),
    (1, ["generate", PROMPT, "--out", "a_folder"], "a_folder", ".png"),
    (1, ["generate", PROMPT, "--out", "red.png"], "red.png exists", "another --out"),
    # inputs
    (1, ["describe", "gone.png"], "gone.png", "there is no picture", "name a file that exists"),
    (1, ["describe", "cut.png"], "cut.png", "truncated picture"),
    (1, ["describe", "a_folder"], "a_folder"),
    (1, ["describe", "red.png", "  "], "the question is empty", "tarkit describe red.png"),
    (1, ["generate", "--prompts", "gone.txt", "--out", "x"], "gone.txt do not exist"),
    (1, ["generate", "--prompts", "empty.txt", "--out", "x"], "empty.txt holds no prompt"),
    (1, ["generate", "--prompts", "utf16.txt", "--out", "x"], "line 1", "iconv -f UTF-16 -t UTF-8"),
    (1, ["generate", "--prompts", "latin.txt", "--out", "x"], "line 1", "iconv -f WINDOWS-1252"),
    (1, ["generate", "", "--out", "x.png"], "the prompt is empty"),
    (1, ["generate", "a red <image>", "--out", "x.png"], "1 <image> marks for 0", "--image FILE"),
    (1, ["generate", PROMPT, "--model", "minni", "--out", "x.png"], "minni", "next: "),
    (1, ["inspect", "a_folder"], "a_folder is no folder that tarkit made", "next: "),
    (1, ["encode", "a_folder", "--tokenizer", "mini", "--out", "x"], "a_folder is not an artifact"),
    (1, ["curate", "ingest", "a_folder", "--out", "x"], "a_folder holds no pictures"),
]


@pytest.mark.parametrize(("status", "words", "parts"), [(s, w, p) for s, w, *p in MISTAKES])
def test_a_mistake_is_one_sentence_and_changes_nothing(
    here: Path, status: int, words: list[str], parts: list[str]
) -> None:
    before = tree(here)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == status, result.output
    text = " ".join(result.stderr.replace("│", " ").split())
    for part in parts:
        assert part in text
    assert "Traceback" not in result.output
    assert not result.stdout
    assert tree(here) == before


def test_what_editors_of_windows_write_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"{PROMPT}\r\n\r\nanother\r\n".encode())
    assert read_prompts(file) == [PROMPT, "another"]


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "name another --out")]
)
def test_a_disk_that_takes_nothing_is_a_sentence(here: Path, number: int, hint: str) -> None:
    error = OSError(number, os.strerror(number), "x")
    with patch("tarkit.artifacts.files.os.fsync", side_effect=error):
        result = CliRunner().invoke(app, [*RENDER, "--out", "x"])
    assert result.exit_code == 1, result.output
    assert os.strerror(number) in result.stderr
    assert hint in result.stderr
    assert "Traceback" not in result.output


def test_a_folder_begun_otherwise_is_refused_and_kept(here: Path) -> None:
    assert CliRunner().invoke(app, [*RENDER, "--out", "x"]).exit_code == 0
    before = tree(here)
    result = CliRunner().invoke(app, [*RENDER, "--set", "seed=1", "--out", "x"])
    assert result.exit_code == 1
    assert "seed: 0 there, 1 now" in result.stderr
    assert "give another --out" in result.stderr
    assert tree(here) == before


def test_a_longer_limit_says_that_it_needs_another_folder(here: Path) -> None:
    assert CliRunner().invoke(app, [*RENDER, "--limit", "2", "--out", "x"]).exit_code == 0
    result = CliRunner().invoke(app, [*RENDER, "--limit", "3", "--out", "x"])
    assert result.exit_code == 1
    assert "give another --limit another --out" in result.stderr


def test_ctrl_c_is_status_130_and_the_same_command_goes_on(here: Path) -> None:
    words = [sys.executable, "-m", "tarkit.cli", "curate", "render", "--out", "x"]
    words += ["--set", "count=20000", "--set", "shard_size=50", "--set", "num_workers=1"]
    # A shell without job control starts its background jobs with Ctrl-C ignored.
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: len(list(Path("x").glob("*.parquet"))) >= 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=110)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "the same command" in stderr
    artifact = open_artifact(Path("x"), "images")
    assert 2 <= len(artifact.shards) - len(artifact.missing()) < len(artifact.shards)


def test_a_model_knows_its_words_and_names_the_others(here: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "a photo of a Red cat", "--out", "x.png"])
    assert result.exit_code == 0, result.output
    assert result.stdout == "x.png\n"
    assert "mini was trained without: cat." in result.stderr
    assert "circle" in result.stderr
    quiet = CliRunner().invoke(app, ["generate", "A photo of a RED circle", "--out", "y.png"])
    assert "trained without" not in quiet.stderr
    # The words of its training are in lower case, so prompts are read so.
    assert CliRunner().invoke(app, ["generate", PROMPT, "--out", "z.png"]).exit_code == 0
    pixels = [Image.open(name).tobytes() for name in ("y.png", "z.png")]
    assert pixels[0] == pixels[1]


def test_the_same_command_draws_its_picture_again_and_no_other(here: Path) -> None:
    words = ["generate", PROMPT, "--out", "x.png"]
    assert CliRunner().invoke(app, words).exit_code == 0
    first = Path("x.png").read_bytes()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert Path("x.png").read_bytes() == first
    result = CliRunner().invoke(app, [*words, "--seed", "1"])
    assert result.exit_code == 1
    assert "x.png exists and is another picture" in result.stderr
    assert Path("x.png").read_bytes() == first


def test_drawn_pictures_are_a_folder_of_pictures(here: Path) -> None:
    Path("p.txt").write_text(f"{PROMPT}\na photo of a star\n")
    drawn = CliRunner().invoke(app, ["generate", "--prompts", "p.txt", "--out", "drawn"])
    assert drawn.exit_code == 0, drawn.output
    sheet = ["reconstruct", "drawn", "--out", "sheet.png"]
    assert CliRunner().invoke(app, sheet).exit_code == 0
    assert CliRunner().invoke(app, [*sheet, "--seed", "1"]).exit_code == 1
    assert CliRunner().invoke(app, ["curate", "ingest", "drawn", "--out", "in"]).exit_code == 0
    rows = list(open_artifact(Path("in"), "images").rows("00000", ["source", "prompt"]))
    assert [(row["source"], row["prompt"]) for row in rows] == [
        ("00000/0000.png", PROMPT),
        ("00001/0000.png", "a photo of a star"),
    ]
    records = [json.loads(line) for line in Path("drawn/samples.jsonl").read_text().splitlines()]
    assert [record["file"] for record in records] == [row["source"] for row in rows]


def test_folders_that_tarkit_made_are_no_pictures_of_a_person(here: Path) -> None:
    os.remove("cut.png")
    first = CliRunner().invoke(app, ["curate", "ingest", ".", "--out", "one"])
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(app, ["curate", "ingest", ".", "--out", "two"])
    assert again.exit_code == 0, again.output
    assert "1 folders that tarkit made are left out: one" in again.stderr
    rows = list(open_artifact(Path("two"), "images").rows("00000", ["source"]))
    assert [row["source"] for row in rows] == ["red.png"]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
