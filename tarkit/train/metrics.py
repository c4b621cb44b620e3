"""The figures of a training: combined over processes and passes, timed, and written.

Every `log_every` steps metrics.jsonl gets a row, and so do the trackers. `FIGURES` says what each
name means. Figures of a step are those of the whole step, whatever ranks and micro-batches share
it. Figures of an interval are those of the steps since the last row: of the time in which batches
are awaited and steps are taken, and not of sample sheets, checkpoints and kept models.
"""

from __future__ import annotations

import json
import logging
import math
import re
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from tarkit.artifacts.files import LONE_SURROGATE, numbered_lines, write_whole
from tarkit.terminal import printable
from tarkit.train.gpus import Gpu, gpu_named
from tarkit.train.guard import BAD_ROWS, Guard
from tarkit.train.loop_config import LoopConfig
from tarkit.train.optimizers import weight_rms
from tarkit.train.step import StepResult
from tarkit.train.task import Amount, Figure, Largest, Mean, Total, mean_of
from tarkit.train.trackers import Trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

METRICS = "metrics.jsonl"
StepT = TypeVar("StepT")

log = logging.getLogger("tarkit")

FIGURES: Mapping[str, str] = {
    # of the step
    "step": "optimizer steps since the beginning, with those skipped",
    "loss": "what the step descends on, the mean over all of its tokens or pictures",
    "grad_norm": "length of the gradient before clipping",
    "rate": "factor on learning_rate, in [0, 1]",
    "weight_rms": "root mean square of the hidden matrices after the step",
    "skipped_steps": "steps skipped since the beginning (on_nonfinite, on_spike)",
    "scale": "the scale that the step drew",
    "tokens": "tokens of the step's chats, without padding",
    "condition_tokens": "codes of a picture that the de-tokenizer reads, the mean over pictures",
    "loss_by_task/*": "mllm: mean loss of the supervised tokens of the task's chats, unweighted",
    "loss_by_scale/*": "loss of the pictures, or of the chats with pictures, at that scale",
    "loss_by_source/*": "mllm: the same of the chats of one of several --chats",
    "cosine_by_source/*": "tokenizer: `cosine` of the pictures of one of several --images",
    "code_loss": "mean loss of the codes that are learned, in nats",
    "text_loss": "mean loss of the text tokens that are learned, in nats",
    # of codebooks
    "cosine": "tokenizer: mean cosine of decoded and teacher's features",
    "codebook": "tokenizer: the codebook loss of Eq. 3, before its weight",
    "perplexity": "exp of the entropy of the step's codes: K where all K codes are equally common",
    "usage": "share of the codebook's codes that occur in the step; the others may be dead",
    # of other trainers
    "reconstruction": "vqvae: mean squared error of pixels in [-1, 1]",
    "perceptual": "vqvae: LPIPS of reconstructions, before its weight",
    "adversarial": "vqvae: the image VQ's loss against the discriminator, before its weights",
    "adaptive_weight": "vqvae: the weight that balances that loss with the reconstruction's",
    "discriminator": "vqvae: the discriminator's own loss",
    "quantised": "vqvae: share of quantisation, in [0, 1]",
    "sigma": "dif-dtok: mean share of noise",
    "dropped": "dif-dtok: share of pictures without a condition",
    "contrastive": "encoder: the loss of pictures against captions",
    "retrieval": "encoder: share of pictures whose nearest caption is their own",
    "object": "encoder: loss of whether an object is at a position",
    "phrase": "encoder: loss of the object's phrase",
    "phrases_right": "encoder: share of objects whose phrase is right",
    "box": "encoder: loss of the object's box",
    "surplus": "encoder: share of the features' variance that phrase and box do not explain",
    "reward": "grpo: mean score of the round's pictures",
    "reward_spread": "grpo: mean standard deviation of the scores of a group",
    "groups_that_teach": "grpo: share of the round's groups with an advantage",
    "unscored": "grpo: share of the round's pictures without a score",
    "stopped": "grpo: share of codes that the clip holds back",
    "nats": "grpo: mean negative log-probability of a code that is learned from",
    # of the interval
    "step_s": "seconds of a step",
    "data_wait_s": "of them, seconds for which the process that waits longest awaits its batches",
    "rows_per_s": "rows of batch_size, pictures or chats, by the second; over all processes",
    "pictures_per_s": "mllm: pictures in the chats, by the second",
    "tokens_per_s": "positions that the trained model reads, without padding, by the second",
    "supervised_tokens_per_s": "tokens or codes that the loss is a mean over, by the second",
    "flops_per_s": "FLOPs of forward and backward passes by the second, counted as `tarkit plan` "
    "does, but attention within each chat alone and nothing computed twice",
    "float32_flops_per_s": "of them, those computed in float32 whatever `precision` is",
    "mfu": "model FLOPs utilisation, in [0, 1]: seconds that these FLOPs take at the peak of the "
    "GPUs, over the seconds they took; only where the peak is known",
    # of the process that needs most
    "peak_gpu_memory_gb": "10^9 bytes of tensors at the most, since the process began",
    "peak_process_memory_gb": "without a GPU: 10^9 bytes of the process at the most",
}
"""What each name in metrics.jsonl means; `*` stands for a task, a scale, or a folder's name.

A figure may be missing from a row: a mean over nothing, and a figure that a trainer does not have.
One that is not finite is null."""

# Not in the name of a source, which comes after a slash and is a folder of any name.
OF_THE_MACHINE = re.compile(r"^[^/]*(_per_s|_s|_gb)$|^mfu$")
"""Names of figures that differ from run to run, even with the same seed."""


class Metrics:
    """The figures of one training; every process has this, and the main one writes them."""

    def __init__(
        self,
        config: LoopConfig,
        accelerator: Accelerator,
        guard: Guard,
        *,
        out: Path,
        settings: Mapping[str, Any],
        first: int,
    ) -> None:
        """`settings` are shown by the trackers; `first`: steps that were taken before.

        Raises UserError where a tracker cannot start.
        """
        self.config = config
        self.accelerator = accelerator
        self.guard = guard
        self.file = out / METRICS
        self.gpu = _gpu(accelerator.device)
        self.shown: dict[str, Any] = {}  # on the terminal
        self.trackers: Trackers | None = None
        if accelerator.is_main_process:
            rows = truncate_log(self.file, first)
            truncate_log(out / BAD_ROWS, first)
            sent = max((row["step"] for row in rows), default=0)
            self.trackers = Trackers(config, out, settings=settings, first=first, sent=sent)
        self._began = time.monotonic()
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._steps = 0
        self._seconds = self._waited = 0.0
        self._amounts: defaultdict[str, float] = defaultdict(float)

    def timed(self, steps: Iterator[StepT]) -> Iterator[StepT]:
        """The steps as they come; a step's time begins when its batches are awaited."""
        while True:
            self._began = time.monotonic()
            try:
                step = next(steps)
            except StopIteration:
                return
            self._waited += time.monotonic() - self._began
            yield step

    def after_step(self, step: int, result: StepResult, model: nn.Module) -> None:
        """Count a step; where a row is due, combine the figures and write them."""
        self._steps += 1
        self._seconds += time.monotonic() - self._began
        for _, figures in result.parts:
            for name, figure in figures.items():
                if isinstance(figure, Amount):
                    self._amounts[name] += figure.value
        if self.config.logs_after(step + 1):
            every_figure, rms = self._combined(result.parts), weight_rms(model)
            if self.accelerator.is_main_process:
                self._write(step + 1, result, every_figure, rms)
            self._begin_interval()

    def _combined(self, parts: Sequence[tuple[float, Mapping[str, Figure]]]) -> dict[str, float]:
        """Figures of the step and of the interval, over all processes; all of them call this."""
        from accelerate.utils import gather_object

        own: dict[str, Figure] = {name: Total(value) for name, value in self._amounts.items()}
        own["data_wait_s"] = Largest(self._waited)
        own |= _memory(self.accelerator.device)
        of_step = [
            (weight, {k: v for k, v in figures.items() if not isinstance(v, Amount)})
            for weight, figures in parts
        ]
        return combined(gather_object([*of_step, (0.0, own)]))

    def _write(
        self, done: int, result: StepResult, figures: Mapping[str, float], rms: float
    ) -> None:
        """Append a row to metrics.jsonl and send it to the trackers."""
        seconds = max(self._seconds, 1e-9)
        config = self.config
        row: dict[str, float | None] = {
            "step": done,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "rate": result.rate_factor,
            "weight_rms": rms,
        }
        if "skip" in (config.on_nonfinite, config.on_spike):
            row["skipped_steps"] = self.guard.skipped
        row |= {k: v for k, v in figures.items() if not OF_THE_MACHINE.search(k)} | result.figures
        row["step_s"] = round(seconds / self._steps, 4)
        row["data_wait_s"] = round(figures["data_wait_s"] / self._steps, 4)
        row["rows_per_s"] = round(self._steps * config.batch_size / seconds, 2)
        self.shown = {"rows/s": self._steps * config.batch_size / seconds}
        for name in self._amounts:
            row[name] = round(figures[name] / seconds, 2)
        if self.gpu and "flops_per_s" in self._amounts:
            slow = figures.get("float32_flops_per_s", 0.0)
            at_peak = seconds_at_peak(self.gpu, config.precision, figures["flops_per_s"], slow)
            row["mfu"] = round(at_peak / self.accelerator.num_processes / seconds, 4)
        row |= {k: round(v, 4) for k, v in figures.items() if k.endswith("_gb")}
        row = {k: v if v is not None and math.isfinite(v) else None for k, v in row.items()}
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        assert self.trackers is not None
        self.trackers.log({k: v for k, v in row.items() if v is not None and k != "step"}, done)

    def close(self) -> None:
        """End the trackers' runs."""
        if self.trackers:
            self.trackers.close()


def seconds_at_peak(gpu: Gpu, precision: str, flops: float, float32_flops: float) -> float:
    """Seconds in which a GPU computes so many FLOPs at its peak, part of them in float32."""
    return (flops - float32_flops) / gpu.peak(precision) + float32_flops / gpu.peak("no")


def combined(parts: Sequence[tuple[float, Mapping[str, Figure]]]) -> dict[str, float]:
    """The figures of a step from the weights and figures of its parts.

    A mean over nothing is left out.
    """
    figures_of_step: dict[str, float] = {}
    means: dict[str, list[Mean]] = {}
    for weight, figures in parts:
        for name, figure in figures.items():
            if isinstance(figure, Total | Amount):
                figures_of_step[name] = figures_of_step.get(name, 0) + figure.value
                continue
            if isinstance(figure, Largest):
                figures_of_step[name] = max(figures_of_step.get(name, -math.inf), figure.value)
                continue
            mean = figure if isinstance(figure, Mean) else Mean(figure, weight)
            if mean.weight:
                means.setdefault(name, []).append(mean)
    for name, of_parts in means.items():
        figures_of_step[name] = mean_of(of_parts).value
    return figures_of_step


def truncate_log(file: Path, done: int) -> list[dict[str, Any]]:
    """Make a log hold its first `done` steps alone, as later ones are about to be taken again.

    Returns the rows that it held. A damaged line is left out, with a warning.
    """
    if not file.exists():
        return []
    rows, kept = [], ""
    for number, line, error in numbered_lines(file):
        if not line.endswith("\n"):  # of a killed run; its step is taken again
            continue
        row = None if error else _row(line)
        if row is None:
            log.warning("%s:%d is damaged and is left out: %s", file, number, printable(line[:80]))
            continue
        rows.append(row)
        kept += line if row["step"] <= done else ""
    write_whole(file, kept.encode())
    return rows


def _row(line: str) -> dict[str, Any] | None:
    """The figures of a step; None where a line is not one that a training writes."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int
    return row if is_row and not LONE_SURROGATE.search(line) else None


def is_documented(name: str) -> bool:
    """Whether `FIGURES` says what a figure means."""
    return name in FIGURES or f"{name.split('/')[0]}/*" in FIGURES


def _gpu(device: torch.device) -> Gpu | None:
    """The known peak of a device, None on a CPU and on other GPUs."""
    return gpu_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def _memory(device: torch.device) -> dict[str, Figure]:
    """The peak memory of this process: of tensors on its GPU, or of the whole process."""
    if device.type != "cpu":
        return {"peak_gpu_memory_gb": Largest(torch.accelerator.max_memory_allocated(device) / 1e9)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return {"peak_process_memory_gb": Largest(peak * unit / 1e9)}
