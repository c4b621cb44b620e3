"""Finetuning on one's own pictures: its commands in their order, their settings, what stops it."""

import csv
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image
from typer.testing import CliRunner

from tarkit.artifacts.artifact import open_artifact
from tarkit.checkpoints import assemble
from tarkit.checkpoints.directory import WEIGHTS, read_config
from tarkit.cli.app import app
from tarkit.errors import UserError
from tarkit.finetune import finetune
from tarkit.finetune.stages import script_of, stages_of
from tarkit.inference.tar_model import Tar
from tests import parts

NUM_PICTURES = 20
CAPTIONS = ("a red ring", "a blue heart")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, whose parts are all tarkit's own."""
    folder = tmp_path_factory.mktemp("models")
    made = parts.save_parts(folder)
    return assemble.run(
        mllm=made["mllm"],
        tokenizer=made["tokenizer"],
        ar_dtok=made["ar_dtok"],
        vqvae=made["vqvae"],
        out=folder / "small",
        overrides=["default_scale=2"],
    )


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Pictures of several sizes with captions, in a folder with a space in its name."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for number in range(NUM_PICTURES):
            pixels = np.full((20 + number, 24, 3), (200, 9, 9) if number % 2 else (9, 9, 200))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
            rows.writerow([f"{number:02d}.png", CAPTIONS[number % 2]])
    return folder


def prepared(model: Path | str, own: Path, out: Path) -> finetune.Finetuned:
    return finetune.run(
        str(model), images=own, captions=own / "captions.csv", out=out, only_prepare=True
    )


def make_quick(settings: Path) -> None:
    for name in ("vqvae", "ar_dtok", "mllm"):
        file = settings / f"{name}.toml"
        lines = [line for line in file.read_text().splitlines() if not line.startswith("steps")]
        file.write_text("\n".join(["steps = 2", *lines]) + "\n")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands run in this process, and are kept; a new process takes seconds to start."""
    run: list[list[str]] = []

    def in_process(words: Sequence[str]) -> int:
        run.append(list(words))
        done = CliRunner().invoke(app, list(words))
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        print(done.output, file=sys.stderr)
        return done.exit_code

    monkeypatch.setattr(finetune, "_run", in_process)
    return run


def test_the_whole_chain_makes_a_model_and_a_page_and_is_quick_the_second_time(
    small: Path, own: Path, tmp_path: Path, here: list[list[str]], capsys: Any
) -> None:
    out = tmp_path / "out"
    make_quick(prepared(small, own, out).script.parent / "settings")
    words = ["finetune", small, "--images", own, "--captions", own / "captions.csv", "--out", out]
    told = CliRunner().invoke(app, [str(word) for word in words])
    assert told.exit_code == 0, told.output
    assert "edited and are used as they are: vqvae.toml, ar_dtok.toml, mllm.toml" in told.stderr
    assert "expected for the trainings:" in told.stderr and "GFLOP/s measured" in told.stderr
    # Each command is printed before it runs, and the script has the same ones.
    printed = [line[2:] for line in told.stderr.splitlines() if line.startswith("$ ")]
    assert [shlex.split(line) for line in printed] == [["tarkit", *words] for words in here]
    script = (out / "run.sh").read_text().splitlines()
    assert [line.removeprefix("rows ") for line in script if "tarkit " in line][1:] == printed
    # What is held out is in no training, and is what is drawn and compared.
    counts = parts.status_counts(open_artifact(out / "pictures"))
    assert counts == {"ok": NUM_PICTURES, "failed": 0}
    facts = json.loads((out / "page" / "results.json").read_text())
    assert facts["num_pictures"] == NUM_PICTURES // 10
    assert (out / "page" / "index.html").read_text().count("data:image/png") == 2
    tar = Tar.load(str(out / "tar"))
    assert tar.default_scale == 2
    changed = {
        part: read_config(out / "tar" / part)["sha256"] != read_config(small / part)["sha256"]
        for part in parts.ASSEMBLED
    }
    assert changed == {"mllm": True, "ta_tok": False, "ar_dtok": True, "vqvae": True}
    weights = {part: (out / part / WEIGHTS).stat().st_mtime_ns for part in ("vqvae", "mllm")}
    again = CliRunner().invoke(app, [str(word) for word in words])
    assert again.exit_code == 0, again.output
    assert "expected" not in again.stderr  # no training is left
    assert weights == {part: (out / part / WEIGHTS).stat().st_mtime_ns for part in weights}


def test_a_stage_that_fails_ends_the_finetuning_and_failed_rows_do_not(
    small: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([3, 3, 0, 0, 130])
    monkeypatch.setattr(finetune, "_run", lambda words: next(answers))
    done = finetune.run(str(small), images=own, captions=own / "captions.csv", out=tmp_path / "out")
    assert done.status == 130 and not list(answers)


def test_a_command_runs_as_a_process_and_a_signal_to_end_reaches_it() -> None:
    assert finetune._run(["version"]) == 0
    assert finetune._run(["inspect", "no such folder"]) == 1


def test_a_published_model_keeps_its_de_tokenizer() -> None:
    places = {"images": Path("a b"), "captions": Path("c.csv"), "out": Path("out")}
    names = [stage.name for stage in stages_of("tar-1.5b", **places, is_own=False)]
    assert "vqvae" not in names and "ar_dtok" not in names and "mllm" in names
    own = stages_of("mini", **places, is_own=True)
    assert [stage.name for stage in own][3:6] == ["vqvae", "ar_dtok", "mllm"]
    assert "curate ingest 'a b'" in script_of(own)


@pytest.mark.parametrize("is_own", [True, False])
def test_every_stage_is_a_command_with_options_that_are_there(is_own: bool) -> None:
    places = {"images": Path("a"), "captions": Path("c.csv"), "out": Path("out")}
    for stage in stages_of("mini", **places, is_own=is_own):
        command: Any = typer.main.get_command(app)
        words = list(stage.words)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        known = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= known, stage.line


def test_edited_settings_are_kept_and_others_are_those_of_the_model(
    small: Path, own: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = prepared(small, own, out).script.parent / "settings"
    assert not (out / "pictures").exists()
    texts = {file.name: file.read_text() for file in settings.iterdir()}
    assert set(texts) == {f"{n}.toml" for n in "ingest vqvae ar_dtok mllm assemble".split()}
    assert "size_px = 16" in texts["vqvae.toml"] and "default_scale = 2" in texts["assemble.toml"]
    (settings / "mllm.toml").write_text("steps = 7\n")
    prepared(small, own, out)
    assert (settings / "mllm.toml").read_text() == "steps = 7\n"
    assert (settings / "vqvae.toml").read_text() == texts["vqvae.toml"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"model": "nothing/like/it"}, "no model 'nothing/like/it'"),
        ({"images": "gone"}, "the pictures gone do not exist"),
        ({"captions": "gone.csv"}, "the captions gone.csv do not exist"),
        ({"out": "captions.csv"}, "is a file"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_written(
    small: Path, own: Path, tmp_path: Path, changed: dict[str, str], sentence: str
) -> None:
    given: dict[str, Any] = {"images": own, "captions": own / "captions.csv", "out": tmp_path / "o"}
    model = changed.get("model", str(small))
    given |= {name: Path(value) for name, value in changed.items() if name != "model"}
    if "out" in changed:
        given["out"] = own / changed["out"]
    with pytest.raises(UserError, match=sentence):
        finetune.run(model, **given)
    assert not (tmp_path / "o").exists()
