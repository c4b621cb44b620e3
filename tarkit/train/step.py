"""One optimizer step: forward and backward of its micro-batches, the update, and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tarkit.errors import UserError
from tarkit.seeds import training_seed
from tarkit.train.loop_config import LoopConfig, rate_factor
from tarkit.train.optimizers import weight_rms
from tarkit.train.parallelism import Parallelism
from tarkit.train.processes import sum_over_processes
from tarkit.train.sharded_tensors import local, whole
from tarkit.train.task import Figure, Mean, Total, TrainingTask


class StepResult(NamedTuple):
    """The numbers of one step, over all processes; all figures only where they are logged."""

    loss: float
    grad_norm: float  # before clipping
    rate_factor: float
    figures: dict[str, float]


def take_step(
    task: TrainingTask,
    config: LoopConfig,
    step: int,
    batches: Sequence[tuple[Any, float]],
    processes: Parallelism,
    optimizers: Sequence[torch.optim.Optimizer],
    checkpoint: Path,
) -> StepResult:
    """Forward and backward of every micro-batch, and one step of every optimizer."""
    from accelerate.utils import gather_object, send_to_device

    processes.model.train()
    torch.manual_seed(training_seed(config.seed, step, processes.rank, "step"))
    total = _sum([weight for _, weight in batches])
    losses, measured = [], []
    for number, (batch, weight) in enumerate(batches, 1):
        share = weight / total if total else 0.0  # every chat of the step was too long
        with processes.exchange(last=number == len(batches)):
            batch = send_to_device(batch, processes.device)
            with processes.autocast():
                loss, figures = task.loss(processes.model, batch, step)
            # Gradients are averaged over processes, where the sum is needed.
            (loss * (share * processes.world)).backward()
        losses.append(loss.detach() * share)
        measured.append((weight, dict(figures)))
    loss_of_step = _sum([float(loss) for loss in losses])
    _require_finite("loss", loss_of_step, step, config, checkpoint)
    grad_norm = processes.clip(config.clip)
    _require_finite("gradient norm", grad_norm, step, config, checkpoint)
    factor = rate_factor(config, step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
        optimizer.zero_grad()
    torch.manual_seed(training_seed(config.seed, step, 0, "step"))  # the same on every process
    figures_of_step = task.after_step(step, processes.trained)
    if config.logs_after(step + 1):
        figures_of_step = {
            "weight_rms": weight_rms(processes.trained),
            **_combined(gather_object(measured)),
            **figures_of_step,
        }
    return StepResult(loss_of_step, grad_norm, factor, figures_of_step)


def _sum(numbers: Sequence[float]) -> float:
    """The sum of every process's numbers."""
    return float(sum_over_processes(torch.tensor(sum(numbers), dtype=torch.float64)))


def _combined(parts: Sequence[tuple[float, Mapping[str, Figure]]]) -> dict[str, float]:
    """The figures of a step from the weights and figures of its parts.

    A mean over nothing is left out.
    """
    combined: dict[str, float] = {}
    means: dict[str, list[Mean]] = {}
    for weight, figures in parts:
        for name, figure in figures.items():
            if isinstance(figure, Total):
                combined[name] = combined.get(name, 0) + figure.value
                continue
            mean = figure if isinstance(figure, Mean) else Mean(figure, weight)
            if mean.weight:
                means.setdefault(name, []).append(mean)
    for name, of_parts in means.items():
        total = sum(mean.weight for mean in of_parts)
        combined[name] = sum(mean.value * (mean.weight / total) for mean in of_parts)
    return combined


def _require_finite(
    name: str, number: float, step: int, config: LoopConfig, checkpoint: Path
) -> None:
    if not math.isfinite(number):
        last_state = checkpoint if checkpoint.exists() else "not yet written"
        raise UserError(
            f"the {name} of step {step} is {number}; the last good state is {last_state}",
            hint=f"lower learning_rate (now {config.learning_rate}) and use another --out",
        )


def require_finite_weights(
    model: nn.Module, step: int, config: LoopConfig, checkpoint: Path
) -> None:
    """Raise UserError before weights that are not finite take the place of the last good state.

    All processes raise it, whichever holds such a weight.
    """
    weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    bad = torch.tensor([not bool(local(values).isfinite().all()) for values in weights.values()])
    for index in sum_over_processes(bad.int()).nonzero()[:, 0].tolist():
        name, values = list(weights.items())[index]
        largest = f"largest value of {name} after the update"
        _require_finite(largest, float(whole(values).abs().max()), step, config, checkpoint)
