"""A task whose rows are numbers; worker processes import it, so it imports little."""

import os
import signal
from collections.abc import Callable

import torch
from torch import Tensor

from tarkit.errors import UserError
from tarkit.train.loop_config import LoopConfig

CONFIG = LoopConfig(steps=5, batch_size=4, learning_rate=1.0)


class Numbers:
    """A task whose rows are numbers, and whose reading has the faults that a test asks for."""

    def __init__(self, *, fault: Callable[[int], None] | None = None) -> None:
        self.model = torch.nn.Linear(100, 100)
        self.fault = fault

    def batch(self, step: int, size: int, part: int, parts: int) -> dict[str, Tensor]:
        if self.fault and step == 3:
            self.fault(step)
        first = (step * parts + part) * size
        noise = torch.rand(size, generator=torch.Generator().manual_seed(first))
        threads = torch.tensor(torch.get_num_threads())
        return {"row": torch.arange(first, first + size), "noise": noise, "threads": threads}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(batch["noise"].sum())


def refuse(step: int) -> None:
    raise UserError(f"row 7 of step {step} is torn", hint="tarkit inspect it")


def stumble(step: int) -> None:
    raise ZeroDivisionError(f"at step {step}")


def die(step: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
