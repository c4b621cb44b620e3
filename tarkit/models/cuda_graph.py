"""A pass of a network as a CUDA graph: recorded once, then replayed by a single launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Runs a pass once and returns how to run it again, and the tensor that then holds its result.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


def record_cuda_graph(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A pass as a CUDA graph: the function that replays it, and the tensor of its result."""
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        # Libraries allocate at the first call, which a graph may not hold.
        run()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    return graph.replay, result
