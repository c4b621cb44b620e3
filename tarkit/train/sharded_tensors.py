"""Tensors of which each process of a training may hold a part: DTensors, split along one axis.

A tensor that is not split is taken as it is. All processes call these functions together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from tarkit.train.processes import sum_over_processes


def is_split(values: Tensor) -> bool:
    """Whether each process holds a part of a tensor."""
    return isinstance(values, DTensor)


def whole(values: Tensor) -> Tensor:
    """All values of a tensor, gathered from the processes."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def local(values: Tensor) -> Tensor:
    """The part of a tensor that this process holds; a view."""
    return values.to_local() if isinstance(values, DTensor) else values


def split_like(values: Tensor, like: Tensor) -> Tensor:
    """`values`, whole and equal on every process, split as `like` is and on its device."""
    values = values.to(like.device)
    if not isinstance(like, DTensor):
        return values
    # Without a source rank nothing is sent: each process cuts its part out of its own values.
    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)


def split_as(values: Tensor, like: Tensor) -> Tensor:
    """The result of an operation on split tensors, split as `like` is."""
    if not isinstance(values, DTensor) or not isinstance(like, DTensor):
        return values
    return values.redistribute(placements=like.placements)


def summed(values: Tensor) -> Tensor:
    """The result of a reduction, where each process has a summand: the sum, whole on each."""
    if not isinstance(values, DTensor) or not any(p.is_partial() for p in values.placements):
        return values
    return values.redistribute(placements=[Replicate()] * values.device_mesh.ndim)


@contextmanager
def whole_values(parameter: Tensor) -> Iterator[Tensor]:
    """All values of a parameter, to be changed in place by every process alike."""
    values = whole(parameter.data)
    yield values
    if isinstance(parameter, DTensor):
        local(parameter.data).copy_(local(split_like(values, parameter)))


@torch.no_grad()
def sum_of_squares(tensors: Iterable[Tensor]) -> float:
    """The sum of the squares of all values of tensors."""
    split, alone = list[Tensor](), list[Tensor]()
    for values in tensors:
        (split if isinstance(values, DTensor) else alone).append(local(values))
    total = _squares(alone)
    if split:
        total = total + sum_over_processes(_squares(split))
    return float(total)


def _squares(tensors: list[Tensor]) -> Tensor:
    precise = [values.to(torch.promote_types(values.dtype, torch.float32)) for values in tensors]
    squares = [values.pow(2).sum().double() for values in precise]
    return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)
