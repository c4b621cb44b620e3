"""What a training that is about to start takes on this machine: parameters, memory, hours.

Costs are those of `tarkit plan`. A plan assumes a GPU by its name; here the speed of the device at
hand is measured, in half a second, and a training is taken to reach the share of it that a plan
assumes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tarkit.artifacts.artifact import open_artifact
from tarkit.errors import UserError
from tarkit.train.machine import memory_bytes, products_per_s
from tarkit.train.plans import Budget, plan, settings_of, short, start_of

MFU = 0.4
"""The share of measured matrix products that a step is taken to reach, as in `tarkit plan`."""
TRIES = 2


@dataclass(frozen=True)
class Forecast:
    """The costs of a training, and the device that they are for."""

    budget: Budget
    device: str
    flops_per_s: float
    """Of matrix products, measured on one device."""
    memory: int

    @property
    def seconds(self) -> float:
        budget = self.budget
        flops = budget.steps * (budget.flops_per_step + budget.frozen_flops_per_step)
        return flops / (self.flops_per_s * budget.gpus * MFU)

    def in_words(self) -> str:
        """One or two sentences for a person."""
        budget = self.budget
        frozen = f" ({short(budget.frozen)} more are frozen)" if budget.frozen else ""
        each = " on each of its processes" if budget.gpus > 1 else ""
        steps = counted(budget.steps, "step")
        text = (
            f"about {short(budget.trained)} parameters are trained{frozen}, which takes about "
            f"{_bytes(budget.memory.peak)} of memory{each} and {time_in_words(self.seconds)} for "
            f"{steps}, at {100 * MFU:g} % of the {short(self.flops_per_s)}FLOP/s "
            f"measured here on {self.device}"
        )
        if budget.memory.peak > self.memory:
            text += f". It has {_bytes(self.memory)} of memory: this will not fit"
        return text


def forecast(
    stage: str,
    config: Path,
    *,
    overrides: Sequence[str] = (),
    images: Sequence[Path] = (),
    chats: Sequence[Path] = (),
    lm: Path | None = None,
    tokenizer: Path | None = None,
    encoder: Path | None = None,
    vqvae: Path | None = None,
    ar_dtok: Path | None = None,
    sana: Path | None = None,
) -> Forecast | None:
    """The costs of a training on this process's device; None where they are not known.

    What is wrong with settings or paths is left to the training to say.
    """
    try:
        settings = settings_of(stage, config, overrides)
        start = start_of(
            lm=lm,
            tokenizer=tokenizer,
            encoder=encoder,
            vqvae=vqvae,
            ar_dtok=ar_dtok,
            sana=sana,
            size_px=_side(images),
            from_images=bool(images),
        )
        grid = _grid_of_pixel_codes(chats)
        if grid and start.vqvae:
            start = replace(start, size_px=grid * start.vqvae.downsampling)
        processes = int(os.environ.get("WORLD_SIZE") or 1)
        budget = plan(stage, settings, start, gpus=processes, gpu="here", mfu=MFU)
    except (UserError, KeyError):
        return None
    return _measured(budget, settings)


def _measured(budget: Budget, settings: Mapping[str, Any]) -> Forecast:
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "") not in (
        "1",
        "true",
        "True",
    )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0)) if on_gpu else None
    device = device or torch.device("cpu")
    dtype = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
    threads = counted(torch.get_num_threads(), "CPU thread")
    name = torch.cuda.get_device_name(device) if on_gpu else threads
    speed = products_per_s(device, dtype, tries=TRIES)
    return Forecast(budget, name, speed, memory_bytes(device))


def _side(images: Sequence[Path]) -> int | None:
    """The side of the first picture that did not fail; None without pictures."""
    for path in images:
        artifact = open_artifact(path, "images")
        for name in artifact.shards[:1]:
            for row in artifact.rows(name, ["status", "width"]):
                if row["status"] == "ok":
                    return int(row["width"])
    return None


def _grid_of_pixel_codes(chats: Sequence[Path]) -> int | None:
    """The pixel codes along a side of the chats' pictures; None where they have none."""
    for path in chats:
        settings = open_artifact(path, "chats").settings
        if settings.get("codes") == "vq":
            return int(settings["sides"]["1"])
    return None


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def time_in_words(seconds: float) -> str:
    """A time with the unit that a person would choose."""
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return counted(max(round(seconds), 1), "second")


def counted(number: int, noun: str) -> str:
    """`1 step`, `1,000 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
