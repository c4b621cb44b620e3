"""`tarkit plan`: what a training will take, before anything runs.

Steps, tokens, FLOPs, memory of a GPU by part, disk and hours, from the training's TOML and what it
starts from. A training that does not fit is refused with the keys that mend it. The figures are
those of `tarkit.train.plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tarkit.errors import UserError
from tarkit.train.gpus import GPUS
from tarkit.train.plans import (
    Budget,
    memory_of,
    plan,
    settings_of,
    short,
    start_of,
    workload_of,
)
from tarkit.train.workloads.stages import WORKLOADS
from tarkit.train.workloads.workload import Settings, Start, Workload

LENGTH_STEP = 64  # tokens between the lengths that are tried


def run(
    config: Path,
    *,
    gpus: int,
    gpu: str,
    stage: str | None = None,
    lm: Path | None = None,
    tokenizer: Path | None = None,
    encoder: Path | None = None,
    vqvae: Path | None = None,
    ar_dtok: Path | None = None,
    sana: Path | None = None,
    size_px: int | None = None,
    text_tokens: int = 100,
    picture_kb: float = 100.0,
    from_images: bool = False,
    mfu: float = 0.4,
    overrides: Sequence[str] = (),
) -> Budget:
    """The budget of a training on `gpus` GPUs that run at the share `mfu` of their peak.

    `tokenizer`, `encoder`, `vqvae` and `ar_dtok` are trained models or the TOMLs of their
    trainings. `lm` and `encoder` may be models of transformers, and `sana` one of diffusers, by
    folder or by hub id in the local cache. Raises
    UserError where the trainer or the GPU is unknown, where a size is missing, and where the
    training does not fit.
    """
    name = _stage(config, stage)
    if gpu not in GPUS:
        raise UserError(
            f"no figures of a GPU named {gpu}", hint="--gpu " + ", --gpu ".join(sorted(GPUS))
        )
    settings = settings_of(name, config, overrides)
    start = start_of(
        lm=lm,
        tokenizer=tokenizer,
        encoder=encoder,
        vqvae=vqvae,
        ar_dtok=ar_dtok,
        sana=sana,
        size_px=size_px,
        text_tokens=text_tokens,
        picture_kb=picture_kb,
        from_images=from_images,
    )
    stage = "mllm" if name == "lm" else name
    budget = plan(stage, settings, start, gpus=gpus, gpu=gpu, mfu=mfu)
    if not budget.fits:
        raise _does_not_fit(budget, settings, start)
    return budget


def _stage(config: Path, stage: str | None) -> str:
    """The trainer whose settings a TOML holds, by `stage` or by the longest name that fits."""
    word = (stage or config.stem).replace("-", "_")
    fitting = [name for name in (*WORKLOADS, "lm") if word == name or word.startswith(f"{name}_")]
    if not fitting:
        known = ", ".join(name.replace("_", "-") for name in WORKLOADS)
        raise UserError(
            f"{stage or config.name} names no training whose costs are known ({known})",
            hint="tarkit plan CONFIG.toml --stage mllm",
        )
    return max(fitting, key=len)


# ---- what does not fit ---------------------------------------------------------------------------


def _does_not_fit(budget: Budget, settings: Settings, start: Start) -> UserError:
    """The error that says what is too large and which options mend it."""
    parts = sorted(
        ((v, k) for k, v in budget.memory._asdict().items() if k != "accumulates"), reverse=True
    )
    largest = ", ".join(f"{name.replace('_', ' ')} {_size(size)}" for size, name in parts[:3])
    return UserError(
        f"{budget.rows_per_pass:,} {budget.unit} a pass need {_size(budget.memory.peak)} on each "
        f"GPU at the fullest; {budget.gpu} has {_size(budget.usable)} for tensors ({largest})",
        hint="; or ".join(_mends(budget, settings, start)),
    )


def _mends(budget: Budget, settings: Settings, start: Start) -> list[str]:
    """Options with each of which the training fits; several keys together where one is too few."""
    workload = workload_of(budget.stage, settings, start)
    mends = []

    def fits(changed: Settings, gpu: str = budget.gpu) -> bool:
        return plan(budget.stage, changed, start, gpus=budget.gpus, gpu=gpu, mfu=budget.mfu).fits

    if settings.get("micro_batch_tokens"):
        if fits({**settings, "micro_batch_tokens": settings["length"]}):
            mends.append(f"--set micro_batch_tokens={settings['length']}")
    elif not workload.is_divisible:
        mends += _smaller_batch(budget, settings, fits)
    elif most := _most_rows(budget, settings, workload):
        mends.append(f"--set micro_batch_size={most}")
    keys = _memory_keys(budget, settings)
    mends += [_options({k: v}) for k, v in keys.items() if fits({**settings, k: v})]
    if "length" in settings:
        mends += _shorter(settings, fits)
    larger = [
        name
        for name, gpu in sorted(GPUS.items(), key=lambda item: item[1].memory)
        if gpu.memory > GPUS[budget.gpu].memory and fits(settings, name)
    ]
    mends += [f"--gpu {name}" for name in larger[:1]]
    smallest: Settings = {"micro_batch_size": 1} if workload.is_divisible else {}
    return mends or _together(keys, smallest, settings, fits) or [_too_large(budget)]


def _memory_keys(budget: Budget, settings: Settings) -> dict[str, Any]:
    """Settings that take less memory than the present ones, the cheapest first."""
    keys: dict[str, Any] = {}
    if settings["precision"] == "no":
        keys["precision"] = "bf16"
    if not settings["activation_checkpointing"]:
        keys["activation_checkpointing"] = True
    splits = budget.gpus > 1 and budget.stage != "grpo" and settings["optimizer"] != "muon"
    if settings["sharding"] == "none" and splits:
        keys["sharding"] = "full"
    return keys


def _smaller_batch(
    budget: Budget, settings: Settings, fits: Callable[[Settings], bool]
) -> list[str]:
    """The option for the largest half, quarter and so on of a step that fits, in whole groups."""
    unit = budget.gpus * settings.get("group", 1)
    batch = settings["batch_size"]
    while batch % (2 * unit) == 0:
        batch //= 2
        if fits({**settings, "batch_size": batch}):
            return [f"--set batch_size={batch}"]
    return []


def _together(
    keys: Settings, smallest: Settings, settings: Settings, fits: Callable[[Settings], bool]
) -> list[str]:
    """The fewest of `keys` with which the training fits, with `smallest` too if it must be."""
    for more in ({}, smallest):
        for number in range(1, len(keys) + 1):
            for names in combinations(keys, number):
                changed = {**{name: keys[name] for name in names}, **more}
                if fits({**settings, **changed}):
                    return [_options(changed)]
    return []


def _options(changed: Settings) -> str:
    values = {k: str(v).lower() if isinstance(v, bool) else v for k, v in changed.items()}
    return " ".join(f"--set {k}={v}" for k, v in values.items())


def _too_large(budget: Budget) -> str:
    memory = budget.memory
    fixed = memory.weights + memory.gathered + memory.gradients + memory.tied
    fixed += memory.gradient_buckets + memory.optimizer + memory.average + memory.frozen
    size = _size(fixed)
    more = ", or more GPUs" if budget.gpus > 1 else ""
    return f"a smaller model{more}: what does not depend on the rows alone is {size}"


def _most_rows(budget: Budget, settings: Settings, workload: Workload) -> int:
    """The largest `micro_batch_size` below the present one that fits; 0 where none does."""
    step = budget.rows_per_gpu
    for rows in range(budget.rows_per_pass - 1, 0, -1):
        if step % rows == 0:
            memory, _ = memory_of(settings, workload, rows, passes=step // rows, gpus=budget.gpus)
            if memory.peak <= budget.usable:
                return rows
    return 0


def _shorter(settings: Settings, fits: Callable[[Settings], bool]) -> list[str]:
    """The option for the longest packed row that fits, if a shorter one does."""
    low, high = 0, settings["length"] // LENGTH_STEP
    found = 0
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            fitting = fits({**settings, "length": middle * LENGTH_STEP})
        except UserError:  # a chat does not fit into such a row
            low = middle
            continue
        found = middle if fitting else found
        low, high = (middle, high) if fitting else (low, middle)
    return [f"--set length={found * LENGTH_STEP}"] if found else []


# ---- in words ------------------------------------------------------------------------------------


def _size(size: float) -> str:
    return f"{size / 1e12:,.1f} TB" if size >= 1e12 else f"{size / 1e9:,.1f} GB"


def in_words(budget: Budget) -> str:
    """The budget as a page of text."""
    memory, rows = budget.memory, budget.rows_per_gpu
    slow = budget.float32_flops_per_step
    flops = budget.flops_per_step + budget.frozen_flops_per_step
    share = 100 * budget.frozen_flops_per_step / flops
    parts = {
        "weights": memory.weights,
        "gathered": memory.gathered,
        "weights, bf16 copy": memory.weight_copies,
        "gradients": memory.gradients,
        "gradients of a tied table": memory.tied,
        "gradient buckets": memory.gradient_buckets,
        "optimizer": memory.optimizer,
        "average of weights": memory.average,
        "frozen models": memory.frozen,
        "activations": memory.activations,
        "loss": memory.loss,
        "before the pass": memory.before_pass,
    }
    lines = [
        ("steps", f"{budget.steps:,} of {budget.batch_size:,} {budget.unit}"),
        ("on a GPU", f"{rows:,} {budget.unit} a step, {budget.rows_per_pass:,} at a time"),
        (
            "tokens",
            f"{short(budget.tokens_per_step)} a step, "
            f"{short(budget.steps * budget.tokens_per_step)} in all",
        ),
        ("parameters", f"{short(budget.trained)} trained, {short(budget.frozen)} frozen"),
        (
            "FLOPs",
            f"{short(flops)} a step, {short(budget.steps * flops)} in all"
            + (f", {share:.0f} % of them in frozen models" if share else ""),
        ),
        (
            "memory",
            f"{_size(memory.peak)} of the {_size(budget.usable)} that {budget.gpu} has for tensors",
        ),
        *((f"  {name}", _size(size)) for name, size in parts.items() if size),
        *([] if memory.accumulates else [("", "(gradients come as activations and loss go)")]),
        *(
            []
            if budget.activation_checkpointing
            else [("", f"(activations with checkpointing: {_size(budget.checkpointed)})")]
        ),
        (
            "disk",
            f"{_size(budget.disk_bytes)}: {budget.checkpoints} x a checkpoint of "
            f"{_size(budget.checkpoint_bytes)}, "
            f"{budget.models} x a model of {_size(budget.model_bytes)}",
        ),
        ("read", _size(budget.read_bytes)),
        (
            "time",
            f"{budget.seconds / 3600:,.1f} hours, {budget.gpus * budget.seconds / 3600:,.0f} GPU-"
            f"hours at {100 * budget.mfu:g} % of {budget.peak_flops / 1e12:g} TFLOP/s"
            + (f", {short(budget.float32_flops_per_step)} FLOPs a step in float32" if slow else ""),
        ),
        *(("assumed", text) for text in budget.assumptions),
    ]
    head = f"train {budget.stage.replace('_', '-')} on {budget.gpus} x {budget.gpu}"
    return "\n".join([head, *(f"{name:<22}{text}" for name, text in lines)])
