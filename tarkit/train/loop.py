"""The training loop of every trainer: accelerate underneath, exact resume, metrics, sample sheets.

A step's data and randomness are functions of (seed, step). A run that is killed and started again
therefore ends with the same weights, to the last bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

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

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image


class LoopConfig(OptimizerConfig):
    """Settings of every training; each trainer's config extends it. Defaults: paper, Table 8."""

    steps: PositiveInt
    batch_size: PositiveInt
    """Rows of a step, over all processes together."""
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


class TrainingTask(Protocol):
    """What the loop needs to know of one kind of training."""

    @property
    def model(self) -> nn.Module:
        """The model to train; its state dict is the checkpoint."""

    def batch(self, step: int, size: int, rank: int, world: int) -> Any:
        """The `size` rows of process `rank` of `world` at a step; made in a background thread."""

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss () to minimise, and figures to log."""

    def after_step(self, step: int, model: nn.Module) -> None:
        """Change the weights other than by the gradient, as a function of the step."""

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
    manifest that no TOML holds. Call `begin_training` before making the task. Raises UserError
    where the directory was begun with other settings, where the batch does not divide by the
    processes, and where a loss is not finite.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=config.precision)
    size = _rows_per_process(config, accelerator.num_processes)
    settings = {"stage": name, **config.model_dump(mode="json"), **(more or {})}
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
        closing(_batches(task, accelerator, range(first, config.steps), size=size)) as batches,
    ):
        for step, batch in batches:
            result = _take_step(task, config, step, batch, accelerator, model, optimizers)
            _require_finite(result.loss, step, config, checkpoint)
            progress.advance(1, loss=result.loss)
            if writer:
                trained = accelerator.unwrap_model(model)
                writer.after_step(step, result, trained, optimizers, accelerator.device)
    if writer:
        writer.finish()
    accelerator.wait_for_everyone()
    return out


def _rows_per_process(config: LoopConfig, world: int) -> int:
    """Rows of a step for each of `world` processes; UserError where they do not divide."""
    if config.batch_size % world:
        raise UserError(
            f"batch_size = {config.batch_size} does not divide by {world} processes",
            hint=f"--set batch_size={config.batch_size // world * world or world}",
        )
    return config.batch_size // world


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
    task: TrainingTask, accelerator: Accelerator, steps: range, *, size: int
) -> Generator[tuple[int, Any], None, None]:
    """Each step with this process's batch on its device; a thread makes the next one meanwhile."""
    from accelerate.utils import send_to_device

    rank, world = accelerator.process_index, accelerator.num_processes
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(task.batch, steps.start, size, rank, world)
        for step in steps:
            batch = send_to_device(upcoming.result(), accelerator.device)
            if step + 1 < steps.stop:
                upcoming = executor.submit(task.batch, step + 1, size, rank, world)
            yield step, batch


class _StepResult(NamedTuple):
    """The numbers of one step."""

    loss: float
    grad_norm: Tensor | float  # before clipping
    rate_factor: float
    figures: dict[str, float]


def _take_step(
    task: TrainingTask,
    config: LoopConfig,
    step: int,
    batch: Any,
    accelerator: Accelerator,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> _StepResult:
    """Forward, backward, and one step of every optimizer at the step's rate."""
    model.train()
    torch.manual_seed(training_seed(config.seed, step, accelerator.process_index, "step"))
    with accelerator.autocast():
        loss, figures = task.loss(model, batch, step)
    accelerator.backward(loss)
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
    factor = rate_factor(config, step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
        optimizer.zero_grad()
    task.after_step(step, accelerator.unwrap_model(model))
    return _StepResult(float(loss.detach()), grad_norm, factor, figures)


def _require_finite(loss: float, step: int, config: LoopConfig, checkpoint: Path) -> None:
    if not math.isfinite(loss):
        last_state = checkpoint if checkpoint.exists() else "not yet written"
        raise UserError(
            f"the loss of step {step} is {loss}; the last good state is {last_state}",
            hint=f"lower learning_rate (now {config.learning_rate}) and use another --out",
        )


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
        if done % config.log_every == 0 or last:
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
            "grad_norm": float(result.grad_norm),
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
