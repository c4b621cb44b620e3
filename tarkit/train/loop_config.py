"""Settings of every training, and what follows from them alone: rates, and what is due when."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator
from pydantic_core import to_jsonable_python

from tarkit.config import Seed
from tarkit.train.optimizers import OptimizerConfig
from tarkit.train.parameters import ParametersConfig

Tracker = Literal["tensorboard", "wandb", "trackio"]


class LoopConfig(OptimizerConfig, ParametersConfig):
    """Settings of every training; each trainer's config extends it. Defaults: paper, Table 8."""

    steps: PositiveInt
    batch_size: PositiveInt
    """Rows of a step, over all processes together."""
    micro_batch_size: PositiveInt | None = None
    """Rows of one forward pass of a process; None: all of its rows of the step. Fewer rows need
    less memory, and the step is the same: gradients are summed over its passes."""
    workers: int | None = Field(default=None, ge=0)
    """Processes next to each training process that read and decode batches ahead of the step; 0: a
    thread of the training process does. None: 0 where the model is trained on a CPU; on a GPU one
    for each core but one of the process's share of the machine, at most 8. The batches are the
    same."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    cooldown: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps, at the end, over which a constant rate falls linearly to zero: the length
    of a run can then be decided while it runs (Haegele et al. 2024, Sec. 3)."""
    warmup: float = 0.04
    """Share of the steps over which the rate rises from zero."""
    clip: float = 1.0
    seed: Seed = 0
    precision: Literal["no", "bf16"] = "no"
    """"no": everything in float32; on CUDA, matrices are multiplied without TF32 and cuDNN's
    convolutions use it, as torch does by default. "bf16": matrices are multiplied in bf16 under
    autocast; weights, gradients, their sums and moments stay float32, and codes are chosen in it.
    """
    sharding: Literal["none", "full"] = "none"
    """"none": each process has the whole model (DistributedDataParallel). "full": weights,
    gradients and moments are split among the processes (torch's FSDP2), for models that one GPU
    does not hold. The step is the same."""
    activation_checkpointing: bool = False
    """Keep only the inputs of transformer blocks for the backward pass, which computes each block
    again: much less memory, a third more time. The step is the same."""
    compile: bool = False
    """Compile transformer blocks with torch.compile. The step is the same up to rounding; the first
    steps take longer."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; one is also written when the run is asked to stop."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints that are kept: where the newest is damaged, the one before it is resumed from."""
    log_every: PositiveInt = 50
    sample_every: PositiveInt = 1000
    keep_every: PositiveInt | None = None
    """Steps between the models that are kept whole in `steps/`, to be evaluated later."""

    trackers: tuple[Tracker, ...] | None = None
    """Where the figures of `metrics.jsonl` are shown while it grows; None: in tensorboard, where it
    is installed. An empty list is none."""
    tracker_project: str = "tarkit"
    """The project that wandb and trackio put the training into."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens where the loss or the gradient of a step is not finite. The rows of the step are
    listed in `bad_rows.jsonl`. A step that is skipped changes no weight and no optimizer state."""
    on_spike: Literal["ignore", "skip", "stop"] = "ignore"
    """What happens where the loss of a step exceeds its running mean by more than
    `spike_deviations` of its standard deviations. The training of PaLM skipped the batches around
    spikes (Chowdhery et al. 2022, Sec. 5.1)."""
    spike_deviations: float = Field(default=6.0, gt=0)
    spike_window: int = Field(default=100, ge=2)
    """Steps over which mean and deviation of the loss are averaged (exponentially). Before as many
    steps were taken, no loss is a spike."""
    max_skipped: PositiveInt = 10
    """Skipped steps in a row that a training survives; with one more it stops."""

    FREE_KEYS: ClassVar[frozenset[str]] = frozenset(
        {"sharding", "activation_checkpointing", "compile"}
        | {"micro_batch_size", "workers"}
        | {"checkpoint_every", "keep_checkpoints", "keep_every"}
        | {"log_every", "sample_every", "trackers", "tracker_project"}
        | {"on_nonfinite", "on_spike", "spike_deviations", "spike_window", "max_skipped"}
    )
    """Keys of this class that may change when a run is resumed (`free_keys`)."""
    LATER_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys of this class that it did not have in the first version with this trainer, without those
    of FREE_KEYS (`later_keys`)."""

    @model_validator(mode="after")
    def _matrices_are_whole_for_muon(self) -> LoopConfig:
        if self.sharding == "full" and self.optimizer == "muon":
            raise ValueError(
                "Muon orthogonalises whole matrices, and sharding splits them: set optimizer to "
                "adamw or came, or leave sharding out"
            )
        return self

    # Not bounds of the fields: a trainer with defaults of its own replaces those.
    @field_validator("warmup")
    @classmethod
    def _is_a_share(cls, warmup: float) -> float:
        if not 0 <= warmup <= 1:
            raise ValueError(f"{warmup} is no share of the steps: it must be from 0 to 1")
        return warmup

    @field_validator("clip")
    @classmethod
    def _lets_gradients_through(cls, clip: float) -> float:
        if clip <= 0:
            raise ValueError(f"{clip} leaves no gradient: it must be above 0")
        return clip

    @classmethod
    def free_keys(cls) -> set[str]:
        """Keys that may change when a run is resumed, of all its classes.

        They change no result, other than by rounding and by the bad steps that are skipped. The
        manifest does not hold them, and run.toml holds those of the last start.
        """
        return cls._named_by_classes("FREE_KEYS")

    @classmethod
    def later_keys(cls) -> set[str]:
        """Keys that came after the first version with the trainer, of all its classes.

        The manifest holds them only where they differ from their default, so that a training begun
        by an older version can be resumed. Every new key that is not free belongs here.
        """
        return cls._named_by_classes("LATER_KEYS")

    @classmethod
    def _named_by_classes(cls, attribute: str) -> set[str]:
        return {key for base in cls.__mro__ for key in vars(base).get(attribute, ())}

    def recorded(self) -> dict[str, Any]:
        """The settings that a run is resumed with, as the manifest holds them."""
        settings = self.model_dump(mode="json", exclude=self.free_keys())
        fields = type(self).model_fields
        defaults = {name: to_jsonable_python(fields[name].default) for name in self.later_keys()}
        return {k: v for k, v in settings.items() if k not in defaults or v != defaults[k]}

    def logs_after(self, done: int) -> bool:
        """Whether a row is logged after `done` steps."""
        return done % self.log_every == 0 or done == self.steps

    def samples_after(self, done: int) -> bool:
        """Whether a sheet is drawn or a model kept after `done` steps, the last one apart."""
        intervals = (self.sample_every, self.keep_every or self.steps)
        return done < self.steps and any(done % interval == 0 for interval in intervals)

    def resumable_after(self, done: int) -> bool:
        """Whether weights and optimizers after `done` steps are all that a run goes on from."""
        return True

    def saves_after(self, done: int) -> bool:
        """Whether weights are written after `done` steps, as a checkpoint or as a model."""
        intervals = (self.checkpoint_every, self.keep_every or self.steps)
        return done == self.steps or any(done % interval == 0 for interval in intervals)


class PicturesConfig(LoopConfig):
    """Settings of a training that reads one or several --images."""

    LATER_KEYS = frozenset({"images_weights"})

    images_weights: tuple[PositiveInt, ...] | None = None
    """Pictures that a round takes from each --images, in their order; None: one of each (as Table 7
    has it for TA-Tok: as many of LAION as of LAION Aesthetics)."""


def rate_factor(config: LoopConfig, step: int) -> float:
    """The factor on the learning rate at a step, in [0, 1]: linear warm-up, then the schedule."""
    warmup_steps = max(1, round(config.warmup * config.steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule == "constant":
        remaining = (config.steps - step) / max(1.0, config.cooldown * config.steps)
        return min(1.0, remaining)
    progress = (step - warmup_steps) / max(1, config.steps - warmup_steps)
    return 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
