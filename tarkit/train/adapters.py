"""LoRA adapters on a frozen language model, by peft.

Source: Hu et al. 2021, "LoRA": a frozen matrix W is used as W + (alpha / r) B A, with trained
A (r, n) and B (m, r). A starts from random numbers and B from zeros.
"""

from __future__ import annotations

from copy import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from tarkit.artifacts.files import whole_file
from tarkit.checkpoints.language_model import stored_arch
from tarkit.config import Config
from tarkit.errors import UserError
from tarkit.models.mllm import PROJECTOR, projector_of, skeleton
from tarkit.train.parameters import name_nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "default"  # peft's name of an adapter that has none


class AdapterConfig(Config):
    """LoRA adapters that are trained in place of the model's own weights."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    """The adapters' part is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapters' inputs that are set to zero in training."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Patterns of names of the linear layers that get an adapter, such as "*.q_proj"; "all-linear":
    every one but the head."""
    train_embeddings: bool = False
    """Whether the embedding table and an untied head are trained too, whole and in float32. A model
    whose vocabulary grows by the codes needs it; a published Tar has trained codes."""


def add_adapters(
    lm: PreTrainedModel, config: AdapterConfig, *, base: str | None = None
) -> PreTrainedModel:
    """Freeze a language model and give it adapters in float32, in place; returns it.

    `base` names the frozen model in the adapter's own config. The frozen weights keep their type:
    where the embeddings are bfloat16 their output becomes float32, so that the residual stream is
    float32 as in every training. Raises UserError without peft, and for a target that is no linear
    layer of the model.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(
            "[lora] needs the package peft, which is not installed",
            hint="pip install 'tarkit[lora]'",
        ) from None
    tables = {id(table.weight): table.weight for table in _tables(lm)}.values()
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_targets(lm, config.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    inject_adapter_in_model(lora, lm)
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_("lora_" in name)
    for table in tables:
        table.requires_grad_(config.train_embeddings)
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if not config.train_embeddings:
        lm.get_input_embeddings().register_forward_hook(_float_output)
    return lm


def _float_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def _tables(lm: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    """The embedding table and the head, which may share their weight."""
    return lm.get_input_embeddings(), lm.get_output_embeddings()


def _targets(lm: PreTrainedModel, patterns: tuple[str, ...] | str) -> str | list[str]:
    """The names of the targeted layers as peft takes them."""
    if isinstance(patterns, str):
        return patterns
    head = lm.get_output_embeddings()
    layers = [n for n, m in lm.named_modules() if isinstance(m, nn.Linear) and m is not head]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise name_nearest("lora.targets", pattern, layers, "linear layer of this model")
    return [n for n in layers if any(fnmatchcase(n, pattern) for pattern in patterns)]


@torch.no_grad()
def merged(lm: PreTrainedModel) -> PreTrainedModel:
    """A plain model with every adapter added to its matrix; `lm` stays as it is.

    A sum is computed in float32 and stored in the type of the frozen matrix: bfloat16 rounds it.
    It is stored on the CPU, as a device that trains adapters may hold no second model.
    """
    from peft.tuners.lora import Linear

    state = {n: v for n, v in lm.state_dict().items() if ".lora_" not in n}
    projector = projector_of(lm)
    if projector is not None:  # no part of the family's own network
        state = {n: v for n, v in state.items() if not n.startswith(f"{PROJECTOR}.")}
    for name, module in lm.named_modules():
        if isinstance(module, Linear):
            key = f"{name}.base_layer.weight"
            weight = state[key]
            delta = module.get_delta_weight(NAME).to(weight.device)
            state[key] = (weight.float() + delta).to("cpu", weight.dtype)
    plain = skeleton(stored_arch(lm))
    own = {name.replace(".base_layer.", "."): value for name, value in state.items()}
    plain.load_state_dict(own, assign=True)
    plain.tie_weights()
    if projector is not None:
        setattr(plain, PROJECTOR, projector)
    return plain.eval()


def save_adapters(lm: PreTrainedModel, out: Path) -> None:
    """Write the adapters in peft's format: `PeftModel.from_pretrained(base, out)` loads them.

    Trained tables are in the same file. Where the vocabulary has grown, the base model must be
    resized to it before the adapters are loaded.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy(lm.peft_config[NAME])
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set, whose order varies
    trained = any(table.weight.requires_grad for table in _tables(lm))
    state = get_peft_model_state_dict(lm, save_embedding_layers=trained)
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.data_ptr() not in seen:  # a tied head is the table
            seen.add(value.data_ptr())
            own[f"base_model.model.{name}"] = value.detach().contiguous().cpu()
    out.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(out))
    with whole_file(out / "adapter_model.safetensors") as file:
        save_file(own, file, metadata={"format": "pt"})
