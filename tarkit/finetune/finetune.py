"""`tarkit finetune`: a model trained on one's own pictures, by the commands that it prints.

The settings of every stage are written first, as TOMLs in OUT/settings, and all commands, as
OUT/run.sh. Both are kept where they are there already. Each stage is a process of its own with the
command that is printed before it. A stage that was stopped goes on, and one that is done is quick,
so the same finetuning continues from where it was.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tarkit.artifacts.files import write_once
from tarkit.checkpoints.directory import WEIGHTS
from tarkit.errors import UserError
from tarkit.finetune.settings import own_folder, write_settings
from tarkit.finetune.stages import FAILED_ROWS, Stage, script_of, stages_of
from tarkit.terminal import print_note
from tarkit.train.forecast import MFU, forecast, time_in_words

SCRIPT, PAGE = "run.sh", "index.html"


@dataclass(frozen=True)
class Finetuned:
    """The exit status of a finetuning, its script, and the model and the page that it makes."""

    status: int
    script: Path
    model: Path
    page: Path


def run(
    model: str, *, images: Path, captions: Path, out: Path, only_prepare: bool = False
) -> Finetuned:
    """Finetune `model` on the pictures of `images` with `captions` into `out`.

    With `only_prepare` only the settings and the script are written. The status is that of the
    first command that failed, or 0. Raises UserError where the model or the pictures are not there.
    """
    for path, what in ((images, "pictures"), (captions, "captions")):
        if not path.exists():
            raise UserError(f"the {what} {path} do not exist")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file", hint="name a folder with --out")
    folder = own_folder(model)
    out.mkdir(parents=True, exist_ok=True)
    kept = write_settings(model, folder, out / "settings")
    if kept:
        print_note(f"settings that were edited and are used as they are: {', '.join(kept)}")
    stages = stages_of(model, images=images, captions=captions, out=out, is_own=folder is not None)
    script = out / SCRIPT
    write_once(script, script_of(stages).encode())
    done = Finetuned(0, script, out / "tar", out / "page" / PAGE)
    if folder is not None:
        _foretell(stages, folder, out / "settings")
    if only_prepare:
        return done
    for stage in stages:
        print_note(f"\n$ {stage.line}")
        status = _run(stage.words)
        if status and not (status == FAILED_ROWS and stage.fails_rows):
            print_note(f"the stage {stage.name} ended with exit status {status}")
            return Finetuned(status, done.script, done.model, done.page)
    return done


def _foretell(stages: Sequence[Stage], folder: Path, settings: Path) -> None:
    """Say how long the trainings that are left will take, and how that is known."""
    total, speed, device = 0.0, 0.0, ""
    parts = []
    for stage in stages:
        if stage.makes is None or (stage.makes / WEIGHTS).exists():
            continue
        expected = forecast(
            stage.name,
            settings / f"{stage.name}.toml",
            lm=folder / "mllm",
            tokenizer=folder / "ta_tok",
            vqvae=folder / "vqvae",
        )
        if expected is None:
            parts.append(f"{stage.name} (not known)")
            continue
        total += expected.seconds
        speed, device = expected.flops_per_s, expected.device
        parts.append(f"{stage.name} {time_in_words(expected.seconds)}")
    if speed:
        print_note(
            f"expected for the trainings: {time_in_words(total)} ({', '.join(parts)}). That is "
            f"their number of operations at {100 * MFU:g} % of the {speed / 1e9:,.0f} GFLOP/s "
            f"measured now on {device}; the other stages take a few seconds for each 100 pictures"
        )


def _run(words: Sequence[str]) -> int:
    """The exit status of a command of tarkit; its results go to stderr.

    A signal to end that reaches this process alone is passed on, and the command saves first.
    """
    argv = [sys.executable, "-m", "tarkit.cli", *words]
    with subprocess.Popen(argv, stdout=sys.stderr) as process, _passing_on(process):
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the terminal sends it to both: the command is saving
                continue


@contextmanager
def _passing_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
