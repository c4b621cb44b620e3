"""Trackers, which show the figures of a training while it runs: tensorboard, wandb and trackio.

All are optional and are reached through accelerate. A tracker that fails while the training runs is
left out with a warning: metrics.jsonl holds every figure.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tarkit.artifacts.files import write_whole
from tarkit.errors import UserError
from tarkit.train.loop_config import LoopConfig, Tracker

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

log = logging.getLogger("tarkit")

HINTS: Mapping[Tracker, str] = {
    "tensorboard": "trackers=[]",
    "wandb": "wandb login, or set WANDB_MODE=offline in the environment",
    "trackio": "leave trackio out of trackers",
}


def required_trackers(config: LoopConfig) -> tuple[Tracker, ...]:
    """The trackers of a training; UserError for one that is not installed."""
    if config.trackers is None:
        return ("tensorboard",) if find_spec("tensorboard") else ()
    for name in config.trackers:
        if not find_spec(name):
            raise UserError(
                f"trackers names {name}, which is not installed",
                hint=f"pip install {name}, or leave it out of trackers",
            )
    return config.trackers


class Trackers:
    """The trackers of one training; only its main process has them."""

    def __init__(
        self,
        config: LoopConfig,
        out: Path,
        *,
        settings: Mapping[str, Any],
        first: int,
        sent: int,
    ) -> None:
        """`settings` are shown with the run. It is resumed after `first` steps, and trackers have
        got the figures of the first `sent`. Raises UserError where a tracker cannot start.
        """
        self.sent = sent
        self.running: dict[Tracker, GeneralTracker] = {}
        for name in required_trackers(config):
            tracker = _tracker(name, config.tracker_project, out, settings=settings, first=first)
            try:
                # stdout is for the result of a command, and trackers greet.
                with redirect_stdout(sys.stderr):
                    tracker.start()
            except Exception as error:  # of any package's own kind
                raise UserError(f"{name} cannot start: {error}", hint=HINTS[name]) from error
            self.running[name] = tracker

    def log(self, figures: Mapping[str, float], done: int) -> None:
        """Show the figures after `done` steps.

        A resumed training takes some steps again. tensorboard has dropped what it had of them and
        wandb ignores a step that it has; trackio would show both rows.
        """
        for name in list(self.running):
            if name == "trackio" and done <= self.sent:
                continue
            self._do(name, lambda tracker: tracker.log(dict(figures), step=done))

    def close(self) -> None:
        """End the run in every tracker, so that its last figures arrive."""
        for name in list(self.running):
            self._do(name, _finish)
        self.running.clear()

    def _do(self, name: Tracker, action: Callable[[GeneralTracker], None]) -> None:
        try:
            with redirect_stdout(sys.stderr):
                action(self.running[name])
        except Exception as error:  # a tracker must not end a training
            log.warning("%s fails and gets no more figures: %s", name, error)
            del self.running[name]


def _tracker(
    name: Tracker, project: str, out: Path, *, settings: Mapping[str, Any], first: int
) -> GeneralTracker:
    """A tracker that is not started yet; accelerate calls a project a run."""
    from accelerate import tracking

    if name == "tensorboard":
        return tracking.TensorBoardTracker("tensorboard", out, purge_step=first + 1)
    run_id = _run_id(out / "tracker_id")
    run: dict[str, Any] = {"name": f"{out.resolve().name}-{run_id[:8]}", "config": dict(settings)}
    if name == "wandb":
        return tracking.WandBTracker(project, dir=str(out), id=run_id, resume="allow", **run)
    return tracking.TrackioTracker(project, resume="allow", **run)


def _finish(tracker: GeneralTracker) -> None:
    if tracker.name == "trackio":
        import trackio

        # accelerate ends the run only, which trackio then ends again, on stdout, at exit.
        trackio.finish()
    else:
        tracker.finish()


def _run_id(file: Path) -> str:
    """What wandb and trackio know a training by; the same whenever it is resumed."""
    if not file.exists():
        write_whole(file, uuid4().hex.encode())
    return file.read_text()
