"""What the processes of one training exchange: sums, and rows with their gradient.

Alone, a process gets back what it gives.

Letters: B rows of one process, W processes.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, distributed


def num_processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if _together() else 1


def own_device() -> torch.device:
    """The device that this process trains on: torchrun numbers the processes of a machine."""
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return torch.device("cpu")
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's `values`, equal to the last bit on all; no gradient flows."""
    if not _together():
        return values
    total = values.detach().to(_device(), copy=True)
    distributed.all_reduce(total)
    return total.to(values.device)


def rows_of_all_processes(rows: Tensor) -> Tensor:
    """Rows (B, ...) of each process -> the rows (W * B, ...) of all, in the order of processes.

    The gradient is right where every process computes the same loss from the result, and the
    gradients of parameters are then averaged over processes, as DistributedDataParallel does.
    """
    return _AllRows.apply(rows) if _together() else rows


class _AllRows(torch.autograd.Function):
    """Own rows get the gradient of the common loss, times W, which averaging divides by again.

    What comes after the rows is the same on every process, and needs no factor.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        own = rows.detach().to(_device()).contiguous()
        parts = [torch.empty_like(own) for _ in range(num_processes())]
        distributed.all_gather(parts, own)
        return torch.cat(parts).to(rows.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        world = num_processes()
        return gradient.chunk(world)[distributed.get_rank()] * world


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _device() -> torch.device:
    """The device whose tensors the processes can exchange: NCCL takes no tensor of a CPU."""
    device = torch.accelerator.current_accelerator()
    if device is None or distributed.get_backend() == "gloo":
        return torch.device("cpu")
    return device
