"""The batches of each step, made in the background while the step before is taken."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tarkit.train.loop_config import LoopConfig
from tarkit.train.parallelism import Parallelism
from tarkit.train.task import TrainingTask


def step_batches(
    task: TrainingTask, config: LoopConfig, processes: Parallelism, *, first: int, rows: int
) -> Generator[tuple[int, list[tuple[Any, float]]], None, None]:
    """Each step from `first` on with this process's micro-batches of `rows` rows and their weights.

    They are on the CPU; a thread makes the next step's meanwhile.
    """
    world = processes.world
    passes = config.batch_size // world // rows
    parts = range(processes.rank * passes, (processes.rank + 1) * passes)

    def make(step: int) -> list[tuple[Any, float]]:
        batches = [task.batch(step, rows, part, world * passes) for part in parts]
        return [(batch, task.weight(batch)) for batch in batches]

    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(make, first)
        for step in range(first, config.steps):
            batches = upcoming.result()
            if step + 1 < config.steps:
                upcoming = executor.submit(make, step + 1)
            yield step, batches
