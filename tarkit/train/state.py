"""The state of a training between its steps: what a run that was stopped resumes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tarkit.artifacts.files import whole_file
from tarkit.train.guard import Guard


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
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    guard.load_state_dict(state.get("guard", {}))
    return int(state["step"])


def save_state(
    checkpoint: Path,
    done: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    guard: Guard,
) -> None:
    """Write the state after `done` steps, whole or not at all."""
    state = {
        "step": done,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "guard": guard.state_dict(),
    }
    with whole_file(checkpoint) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
