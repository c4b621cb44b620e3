"""SIGTERM and Ctrl-C during a training: the step is finished and saved before the process ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch

from tarkit.terminal import print_note
from tarkit.train.processes import sum_over_processes

SAME_PRESS_S = 1.0
"""One Ctrl-C reaches a process twice within this time: torchrun passes on what the terminal sent
to all."""
WAIT = b"\nthe step is finished and saved first; Ctrl-C again ends at once\n"


class StopSignals:
    """A context in which signals ask a training to stop, in place of ending its process.

    Once the state is saved, SIGTERM ends the process with status 0, and Ctrl-C with
    KeyboardInterrupt; a second Ctrl-C ends it at once. Only the main thread can receive signals: in
    another one nothing changes.
    """

    def __init__(self, *, is_main_process: bool) -> None:
        """`is_main_process`: the one of the training's processes that says where it stopped."""
        self._is_main_process = is_main_process
        self._received: signal.Signals | None = None
        self._received_at = 0.0
        self._saved_after: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_any(self) -> bool:
        """Whether a process of the training has been asked to stop: the same answer on all."""
        return bool(sum_over_processes(torch.tensor(float(self._received is not None))))

    def end(self, done: int) -> None:
        """End the process; the state after `done` steps is saved."""
        interrupted = self._received == signal.SIGINT
        if self._is_main_process:
            line = f"{'saved' if interrupted else 'stopped'} after step {done}"
            # The command line says it of an interrupted command.
            line += "" if interrupted else "; the same command goes on from here"
            print_note(line)
        if interrupted:
            raise KeyboardInterrupt
        raise SystemExit(0)

    def end_at_once_from_now(self, done: int) -> None:
        """Let a signal end the process at once: the state after the last step, `done`, is saved."""
        self._saved_after = done
        if self._received is not None:  # during the last step
            self.end(done)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self._received == number == signal.SIGINT
        if again and time.monotonic() - self._received_at > SAME_PRESS_S:
            raise KeyboardInterrupt
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()
            if self._saved_after is not None:
                self.end(self._saved_after)
            if self._is_main_process and number == signal.SIGINT:
                # Not print: the signal may have come within another one.
                os.write(sys.stderr.fileno(), WAIT)
