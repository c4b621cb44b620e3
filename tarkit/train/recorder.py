"""What a training leaves in its directory beside its metrics: sample sheets and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tarkit.artifacts.files import write_whole
from tarkit.checkpoints.directory import WEIGHTS, save_model
from tarkit.images import png_bytes
from tarkit.train.loop_config import LoopConfig
from tarkit.train.task import TrainingTask
from tarkit.train.weight_average import averaged_weights


class Recorder:
    """Writes the model directory of a training; only the main process has one.

    Sheets and measures are made on the model's device, while the other processes wait
    (`Checkpoints.wait_for_all`).
    """

    def __init__(
        self,
        task: TrainingTask,
        config: LoopConfig,
        *,
        out: Path,
        files: Mapping[str, str],
    ) -> None:
        self.task = task
        self.config = config
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
            sheet = self.task.samples(done)
        if sheet is not None:
            write_whole(self.out / "samples" / f"{done:07d}.png", png_bytes(sheet))

    def _keep(self, out: Path) -> None:
        """Write the model so far as a model directory; this must not disturb the randomness."""
        self._write_files(out)
        with torch.random.fork_rng(devices=[]):
            self._save(out)
        self.task.model.train()

    def _save(self, out: Path) -> None:
        self.task.model.eval()
        model, description = self.task.finish()
        save_model(out, model, description, self.config)

    def _write_files(self, out: Path) -> None:
        for file, text in self.files.items():
            write_whole(out / file, text.encode())
