"""Runs one command in a forked process under limits, and says how it ended.

A fork costs a tenth of a new process. The parent must not have used torch's or Arrow's threads.
"""

import contextlib
import functools
import gc
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

LIMIT_S = 60.0
LIMIT_BYTES = 2 << 30
CRASHED = 70
FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class Ending:
    """How a command ended: status (negative: a signal), seconds, peak memory and what it wrote."""

    status: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str

    def fault(self) -> str | None:
        """What no damaged file may cause; None where the command ended as it should."""
        if self.seconds >= LIMIT_S:
            return f"no end after {LIMIT_S:.0f} s ({self.cpu_seconds:.0f} s of a processor)"
        if self.peak_bytes > LIMIT_BYTES or "not enough memory" in self.output:
            return f"takes {self.peak_bytes >> 20} MiB or more"
        if self.status < 0:
            return f"killed by signal {-self.status}"
        if self.status == CRASHED or "Traceback (most recent call last)" in self.output:
            lines = [line for line in self.output.splitlines() if line.strip()]
            places = re.findall(r'tarkit/(\S+)", line (\d+)', self.output)
            where = ":".join(places[-1]) if places else "?"
            return f"traceback at {where}: {lines[-1][:160]}"
        if self.status == 1 and not any(
            text in self.output for text in ("error: ", " faults", " failed, ")
        ):
            return "status 1 without a sentence"
        if self.status not in (0, 1, 2, 3):
            return f"status {self.status}"
        return None


@functools.cache
def _tarkit() -> Any:
    """The command line, built once: it takes half a second, more than most commands."""
    from tarkit.cli.app import app

    command = typer.main.get_command(app)
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all of its memory
    return command


def run_command(words: Sequence[str], folder: Path, log: Path) -> Ending:
    """`tarkit WORDS` in `folder`."""
    tarkit = _tarkit()
    return run_forked(lambda: tarkit(list(words), prog_name="tarkit"), folder, log)


def killed_command(
    words: Sequence[str], folder: Path, log: Path, *, number: int, name: str, after_s: float | None
) -> Ending:
    """As `run_command`, with a signal of `name` to itself.

    It comes after `after_s` seconds, or else before the file operation of this number (see
    `count_operations`).
    """
    tarkit = _tarkit()

    def command() -> None:
        sent = signal.Signals[name]
        if after_s is not None:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), sent))
            signal.setitimer(signal.ITIMER_REAL, after_s)
        else:
            _at_operation(number, lambda: os.kill(os.getpid(), sent))
        tarkit(list(words), prog_name="tarkit")

    return run_forked(command, folder, log)


def count_operations(words: Sequence[str], folder: Path, log: Path, count: Path) -> int:
    """How many file operations a command does within a folder `trial`."""
    tarkit = _tarkit()

    def command() -> None:
        done = _at_operation(0, lambda: None)
        try:
            tarkit(list(words), prog_name="tarkit")
        finally:
            number = done[0]
            count.write_text(str(number))

    ending = run_forked(command, folder, log)
    assert ending.status in (0, 3), ending.output
    return int(count.read_text())


def _at_operation(number: int, call: Callable[[], None]) -> list[int]:
    """Call before the file operation of this number in `trial`; the list holds the count so far."""
    done = [0]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            places = [str(a) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
            if any("trial" in place for place in places):
                done[0] += 1
                if done[0] == number:
                    call()

    sys.addaudithook(hook)
    return done


def run_forked(
    function: Callable[[], None], folder: Path, log: Path, *, limit_s: float | None = None
) -> Ending:
    """A function in a forked process whose output goes into `log`, until it ends or the limit."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(function, folder, log)
    status, usage, seconds = _wait(pid, limit_s or LIMIT_S)
    output = log.read_text(errors="replace")
    output = output if len(output) < 40_000 else output[:20_000] + output[-20_000:]
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Ending(status, seconds, cpu_seconds, usage.ru_maxrss * 1024, output)


def _wait(pid: int, limit_s: float) -> tuple[int, resource.struct_rusage, float]:
    """Status, usage and seconds of a process; what this one could not run itself is not counted."""
    pause, seconds, last = 0.002, 0.0, time.monotonic()
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        now = time.monotonic()
        seconds += min(now - last, 4 * pause)  # more is the wait of a machine with other work
        last = now
        if done:
            return os.waitstatus_to_exitcode(status), usage, seconds
        if seconds > limit_s:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            return os.waitstatus_to_exitcode(status), usage, seconds
        time.sleep(pause)
        pause = min(0.05, pause * 1.2)


def _child(function: Callable[[], None], folder: Path, log: Path) -> None:
    status = CRASHED
    try:
        os.setsid()
        warnings.resetwarnings()  # pytest makes errors of them, which no command does
        os.chdir(folder)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        memory = pages * resource.getpagesize() + 2 * LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
        function()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
