"""What a training leaves in its directory beside its metrics: sample sheets and models."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tarkit.artifacts.files import write_whole
from tarkit.checkpoints.directory import WEIGHTS, save_model
from tarkit.images import png_bytes
from tarkit.train.loop_config import LoopConfig
from tarkit.train.parallelism import Parallelism
from tarkit.train.task import TrainingTask
from tarkit.train.weight_average import averaged_weights

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger("tarkit")


class Recorder:
    """Writes the model directory of a training; only the main process has one.

    Sheets and measures are made on the device, of a fixed number of rows, while the other processes
    wait (`Checkpoints.wait_for_all`). The checkpoint after the last step is written before those
    of the end, so that a process that is killed in them loses no step.
    """

    def __init__(
        self,
        task: TrainingTask,
        config: LoopConfig,
        processes: Parallelism,
        *,
        out: Path,
        files: Mapping[str, str],
    ) -> None:
        self.task = task
        self.config = config
        self.processes = processes
        self.out = out
        self.files = files
        self._write_files(out)

    def after_step(self, step: int, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Draw the sheet and keep the model that are due after a step; `finish` is for the last."""
        done = step + 1
        with averaged_weights(optimizers):
            if done % self.config.sample_every == 0:
                self._write_sheet(done)
            if self.config.keep_every and done % self.config.keep_every == 0:
                self._keep(self.out / "steps" / f"{done:07d}")

    def finish(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Write the last sheet and the model, whose weights come last."""
        with averaged_weights(optimizers):
            self._write_sheet(self.config.steps)
            self._save(self.out)

    def make_up_for(self, done: int, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Keep the model after `done` steps, if the process that took them ended before it had."""
        config, out = self.config, self.out / "steps" / f"{done:07d}"
        due = config.keep_every and done % config.keep_every == 0 and 0 < done < config.steps
        if due and not (out / WEIGHTS).exists():
            with averaged_weights(optimizers):
                self._keep(out)

    def _write_sheet(self, done: int) -> None:
        """Write the task's sample sheet; sampling must not disturb the run's randomness."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sheet = self._sheet(done)
        if sheet is not None:
            write_whole(self.out / "samples" / f"{done:07d}.png", png_bytes(sheet))

    def _sheet(self, done: int) -> Image.Image | None:
        """The task's sheet; None and a warning where the device has no room to draw it."""
        try:
            with self.processes.own_model_on_device() as fits:
                if fits:
                    return self.task.samples(done)
        except torch.OutOfMemoryError:
            pass  # what was allocated is free again, and the training goes on
        log.warning("no sheet after step %d: the device has no room to draw it", done)
        return None

    def _keep(self, out: Path) -> None:
        """Write the model so far as a model directory; this must not disturb the randomness."""
        self._write_files(out)
        with torch.random.fork_rng(devices=[]):
            self._save(out)
        self.task.model.train()

    def _save(self, out: Path) -> None:
        self.task.model.eval()
        with self.processes.own_model_on_device():
            model, description = self.task.finish()
            save_model(out, model, description, self.config)

    def _write_files(self, out: Path) -> None:
        for file, text in self.files.items():
            write_whole(out / file, text.encode())
