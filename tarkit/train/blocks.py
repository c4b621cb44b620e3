"""The equal blocks of a model, and how they are computed in training.

Source of activation checkpointing: Chen et al. 2016, "Training Deep Nets with Sublinear Memory
Cost".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from tarkit.train.loop_config import LoopConfig


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The members of every outermost `nn.ModuleList`: transformer blocks, and a VQ's levels."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks_of(child)


def set_training_forward(model: nn.Module, config: LoopConfig) -> None:
    """Compile and checkpoint the blocks of a model as `config` says, in place.

    Where no gradient is computed, as in samples, a block runs as it would without. Names of
    parameters stay.
    """
    if not (config.compile or config.activation_checkpointing):
        return
    for block in blocks_of(model):
        plain = training = block.forward
        if config.compile:
            training = torch.compile(training)
        if config.activation_checkpointing:
            training = partial(checkpoint, training, use_reentrant=False)
        block.forward = partial(_forward, plain, training)


def _forward(plain: Any, training: Any, *args: Any, **kwargs: Any) -> Any:
    return (training if torch.is_grad_enabled() else plain)(*args, **kwargs)
