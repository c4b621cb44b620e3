"""What the machine at hand can do: the speed of its matrix products, measured, and its memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

SIDE, GPU_SIDE = 1024, 8192
TRIES = 5
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def products_per_s(
    device: torch.device, dtype: torch.dtype, *, side: int | None = None, tries: int = TRIES
) -> float:
    """FLOP/s of the best of a few products of square matrices: a ceiling, not a mean.

    One of them takes about .1 s on a core, and the first one warms up.
    """
    side = side or (GPU_SIDE if device.type == "cuda" else SIDE)
    matrix = torch.randn(side, side, device=device).to(dtype)
    seconds = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds[1:])


def memory_bytes(device: torch.device) -> int:
    """The memory of a GPU, or that of the machine which this process may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no limit, or no such file
        return whole
