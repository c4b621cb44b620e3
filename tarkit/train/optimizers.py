"""Optimizers, and the hidden matrices that they and weight measures treat apart from tables.

Sources: AdamW and CAME (paper Table 8; came.py); Muon as in `torch.optim.Muon` (Jordan et al.
2024); shrinking (Ash & Adams 2020).
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from tarkit.config import Config
from tarkit.train.came import Came
from tarkit.train.sharded_tensors import is_split, sum_of_squares
from tarkit.train.weight_average import WeightAverage

TABLE_NAMES = ("embed", "lm_head", "output.weight", "abs_pe")


class OptimizerConfig(Config):
    """Settings of the optimizers. Defaults: paper, Table 8."""

    learning_rate: float = Field(ge=0)
    optimizer: Literal["adamw", "muon", "came"] = "adamw"
    muon_rate: float = Field(default=0.02, gt=0)
    """Learning rate of Muon, for hidden matrices; AdamW trains everything else."""
    betas: tuple[float, float] | tuple[float, float, float] = (0.9, 0.95)
    """Decay of the means that the optimizer keeps: two for AdamW, three for CAME."""
    weight_decay: float = Field(default=0.0, ge=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of an exponential moving average of the trained weights (weight_average.py), in
    float32: 4 bytes a trained value. Sample sheets, kept models and the saved model then have the
    averaged weights; the last weights themselves are not saved. None: no average. The paper states
    none; diffusion models are mostly used so (0.9999 in Ho et al. 2020, App. B)."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"ema"})

    @model_validator(mode="after")
    def _betas_fit(self) -> OptimizerConfig:
        # At 1 a mean never moves from its start, zero.
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)}: each must be at least 0 and below 1")
        needed = 3 if self.optimizer == "came" else 2
        if len(self.betas) != needed:
            raise ValueError(
                f"optimizer {self.optimizer} has {needed} betas, betas has {len(self.betas)}"
            )
        return self


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices between a model's tables, in the order of its parameters.

    A table's rows stand for symbols or positions: the weight of any `nn.Embedding`, and matrices
    with a name of `TABLE_NAMES` (output heads, and layers inside embeddings).
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and parameter.dim() == 2
        and id(parameter) not in embeddings
        and not any(part in name for part in TABLE_NAMES)
    ]


@torch.no_grad()
def shrink(model: nn.Module, factor: float) -> None:
    """Multiply every hidden matrix by a factor, in place."""
    for matrix in hidden_matrices(model):
        matrix.mul_(factor)


@torch.no_grad()
def weight_rms(model: nn.Module) -> float:
    """Root mean square of the values of all hidden matrices; 0 for a model without any.

    Behind normalisation layers, a step of a given size turns a matrix less the larger it is, and
    products of large matrices saturate attention: a figure that keeps growing calls for weight
    decay.
    """
    matrices = hidden_matrices(model)
    count = sum(matrix.numel() for matrix in matrices)
    return math.sqrt(sum_of_squares(matrices) / count) if count else 0.0


def make_optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW or CAME for everything, or Muon for the hidden matrices and AdamW for the rest.

    Weight decay applies to matrices only. Each parameter group keeps its full rate as `base_lr`.
    On CUDA, AdamW is torch's fused one. With `ema` a WeightAverage comes last.
    """
    hidden: list[nn.Parameter] = []
    if config.optimizer == "muon":
        hidden = hidden_matrices(model)
    hidden_ids = set(map(id, hidden))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in hidden_ids]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer]
    if len(config.betas) == 3:
        optimizers = [Came(groups, lr=config.learning_rate, betas=config.betas)]
    else:
        fused = all(is_split(p) == is_split(rest[0]) for p in rest) and rest[0].is_cuda
        optimizers = [
            torch.optim.AdamW(
                groups,
                lr=config.learning_rate,
                betas=config.betas,
                # One kernel for all parameters, which must be of one kind.
                fused=fused or None,
            )
        ]
    if hidden:
        optimizers.append(
            torch.optim.Muon(hidden, lr=config.muon_rate, weight_decay=config.weight_decay)
        )
    if config.ema is not None:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizers.append(WeightAverage(trained, decay=config.ema))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers
