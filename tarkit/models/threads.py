"""How many threads torch computes with, beside other processes that need cores."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_at_most(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads, at least 1, or with as many as it has if fewer."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(1, count)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
