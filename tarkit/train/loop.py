"""The training loop of every trainer: any number of processes, exact resume, metrics, sheets.

A step's data and randomness are functions of (seed, step). A run that is killed and started again
therefore ends with the same weights, to the last bit.

A step is the same, up to rounding, whatever processes share its rows and in whatever micro-batches
they read them: it descends on the mean over all of the step's tokens or pictures, and what is drawn
for a row depends on the row's place in the step. Only dropout inside a network differs: each
process draws its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from tarkit.artifacts.manifest import begin_directory
from tarkit.progress import Progress
from tarkit.train.batches import step_batches
from tarkit.train.launch import join_processes, rows_per_pass
from tarkit.train.loop_config import LoopConfig
from tarkit.train.optimizers import make_optimizers
from tarkit.train.recorder import Recorder
from tarkit.train.state import load_state, save_state
from tarkit.train.step import require_finite_weights, take_step
from tarkit.train.task import TrainingTask


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
    processes and what `LoopConfig.HOW_KEYS` names may change when a run is resumed. Raises
    UserError where the directory was begun with other settings, where the batch does not divide by
    processes and micro-batches, and, before the step is taken, where a loss or a gradient is not
    finite.
    """
    processes = join_processes(config, unused_parameters=task.unused_parameters)
    rows = rows_per_pass(config, processes.world)
    settings = {"stage": name, **config.recorded(), **(more or {})}
    begin_directory(out, "model", settings=settings, parents=parents)
    if (out / "model.safetensors").exists():
        return out
    checkpoint = out / "state" / "checkpoint.pt"
    processes.prepare(task.model)
    optimizers = make_optimizers(processes.trained, config)
    first = load_state(checkpoint, processes.trained, optimizers)
    recorder = None
    if processes.is_main:
        recorder = Recorder(task, config, out=out, files=files or {}, first=first)
    with (
        Progress(name, total=config.steps, unit="steps", done=first) as progress,
        closing(step_batches(task, config, processes, first=first, rows=rows)) as steps,
    ):
        for step, batches in steps:
            result = take_step(task, config, step, batches, processes, optimizers, checkpoint)
            progress.advance(1, loss=result.loss)
            if config.saves_after(step + 1):
                require_finite_weights(processes.trained, step, config, checkpoint)
            if config.samples_after(step + 1):
                processes.collect()
            if recorder:
                recorder.after_step(step, result)
            if config.checkpoints_after(step + 1):
                save_state(checkpoint, step + 1, processes, optimizers)
    if recorder:
        recorder.finish()
        checkpoint.unlink(missing_ok=True)  # last: the weights take its place
    processes.wait()
    return out
