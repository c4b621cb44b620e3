"""The figures of a training before it runs: steps, tokens, FLOPs, memory by part, disk, time.

The formulas stand in `tarkit.train.costs`, the GPUs in `tarkit.train.gpus`.

Memory is that of `tarkit.train.loop`: float32 weights, gradients and optimizer states. Each GPU has
them whole (data parallel), with a bf16 copy of the weights while a pass runs under bf16, or, with
`sharding = "full"`, an equal part and what it gathers for a moment: what is in no block, and two
blocks, of which one is computed while the next one comes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple, TypeVar

from torch import nn

from tarkit.checkpoints.directory import read_arch, read_config
from tarkit.checkpoints.hub import LANGUAGE_MODELS, find_folder
from tarkit.checkpoints.sana import find_sana
from tarkit.checkpoints.siglip import is_siglip, read_siglip_arch
from tarkit.config import Config, load_config
from tarkit.errors import UserError
from tarkit.models.ar_dtok import ArDtokArch
from tarkit.models.encoder import EncoderArch
from tarkit.models.ta_tok import TaTokArch
from tarkit.models.vqvae import VqvaeArch
from tarkit.train.blocks import blocks_of
from tarkit.train.costs import count
from tarkit.train.gpus import GPUS, USABLE
from tarkit.train.loop_config import LoopConfig
from tarkit.train.optimizers import hidden_matrices
from tarkit.train.parameters import (
    ParameterCounts,
    ParametersConfig,
    count_parameters,
    freeze_parameters,
)
from tarkit.train.sana_costs import read_sana_configs
from tarkit.train.workloads.stages import WORKLOADS
from tarkit.train.workloads.tokenizer import lm_width, ta_tok_arch
from tarkit.train.workloads.workload import Settings, Start, Workload

# The beginning of a TOML's name says which trainer reads it: mllm_sft.toml is train mllm's.
CONFIGS = {
    "encoder": "tarkit.train.encoder:EncoderConfig",
    "vqvae": "tarkit.train.vqvae:VqvaeConfig",
    "tokenizer": "tarkit.train.tokenizer:TokenizerConfig",
    "ar_dtok": "tarkit.train.ar_dtok:ArDtokConfig",
    "mllm": "tarkit.train.mllm:MllmConfig",
    "lm": "tarkit.train.mllm:MllmConfig",
    "dif_dtok": "tarkit.train.dif_dtok:DifDtokConfig",
    "grpo": "tarkit.train.grpo:GrpoConfig",
}
ArchT = TypeVar("ArchT", bound=Config)
LETTERS = ("", "k", "M", "G", "T", "P", "E", "Z")


class Memory(NamedTuple):
    """Bytes of one GPU by part."""

    weights: float
    gathered: float  # weights and gradients that are whole for a moment, where others are split
    weight_copies: float  # in bf16, while a pass runs
    gradients: float
    tied: float  # of a table that is input and head: its two gradients, and the one before
    gradient_buckets: float  # of data parallel training
    optimizer: float
    average: float  # of the weights, with `ema`
    frozen: float
    activations: float
    loss: float
    before_pass: float  # what is computed without a gradient, and gone when the pass begins
    accumulates: bool  # gradients of earlier passes are there while a pass runs

    @property
    def peak(self) -> float:
        """The largest of three moments: before a pass, and at the ends of its two directions."""
        always = self.weights + self.gradient_buckets + self.optimizer + self.average + self.frozen
        forward = self.gathered + self.weight_copies + self.activations + self.loss
        earlier = self.gradients if self.accumulates else 0
        end = self.gradients + self.tied
        return always + max(forward + earlier, self.before_pass + earlier, end)


@dataclass(frozen=True)
class Budget:
    """The figures of a plan: bytes, FLOPs, seconds."""

    stage: str
    gpu: str
    gpus: int
    mfu: float
    precision: str
    steps: int
    batch_size: int
    unit: str
    rows_per_gpu: int
    rows_per_pass: int
    passes: int
    tokens_per_step: float
    trained: int
    frozen: int
    flops_per_step: float
    frozen_flops_per_step: float
    float32_flops_per_step: float  # part of flops_per_step, whatever `precision` is
    memory: Memory
    activation_checkpointing: bool
    checkpointed: float
    checkpoint_bytes: float
    checkpoints: int
    model_bytes: float
    models: int
    read_bytes: float
    assumptions: tuple[str, ...]

    @property
    def peak_flops(self) -> float:
        return GPUS[self.gpu].peak(self.precision)

    @property
    def seconds(self) -> float:
        slow = self.float32_flops_per_step
        fast = self.flops_per_step + self.frozen_flops_per_step - slow
        at_peak = fast / self.peak_flops + slow / GPUS[self.gpu].peak("no")
        return self.steps * at_peak / (self.gpus * self.mfu)

    @property
    def usable(self) -> float:
        """Bytes of a GPU for tensors."""
        return GPUS[self.gpu].memory * USABLE

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.usable

    @property
    def disk_bytes(self) -> float:
        """At the most: the kept checkpoints while the next one is written, and the kept models."""
        return self.checkpoints * self.checkpoint_bytes + self.models * self.model_bytes

    def facts(self) -> dict[str, Any]:
        """Everything as plain values."""
        memory = {k: v for k, v in self.memory._asdict().items() if k != "accumulates"}
        return asdict(self) | {
            "memory": memory | {"peak": self.memory.peak, "usable": self.usable},
            "tokens": self.steps * self.tokens_per_step,
            "flops": self.steps * (self.flops_per_step + self.frozen_flops_per_step),
            "peak_flops": self.peak_flops,
            "disk_bytes": self.disk_bytes,
            "hours": self.seconds / 3600,
            "gpu_hours": self.gpus * self.seconds / 3600,
        }


def settings_of(name: str, config: Path, overrides: Sequence[str]) -> Settings:
    """The settings of a training by its name in `CONFIGS`; UserError for a key that is none."""
    cls: type[LoopConfig] = resolve_name(CONFIGS[name])
    return load_config(cls, config, overrides).model_dump(mode="json")


def start_of(
    *,
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
) -> Start:
    """The sizes of what a training starts from; UserError for what is none, or cannot be read."""
    encoder = find_folder(encoder) if encoder else None
    if lm and str(lm).lower() not in LANGUAGE_MODELS:  # the sizes of those are known
        lm = find_folder(lm)
    return Start(
        lm=lm,
        tokenizer=_tokenizer_arch(tokenizer, encoder, lm) if tokenizer else None,
        encoder=_encoder_arch(encoder) if encoder else None,
        vqvae=_arch(VqvaeArch, vqvae, "vqvae") if vqvae else None,
        ar_dtok=_arch(ArDtokArch, ar_dtok, "ar_dtok") if ar_dtok else None,
        sana=read_sana_configs(find_sana(str(sana))) if sana else None,
        size_px=size_px,
        text_tokens=text_tokens,
        picture_bytes=1e3 * picture_kb,
        from_images=from_images,
    )


def _arch(cls: type[ArchT], path: Path, kind: str) -> ArchT:
    """The sizes of a trained model of a kind, or of the one that a TOML will train."""
    if path.suffix != ".toml":
        return read_arch(cls, path, read_config(path, kind))
    arch: ArchT = load_config(resolve_name(CONFIGS[kind]), path).arch
    return arch


def _encoder_arch(path: Path) -> EncoderArch:
    """The sizes of a SigLIP, of a trained encoder, or of the one that a TOML will train."""
    return read_siglip_arch(path) if is_siglip(path) else _arch(EncoderArch, path, "encoder")


def _tokenizer_arch(path: Path, encoder: Path | None, lm: Path | None) -> TaTokArch:
    """The sizes of a trained TA-Tok, or of the one that a TOML will train."""
    if str(path).lower() in LANGUAGE_MODELS and not path.exists():
        return TaTokArch()
    if path.suffix != ".toml":
        return read_arch(TaTokArch, path, read_config(path, "ta_tok"))
    settings = load_config(resolve_name(CONFIGS["tokenizer"]), path).model_dump(mode="json")
    width = lm_width(lm) if lm is not None else TaTokArch().embedding_width
    grid = _encoder_arch(encoder) if encoder else EncoderArch()
    return ta_tok_arch(settings["sizes"], grid, width)


def plan(
    stage: str, settings: Settings, start: Start, *, gpus: int, gpu: str, mfu: float
) -> Budget:
    """The budget of a training, whether or not it fits; UserError where rows do not divide."""
    batch = settings["batch_size"]
    if batch % gpus:
        fewer = max(n for n in range(1, gpus + 1) if batch % n == 0)
        raise UserError(
            f"batch_size = {batch:,} does not divide by {gpus} GPUs",
            hint=f"--gpus {fewer}, or --set batch_size={max(1, batch // gpus) * gpus}",
        )
    workload = workload_of(stage, settings, start)
    return _budget(stage, settings, workload, gpus=gpus, gpu=gpu, mfu=mfu)


def workload_of(stage: str, settings: Settings, start: Start) -> Workload:
    """The cost of a step, with the parameters frozen that the settings freeze."""
    workload = WORKLOADS[stage](settings, start)
    module = nn.ModuleDict({workload.part: workload.model}) if workload.part else workload.model
    keys = ParametersConfig.model_fields
    freeze_parameters(module, ParametersConfig(**{key: settings[key] for key in keys}))
    return workload


def _rows_of_pass(settings: Settings, workload: Workload, rows: int) -> int:
    """Rows of one forward pass out of a GPU's `rows`; UserError where they do not divide."""
    if tokens := settings.get("micro_batch_tokens"):
        return min(rows, max(1, int(tokens / workload.tokens)))
    micro: int = settings["micro_batch_size"] or rows
    if rows % micro:
        divisor = max(d for d in range(1, min(micro, rows) + 1) if rows % d == 0)
        raise UserError(
            f"micro_batch_size = {micro:,} does not divide the {rows:,} rows of a step that each "
            "GPU reads",
            hint=f"--set micro_batch_size={divisor}",
        )
    return micro


def _budget(
    stage: str, settings: Settings, workload: Workload, *, gpus: int, gpu: str, mfu: float
) -> Budget:
    steps, batch = settings["steps"], settings["batch_size"]
    parts = gpus if settings["sharding"] == "full" else 1
    rows = _rows_of_pass(settings, workload, batch // gpus)
    passes = math.ceil(batch // gpus / rows)
    row_flops = workload.flops + workload.recomputed_flops(rows)
    row_flops += workload.block_flops if settings["activation_checkpointing"] else 0
    once = gpus * passes * workload.pass_flops
    memory, checkpointed = memory_of(settings, workload, rows, passes=passes, gpus=gpus)
    values = count(workload.model)
    saved = values if workload.frozen_is_saved else _trained(workload)
    saved += workload.frozen if workload.frozen_in_checkpoint else 0
    # The last step's is the trained model itself.
    models = (steps - 1) // settings["keep_every"] if settings["keep_every"] else 0
    return Budget(
        stage=stage,
        gpu=gpu,
        gpus=gpus,
        mfu=mfu,
        precision=settings["precision"],
        steps=steps,
        batch_size=batch,
        unit=workload.unit,
        rows_per_gpu=batch // gpus,
        rows_per_pass=rows,
        passes=passes,
        tokens_per_step=batch * workload.tokens,
        trained=_trained(workload),
        frozen=values - _trained(workload) + workload.frozen,
        flops_per_step=batch * row_flops + once,
        float32_flops_per_step=batch * workload.float32_flops + once,
        frozen_flops_per_step=batch * workload.frozen_flops,
        memory=memory,
        activation_checkpointing=settings["activation_checkpointing"],
        checkpointed=checkpointed,
        checkpoint_bytes=4 * saved + (memory.optimizer + memory.average) * parts,
        checkpoints=settings["keep_checkpoints"] + 1,
        model_bytes=memory.weights * parts + workload.more_model_bytes,
        models=models + 1,
        read_bytes=steps * batch * workload.read_bytes,
        assumptions=workload.assumptions,
    )


def _trained(workload: Workload) -> int:
    """Values that get a gradient."""
    return max(0, count_parameters(workload.model).trained - workload.idle)


def memory_of(
    settings: Settings, workload: Workload, rows: int, *, passes: int, gpus: int
) -> tuple[Memory, float]:
    """The parts of a GPU's memory, and its activations with activation checkpointing."""
    trained, kept = _trained(workload), workload.kept(rows)
    sharded, bf16 = settings["sharding"] == "full", settings["precision"] == "bf16"
    again = settings["activation_checkpointing"]
    parts = gpus if sharded else 1
    parameters = workload.model.parameters()
    outside = count(workload.model) - sum(map(count, blocks_of(workload.model)))
    memory = Memory(
        weights=sum(p.numel() * p.element_size() for p in parameters) / parts,
        gathered=_gathered(workload.model, 2 if bf16 else 4) if sharded else 0,
        weight_copies=2 * (min(outside, trained) if sharded else trained) if bf16 else 0,
        gradients=4 * trained / parts,
        tied=(2 + (passes > 1)) * 4 * workload.tied / parts,
        gradient_buckets=4 * trained if gpus > 1 and not sharded else 0,
        optimizer=_optimizer_bytes(settings, workload, trained) / parts,
        average=4 * trained / parts if settings["ema"] else 0,
        frozen=4 * workload.frozen / (parts if workload.frozen_in_checkpoint else 1),
        activations=kept.checkpointed if again else kept.activations,
        loss=max(kept.loss, kept.block) if again else kept.loss,
        before_pass=workload.before_pass(rows),
        accumulates=passes > 1,
    )
    return memory, kept.checkpointed


def _optimizer_bytes(settings: Settings, workload: Workload, trained: int) -> float:
    """Bytes of what the optimizer keeps: float32.

    AdamW keeps two moments of a value, Muon one. CAME keeps one, two vectors of rows and two of
    columns of a matrix, and of a vector the squares too.
    """
    if settings["optimizer"] != "came":
        muon = settings["optimizer"] == "muon"
        single = sum(p.numel() for p in hidden_matrices(workload.model)) if muon else 0
        return 8 * trained - 4 * single
    factors = 0
    for parameter in workload.model.parameters():
        if parameter.requires_grad:
            values, shape = parameter.numel(), parameter.shape
            lines = 2 * (values // shape[-1] + values // shape[-2]) if len(shape) > 1 else values
            factors += lines
    return 4 * (trained + factors)


def _gathered(model: nn.Module, c: int) -> float:
    """Bytes that one process of sharded training holds of others' parts, at the most.

    Weights outside of blocks with their gradients, in float32. Weights of two blocks in c bytes;
    of one its gradients in c bytes, and in the 4 in which they are summed.
    """
    inside, outside = [ParameterCounts(0, 0)], count_parameters(model)
    for block in map(count_parameters, blocks_of(model)):
        inside.append(block)
        outside = ParameterCounts(outside.trained - block.trained, outside.total - block.total)
    largest = max(inside, key=lambda block: block.total)
    around = 4 * (outside.total + outside.trained)
    return around + 2 * c * largest.total + (c + 4) * largest.trained


def short(number: float) -> str:
    """A number with three digits and the letter of its thousands."""
    power = min(int(math.log10(max(number, 1)) / 3), len(LETTERS) - 1)
    return f"{number / 1000**power:.3g} {LETTERS[power]}".strip()
