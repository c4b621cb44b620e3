"""The measured limits of the machine: matrix products by precision, and memory bandwidth.

A ceiling is the best of several tries and not the median: it says what the machine can do.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tarkit.bench.case import Floor
from tarkit.bench.timing import seconds_of

TRIES = 5
GEMM_SIDE, TINY_GEMM_SIDE = 2048, 128
GPU_GEMM_SIDE = 8192
ARRAY_BYTES, TINY_ARRAY_BYTES = 1 << 30, 1 << 20
"""Larger than any cache; a server's last-level cache holds some hundred MB."""
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Bound(NamedTuple):
    """The least time of a piece of work on this machine."""

    seconds: float
    by: str  # "products" or "memory": which of the two limits it


@dataclass(frozen=True)
class Ceilings:
    """Operations per second by precision, and bytes per second by kind of traffic."""

    gemm: Mapping[str, float]
    bandwidth: Mapping[str, float]

    def bound(self, floor: Floor) -> Bound | None:
        """The time of a floor; None where this machine has no products of its precision."""
        if floor.flops and floor.precision not in self.gemm:
            return None
        products = floor.flops / self.gemm[floor.precision] if floor.flops else 0.0
        memory = floor.bytes / max(self.bandwidth.values())
        return Bound(products, "products") if products >= memory else Bound(memory, "memory")


def probe(device: torch.device, *, tiny: bool = False) -> Ceilings:
    """Measure the ceilings of a device, with the threads that torch has now."""
    side = TINY_GEMM_SIDE if tiny else GPU_GEMM_SIDE if device.type == "cuda" else GEMM_SIDE
    gemm = {}
    for name, dtype in PRECISIONS.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        gemm[name] = 2 * side**3 / _best_s(_product(torch.mm, a, b), device)
    a, b = (torch.ones(side, side, dtype=torch.int8, device=device) for _ in range(2))
    try:
        # torch has no public product of int8 matrices that adds up in int32.
        gemm["int8"] = 2 * side**3 / _best_s(_product(torch._int_mm, a, b.T), device)
    except RuntimeError:
        pass  # this build or GPU has none
    size = (TINY_ARRAY_BYTES if tiny else ARRAY_BYTES) // 4
    x, y = torch.ones(size, device=device), torch.ones(size, device=device)
    square = x.view(-1, 1 << 10)
    vector = torch.ones(1 << 10, device=device)
    third = size // 3
    u, v, w = (x[i * third : (i + 1) * third] for i in range(3))
    bandwidth = {
        # A product with one vector is what a step of decoding is.
        "read": 4 * size / min(_best_s(x.sum, device), _best_s(lambda: square @ vector, device)),
        "copy": 8 * size / _best_s(lambda: y.copy_(x), device),
        "triad": 12 * third / _best_s(lambda: torch.add(v, w, alpha=0.5, out=u), device),
    }
    return Ceilings(gemm, bandwidth)


def _product(multiply: Callable[..., Any], a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any]:
    return lambda: multiply(a, b)


def _best_s(way: Callable[[], Any], device: torch.device) -> float:
    seconds_of(way, device)
    return min(seconds_of(way, device)[0] for _ in range(TRIES))


def machine(device: torch.device) -> dict[str, Any]:
    """Name, memory and threads of the machine, as a result of a measurement records them."""
    facts: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return facts


def _processor() -> str:
    """The name of the processor; Python itself knows it on few systems."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon and name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
