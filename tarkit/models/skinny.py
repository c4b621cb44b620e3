"""Products of a few rows with a large weight, as every decoding step does, in their fastest form.

y = x W^T with 1 to 32 rows takes as long as it takes to read W, if the library's kernel keeps up.
It often does not: `F.linear` reads W at a quarter to a half of memory's speed for 2 rows on one
processor and for 4 on another. The same product has other forms, which need no copy of W and differ
from it in the order of sums alone. `measure_forms` times them on this machine; what `use_forms` is
given holds for the process. Which form a product takes depends on its rows, on whether W is tall,
and on its type of numbers, never on the time of day: the same table gives the same bits.

Weights in the packed layouts of oneDNN, which would replace W, were at most 1.15 times as fast as
the fastest of these forms, and slower with 1 and 2 rows. One product for the layers that read the
same input (q, k and v; gate and up) took as long as one for each.

Letters: M rows, I inputs, O outputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_ROWS = 32
INT8_ROWS = 16
"""More rows of int8 weights are multiplied in their own type."""
MIN_WEIGHTS = 2**19
"""A smaller weight lies in a cache near the core, and its product takes the time of its call."""
BLOCK = 32
"""Outputs of one product of a batch; a block of this size is read once for all rows."""


def _turned(x: Tensor, weight: Tensor) -> Tensor:
    """(W x^T)^T."""
    return (weight @ x.t().contiguous()).t()


def _blocks(x: Tensor, weight: Tensor) -> Tensor:
    """A batch of O / 32 products, each with 32 outputs."""
    (M, inputs), outputs = x.shape, weight.shape[0]
    if outputs % BLOCK:
        return F.linear(x, weight)
    blocks = weight.view(outputs // BLOCK, BLOCK, inputs).transpose(1, 2)
    out = torch.bmm(x.expand(len(blocks), M, inputs), blocks)
    return out.transpose(0, 1).reshape(M, outputs)


def _turned_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """As `_blocks`, each product the other way round: fastest with about 16 rows."""
    (M, inputs), outputs = x.shape, weight.shape[0]
    if outputs % BLOCK:
        return F.linear(x, weight)
    count = outputs // BLOCK
    turned = x.t().contiguous().expand(count, inputs, M)
    out = torch.bmm(weight.view(count, BLOCK, inputs), turned)
    return out.view(outputs, M).t().contiguous()


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": F.linear,
    "turned": _turned,
    "blocks": _blocks,
    "turned blocks": _turned_blocks,
}
# The form by type of numbers and shape of W ("float32 tall", "float32 wide"), for 1 to 32 rows.
Forms = Mapping[str, list[str]]

_forms: dict[str, list[str]] = {}


def kind_of(weight: Tensor) -> str:
    """The key of a weight in `Forms`."""
    tall = weight.shape[0] >= weight.shape[1]
    return f"{str(weight.dtype).removeprefix('torch.')} {'tall' if tall else 'wide'}"


def use_forms(forms: Forms) -> None:
    """Take these forms from now on, beside those of other keys; without a key, `F.linear`."""
    _forms.update(forms)


def are_forms(value: object) -> bool:
    """Whether a value, for example of a file, can be given to `use_forms`."""
    return isinstance(value, dict) and all(
        isinstance(names, list)
        and len(names) == MAX_ROWS
        and all(isinstance(name, str) and name in FORMS for name in names)
        for names in value.values()
    )


@torch.no_grad()
def measure_forms(dtype: torch.dtype) -> dict[str, list[str]]:
    """The fastest form of products with weights in `dtype` on this machine's processor.

    A form other than `F.linear` is taken where it is 1.15 times as fast, so that chance does not
    decide between equals. Of each form the shortest of five times counts, which lie some tenths of
    a second apart: what else the machine does may lengthen some of them. Takes about two seconds.
    """
    probed = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    # 64 MB in float32: more than the caches near the cores hold.
    weights = {
        shape: list(torch.empty(4, *shape, dtype=dtype).normal_())
        for shape in ((4096, 1024), (1024, 4096))
    }
    inputs = {
        (shape, rows): torch.empty(rows, shape[1], dtype=dtype).normal_()
        for shape in weights
        for rows in probed
    }
    shortest: dict[tuple[tuple[int, int], int, str], float] = {}
    for _ in range(5):
        for (shape, rows), x in inputs.items():
            for name, form in FORMS.items():
                started = time.perf_counter()
                for weight in weights[shape]:
                    form(x, weight)
                seconds = time.perf_counter() - started
                key = (shape, rows, name)
                shortest[key] = min(seconds, shortest.get(key, seconds))
    measured: dict[str, list[str]] = {}
    for shape in weights:
        best: dict[int, str] = {}
        for rows in probed:
            times = {name: shortest[shape, rows, name] for name in FORMS}
            fastest = min(times, key=lambda name: times[name])
            best[rows] = fastest if times["linear"] >= 1.15 * times[fastest] else "linear"
        # Between two measured numbers of rows, that of the larger one.
        measured[kind_of(weights[shape][0])] = [
            best[next(rows for rows in probed if rows >= count)] for count in range(1, MAX_ROWS + 1)
        ]
    return measured


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, (..., I) and (O, I) -> (..., O): `F.linear` but for the order of its sums.

    With more than 32 rows, for gradients, on a GPU and for a small weight it is `F.linear`.
    """
    rows = x.numel() // x.shape[-1]
    if (
        not 0 < rows <= MAX_ROWS
        or torch.is_grad_enabled()
        or weight.numel() < MIN_WEIGHTS
        or weight.device.type != "cpu"
        or x.dtype != weight.dtype
    ):
        return F.linear(x, weight, bias)
    names = _forms.get(kind_of(weight))
    name = names[rows - 1] if names else "linear"
    if name == "linear":
        return F.linear(x, weight, bias)
    out = FORMS[name](x.reshape(rows, -1), weight)
    out = out if bias is None else out + bias
    return out.reshape(*x.shape[:-1], weight.shape[0])


class SkinnyLinear(nn.Linear):
    """A linear layer that computes `product`."""

    def forward(self, input: Tensor) -> Tensor:
        return product(input, self.weight, self.bias)


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers with a scale for each output.

    W[o] = int8[o] * max|W[o]| / 127. A few rows are multiplied in bfloat16, and a quarter of the
    bytes of float32 is read; more rows take the weights in their own type again, row for row.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.float().abs().amax(1).clamp(min=1e-12) / 127
        self.int8: Tensor
        self.scale: Tensor
        self.scale16: Tensor
        self.register_buffer("int8", (weight.float() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("scale16", scale.bfloat16())
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if rows <= INT8_ROWS and x.device.type == "cpu":
            flat = x.reshape(rows, -1).bfloat16()
            out = torch._weight_int8pack_mm(flat, self.int8, self.scale16).to(x.dtype)
            out = out if self.bias is None else out + self.bias
            return out.reshape(*x.shape[:-1], self.out_features)
        return F.linear(x, (self.int8 * self.scale[:, None]).to(x.dtype), self.bias)


def use_products(module: nn.Module, *, int8: bool = False) -> None:
    """Make the linear layers in a module, which is no such layer itself, compute `product`.

    With `int8` those of at least 2^16 weights become `Int8Linear`, for drawing and reading alone:
    their weights have no gradient. Only for a module without weights that are tied to others.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear and type(child) is not SkinnyLinear:
                continue
            if int8 and child.weight.numel() >= 2**16:
                setattr(parent, name, Int8Linear(child))
            else:
                child.__class__ = SkinnyLinear
