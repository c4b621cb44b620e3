"""Progress on stderr: a bar on a terminal, one plain line every ten seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from tarkit.terminal import print_note, printable

LINE_EVERY_S = 10.0


class Progress:
    """Counts finished work: `with Progress("encode", total=9, unit="pictures") as p: p.advance(3)`.

    Shows rate, time left, failures and the metrics named in `advance(n, failed=1, loss=.3)`.
    """

    def __init__(self, name: str, *, total: int | None, unit: str, done: int = 0) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.already_done = done
        self.failed = 0
        self.metrics: dict[str, float] = {}
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        self._started = self._last_line = time.monotonic()
        if sys.stderr.isatty():
            self._bar = _terminal_bar()
            self._bar.start()
            self._task = self._bar.add_task(
                self.name, total=self.total, completed=self.done, note=""
            )
        return self

    def advance(self, count: int = 1, *, failed: int = 0, **metrics: float) -> None:
        """`count` more are done, of which `failed` failed; metrics replace those shown before."""
        self.done += count
        self.failed += failed
        self.metrics |= metrics
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note())
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            print_note(self.line())

    def message(self, text: str) -> None:
        """Print a line to stderr, above the bar when there is one."""
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False)
        else:
            print_note(text)

    def line(self) -> str:
        """For example `encode: 300/900 pictures, 12.5/s, 0:00:48 left, 2 failed, loss 0.31`."""
        elapsed_s = time.monotonic() - self._started
        rate = (self.done - self.already_done) / elapsed_s if elapsed_s > 0 else 0.0
        of_total = f"/{self.total}" if self.total is not None else ""
        # A step of a large training takes longer than a second.
        speed = f"{1 / rate:.1f} s each" if 0 < rate < 1 else f"{rate:.1f}/s"
        parts = [f"{self.done}{of_total} {self.unit}", speed]
        if self.total is not None and rate > 0:
            rest_s = int((self.total - self.done) / rate)
            parts.append(f"{rest_s // 3600}:{rest_s // 60 % 60:02}:{rest_s % 60:02} left")
        note = self._note()
        return f"{self.name}: " + ", ".join(parts + ([note] if note else []))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            print_note(self.line())

    def _note(self) -> str:
        failed = [f"{self.failed} failed"] if self.failed else []
        return ", ".join(failed + [f"{key} {_short(value)}" for key, value in self.metrics.items()])


def _short(value: float) -> str:
    """Four digits, or all of those before the point."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def _terminal_bar() -> Any:
    # Importing rich takes about 60 ms, so only a terminal pays for it.
    import rich.console
    import rich.progress as bars

    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TaskProgressColumn(show_speed=True),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[note]}", markup=False),
        console=rich.console.Console(stderr=True),
        # The time left is known only where two advances are this near to each other.
        speed_estimate_period=600.0,
    )
