"""What is measured: one piece of work, the ways to do it, and the least that it takes.

A file of tarkit/bench/cases/ has a function `cases(settings)` that yields a `Case` for each piece
of work. It yields them one by one, so that only the models of one case are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The arithmetic and the memory traffic that a piece of work takes at least."""

    flops: float = 0.0
    """Operations of its matrix products; a multiplication and an addition are two."""
    bytes: float = 0.0
    """Bytes that it has to move between memory and processor, for example weights read once."""
    precision: str = "float32"
    """Number format of the products."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One piece of work and the ways to do it, each a function without arguments.

    A way returns its result, which `agreement` compares, or None.
    """

    name: str
    ours: Callable[[], Any]
    against: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    """The other ways by name. "stock": a plain program with torch and transformers, as a careful
    user would write it. "published": as the published program does it, where that differs.
    "products": the matrix products of the work and nothing else, which no program with the same
    library can beat. Other names are variants of our own, for example "int8"."""
    floor: Floor | None = None
    count: int = 1
    """Number of units that the work makes."""
    unit: str = "run"
    agreement: Callable[[Any, Any], float] | None = None
    """Share in [0, 1] in which our result and another way's are equal; None: not compared."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What all cases are built with."""

    tiny: bool
    """Small models: shows that the cases run, says nothing about speed."""
    device: torch.device
    seed: int
    folder: Path
    """An empty folder for files, deleted afterwards."""

    def generator(self) -> torch.Generator:
        """A CPU generator, so that a seed means the same on every device."""
        return torch.Generator().manual_seed(self.seed)


def equal_share(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Share of equal entries of two tensors of whole numbers, of one shape."""
    return float((ours.cpu() == other.cpu()).double().mean())


def close_share(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Share of entries that differ by at most 1e-3 of the largest magnitude."""
    ours, other = ours.detach().cpu().float(), other.detach().cpu().float()
    return float(((ours - other).abs() <= 1e-3 * other.abs().max()).double().mean())
