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
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from tarkit.artifacts.manifest import begin_directory
from tarkit.checkpoints.directory import WEIGHTS
from tarkit.progress import Progress
from tarkit.terminal import print_note
from tarkit.train.batches import step_batches
from tarkit.train.guard import Guard
from tarkit.train.launch import join_processes, rows_per_pass
from tarkit.train.loop_config import LoopConfig
from tarkit.train.metrics import Metrics
from tarkit.train.optimizers import make_optimizers
from tarkit.train.parameters import freeze_parameters, recorded_counts
from tarkit.train.recorder import Recorder
from tarkit.train.state import Checkpoints
from tarkit.train.step import take_step
from tarkit.train.stopping import StopSignals
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
    start_option: str = "",
) -> Path:
    """Train `task.model` for `config.steps` steps into a model directory, or resume there.

    `files` are texts to write next to the weights, by file name. `more` are settings for the
    manifest that no TOML holds. `start_option`: the trainer's option that names a model to start
    from. Call `begin_training` before making the task. `config.free_keys()` and the number of
    processes may change when a run is resumed. SIGTERM and Ctrl-C save first (stopping.py). Raises
    UserError where the directory was begun with other settings, where the batch does not divide by
    processes and micro-batches, where a tracker is not installed, where a checkpoint cannot be
    written, and, before the step is taken, where a loss or a gradient is not finite, unless such
    steps are skipped.
    """
    required_trackers(config)
    processes = join_processes(config, unused_parameters=task.unused_parameters)
    rows = rows_per_pass(config, processes.world)
    counts = freeze_parameters(task.model, config)
    chosen = recorded_counts(counts, config)
    settings = {"stage": name, **config.recorded(), **(more or {}), **chosen}
    begin_directory(
        out,
        "model",
        settings=settings,
        parents=parents,
        ignored=config.free_keys(),
        hint=_how_to_change(config, out, start_option),
    )
    if (out / WEIGHTS).exists():
        return out
    if processes.is_main:
        # Weights, gradients and two moments, in float32; activations come on top.
        gigabytes = (4 * counts.total + 12 * counts.trained) / 1e9
        print_note(
            f"{name}: trains {counts.trained:,} of {counts.total:,} parameters, "
            f"{gigabytes:.2f} GB with gradients and moments"
        )
    processes.prepare(task.model)
    trained, accelerator = processes.trained, processes.accelerator
    optimizers = make_optimizers(trained, config)
    checkpoints = Checkpoints(out / "state", trained, keep=config.keep_checkpoints)
    guard = Guard(task, config, accelerator, checkpoints, out=out, rows=rows)
    first = checkpoints.load(optimizers)
    guard.load_state_dict(checkpoints.counters)
    recorder = None
    if first:
        with averaged_weights(optimizers):
            processes.collect()
    if processes.is_main:
        recorder = Recorder(task, config, processes, out=out, files=files or {})
        recorder.make_up_for(first, optimizers)
    checkpoints.wait_for_all()
    metrics = Metrics(config, accelerator, guard, out=out, settings=settings, first=first)
    with (
        StopSignals(is_main_process=processes.is_main) as signals,
        closing(checkpoints),
        # One process of many shows how far the training is.
        Progress(name, total=config.steps, unit="steps", done=first)
        if processes.is_main
        else nullcontext() as progress,
        closing(metrics),
        closing(step_batches(task, config, processes, first=first, rows=rows)) as steps,
    ):
        for step, batches in metrics.timed(steps):
            result = take_step(task, config, step, batches, processes, optimizers, guard)
            done = step + 1
            metrics.after_step(step, result, trained)
            if progress:
                progress.advance(1, loss=result.loss, **metrics.shown)
            checkpoints.settle(wait=False)
            is_stopping = signals.on_any() and config.resumable_after(done)
            if is_stopping or config.saves_after(done):
                guard.require_finite_weights(trained, step)
            # Also after the last step: what follows takes its time, and is lost if it is killed.
            if is_stopping or done % config.checkpoint_every == 0 or done == config.steps:
                checkpoints.save(done, optimizers, guard.state_dict())
            if is_stopping:
                checkpoints.settle()
                signals.end(done)
            if config.samples_after(done) or done == config.steps:
                with averaged_weights(optimizers):
                    processes.collect()
            if config.samples_after(done):
                if recorder:
                    recorder.after_step(step, optimizers)
                checkpoints.wait_for_all()
        checkpoints.settle()
        signals.end_at_once_from_now(config.steps)
        if recorder:
            recorder.finish(optimizers)
        checkpoints.clear()  # the model's weights take their place
        checkpoints.wait_for_all()
    return out


def _how_to_change(config: LoopConfig, out: Path, start_option: str) -> str:
    """How to go on where settings that decide the result were changed."""
    free = f"keys that may change in a run: {', '.join(sorted(config.free_keys()))}"
    if not start_option:
        return free
    models = sorted((out / "steps").glob(f"*/{WEIGHTS}"))
    start = models[-1].parent if models else out
    return f"--out ANOTHER {start_option} {start} trains on from this run's model; {free}"
