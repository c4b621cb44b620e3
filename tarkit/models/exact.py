"""Codes are chosen in float32, whatever precision the training around them uses.

An argmax over thousands of codes turns on the last digits: in bfloat16 every tenth code is another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Switch autocast and the GPU's 19-bit convolutions (TF32, cuDNN's default) off, for a while.

    Takes no effect on a model whose weights are not float32.
    """
    cudnn = torch.backends.cudnn
    kept = {
        "enabled": cudnn.enabled,
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
    }
    with torch.autocast(device.type, enabled=False), cudnn.flags(**kept, allow_tf32=False):
        yield
