"""The memory that a model needs, found without computing: its tensors are made on the meta device.

What libraries allocate inside of one operation is not seen. Attention is counted with its matrix of
all pairs, which the fused kernels do not make, so that the figure is rather too high.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Holder = TypeVar("Holder")


def on_meta(holder: Holder, models: Sequence[nn.Module]) -> Holder:
    """A deep copy of an object whose `models` have no values: it takes no memory."""
    tensors = itertools.chain.from_iterable((*m.parameters(), *m.buffers()) for m in models)
    memo = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    return copy.deepcopy(holder, memo)


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of tensors that `run` makes and holds at once, on the meta device."""
    with torch.device("meta"), torch.no_grad(), _LiveBytes() as live:
        run()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, and takes those off that are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and _key(tensor) not in given | self._alive:
                storage = tensor.untyped_storage()
                self._alive.add(_key(tensor))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, _key(tensor), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _freed(self, key: int, num_bytes: int) -> None:
        self._alive.discard(key)
        self.now -= num_bytes


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
