"""Shares shards among the cores of one machine; ranks.py shares them among machines."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple

from tarkit.errors import UserError, explained
from tarkit.progress import Progress


class _Refusal(NamedTuple):
    """A worker's UserError, on its way to the parent, which raises it."""

    message: str
    hint: str


Report = Callable[[int, int], None]
"""Takes the numbers of rows that are done and, among them, failed since the last call."""

Job = Callable[[str, Report], None]
"""Writes the shard of a name and reports its rows."""


def make_shards(job: Job, names: Sequence[str], *, num_workers: int, progress: Progress) -> None:
    """Calls `job(name, report)` for every name, in `num_workers` processes; 0 is one per core.

    With more than one process the job is pickled, and worker i makes the shards
    `names[i::num_workers]`. Raises the UserError of a worker, or RuntimeError when a worker ends
    with another error.
    """
    num_workers = min(len(names), num_workers or _num_cores())
    if num_workers > 1:
        _in_processes(job, names, num_workers, progress)
        return
    for name in names:
        job(name, lambda done, failed: progress.advance(done, failed=failed))


def _in_processes(job: Job, names: Sequence[str], num_workers: int, progress: Progress) -> None:
    # Spawned and not forked: a fork of a process with threads may hang, and siblings would
    # inherit each other's pipes and so outlive a parent that was killed.
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    try:
        for index in range(num_workers):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (job, names[index::num_workers], sender)
            workers[receiver] = context.Process(target=_work, args=arguments, daemon=True)
            workers[receiver].start()
            sender.close()
        while workers:
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection)
                try:
                    message = ready.recv()
                    if isinstance(message, _Refusal):
                        raise UserError(message.message, hint=message.hint)
                    done, failed = message
                    progress.advance(done, failed=failed)
                except EOFError:
                    ended = workers.pop(ready)
                    ended.join()
                    if ended.exitcode != 0:
                        raise RuntimeError(
                            f"a worker process ended with code {ended.exitcode}; its traceback "
                            "is above, or it was killed (out of memory?)"
                        ) from None
    finally:
        for worker in workers.values():
            worker.terminate()


def _work(job: Job, names: Sequence[str], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    try:
        for name in names:
            job(name, lambda done, failed: sender.send((done, failed)))
    except BrokenPipeError:  # the parent was killed
        return
    except Exception as fault:
        error = explained(fault)
        if error is None:
            raise
        sender.send(_Refusal(error.message, error.hint))


def _num_cores() -> int:
    """Cores that this process may use: in a container or job fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
