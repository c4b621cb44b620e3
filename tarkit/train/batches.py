"""The batches of each step, read ahead while the steps before are taken.

A batch is a function of the step and of which part of it is read. It is therefore the same, to the
last bit, whatever reads it: a thread of this process, or worker processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any

from tarkit.artifacts.workers import default_readers
from tarkit.train.batch_workers import BatchPart, read_in_workers, read_part
from tarkit.train.loop_config import LoopConfig
from tarkit.train.parallelism import Parallelism
from tarkit.train.task import MakesPasses, TrainingTask


def step_batches(
    task: TrainingTask, config: LoopConfig, processes: Parallelism, *, first: int, rows: int
) -> Generator[tuple[int, list[tuple[Any, float]]], None, None]:
    """Each step from `first` on with this process's micro-batches of `rows` rows and their weights.

    They are on the CPU. Raises UserError where the data has a fault or a worker process was killed.
    """
    rank, world = processes.rank, processes.world
    if isinstance(task, MakesPasses):
        rows = config.batch_size // world
    num_parts = config.batch_size // world // rows

    def all_parts() -> Iterator[BatchPart]:
        for step in range(first, config.steps):
            for part in range(rank * num_parts, (rank + 1) * num_parts):
                yield BatchPart(step, rows, part, world * num_parts)

    readers = default_readers(processes.device.type)
    workers = readers if config.workers is None else config.workers
    read = (
        read_in_workers(task, all_parts(), workers)
        if workers
        else _read_in_thread(task, all_parts(), ahead=num_parts)
    )
    with closing(read):
        for step in range(first, config.steps):
            batches = [batch for _ in range(num_parts) for batch in next(read)]
            yield step, [(batch, task.weight(batch)) for batch in batches]


def _read_in_thread(
    task: TrainingTask, parts: Iterator[BatchPart], *, ahead: int
) -> Generator[list[Any], None, None]:
    """The batches of each part; those of the next `ahead` parts are read meanwhile."""
    with ThreadPoolExecutor(1) as executor:
        upcoming: deque[Future[list[Any]]] = deque()
        upcoming.extend(executor.submit(read_part, task, part) for part in islice(parts, ahead))
        try:
            while upcoming:
                batches = upcoming.popleft().result()
                upcoming.extend(executor.submit(read_part, task, part) for part in islice(parts, 1))
                yield batches
        finally:
            for future in upcoming:
                future.cancel()
