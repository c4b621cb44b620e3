"""CAME: Adafactor with a confidence that is read from how far an update is from its mean.

Source: Luo et al. 2023, "CAME: Confidence-guided Adaptive Memory Efficient Optimization",
Algorithm 2. Of a matrix, the squares of gradients and of deviations are kept as means of rows and
of columns: n + m numbers each in place of n * m.

Letters: n rows, m columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from tarkit.train.sharded_tensors import split_as, summed


class Came(torch.optim.Optimizer):
    """CAME for matrices; a tensor of more axes is many matrices of its last two.

    The algorithm is written for matrices. A vector keeps the mean square of each of its gradients
    whole and has no confidence, as in the authors' program.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        """`betas`: decay of the mean update, of squared gradients, and of squared deviations.

        `eps` is added to squared gradients and to squared deviations. An update's root mean square
        is at most `clip_threshold`. The paper's values are the defaults, and SANA's recipe has the
        same. Weight decay is decoupled, as in AdamW.
        """
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step with the gradients that are there; parameters without one stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, self.state[parameter], group)
        return loss


def _update(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """Change one parameter and its state, in place."""
    beta1, beta2, beta3 = group["betas"]
    eps1, eps2 = group["eps"]
    grad = parameter.grad
    assert grad is not None
    grad = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad
    is_matrix = grad.dim() >= 2
    if not state:
        state["update"] = torch.zeros_like(grad)
        for name in ("square", "deviation") if is_matrix else ("square",):
            if is_matrix:
                # From the gradient's own means: a sharded gradient gets a sharded state.
                state[f"{name}_rows"] = torch.zeros_like(_mean(grad, -1))
                state[f"{name}_columns"] = torch.zeros_like(_mean(grad, -2))
            else:
                state[name] = torch.zeros_like(grad)
    update = split_as(grad * _rsqrt_of_mean(state, "square", grad.square() + eps1, beta2), grad)
    rms = update.square().mean().sqrt()
    update = update / (rms / group["clip_threshold"]).clamp(min=1.0)
    mean = state["update"].lerp_(update, 1 - beta1)
    if is_matrix:
        deviation = (update - mean).square() + eps2
        mean = split_as(mean * _rsqrt_of_mean(state, "deviation", deviation, beta3), grad)
    if group["weight_decay"]:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(mean.to(parameter.dtype), alpha=-group["lr"])


def _rsqrt_of_mean(state: dict[str, Tensor], name: str, values: Tensor, beta: float) -> Tensor:
    """Move a running mean towards `values`; 1 / its square root, of the shape of `values`.

    The mean of a matrix is kept as that of its rows r (n,) and columns c (m,), and is
    r c^T / mean(r).
    """
    if values.dim() < 2:
        return state[name].lerp_(values, 1 - beta).rsqrt()
    rows = state[f"{name}_rows"].lerp_(_mean(values, -1), 1 - beta)
    columns = state[f"{name}_columns"].lerp_(_mean(values, -2), 1 - beta)
    by_row = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt()
    return by_row.unsqueeze(-1) * columns.rsqrt().unsqueeze(-2)


def _mean(values: Tensor, dim: int) -> Tensor:
    """The mean over an axis; over one that is split among processes, each gets it whole."""
    return summed(values.mean(dim=dim))
