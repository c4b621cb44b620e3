"""Shares shards, or what stands in one, among the cores of a machine; ranks.py among machines.

Each worker process computes in one thread: there are as many workers as cores.
"""

import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tarkit.errors import UserError, explained
from tarkit.progress import Progress


class _Refusal(NamedTuple):
    """A worker's UserError, on its way to the parent, which raises it."""

    message: str
    hint: str


ENDED = "a worker process ended{}; its traceback is above, or it was killed (out of memory?)"
WINDOW = 4
MOST_READERS = 8
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
Argument = TypeVar("Argument")
Result = TypeVar("Result")

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
    num_workers = min(len(names), num_workers or num_cores())
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
        with _one_thread_each():
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
                        raise RuntimeError(ENDED.format(f" with code {ended.exitcode}")) from None
    finally:
        for worker in workers.values():
            worker.terminate()


@contextlib.contextmanager
def mapping_workers(
    function: Callable[[Argument], Result], num_workers: int
) -> Iterator[Callable[[Iterable[Argument]], Iterator[Result]]]:
    """A map of `function` in `num_workers` processes, whose results come in order.

    Without workers it is done in this process. `function` is pickled; an argument must be small (a
    kilobyte), a result may be large. At most WINDOW arguments of a worker are under way. The map
    raises the UserError of a worker, and UserError when a worker ends.
    """
    if not num_workers:
        yield functools.partial(map, function)
        return
    context = multiprocessing.get_context("spawn")  # as below
    workers: list[BaseProcess] = []
    pipes: list[Connection] = []
    try:
        with _one_thread_each():
            for _ in range(num_workers):
                here, there = context.Pipe()
                workers.append(context.Process(target=_answer, args=(function, there), daemon=True))
                workers[-1].start()
                there.close()
                pipes.append(here)
        yield functools.partial(_in_order, pipes)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _in_order(pipes: Sequence[Connection], arguments: Iterable[Any]) -> Iterator[Any]:
    waiting: collections.deque[Connection] = collections.deque()
    try:
        for pipe, argument in zip(itertools.cycle(pipes), arguments, strict=False):
            if len(waiting) == WINDOW * len(pipes):
                yield _received(waiting.popleft())
            pipe.send(argument)
            waiting.append(pipe)
        while waiting:
            yield _received(waiting.popleft())
    except (EOFError, ConnectionError):
        raise UserError(
            ENDED.format(""), hint="with a smaller num_workers it needs less memory"
        ) from None


def _received(pipe: Connection) -> Any:
    result = pipe.recv()
    if isinstance(result, _Refusal):
        raise UserError(result.message, hint=result.hint)
    return result


def _answer(function: Callable[[Any], Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has ended, or was killed
        while True:
            argument = pipe.recv()
            try:
                result = function(argument)
            except Exception as fault:
                error = explained(fault)
                if error is None:
                    raise
                result = _Refusal(error.message, error.hint)
            pipe.send(result)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started meanwhile compute in one thread: libraries read this once."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def default_readers(device_type: str) -> int:
    """Processes that read ahead of a model: none on a CPU, whose cores the model itself uses.

    On a GPU one a core that is left when each process of the machine that has a model has its own,
    and at most MOST_READERS.
    """
    if device_type == "cpu":
        return 0
    of_process = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST_READERS, max(of_process - 1, 0))


def num_cores() -> int:
    """Cores that this process may use: in a container or job fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Main memory that this process may use, of which a container may have less than the machine.

    Processes that torchrun started on this machine share it.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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
