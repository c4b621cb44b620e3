"""The matrix products of a piece of work and nothing else: what the library makes of its shapes.

A square product of 2,048 is the machine's ceiling; the narrower ones of a model reach less of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Products:
    """Products of random activations with weights, and attentions; a call runs them in order.

    Activations of one shape are one array, and all results are written over each other: only the
    weights of a model are many.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flops = 0.0
        self._products: list[tuple[Tensor, Tensor]] = []
        self._attentions: list[Tensor] = []
        self._inputs: dict[tuple[int, ...], Tensor] = {}
        self._output = torch.empty(0, device=device)

    def linear(self, rows: int, *weights: Tensor) -> None:
        """`rows` vectors, times each of some matrices (out, in)."""
        for weight in weights:
            width_out, width_in = weight.shape
            self._products.append((self._input(rows, width_in), weight.detach().T))
            self.flops += 2 * rows * width_in * width_out
            if rows * width_out > len(self._output):
                self._output = torch.empty(rows * width_out, device=self.device)

    def attention(self, times: int, batch: int, heads: int, positions: int, width: int) -> None:
        """Attention without a mask over some positions, `times` times over."""
        self._attentions += [self._input(batch, heads, positions, width)] * times
        self.flops += 4 * times * batch * heads * positions**2 * width

    def __call__(self) -> None:
        with torch.no_grad():
            for a, b in self._products:
                shape = (len(a), b.shape[1])
                torch.mm(a, b, out=self._output[: shape[0] * shape[1]].view(shape))
            for q in self._attentions:
                F.scaled_dot_product_attention(q, q, q)

    def _input(self, *shape: int) -> Tensor:
        if shape not in self._inputs:
            self._inputs[shape] = torch.randn(*shape, device=self.device)
        return self._inputs[shape]
