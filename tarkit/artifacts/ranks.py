"""The rank of this process, and the number of processes: each makes names[rank::world]."""

import os
import re

from tarkit.errors import UserError


def rank_and_world() -> tuple[int, int]:
    """(rank, number of processes) from the environment: torchrun's, else Slurm's, else (0, 1).

    A Slurm array of n tasks with m processes each makes n * m processes. The variables of a Slurm
    step are read only inside `srun`, because a batch script has SLURM_NTASKS too but runs once.
    Raises UserError for a variable that is missing or no number, or an array with a gap.
    """
    if "RANK" in os.environ or "WORLD_SIZE" in os.environ:
        return _checked(_number("RANK"), _number("WORLD_SIZE"))
    rank, world = 0, 1
    if "SLURM_STEP_ID" in os.environ or "SLURM_STEPID" in os.environ:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
        rank, world = _checked(_number("SLURM_PROCID"), _number(tasks))
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        first = _number("SLURM_ARRAY_TASK_MIN")
        last, count = _number("SLURM_ARRAY_TASK_MAX"), _number("SLURM_ARRAY_TASK_COUNT")
        if last - first + 1 != count:
            raise UserError(
                f"the Slurm array {first}-{last} has {count} tasks: a gap would leave shards out",
                hint=f"sbatch --array=0-{count - 1} ...",
            )
        place = _number("SLURM_ARRAY_TASK_ID") - first
        rank, world = _checked(place * world + rank, count * world)
    return rank, world


def _number(variable: str) -> int:
    text = os.environ.get(variable)
    if text is None or not re.fullmatch("[0-9]{1,9}", text):
        raise UserError(f"the environment variable {variable} is {text!r:.40}: expected a number")
    return int(text)


def _checked(rank: int, world: int) -> tuple[int, int]:
    if not rank < world:
        raise UserError(f"this is process {rank} of {world}: expected 0 to {world - 1}")
    return rank, world
