"""How much memory a device has. The total and not what is free now: batches stay the same."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

# Limits of a container, in the two versions of the kernel's control groups.
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of the machine; in a container no more than its limit."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in CONTAINER_LIMITS:
        # Without a limit the file is not there or holds the word `max`.
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(file.read_text(encoding="ascii")))
    return min(limits)
