"""Codes are chosen in float32, whatever precision the training around them uses.

An argmax over thousands of codes turns on the last digits: in bfloat16 every tenth code is another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the tensor's device (the meta device has none to turn off)."""
    if tensor.is_meta:
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


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
    with (
        without_autocast(torch.empty(0, device=device)),
        cudnn.flags(**kept, allow_tf32=False),
    ):
        yield
