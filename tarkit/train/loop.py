"""The one training loop: accelerate underneath, exact resume, metrics, sample sheets.

A step's data and randomness are functions of (seed, step), so a run that is killed and started
again ends with the same weights to the last bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tarkit.artifacts.files import whole_file, write_whole
from tarkit.artifacts.manifest import begin_directory
from tarkit.checkpoints.directory import save_model
from tarkit.config import Config
from tarkit.errors import UserError
from tarkit.images import png_bytes
from tarkit.progress import Progress
from tarkit.seeds import training_seed

if TYPE_CHECKING:
    from PIL import Image

# A softmax that has become sure leaves gradients too small for a normal float32, and a CPU is many
# times slower on those: a step of a trained model took twice as long as of a new one. Set when
# this module is loaded, as threads inherit it and the first parallel operation starts them.
torch.set_flush_denormal(True)


class LoopConfig(Config):
    """What every training has; the verbs' own configs extend it. Defaults: paper, Table 8."""

    steps: PositiveInt
    batch_size: PositiveInt
    """Rows a step over all processes."""
    learning_rate: float
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    cooldown: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps, the last ones, over which a constant rate falls linearly to zero: the
    length of a run can then be settled while it runs (Haegele et al. 2024, Sec. 3)."""
    warmup: float = 0.04
    """Share of the steps over which the rate rises from zero."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_rate: float = 0.02
    """Muon's own rate for hidden matrices; everything else stays with AdamW."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    precision: Literal["no", "bf16"] = "no"
    checkpoint_every: PositiveInt = 500
    log_every: PositiveInt = 50
    sample_every: PositiveInt = 1000
    keep_every: PositiveInt | None = None
    """Steps between models that are kept whole in `steps/`, to be evaluated along the training."""


class Task(Protocol):
    """What one kind of training tells the loop."""

    @property
    def model(self) -> nn.Module:
        """What is trained; its state dict is the checkpoint."""

    def batch(self, step: int, size: int, rank: int, world: int) -> Any:
        """This rank's part of a step's data, made in a background thread."""

    def loss(self, model: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss to descend and figures to log."""

    def after_step(self, step: int, model: nn.Module) -> None:
        """Anything done to the weights beside the gradient, as a function of the step."""

    def samples(self, step: int) -> Image.Image | None:
        """A sheet to look at."""

    def finish(self) -> tuple[nn.Module, dict[str, Any]]:
        """What to save of the finished model, and its config.json; may measure it."""


def rate(config: LoopConfig, step: int) -> float:
    """The factor on the learning rate at a step: linear warm-up, then the schedule."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    if config.schedule == "constant":
        left = (config.steps - step) / max(1.0, config.cooldown * config.steps)
        return min(1.0, left)
    done = (step - warm) / max(1, config.steps - warm)
    return 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the hidden matrices and AdamW for all else.

    Weight decay falls on matrices alone, as is usual.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    hidden: list[nn.Parameter] = []
    if config.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"optimizer = 'muon' needs torch 2.9 or newer, this is {torch.__version__}",
                hint="pip install 'torch>=2.9,<2.14'   or set optimizer = 'adamw'",
            )
        hidden = _hidden(model)
    chosen = set(map(id, hidden))
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    ]
    if hidden:
        made.append(
            torch.optim.Muon(
                hidden,
                lr=config.muon_rate,
                weight_decay=config.weight_decay,
            )
        )
    for optimizer in made:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return made


def _hidden(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices that are no tables."""
    named = model.named_parameters()
    return [p for n, p in named if p.requires_grad and p.dim() == 2 and not _is_table(n)]


@torch.no_grad()
def weight_rms(model: nn.Module) -> float:
    """Root mean square of all hidden matrices' values, 0 without any.

    Behind normalisation layers a step of a given size turns a matrix the less the larger it is, and
    products of large ones saturate attention: a figure that keeps growing wants weight decay.
    """
    squares = [(float(p.float().pow(2).sum()), p.numel()) for p in _hidden(model)]
    total = sum(count for _, count in squares)
    return math.sqrt(sum(square for square, _ in squares) / total) if total else 0.0


def _is_table(name: str) -> bool:
    """Embedding tables and output heads: matrices whose rows stand for symbols."""
    return any(part in name for part in ("embed", "lm_head", "output.weight", "abs_pe"))


def train(
    task: Task,
    config: LoopConfig,
    *,
    out: Path,
    name: str,
    parents: Mapping[str, Path],
    files: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Train `task.model` for `config.steps` steps into a model directory, or go on with it.

    `files` are texts that stand beside the weights, by name; `more` are settings that no TOML
    holds.
    """
    from accelerate import Accelerator
    from accelerate.utils import send_to_device

    accelerator = Accelerator(mixed_precision=config.precision)
    main = accelerator.is_main_process
    world, rank = accelerator.num_processes, accelerator.process_index
    if config.batch_size % world:
        raise UserError(
            f"batch_size = {config.batch_size} does not divide by {world} processes",
            hint=f"--set batch_size={config.batch_size // world * world or world}",
        )
    begin_directory(
        out,
        "model",
        settings={"stage": name, **config.model_dump(mode="json"), **(more or {})},
        parents=parents,
    )
    if (out / "model.safetensors").exists():
        return out
    for file, text in (files or {}).items() if main else ():
        write_whole(out / file, text.encode())
    state_path = out / "state" / "checkpoint.pt"
    made = optimizers(task.model, config)
    start = 0
    if state_path.exists():
        state = torch.load(state_path, map_location="cpu", weights_only=True, mmap=True)
        task.model.load_state_dict(state["model"])
        for optimizer, saved in zip(made, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        start = int(state["step"])
    if main:
        _truncate_log(out / "metrics.jsonl", start)
    model, *prepared = accelerator.prepare(task.model, *made)
    log = (out / "metrics.jsonl").open("a") if main else None
    board = _tensorboard(out) if main else None
    began, seen = time.monotonic(), 0
    per_rank = config.batch_size // world
    with (
        Progress(name, total=config.steps, unit="steps", done=start) as progress,
        ThreadPoolExecutor(1) as ahead,
    ):
        upcoming = ahead.submit(task.batch, start, per_rank, rank, world)
        for step in range(start, config.steps):
            batch = send_to_device(upcoming.result(), accelerator.device)
            if step + 1 < config.steps:
                upcoming = ahead.submit(task.batch, step + 1, per_rank, rank, world)
            model.train()
            torch.manual_seed(training_seed(config.seed, step, rank, "step"))
            with accelerator.autocast():
                loss, figures = task.loss(model, batch, step)
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            factor = rate(config, step)
            for optimizer in prepared:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
                optimizer.step()
                optimizer.zero_grad()
            task.after_step(step, accelerator.unwrap_model(model))
            seen += config.batch_size
            value = float(loss.detach())
            if not math.isfinite(value):
                kept = state_path if state_path.exists() else "not yet written"
                raise UserError(
                    f"the loss of step {step} is {value}; the last good state is {kept}",
                    hint=f"lower learning_rate (now {config.learning_rate}) and use another --out",
                )
            progress.advance(1, loss=value)
            done = step + 1
            if log and (done % config.log_every == 0 or done == config.steps):
                spent = time.monotonic() - began
                row = {"step": done, "loss": value, "grad_norm": float(norm), "rate": factor}
                row["weight_rms"] = weight_rms(accelerator.unwrap_model(model))
                row |= figures | {"rows_per_s": round(seen / spent, 2)}
                log.write(json.dumps(row) + "\n")
                log.flush()
                if board:
                    for key, figure in row.items():
                        board.add_scalar(key, figure, done)
            if main and done % config.sample_every == 0 and done < config.steps:
                _sheet(task, out, done)
                task.model.to(accelerator.device)
            if main and done % config.checkpoint_every == 0 and done < config.steps:
                _checkpoint(state_path, done, accelerator.unwrap_model(model), prepared)
            if main and config.keep_every and done % config.keep_every == 0 < config.steps - done:
                _keep(task, out / "steps" / f"{done:07d}", config, files or {})
                task.model.to(accelerator.device)
    if main:
        _sheet(task, out, config.steps)
        task.model.eval()
        finished, description = task.finish()
        save_model(out, finished, description, config)
        state_path.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return out


def _sheet(task: Task, out: Path, step: int) -> None:
    """Write the task's sample sheet; sampling must not disturb the run's randomness.

    Sheets and final figures are made on the CPU, where the task's own data is.
    """
    task.model.cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sheet = task.samples(step)
    if sheet is not None:
        write_whole(out / "samples" / f"{step:07d}.png", png_bytes(sheet))


def _keep(task: Task, out: Path, config: LoopConfig, files: Mapping[str, str]) -> None:
    """A model directory of the training so far; making it must not disturb the run's randomness."""
    task.model.cpu()
    out.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_whole(out / file, text.encode())
    with torch.random.fork_rng(devices=[]):
        task.model.eval()
        finished, description = task.finish()
        save_model(out, finished, description, config)
    task.model.train()


def _checkpoint(
    path: Path, step: int, model: nn.Module, made: Iterable[torch.optim.Optimizer]
) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in made],
    }
    with whole_file(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def _truncate_log(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint: those steps are about to be run again."""
    if path.exists():
        # A killed run can leave half a line at the end; what it tells of is run again.
        whole = [row for row in path.read_text().splitlines(keepends=True) if row.endswith("\n")]
        kept = "".join(row for row in whole if json.loads(row)["step"] <= step)
        write_whole(path, kept.encode())


def _tensorboard(out: Path) -> Any:
    """A writer where tensorboard is installed, None where it is not."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))
