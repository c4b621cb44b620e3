"""Published peaks and memory of GPUs that trainings are planned for."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """One GPU as its vendor describes it; sparsity is never counted."""

    bf16_flops: float  # dense FLOP/s of the tensor cores, bf16 in and float32 sums
    fp32_flops: float  # FLOP/s without tensor cores: torch multiplies float32 so by default
    memory: float  # bytes

    def peak(self, precision: str) -> float:
        """FLOP/s of a training whose `precision` is "bf16" or "no"."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


USABLE = 0.94
"""Share of the memory that tensors can fill: the CUDA context, NCCL's buffers and the holes of the
allocator take the rest. An estimate, not a published figure."""

# Sources: NVIDIA's data sheets of H100 (SXM), H200 (SXM), A100 (SXM) and L40S; for the RTX 4090 the
# white paper "NVIDIA Ada GPU Architecture", App. A. Where a sheet prints tensor figures with
# sparsity, this is their half.
GPUS = {
    "h100": Gpu(989e12, 67e12, 80e9),
    "h200": Gpu(989e12, 67e12, 141e9),
    "a100-40": Gpu(312e12, 19.5e12, 40e9),
    "a100-80": Gpu(312e12, 19.5e12, 80e9),
    "l40s": Gpu(362e12, 91.6e12, 48e9),
    "rtx4090": Gpu(165e12, 82.6e12, 24e9),
}

# By the name that the driver gives. The PCIe and NVL models of H100 and H200 have other peaks than
# the sheets above, so they are not here; an A100 has the same in both forms.
_NAMES = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA A100 80GB PCIe": "a100-80",
    "NVIDIA L40S": "l40s",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}


def gpu_named(name: str) -> Gpu | None:
    """The GPU that torch names so, None where its peak is not known: it is never guessed."""
    return GPUS[_NAMES[name]] if name in _NAMES else None
