"""The scripts of pipelines/paper: every command as bash writes it, and what it reads was made.

A `tarkit` that only notes its words stands in for the program, so that bash itself puts in the
variables. The words are then read by the program's own parser, and their paths are followed.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tarkit.cli.output import device_of
from tarkit.config import Config, load_config
from tarkit.errors import UserError
from tarkit.train import budget
from tests.test_docs import NUMBERS, understood

PAPER = Path(__file__).resolve().parents[1] / "pipelines" / "paper"
STEPS = sorted(PAPER.glob("[0-9]-*.sh"))
NEEDS_SOURCES = ("1-curate", "3-encode")

# Notes its name, ranks and words, and leaves a shard where --out says, for the scripts' own loops.
STAND_IN = r"""#!/bin/sh
printf '%s\037' "${0##*/}" "${LOCAL_RANK-}" "${RANK-}" "${WORLD_SIZE-}" "$@" '
' >> "$NOTES"
for word; do
    if [ "$before" = --out ]; then mkdir -p "$word"; : > "$word/00000.parquet"; fi
    before=$word
done
exit "${STATUS:-0}"
"""


class Noted(NamedTuple):
    """A command of a script."""

    program: str
    ranks: tuple[str, str, str]
    """LOCAL_RANK, RANK, WORLD_SIZE."""
    words: tuple[str, ...]


def run(tmp_path: Path, script: Path, **variables: str) -> list[Noted]:
    """The commands that a script starts, in order."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("tarkit", "torchrun"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    notes = tmp_path / "notes"
    notes.write_text("")
    given = ["SOURCES", "work"] if script.stem in NEEDS_SOURCES else ["work"]
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(script), *given],
        cwd=tmp_path,
        env={"PATH": path, "NOTES": str(notes), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [
        Noted(program, (local, rank, world), tuple(words))
        for line in notes.read_text().split("\n\037")[:-1]
        for program, local, rank, world, *words in [line.removesuffix("\037").split("\037")]
    ]


def paths_of(arguments: dict[str, Any]) -> list[str]:
    """Every path among a command's arguments, but --out."""
    values = [v for name, v in arguments.items() if name not in ("out", "config", "overrides")]
    flat = [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]
    return [str(v) for v in flat if isinstance(v, (str, Path)) and "/" in str(v)]


def test_every_command_is_accepted_and_reads_what_a_step_before_it_made(
    tmp_path: Path, config_class: Callable[[str], type[Config]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made: set[str] = {f"work/prompts_{name}" for name in ("23m", "15m")}  # folders of links
    read: set[str] = set()
    commands = 0
    for script in STEPS:
        for noted in run(tmp_path, script):
            assert noted.program == "tarkit"
            command, arguments = understood(noted.words)
            commands += 1
            if command in NUMBERS:
                load_config(
                    config_class(NUMBERS[command]), arguments["config"], arguments["overrides"]
                )
            inputs = [path for path in paths_of(arguments) if path.startswith("work/")]
            assert made.issuperset(inputs), (script.name, noted.words)
            read |= set(inputs)
            assert str(arguments["out"]) not in made if arguments.get("out") else True
            made |= {str(arguments["out"])} if arguments.get("out") else set()
    assert commands > 70
    # Nothing is made for nothing. The folders of links read the prompts.
    results = {"work/ar_dtok_256", "work/macaw_dif.png", "work/for_transformers"}
    prompts = {path for path in made if path.startswith("work/prompts/")}
    left = made - read - prompts - results
    assert left <= {"work/ar_dtok_1024", "work/dif_dtok_1024"}, left


def test_a_training_runs_on_all_gpus_and_a_model_once_on_each(tmp_path: Path) -> None:
    two = run(tmp_path, PAPER / "2-tokenizer.sh", GPUS="2", TRY="--set steps=10 --set batch_size=8")
    (started,) = two
    assert started.program == "torchrun"
    assert started.words[:4] == ("--standalone", "--nproc-per-node", "2", "--no-python")
    assert started.words[4:7] == ("tarkit", "train", "tokenizer")
    assert started.words[-4:] == ("--set", "steps=10", "--set", "batch_size=8")
    (many,) = run(tmp_path, PAPER / "2-tokenizer.sh", GPUS="8", NODES="4", HEAD="first")
    assert many.words[:4] == ("--nnodes", "4", "--nproc-per-node", "8")
    assert "first:29500" in many.words
    commands = run(tmp_path, PAPER / "3-encode.sh", GPUS="2", LIMIT="64")
    encoding = [noted for noted in commands if noted.words[0] == "encode"]
    first = [noted for noted in encoding if noted.words[1] == "work/gen23m"]
    assert sorted(noted.ranks for noted in first) == [("0", "0", "2"), ("1", "1", "2")]
    assert all("64" in noted.words for noted in first)
    chats = [noted for noted in commands if noted.words[:2] == ("curate", "chats")]
    assert {noted.ranks for noted in chats} == {("", "", "")}


def test_an_engine_distributes_what_is_no_training(tmp_path: Path) -> None:
    commands = run(tmp_path, PAPER / "3-encode.sh", GPUS="2", ENGINE="engine.toml")
    assert all(noted.words[:2] == ("--engine", "engine.toml") for noted in commands)
    assert all(noted.ranks == ("", "", "") for noted in commands)
    asked = run(tmp_path, PAPER / "1-curate.sh", SERVER="http://here:8000/v1", GPUS="2")
    served = [noted.words for noted in asked if "--server" in noted.words]
    assert {words[1] for words in served} == {"caption", "split", "judge"}


@pytest.mark.parametrize(("status", "goes_on"), [("3", True), ("1", False)])
def test_failed_rows_stop_no_script_and_a_failed_command_does(
    tmp_path: Path, status: str, goes_on: bool
) -> None:
    for gpus in ("1", "2"):
        if goes_on:
            assert len(run(tmp_path, PAPER / "3-encode.sh", STATUS=status, GPUS=gpus)) > 20
        else:
            with pytest.raises(AssertionError):
                run(tmp_path, PAPER / "3-encode.sh", STATUS=status, GPUS=gpus)
            assert (tmp_path / "notes").read_text().count("\n\037") <= int(gpus)


def test_a_plan_refuses_what_the_training_refuses(tmp_path: Path) -> None:
    large = {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096}
    (tmp_path / "encoder.toml").write_text(
        "steps = 1\nbatch_size = 1\nlearning_rate = 1e-4\n[arch]\n"
        + "".join(f"{key} = {value}\n" for key, value in large.items())
    )
    lm = tmp_path / "lm"
    lm.mkdir()
    (lm / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 1536}))
    with pytest.raises(UserError, match="decoder_heads = 12 does not divide") as refused:
        budget.run(
            PAPER / "tokenizer.toml",
            gpus=8,
            gpu="h100",
            encoder=tmp_path / "encoder.toml",
            lm=lm,
        )
    assert refused.value.hint == "--set sizes.decoder_heads=8"


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: cuda)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    assert device_of("auto") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (device_of("auto"), device_of("cuda:1"), device_of("cpu")) == ("cuda:3", "cuda:1", "cpu")
