"""Bad steps: a loss or a gradient that is not finite, and a loss that is a spike.

Their rows are listed in `bad_rows.jsonl`: step, reason, loss, source and key of each. Steps are
counted from 1, as in metrics.jsonl. `loss` is that of the forward pass with the row. Where the loss
of some passes is not finite, their rows alone are listed.

All that decides about a step is a sum over the processes, so they decide alike.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tarkit.errors import UserError
from tarkit.train.loop_config import LoopConfig
from tarkit.train.processes import sum_over_processes
from tarkit.train.sharded_tensors import local, whole
from tarkit.train.state import Checkpoints
from tarkit.train.task import NamesRows, TrainingTask

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger("tarkit")

BAD_ROWS = "bad_rows.jsonl"


class Guard:
    """Decides whether a step is taken, skipped, or ends the training."""

    def __init__(
        self,
        task: TrainingTask,
        config: LoopConfig,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        *,
        out: Path,
        rows: int,
    ) -> None:
        """`rows`: of one forward pass of a process."""
        self.task = task
        self.config = config
        self.accelerator = accelerator
        self.rows = rows
        self.file = out / BAD_ROWS
        self.checkpoints = checkpoints
        # Running mean and variance of the losses of steps that were taken, and their number.
        self.mean = self.variance = 0.0
        self.taken = 0
        self.skipped = self.skipped_in_a_row = 0

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs to decide alike."""
        return {
            "mean": self.mean,
            "variance": self.variance,
            "taken": self.taken,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """`state` may be empty: older versions had no such state."""
        for name in self.state_dict():
            setattr(self, name, state.get(name, getattr(self, name)))

    def admits(
        self, step: int, loss: float, grad_norm: float, passes: Sequence[tuple[Any, Tensor]]
    ) -> bool:
        """Whether to take a step of this loss and gradient norm; False: to skip it.

        `passes` are batch and loss () of this process's forward passes. Raises UserError where the
        training is to stop; its weights are then those before the step.
        """
        config = self.config
        for name, number in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(number):
                reason = f"{name} of step {step + 1} is {number}"
                self._list_rows(step, reason, passes, only_bad=name == "loss")
                return self._skip(reason, "on_nonfinite", config.on_nonfinite)
        limit = self.mean + config.spike_deviations * math.sqrt(self.variance)
        active = config.on_spike != "ignore" and self.taken >= config.spike_window
        if active and loss > limit:
            reason = f"loss of step {step + 1} is {loss:.6g}, a spike above {limit:.6g}"
            self._list_rows(step, reason, passes, only_bad=False)
            return self._skip(reason, "on_spike", config.on_spike)
        self._add(loss)
        return True

    def require_finite_weights(self, model: nn.Module, step: int) -> None:
        """Raise UserError before weights that are not finite take the last good state's place.

        All processes raise it, whichever holds such a weight.
        """
        weights = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        bad = torch.tensor([not bool(local(v).isfinite().all()) for v in weights.values()])
        for index in sum_over_processes(bad.int()).nonzero()[:, 0].tolist():
            name, values = list(weights.items())[index]
            largest = float(whole(values).abs().max())
            raise self._stop(
                f"largest value of {name} after the update of step {step + 1} is {largest}", ""
            )

    def _add(self, loss: float) -> None:
        """Take a loss into the running mean and variance."""
        share = 1 / min(self.taken + 1, self.config.spike_window)
        difference = loss - self.mean
        self.mean += share * difference
        self.variance = (1 - share) * (self.variance + share * difference**2)
        self.taken += 1
        self.skipped_in_a_row = 0

    def _skip(self, reason: str, key: str, policy: str) -> bool:
        """False: the step is skipped; UserError where the policy is to stop, or at the limit."""
        if policy != "skip":
            raise self._stop(reason, f"--set {key}=skip, or ")
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.config.max_skipped:
            limit = self.config.max_skipped
            reason = f"{reason}, after {limit} skipped steps"
            raise self._stop(reason, f"--set max_skipped={2 * limit or 1}, or ")
        if self.accelerator.is_main_process:
            log.warning("the %s: the step is skipped%s", reason, self._listed())
        return False

    def _stop(self, reason: str, other: str) -> UserError:
        self.checkpoints.settle()
        last_state = self.checkpoints.latest or "not yet written"
        return UserError(
            f"the {reason}; the last good state is {last_state}{self._listed() if other else ''}",
            hint=f"{other}lower learning_rate (now {self.config.learning_rate}) and use another "
            "--out: the same command would come to the same step",
        )

    def _listed(self) -> str:
        return f"; {self.file} lists its rows" if self.file.exists() else ""

    def _list_rows(
        self, step: int, reason: str, passes: Sequence[tuple[Any, Tensor]], *, only_bad: bool
    ) -> None:
        """Append the rows of all processes to the file; `only_bad`: of passes without a loss."""
        from accelerate.utils import gather_object

        lines: list[dict[str, Any]] = []
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        first = (step * world + rank) * (self.config.batch_size // world)
        for number, (batch, loss) in enumerate(passes):
            finite = float(loss) if math.isfinite(loss) else None
            if not isinstance(self.task, NamesRows) or only_bad and finite is not None:
                continue
            for row in self.task.row_names(batch, first + number * self.rows):
                lines.append({"step": step + 1, "reason": reason, "loss": finite, **row._asdict()})
        lines = gather_object(lines)
        if self.accelerator.is_main_process and lines:
            with self.file.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        self.accelerator.wait_for_everyone()
