"""The training loop of every trainer: accelerate underneath, exact resume, metrics, sample sheets.

A step's data and randomness are functions of (seed, step). A run that is killed and started again
therefore ends with the same weights, to the last bit.

A step is the same, up to rounding, whatever processes share its rows and in whatever micro-batches
they read them: it descends on the mean over all of the step's tokens or pictures, and what is drawn
for a row depends on the row's place in the step. Only dropout inside a network differs: each
process draws its own.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tarkit.artifacts.files import whole_file, write_whole
from tarkit.artifacts.manifest import begin_directory
from tarkit.checkpoints.directory import save_model
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.progress import Progress
from tarkit.seeds import training_seed
from tarkit.train.optimizers import OptimizerConfig, make_optimizers, weight_rms
from tarkit.train.processes import sum_over_processes

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image


class LoopConfig(OptimizerConfig):
    """Settings of every training; each trainer's config extends it. Defaults: paper, Table 8."""

    steps: PositiveInt
    batch_size: PositiveInt
    """Rows of a step, over all processes together."""
    micro_batch_size: PositiveInt | None = None
    """Rows of one forward pass of a process; None: all of its rows of the step. Fewer rows need
    less memory, and the step is the same: gradients are summed over its passes."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    cooldown: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps, at the end, over which a constant rate falls linearly to zero: the length
    of a run can then be decided while it runs (Haegele et al. 2024, Sec. 3)."""
    warmup: float = 0.04
    """Share of the steps over which the rate rises from zero."""
    clip: float = 1.0
    seed: int = 0
    precision: Literal["no", "bf16"] = "no"
    checkpoint_every: PositiveInt = 500
    log_every: PositiveInt = 50
    sample_every: PositiveInt = 1000
    keep_every: PositiveInt | None = None
    """Steps between the models that are kept whole in `steps/`, to be evaluated later."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys that older versions did not have. The manifest holds them only where they differ from
    their default, so that a training begun by an older version can be resumed."""

    def recorded(self) -> dict[str, Any]:
        """The settings that decide the weights, as the manifest holds them."""
        settings = self.model_dump(mode="json", exclude={"micro_batch_size"})
        defaults = {name: type(self).model_fields[name].default for name in self.LATER_KEYS}
        return {k: v for k, v in settings.items() if k not in defaults or v != defaults[k]}


class Mean(NamedTuple):
    """A figure that is a mean over something else than the loss is."""

    value: float
    weight: float  # how much of it there is in these rows


class Total(NamedTuple):
    """A figure that is summed over the rows of a step."""

    value: float


Figure = float | Mean | Total
"""A number to log of some rows of a step. A plain number is a mean over what the loss is one."""


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
        """The `size` rows of part `part` of a step's `parts`; made in a background thread.

        The step's rows, and what is drawn for each, are the same for any number of parts.
        """

    def weight(self, batch: Any) -> float:
        """How much the loss is a mean over: pictures, or supervised tokens by their weight."""

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Tensor, Mapping[str, Figure]]:
        """The mean loss () of a batch, and figures to log; 0 for a batch of weight 0."""

    def after_step(self, step: int, model: nn.Module) -> dict[str, float]:
        """Change the weights other than by the gradient; figures of the whole step.

        Torch's global generator has the same state on every process here, so that random changes
        are the same on all.
        """

    def samples(self, step: int) -> Image.Image | None:
        """A sample sheet, or None where the task has nothing to show."""

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        """The model to save and its config.json; may measure the model first."""


def begin_training(seed: int) -> None:
    """Set the global switches of a training process; each trainer calls this first.

    Torch's global generator starts from the seed. Floats too small for a normal number count as
    zero: a softmax that has become sure leaves such gradients, and a CPU is many times slower on
    them (a step of a trained model took twice as long as one of a new model). Threads inherit that
    switch when they start, and the first parallel operation starts them.
    """
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)


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


def train(
    task: TrainingTask,
    config: LoopConfig,
    *,
    out: Path,
    name: str,
    parents: Mapping[str, Path],
    files: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Train `task.model` for `config.steps` steps into a model directory, or resume there.

    `files` are texts to write next to the weights, by file name. `more` are settings for the
    manifest that no TOML holds. Call `begin_training` before making the task. `micro_batch_size`
    and the number of processes may change when a run is resumed. Raises UserError where the
    directory was begun with other settings, where the batch does not divide by processes and
    micro-batches, and, before the step is taken, where a loss or a gradient is not finite.
    """
    accelerator = _accelerator(config, unused_parameters=task.unused_parameters)
    rows = _rows_per_pass(config, accelerator.num_processes)
    settings = {"stage": name, **config.recorded(), **(more or {})}
    begin_directory(out, "model", settings=settings, parents=parents)
    if (out / "model.safetensors").exists():
        return out
    checkpoint = out / "state" / "checkpoint.pt"
    optimizers = make_optimizers(task.model, config)
    first = _resume(checkpoint, task.model, optimizers)
    writer = None
    if accelerator.is_main_process:
        writer = _Writer(task, config, out=out, files=files or {}, first=first)
    model, *optimizers = accelerator.prepare(task.model, *optimizers)
    with (
        Progress(name, total=config.steps, unit="steps", done=first) as progress,
        closing(_batches(task, config, accelerator, first=first, rows=rows)) as steps,
    ):
        for step, batches in steps:
            result = _take_step(
                task, config, step, batches, accelerator, model, optimizers, checkpoint
            )
            progress.advance(1, loss=result.loss)
            trained = accelerator.unwrap_model(model)
            if _is_saved(config, step + 1):
                _require_finite_weights(trained, step, config, checkpoint)
            if writer:
                writer.after_step(step, result, trained, optimizers, accelerator.device)
    if writer:
        writer.finish()
    accelerator.wait_for_everyone()
    return out


def _accelerator(config: LoopConfig, *, unused_parameters: bool) -> Accelerator:
    """Accelerate for the processes that torchrun started; UserError where it sees fewer."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    started = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        mixed_precision=config.precision,
        # Where there are only CPUs, accelerate ignores the other processes unless this is set.
        cpu=started > 1 and not torch.accelerator.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)],
    )
    if "WORLD_SIZE" in os.environ and accelerator.num_processes != started:
        raise UserError(
            f"torchrun started {started} processes, but accelerate trains with "
            f"{accelerator.num_processes}: each would train alone into one folder",
            hint="unset the ACCELERATE_* variables, or start one process",
        )
    return accelerator


def _rows_per_pass(config: LoopConfig, world: int) -> int:
    """Rows of one forward pass of each of `world` processes; UserError where they do not divide."""
    if config.batch_size % world:
        raise UserError(
            f"batch_size = {config.batch_size} does not divide by {world} processes",
            hint=f"--set batch_size={config.batch_size // world * world or world}",
        )
    rows = config.batch_size // world
    micro = config.micro_batch_size or rows
    if rows % micro:
        divisor = max(d for d in range(1, min(micro, rows) + 1) if rows % d == 0)
        raise UserError(
            f"micro_batch_size = {micro} does not divide the {rows} rows of a step "
            f"(batch_size = {config.batch_size}) that each of {world} processes reads",
            hint=f"--set micro_batch_size={divisor}",
        )
    return micro


def _resume(checkpoint: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Load a checkpoint, if there is one, into model and optimizers; the first step to take."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def _batches(
    task: TrainingTask, config: LoopConfig, accelerator: Accelerator, *, first: int, rows: int
) -> Generator[tuple[int, list[tuple[Any, float]]], None, None]:
    """Each step from `first` on with this process's micro-batches of `rows` rows and their weights.

    They are on the CPU; a thread makes the next step's meanwhile.
    """
    world = accelerator.num_processes
    passes = config.batch_size // world // rows
    parts = range(accelerator.process_index * passes, (accelerator.process_index + 1) * passes)

    def make(step: int) -> list[tuple[Any, float]]:
        batches = [task.batch(step, rows, part, world * passes) for part in parts]
        return [(batch, task.weight(batch)) for batch in batches]

    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(make, first)
        for step in range(first, config.steps):
            batches = upcoming.result()
            if step + 1 < config.steps:
                upcoming = executor.submit(make, step + 1)
            yield step, batches


class _StepResult(NamedTuple):
    """The numbers of one step, over all processes; all figures only where they are logged."""

    loss: float
    grad_norm: float  # before clipping
    rate_factor: float
    figures: dict[str, float]


def _take_step(
    task: TrainingTask,
    config: LoopConfig,
    step: int,
    batches: Sequence[tuple[Any, float]],
    accelerator: Accelerator,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    checkpoint: Path,
) -> _StepResult:
    """Forward and backward of every micro-batch, and one step of every optimizer."""
    from accelerate.utils import gather_object, send_to_device

    model.train()
    torch.manual_seed(training_seed(config.seed, step, accelerator.process_index, "step"))
    total = _sum([weight for _, weight in batches])
    losses, measured = [], []
    for number, (batch, weight) in enumerate(batches, 1):
        share = weight / total if total else 0.0  # every chat of the step was too long
        last = number == len(batches)
        # Processes exchange gradients once a step, after the last pass.
        with nullcontext() if last else accelerator.no_sync(model):
            with accelerator.autocast():
                loss, figures = task.loss(model, send_to_device(batch, accelerator.device), step)
            # DDP averages over processes, where the sum is needed.
            accelerator.backward(loss * (share * accelerator.num_processes))
        losses.append(loss.detach() * share)
        measured.append((weight, dict(figures)))
    loss_of_step = _sum([float(loss) for loss in losses])
    _require_finite("loss", loss_of_step, step, config, checkpoint)
    grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
    _require_finite("gradient norm", grad_norm, step, config, checkpoint)
    factor = rate_factor(config, step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
        optimizer.zero_grad()
    torch.manual_seed(training_seed(config.seed, step, 0, "step"))  # the same on every process
    figures_of_step = task.after_step(step, accelerator.unwrap_model(model))
    if _is_logged(config, step + 1):
        figures_of_step = _combined(gather_object(measured)) | figures_of_step
    return _StepResult(loss_of_step, grad_norm, factor, figures_of_step)


def _sum(numbers: Sequence[float]) -> float:
    """The sum of every process's numbers."""
    return float(sum_over_processes(torch.tensor(sum(numbers), dtype=torch.float64)))


def _combined(parts: Sequence[tuple[float, Mapping[str, Figure]]]) -> dict[str, float]:
    """The figures of a step from the weights and figures of its parts.

    A mean over nothing is left out.
    """
    combined: dict[str, float] = {}
    means: dict[str, list[Mean]] = {}
    for weight, figures in parts:
        for name, figure in figures.items():
            if isinstance(figure, Total):
                combined[name] = combined.get(name, 0) + figure.value
                continue
            mean = figure if isinstance(figure, Mean) else Mean(figure, weight)
            if mean.weight:
                means.setdefault(name, []).append(mean)
    for name, of_parts in means.items():
        total = sum(mean.weight for mean in of_parts)
        combined[name] = sum(mean.value * (mean.weight / total) for mean in of_parts)
    return combined


def _is_logged(config: LoopConfig, done: int) -> bool:
    """Whether a row is logged after `done` steps."""
    return done % config.log_every == 0 or done == config.steps


def _is_saved(config: LoopConfig, done: int) -> bool:
    """Whether weights are written after `done` steps, as a checkpoint or as a model."""
    intervals = (config.checkpoint_every, config.keep_every or config.steps)
    return done == config.steps or any(done % interval == 0 for interval in intervals)


def _require_finite(
    name: str, number: float, step: int, config: LoopConfig, checkpoint: Path
) -> None:
    if not math.isfinite(number):
        last_state = checkpoint if checkpoint.exists() else "not yet written"
        raise UserError(
            f"the {name} of step {step} is {number}; the last good state is {last_state}",
            hint=f"lower learning_rate (now {config.learning_rate}) and use another --out",
        )


def _require_finite_weights(
    model: nn.Module, step: int, config: LoopConfig, checkpoint: Path
) -> None:
    """Raise UserError before weights that are not finite take the place of the last good state."""
    for name, values in model.state_dict().items():
        if values.is_floating_point() and not bool(values.isfinite().all()):
            largest = f"largest value of {name} after the update"
            _require_finite(largest, float(values.abs().max()), step, config, checkpoint)


class _Writer:
    """Writes the model directory of a training; only the main process has one."""

    def __init__(
        self,
        task: TrainingTask,
        config: LoopConfig,
        *,
        out: Path,
        files: Mapping[str, str],
        first: int,
    ) -> None:
        """`first`: the step that this process begins with."""
        self.task = task
        self.config = config
        self.out = out
        self.files = files
        self.first = first
        self.metrics = out / "metrics.jsonl"
        self.checkpoint = out / "state" / "checkpoint.pt"
        self._write_files(out)
        _truncate_log(self.metrics, first)
        self.tensorboard = _tensorboard(out)
        self.began = time.monotonic()

    def after_step(
        self,
        step: int,
        result: _StepResult,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        device: torch.device,
    ) -> None:
        """Log, draw, checkpoint and keep what is due after a step; the model stays on `device`."""
        config, done = self.config, step + 1
        last = done == config.steps
        if _is_logged(config, done):
            self._log(done, result, weight_rms(model))
        if last:
            return
        if done % config.sample_every == 0:
            self._write_sheet(done)
            self.task.model.to(device)
        if done % config.checkpoint_every == 0:
            self._write_checkpoint(done, model, optimizers)
        if config.keep_every and done % config.keep_every == 0:
            self._keep(self.out / "steps" / f"{done:07d}")
            self.task.model.to(device)

    def finish(self) -> None:
        """Write the last sheet and the model; the checkpoint goes, as the weights come last."""
        self._write_sheet(self.config.steps)
        self.task.model.eval()
        model, description = self.task.finish()
        save_model(self.out, model, description, self.config)
        self.checkpoint.unlink(missing_ok=True)

    def _log(self, done: int, result: _StepResult, rms: float) -> None:
        """Append a row to metrics.jsonl, and to tensorboard's log where it is installed."""
        rows = (done - self.first) * self.config.batch_size
        row = {
            "step": done,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "rate": result.rate_factor,
            "weight_rms": rms,
            **result.figures,
            "rows_per_s": round(rows / (time.monotonic() - self.began), 2),
        }
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.tensorboard:
            for key, figure in row.items():
                self.tensorboard.add_scalar(key, figure, done)

    def _write_sheet(self, done: int) -> None:
        """Write the task's sample sheet; sampling must not disturb the run's randomness.

        Sheets and final figures are made on the CPU, where the task's own data is.
        """
        self.task.model.cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sheet = self.task.samples(done)
        if sheet is not None:
            write_whole(self.out / "samples" / f"{done:07d}.png", png_bytes(sheet))

    def _write_checkpoint(
        self, done: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        state = {
            "step": done,
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        with whole_file(self.checkpoint) as temporary, temporary.open("wb") as file:
            torch.save(state, file)

    def _keep(self, out: Path) -> None:
        """Write the model so far as a model directory; this must not disturb the randomness."""
        self.task.model.cpu()
        out.mkdir(parents=True, exist_ok=True)
        self._write_files(out)
        with torch.random.fork_rng(devices=[]):
            self.task.model.eval()
            model, description = self.task.finish()
            save_model(out, model, description, self.config)
        self.task.model.train()

    def _write_files(self, out: Path) -> None:
        for file, text in self.files.items():
            write_whole(out / file, text.encode())


def _truncate_log(path: Path, done: int) -> None:
    """Make the log hold the first `done` steps alone: the later ones are about to be run again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    # A killed run can leave half a line at the end; its step is run again.
    whole = [line for line in lines if line.endswith("\n")]
    kept = "".join(line for line in whole if json.loads(line)["step"] <= done)
    write_whole(path, kept.encode())


def _tensorboard(out: Path) -> Any:
    """A writer where tensorboard is installed, None where it is not."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))
