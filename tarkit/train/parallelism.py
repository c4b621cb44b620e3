"""How the processes of a training share its model: each has it whole, or each has a part.

Accelerate reads torchrun's environment and makes the process group in both. With
`sharding = "none"` its DistributedDataParallel averages the gradients. With `sharding = "full"`
torch's own FSDP2 does (`tarkit.train.sharding`): accelerate's falls back to data parallel training
on CPUs without a word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from tarkit.train.blocks import set_training_forward

if TYPE_CHECKING:
    from accelerate import Accelerator

    from tarkit.train.loop_config import LoopConfig


class Parallelism(ABC):
    """The processes of a training and the model that they train.

    Gradients are averaged over processes. Methods are called by all processes, in the same order.
    """

    def __init__(self, accelerator: Accelerator, config: LoopConfig) -> None:
        """`accelerator` knows the processes; `config` says how blocks are computed."""
        self.accelerator = accelerator
        self.config = config
        self.device: torch.device = accelerator.device
        self.rank = int(accelerator.process_index)
        self.world = int(accelerator.num_processes)
        self.is_main = bool(accelerator.is_main_process)
        self.model: nn.Module
        """What is called with a batch."""
        self.trained: nn.Module
        """What holds the parameters that are trained, under their own names."""

    @abstractmethod
    def prepare(self, model: nn.Module) -> None:
        """Make `model` and `trained` of a task's model, on the device."""

    @abstractmethod
    def exchange(self, last: bool) -> AbstractContextManager[None]:
        """The context of a forward and backward pass; after the `last`, gradients are averaged."""

    @abstractmethod
    def clip(self, max_norm: float) -> float:
        """Scale all gradients so that their common norm is at most `max_norm`; the norm before."""

    @abstractmethod
    def collect(self) -> None:
        """Give the task's own model, on the main process, the weights as they are now."""

    @abstractmethod
    def own_model_on_device(self) -> AbstractContextManager[bool]:
        """A context in which the task's own model is on the device; False: it does not fit there.

        The main process alone calls this. Within it the model's weights do not change.
        """

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass: matrices are multiplied in `precision`."""
        return self.accelerator.autocast()


class DataParallel(Parallelism):
    """Each process has the whole model; one process alone trains the same way."""

    def prepare(self, model: nn.Module) -> None:
        set_training_forward(model, self.config)
        self.trained = model
        self.model = self.accelerator.prepare(model)

    def exchange(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def clip(self, max_norm: float) -> float:
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), max_norm))

    def collect(self) -> None:
        """Nothing to do: the task's own model is the one that is trained."""

    def own_model_on_device(self) -> AbstractContextManager[bool]:
        return nullcontext(True)
