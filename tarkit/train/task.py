"""What the training loop asks of one kind of training, and the figures that a step returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL import Image


class Mean(NamedTuple):
    """A figure that is a mean over something else than the loss is."""

    value: float
    weight: float  # how much of it there is in these rows


def mean_of(means: Sequence[Mean]) -> Mean:
    """The mean over all that some means are over, which is not nothing."""
    total = sum(mean.weight for mean in means)
    return Mean(sum(mean.value * (mean.weight / total) for mean in means), total)


class Total(NamedTuple):
    """A figure that is summed over the rows of a step."""

    value: float


class Amount(NamedTuple):
    """Work on some rows. Its figure is the sum over all rows since the last row of the log, by the
    second, so its name ends in `_per_s`."""

    value: float


class Largest(NamedTuple):
    """A figure of a process, of which the largest over all processes is logged."""

    value: float


Figure = float | Mean | Total | Amount | Largest
"""A number to log of some rows of a step. A plain number is a mean over what the loss is one."""


class RowName(NamedTuple):
    """Which row of which input a row of a batch is."""

    source: str  # folder of the artifact
    key: str


class TrainingTask(Protocol):
    """What the loop needs to know of one kind of training."""

    @property
    def model(self) -> nn.Module:
        """The model to train; its state dict is the checkpoint."""

    @property
    def unused_parameters(self) -> bool:
        """Whether a parameter can be without a gradient.

        DDP then looks for such parameters, at one walk over the graph a pass.
        """

    def batch(self, step: int, size: int, part: int, parts: int) -> Any:
        """The `size` rows of part `part` of a step's `parts`.

        The step's rows, and what is drawn for each, are the same for any number of parts. It is
        made in a background thread, or in a worker process, where the task has no networks.
        """

    def weight(self, batch: Any) -> float:
        """How much the loss is a mean over: pictures, or supervised tokens by their weight."""

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Tensor, Mapping[str, Figure]]:
        """The mean loss () of a batch, and figures to log; 0 for a batch of weight 0."""

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        """Change the weights other than by the gradient; figures of the whole step.

        Not called after a step that is skipped. Torch's global generator has the same state on
        every process here, so that random changes are the same on all.
        """

    def samples(self, step: int) -> Image.Image | None:
        """A sample sheet, or None where the task has nothing to show.

        The main process draws it while the others wait, as it does what `finish` measures: on the
        model's device, from a fixed number of rows, and without moving or changing the model.
        """

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        """The model to save and its config.json; may measure the model first."""


@runtime_checkable
class MakesPasses(Protocol):
    """A task whose forward passes of a step are made together, from all of the step's rows."""

    def passes(self, step: int, size: int, part: int, parts: int) -> list[Any]:
        """The batches of part `part` of a step's `parts`; every part has as many.

        The part is that of a process: its `size` rows are all that it reads of the step.
        """


@runtime_checkable
class NamesRows(Protocol):
    """A task that can say which rows a batch holds; the rows of other tasks are not listed."""

    def row_names(self, batch: Any, first: int) -> Sequence[RowName]:
        """The rows of a batch that begins with the `first` row of the training, counted from 0.

        Called after a bad step only.
        """
