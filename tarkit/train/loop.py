"""The training loop of every trainer: any number of processes, exact resume, metrics, sheets.

A step's data and randomness are functions of (seed, step). A run that is killed and started again
therefore ends with the same weights, to the last bit.

A step is the same, up to rounding, whatever processes share its rows and in whatever micro-batches
they read them: it descends on the mean over all of the step's tokens or pictures, and what is drawn
for a row depends on the row's place in the step. Only dropout inside a network differs: each
process draws its own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from tarkit.artifacts.manifest import begin_directory
from tarkit.progress import Progress
from tarkit.train.batches import step_batches
from tarkit.train.guard import Guard
from tarkit.train.launch import join_processes, rows_per_pass
from tarkit.train.loop_config import LoopConfig
from tarkit.train.metrics import Metrics
from tarkit.train.optimizers import make_optimizers
from tarkit.train.parameters import freeze_parameters, recorded_counts
from tarkit.train.recorder import Recorder
from tarkit.train.state import load_state, save_state
from tarkit.train.step import take_step
from tarkit.train.task import TrainingTask
from tarkit.train.trackers import required_trackers
from tarkit.train.weight_average import averaged_weights


def begin_training(seed: int) -> None:
    """Set the global switches of a training process; each trainer calls this first.

    Torch's global generator starts from the seed. Floats too small for a normal number count as
    zero: a softmax that has become sure leaves such gradients, and a CPU is many times slower on
    them (a step of a trained model took twice as long as one of a new model). Threads inherit that
    switch when they start, and the first parallel operation starts them.
    """
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)


def train(
    task: TrainingTask,
    config: LoopConfig,
    *,
    out: Path,
    name: str,
    parents: Mapping[str, Path],
    files: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Train `task.model` for `config.steps` steps into a model directory, or resume there.

    `files` are texts to write next to the weights, by file name. `more` are settings for the
    manifest that no TOML holds. Call `begin_training` before making the task. The number of
    processes and `LoopConfig.FREE_KEYS` may change when a run is resumed. Raises UserError
    where the directory was begun with other settings, where the batch does not divide by processes
    and micro-batches, where a tracker is not installed, and, before the step is taken, where a loss
    or a gradient is not finite, unless such steps are skipped.
    """
    required_trackers(config)
    processes = join_processes(config, unused_parameters=task.unused_parameters)
    rows = rows_per_pass(config, processes.world)
    counts = freeze_parameters(task.model, config)
    chosen = recorded_counts(counts, config)
    settings = {"stage": name, **config.recorded(), **(more or {}), **chosen}
    begin_directory(out, "model", settings=settings, parents=parents)
    if (out / "model.safetensors").exists():
        return out
    if processes.is_main:
        print(f"{name}: trains {counts.trained:,} of {counts.total:,} parameters", file=sys.stderr)
    checkpoint = out / "state" / "checkpoint.pt"
    processes.prepare(task.model)
    optimizers = make_optimizers(processes.trained, config)
    accelerator = processes.accelerator
    guard = Guard(task, config, accelerator, out=out, rows=rows)
    first = load_state(checkpoint, processes.trained, optimizers, guard)
    recorder = None
    if processes.is_main:
        recorder = Recorder(task, config, guard, out=out, files=files or {})
    metrics = Metrics(config, accelerator, guard, out=out, settings=settings, first=first)
    with (
        # One process of many shows how far the training is.
        Progress(name, total=config.steps, unit="steps", done=first)
        if processes.is_main
        else nullcontext() as progress,
        closing(metrics),
        closing(step_batches(task, config, processes, first=first, rows=rows)) as steps,
    ):
        for step, batches in metrics.timed(steps):
            result = take_step(task, config, step, batches, processes, optimizers, guard)
            metrics.after_step(step, result, processes.trained)
            if progress:
                progress.advance(1, loss=result.loss, **metrics.shown)
            if config.saves_after(step + 1):
                guard.require_finite_weights(processes.trained, step)
            if config.samples_after(step + 1):
                with averaged_weights(optimizers):
                    processes.collect()
            if recorder:
                recorder.after_step(step, optimizers)
            if config.checkpoints_after(step + 1):
                save_state(checkpoint, step + 1, processes, optimizers, guard)
    if recorder:
        recorder.finish(optimizers)
    processes.wait()
    return out
