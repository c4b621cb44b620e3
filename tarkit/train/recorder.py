"""What a training leaves in its directory beside its metrics: sample sheets and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tarkit.artifacts.files import write_whole
from tarkit.checkpoints.directory import save_model
from tarkit.images import png_bytes
from tarkit.train.guard import Guard
from tarkit.train.loop_config import LoopConfig
from tarkit.train.task import TrainingTask
from tarkit.train.weight_average import averaged_weights


class Recorder:
    """Writes the model directory of a training; only the main process has one."""

    def __init__(
        self,
        task: TrainingTask,
        config: LoopConfig,
        guard: Guard,
        *,
        out: Path,
        files: Mapping[str, str],
    ) -> None:
        self.task = task
        self.config = config
        self.guard = guard
        self.out = out
        self.files = files
        self.checkpoint = out / "state" / "checkpoint.pt"
        self._write_files(out)

    def after_step(
        self,
        step: int,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Draw and keep what is due after a step; the model stays on its device."""
        config, done = self.config, step + 1
        if done == config.steps:
            return
        device = next(self.task.model.parameters()).device
        if done % config.sample_every == 0:
            with averaged_weights(optimizers):
                self._write_sheet(done)
            self.task.model.to(device)
        if config.keep_every and done % config.keep_every == 0:
            with averaged_weights(optimizers):
                self._keep(self.out / "steps" / f"{done:07d}")
            self.task.model.to(device)

    def finish(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Write the last sheet and the model; the checkpoint goes, as the weights come last."""
        with averaged_weights(optimizers):
            self._write_sheet(self.config.steps)
            self.task.model.eval()
            model, description = self.task.finish()
            save_model(self.out, model, description, self.config)
        self.checkpoint.unlink(missing_ok=True)

    def _write_sheet(self, done: int) -> None:
        """Write the task's sample sheet; sampling must not disturb the run's randomness.

        Sheets and final figures are made on the CPU, where the task's own data is.
        """
        self.task.model.cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sheet = self.task.samples(done)
        if sheet is not None:
            write_whole(self.out / "samples" / f"{done:07d}.png", png_bytes(sheet))

    def _keep(self, out: Path) -> None:
        """Write the model so far as a model directory; this must not disturb the randomness."""
        self.task.model.cpu()
        out.mkdir(parents=True, exist_ok=True)
        self._write_files(out)
        with torch.random.fork_rng(devices=[]):
            self.task.model.eval()
            model, description = self.task.finish()
            save_model(out, model, description, self.config)
        self.task.model.train()

    def _write_files(self, out: Path) -> None:
        for file, text in self.files.items():
            write_whole(out / file, text.encode())
