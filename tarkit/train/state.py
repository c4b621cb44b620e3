"""The state of a training between its steps: what a run that was stopped resumes from.

A checkpoint holds whole tensors, so that it opens for any number of processes, sharded or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tarkit.artifacts.files import whole_file
from tarkit.train.guard import Guard
from tarkit.train.parallelism import Parallelism
from tarkit.train.sharded_tensors import is_split, split_like, whole

# How a group's step is computed. A checkpoint may come from another device.
KERNEL_KEYS = ("foreach", "fused", "capturable")


def load_state(
    checkpoint: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    guard: Guard,
) -> int:
    """Load a checkpoint, if there is one, into all that has a state; the first step to take."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    present = model.state_dict()
    model.load_state_dict(
        {k: split_like(v, present[k]) if k in present else v for k, v in state["model"].items()}
    )
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        _load_optimizer(optimizer, saved)
    guard.load_state_dict(state.get("guard", {}))
    return int(state["step"])


def save_state(
    checkpoint: Path,
    done: int,
    processes: Parallelism,
    optimizers: Sequence[torch.optim.Optimizer],
    guard: Guard,
) -> None:
    """Write the state after `done` steps, whole or not at all.

    All processes call it, and the main process writes.
    """
    model = {name: whole(values) for name, values in processes.trained.state_dict().items()}
    states = [_whole_optimizer(optimizer) for optimizer in optimizers]
    if processes.is_main:
        state = {
            "step": done,
            "model": model,
            "optimizers": states,
            "guard": guard.state_dict(),
        }
        with whole_file(checkpoint) as temporary, temporary.open("wb") as file:
            torch.save(state, file)


def _whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of an optimizer, with whole tensors."""
    saved = optimizer.state_dict()
    states = {
        index: {k: whole(v) if isinstance(v, Tensor) else v for k, v in state.items()}
        for index, state in saved["state"].items()
    }
    return {**saved, "state": states}


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a state dict of whole tensors into an optimizer, whose own may be split."""
    groups = [
        {**group, **{key: own[key] for key in KERNEL_KEYS if key in own}}
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    states = saved["state"]
    if any(is_split(p) for group in optimizer.param_groups for p in group["params"]):
        present = _present_states(optimizer)
        states = {
            index: {
                k: split_like(v, present[index][k]) if isinstance(v, Tensor) else v
                for k, v in state.items()
            }
            for index, state in states.items()
        }
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def _present_states(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """The states of an optimizer by parameter, made by a step of rate 0 where there are none.

    They say how each is split.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    states: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return states
