"""The processes of a training as torchrun started them, and the rows that each reads."""

from __future__ import annotations

import os

import torch

from tarkit.errors import UserError
from tarkit.train.loop_config import LoopConfig
from tarkit.train.parallelism import DataParallel, Parallelism
from tarkit.train.sharding import FullySharded


def join_processes(config: LoopConfig, *, unused_parameters: bool) -> Parallelism:
    """The processes that torchrun started, which share the model as `config.sharding` says.

    Raises UserError where accelerate sees fewer processes than torchrun started, and where there
    are none to shard over.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    started = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        mixed_precision=config.precision,
        # Where there are only CPUs, accelerate ignores the other processes unless this is set.
        cpu=started > 1 and not torch.accelerator.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)],
    )
    if "WORLD_SIZE" in os.environ and accelerator.num_processes != started:
        raise UserError(
            f"torchrun started {started} processes, but accelerate trains with "
            f"{accelerator.num_processes}: each would train alone into one folder",
            hint="unset the ACCELERATE_* variables, or start one process",
        )
    if config.sharding == "none":
        return DataParallel(accelerator, config)
    if "WORLD_SIZE" not in os.environ:
        raise UserError(
            'sharding = "full" splits the model among the processes that torchrun starts, and '
            "this process was not started by it",
            hint="torchrun --nproc-per-node 8 --no-python tarkit train ..., or --set sharding=none",
        )
    return FullySharded(accelerator, config)


def rows_per_pass(config: LoopConfig, world: int) -> int:
    """Rows of one forward pass of each of `world` processes; UserError where they do not divide."""
    if config.batch_size % world:
        raise UserError(
            f"batch_size = {config.batch_size} does not divide by {world} processes",
            hint=f"--set batch_size={config.batch_size // world * world or world}",
        )
    rows = config.batch_size // world
    micro = config.micro_batch_size or rows
    if rows % micro:
        divisor = max(d for d in range(1, min(micro, rows) + 1) if rows % d == 0)
        raise UserError(
            f"micro_batch_size = {micro} does not divide the {rows} rows of a step "
            f"(batch_size = {config.batch_size}) that each of {world} processes reads",
            hint=f"--set micro_batch_size={divisor}",
        )
    return micro
