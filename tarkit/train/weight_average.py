"""An exponential moving average of the trained weights, in float32.

Source: Polyak averaging; diffusion models are drawn with such an average (Ho et al. 2020, App. B).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class WeightAverage(torch.optim.Optimizer):
    """Follows the weights: step n makes each average a become a + (1 - d) (weight - a).

    d is the smaller of `decay` and (1 + n) / (10 + n), n counted from 1, so that a short training
    forgets where it began (the warm-up of TensorFlow's ExponentialMovingAverage, and of diffusers'
    EMAModel). The averages start from the weights.

    It is an optimizer that changes no weight. Placed after the others it is stepped, saved, loaded
    and sharded as they are.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float) -> None:
        super().__init__(parameters, {"lr": 0.0, "decay": decay, "steps": 0})
        for group in self.param_groups:
            for weight in group["params"]:
                assert torch.finfo(weight.dtype).bits >= 32, "an exchange would round the average"
                self.state[weight] = {"average": weight.detach().clone()}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["steps"] += 1
            decay = min(group["decay"], (1 + group["steps"]) / (10 + group["steps"]))
            for weight in group["params"]:
                average = self.state[weight]["average"]
                average.lerp_(weight, 1 - decay)

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the averages in the place of the weights, and the weights in that of the averages.

        A second call undoes the first, to the last bit.
        """
        for group in self.param_groups:
            for weight in group["params"]:
                average = self.state[weight]["average"]
                kept = weight.detach().clone()
                weight.copy_(average)
                average.copy_(kept)


@contextmanager
def averaged_weights(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Within it the model has its averaged weights, if there is a WeightAverage of them."""
    averages = [optimizer for optimizer in optimizers if isinstance(optimizer, WeightAverage)]
    for average in averages:
        average.exchange()
    try:
        yield
    finally:
        for average in averages:
            average.exchange()
