"""One optimizer step: forward and backward of its micro-batches, the update, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tarkit.seeds import training_seed
from tarkit.train.guard import Guard
from tarkit.train.loop_config import LoopConfig, rate_factor
from tarkit.train.parallelism import Parallelism
from tarkit.train.processes import sum_over_processes
from tarkit.train.task import Figure, TrainingTask


class StepResult(NamedTuple):
    """The numbers of one step: over all processes, but for `parts`."""

    loss: float
    grad_norm: float  # before clipping
    rate_factor: float
    figures: dict[str, float]  # of what follows the optimizer's step
    parts: list[tuple[float, dict[str, Figure]]]  # weight and figures of this process's passes


def take_step(
    task: TrainingTask,
    config: LoopConfig,
    step: int,
    batches: Sequence[tuple[Any, float]],
    processes: Parallelism,
    optimizers: Sequence[torch.optim.Optimizer],
    guard: Guard,
) -> StepResult:
    """Forward and backward of every micro-batch, and one step of every optimizer.

    A step that the guard does not admit changes nothing.
    """
    from accelerate.utils import send_to_device

    processes.model.train()
    torch.manual_seed(training_seed(config.seed, step, processes.rank, "step"))
    total = _sum([weight for _, weight in batches])
    losses, passes = [], []
    parts: list[tuple[float, dict[str, Figure]]] = []
    for number, (batch, weight) in enumerate(batches, 1):
        share = weight / total if total else 0.0  # every chat of the step was too long
        with processes.exchange(last=number == len(batches)):
            batch = send_to_device(batch, processes.device)
            with processes.autocast():
                loss, figures = task.loss(processes.model, batch, step)
            # Gradients are averaged over processes, where the sum is needed.
            (loss * (share * processes.world)).backward()
        losses.append(loss.detach() * share)
        passes.append((batch, loss.detach()))
        parts.append((weight, dict(figures)))
    loss_of_step = _sum([float(loss) for loss in losses])
    grad_norm = processes.clip(config.clip)
    factor = rate_factor(config, step)
    admitted = guard.admits(step, loss_of_step, grad_norm, passes)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        if admitted:
            optimizer.step()
        optimizer.zero_grad()
    figures_of_step = {}
    if admitted:
        torch.manual_seed(training_seed(config.seed, step, 0, "step"))  # the same on all processes
        figures_of_step = task.after_step(step, processes.trained)
    return StepResult(loss_of_step, grad_norm, factor, figures_of_step, parts)


def _sum(numbers: Sequence[float]) -> float:
    """The sum of every process's numbers."""
    return float(sum_over_processes(torch.tensor(sum(numbers), dtype=torch.float64)))
