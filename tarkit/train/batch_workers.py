"""Worker processes that read and decode the batches of a training ahead of its steps.

Each gets a copy of the task without its networks, and makes the batches of every n-th part. They
are torch's DataLoader's: it brings the batches in order, keeps two parts a worker ready and no
more, and its workers end by themselves, within seconds, when the training's process is gone.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import signal
import threading
from collections.abc import Generator, Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tarkit.errors import UserError
from tarkit.train.task import MakesPasses, TrainingTask

PARTS_AHEAD = 2  # of each worker


class BatchPart(NamedTuple):
    """The arguments of `TrainingTask.batch`."""

    step: int
    size: int
    part: int
    parts: int


def read_part(task: TrainingTask, part: BatchPart) -> list[Any]:
    """The batches of a part: several where the task makes all passes of a step together."""
    return task.passes(*part) if isinstance(task, MakesPasses) else [task.batch(*part)]


def read_in_workers(
    task: TrainingTask, parts: Iterable[BatchPart], num_workers: int
) -> Generator[list[Any], None, None]:
    """The batches of each part in order, as `read_part` makes them, from `num_workers` processes.

    Raises the UserError of a worker, and UserError where a worker was killed or the task cannot be
    copied.
    """
    loader = DataLoader(
        _Parts(without_networks(task)),
        sampler=parts,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=num_workers,
        prefetch_factor=PARTS_AHEAD,
        worker_init_fn=_begin_worker,
        # A fork of a process with threads, or with a GPU, may hang.
        multiprocessing_context="spawn",
    )
    batches = iter(loader)
    while True:
        try:
            read = next(batches, None)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise UserError(
                f"a worker process that read batches has ended: {str(error).splitlines()[0]}",
                hint="--set workers with a smaller number needs less memory; workers=0 reads in "
                "the training's own process",
            ) from None
        if read is None:
            return
        if isinstance(read, _WorkerError):
            raise UserError(read.message, hint=read.hint)
        yield read


class _WorkerError(NamedTuple):
    """A worker's UserError, on its way to the training's process, which raises it."""

    message: str
    hint: str


class _Parts(Dataset[Any]):
    """The task of a worker, by whose parts the DataLoader asks; unpickled in the worker."""

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled
        self.task: TrainingTask | None = None

    def __getitem__(self, part: BatchPart) -> list[Any] | _WorkerError:
        try:
            self.task = self.task or pickle.loads(self.pickled)
            return read_part(self.task, part)
        except UserError as error:
            return _WorkerError(error.message, error.hint)


def _begin_worker(number: int) -> None:
    """Leave Ctrl-C and a stop by SIGTERM to the training's process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    pa.set_cpu_count(1)


def _unchanged(batches: Any) -> Any:
    return batches


class WithoutWeights:
    """What is left of a network in a worker: its `arch` and `config`, which say its sizes."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        vars(self).update(sizes)


class _TaskPickler(pickle.Pickler):
    """Pickles a task for reading alone: caches are empty in the copy, locks free, networks gone."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            names = [name for name in ("arch", "config") if hasattr(value, name)]
            return WithoutWeights, ({name: getattr(value, name) for name in names},)
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return WithoutWeights, ({},)
        if isinstance(value, type(threading.Lock())):
            return threading.Lock, ()
        if isinstance(value, functools._lru_cache_wrapper):
            return _empty_cache, (value.__wrapped__, value.cache_parameters()["maxsize"])
        return NotImplemented


def _empty_cache(function: Any, maxsize: int) -> Any:
    return functools.lru_cache(maxsize=maxsize)(function)


def without_networks(task: object) -> bytes:
    """A task pickled for reading alone; UserError where it cannot be."""
    buffer = io.BytesIO()
    try:
        _TaskPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"this training cannot read in worker processes: {error}", hint="--set workers=0"
        ) from None
    return buffer.getvalue()
