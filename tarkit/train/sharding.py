"""Fully sharded training: each process keeps a part of every weight, gradient and moment.

Source: Rajbhandari et al. 2020, "ZeRO", stage 3; torch's `fully_shard` (FSDP2). A block's weights
are gathered before it is computed, forward and backward, and dropped after it; what is in no block
is gathered once a pass. Each parameter, a DTensor, is split along its first axis.

With `precision = "bf16"` weights, gradients that are summed over passes and processes, and
moments are float32. Blocks are gathered, and the gradients of a pass computed, in bf16; weights
outside of blocks (tables, heads, codebooks) are gathered in float32, so that codes are chosen as in
data parallel training. Autocast is on in both.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from tarkit.train.blocks import blocks_of, set_training_forward
from tarkit.train.parallelism import Parallelism
from tarkit.train.processes import sum_over_processes
from tarkit.train.sharded_tensors import sum_of_squares, whole


class FullySharded(Parallelism):
    """Each process has a part of the model.

    The task's own model stays whole, on the CPU of the main process; its weights are those of the
    last `collect`. For sheets and measures the main process copies it to the device: to draw with
    parts would gather the whole model for every token. Other processes wait meanwhile, but not in
    NCCL, which gives up after ten minutes (`Checkpoints.wait_for_all`).
    """

    def prepare(self, model: nn.Module) -> None:
        self.whole = model
        # Other processes need no second copy.
        self.trained = copy.deepcopy(model) if self.is_main else model
        # A sharded parameter must be contiguous; the image VQ's are channels last.
        self.trained.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._start_equal()
        set_training_forward(self.trained, self.config)
        # FSDP2 splits no scalar. In a list: processes must take them in the same order.
        self.replicated = [p for p in self.trained.parameters() if p.dim() == 0]
        for scalar in self.replicated:
            scalar.data = scalar.data.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.world,))
        bf16 = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        policy = bf16 if self.config.precision == "bf16" else MixedPrecisionPolicy()
        ignored = set(self.replicated)
        for block in blocks_of(self.trained):
            fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=ignored)
        fully_shard(self.trained, mesh=mesh, ignored_params=ignored)
        self.model = self.trained
        if self.config.precision == "bf16":
            self.model.register_forward_hook(_in_float32)

    def _start_equal(self) -> None:
        """Give every process the main process's weights, as DistributedDataParallel does."""
        for values in [*self.trained.parameters(), *self.trained.buffers()]:
            on_device = values.detach().to(self.device)
            distributed.broadcast(on_device, 0)
            values.data.copy_(on_device)

    @contextmanager
    def exchange(self, last: bool) -> Iterator[None]:
        """Parts of gradients are averaged and summed after each pass: none is ever held whole."""
        yield
        if last:
            for scalar in self.replicated:
                if scalar.grad is not None:
                    scalar.grad.copy_(sum_over_processes(scalar.grad) / self.world)

    def clip(self, max_norm: float) -> float:
        gradients = [p.grad for p in self.trained.parameters() if p.grad is not None]
        norm = math.sqrt(sum_of_squares(gradients))
        factor = max_norm / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_
        if factor < 1:
            for gradient in gradients:
                gradient.mul_(factor)
        return norm

    def collect(self) -> None:
        target = self.whole.state_dict()
        for name, values in self.trained.state_dict().items():
            gathered = whole(values)
            if self.is_main:
                target[name].copy_(gathered)

    @contextmanager
    def own_model_on_device(self) -> Iterator[bool]:
        values = [*self.whole.parameters(), *self.whole.buffers()]
        on_cpu = [value.data for value in values]
        try:
            fits = _replace(values, (own.to(self.device) for own in on_cpu))
            if not fits:
                _replace(values, on_cpu)
            yield fits
        finally:
            _replace(values, on_cpu)
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()  # NCCL has no room in what torch keeps


def _replace(values: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Give tensors the data of others; False where a device has no room for those."""
    try:
        for value, other in zip(values, others, strict=True):
            value.data = other
    except torch.OutOfMemoryError:
        return False
    return True


def _in_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """A hook that turns the outputs of a model to float32, as accelerate does."""
    from accelerate.utils import convert_to_fp32

    return convert_to_fp32(outputs)
