from typing import Any

import pytest

from tarkit import progress
from tarkit.progress import Progress


class Clock:
    """A clock that a test moves by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def test_a_line_states_done_rate_time_left_failures_and_metrics(clock: Clock) -> None:
    with Progress("encode", total=900, unit="pictures", done=100) as shown:
        clock.now += 8
        shown.advance(200, failed=2, loss=0.31)
        # 200 new in 8 s = 25/s; 900 - 300 = 600 left at 25/s = 24 s.
        assert shown.line() == (
            "encode: 300/900 pictures, 25.0/s, 0:00:24 left, 2 failed, loss 0.31"
        )


def test_slow_work_has_seconds_and_large_figures_have_no_exponent(clock: Clock) -> None:
    with Progress("train", total=5, unit="steps") as shown:
        clock.now += 36
        figures: dict[str, Any] = {"rows/s": 23456.7, "loss": 2.34567}
        shown.advance(2, **figures)
        # 36 s for two steps: 3 more take 54 s.
        assert shown.line() == (
            "train: 2/5 steps, 18.0 s each, 0:00:54 left, rows/s 23,457, loss 2.346"
        )


def test_away_from_a_terminal_a_line_comes_every_ten_seconds_and_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("render", total=40, unit="pictures") as shown:
        for _ in range(4):
            clock.now += 4
            shown.advance(10)  # seconds 4, 8, 12, 16: one line at 12, the next due at 22
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines()] == [
        "render: 30/40 pictures",
        "render: 40/40 pictures",
    ]


def test_an_unknown_total_shows_no_time_left(clock: Clock) -> None:
    with Progress("read", total=None, unit="rows") as shown:
        clock.now += 2
        shown.advance(3)
        assert shown.line() == "read: 3 rows, 1.5/s"
