"""What a training leaves in its directory: metrics, sample sheets and models."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tarkit.artifacts.files import write_whole
from tarkit.checkpoints.directory import save_model
from tarkit.images import png_bytes
from tarkit.train.loop_config import LoopConfig
from tarkit.train.step import StepResult
from tarkit.train.task import TrainingTask


class Recorder:
    """Writes the model directory of a training; only the main process has one."""

    def __init__(
        self,
        task: TrainingTask,
        config: LoopConfig,
        *,
        out: Path,
        files: Mapping[str, str],
        first: int,
    ) -> None:
        """`first`: the step that this process begins with."""
        self.task = task
        self.config = config
        self.out = out
        self.files = files
        self.first = first
        self.metrics = out / "metrics.jsonl"
        self._write_files(out)
        _truncate_log(self.metrics, first)
        self.tensorboard = _tensorboard(out)
        self.began = time.monotonic()

    def after_step(self, step: int, result: StepResult) -> None:
        """Log, draw and keep what is due after a step; the model stays on its device."""
        config, done = self.config, step + 1
        if config.logs_after(done):
            self._log(done, result)
        if done == config.steps:
            return
        device = next(self.task.model.parameters()).device
        if done % config.sample_every == 0:
            self._write_sheet(done)
        if config.keep_every and done % config.keep_every == 0:
            self._keep(self.out / "steps" / f"{done:07d}")
        self.task.model.to(device)

    def finish(self) -> None:
        """Write the last sheet and the model."""
        self._write_sheet(self.config.steps)
        self.task.model.eval()
        model, description = self.task.finish()
        save_model(self.out, model, description, self.config)

    def _log(self, done: int, result: StepResult) -> None:
        """Append a row to metrics.jsonl, and to tensorboard's log where it is installed."""
        rows = (done - self.first) * self.config.batch_size
        row = {
            "step": done,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "rate": result.rate_factor,
            **result.figures,
            "rows_per_s": round(rows / (time.monotonic() - self.began), 2),
        }
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.tensorboard:
            for key, figure in row.items():
                self.tensorboard.add_scalar(key, figure, done)

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


def _truncate_log(path: Path, done: int) -> None:
    """Make the log hold the first `done` steps alone: the later ones are about to be run again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # A killed run can leave half a line at the end; its step is run again.
    whole = [line for line in lines if line.endswith("\n")]
    kept = "".join(line for line in whole if json.loads(line)["step"] <= done)
    write_whole(path, kept.encode())


def _tensorboard(out: Path) -> Any:
    """A writer where tensorboard is installed, None where it is not."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))
