"""Models of any size with random weights, made fast: no file of published weights is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def random_model(build: Callable[[], ModuleT], device: torch.device, *, seed: int) -> ModuleT:
    """A model in eval mode whose parameters are drawn and not initialised one after the other.

    Matrices are uniform with the variance 1 / width of their input, vectors 1 for the weights of
    norms and 0 for biases. Buffers that `build` puts on the meta device become 0.
    """
    with torch.device("meta"):
        model = build()
    return filled(model, device, seed=seed)


def filled(model: ModuleT, device: torch.device, *, seed: int) -> ModuleT:
    """A model in eval mode, its meta tensors replaced as `random_model` says; ties are kept."""
    generator = torch.Generator(device).manual_seed(seed)
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in made:
                    made[id(parameter)] = _drawn(name, parameter, device, generator)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                on_meta = buffer.is_meta
                module._buffers[name] = (
                    torch.zeros_like(buffer, device=device) if on_meta else buffer.to(device)
                )
    return model.eval()


def _drawn(
    name: str, like: Tensor, device: torch.device, generator: torch.Generator
) -> nn.Parameter:
    value = torch.empty(like.shape, dtype=like.dtype, device=device)
    if like.dim() < 2:
        value.fill_(1.0 if name.endswith("weight") else 0.0)
    else:
        limit = (3 / max(1, like[0].numel())) ** 0.5
        value.uniform_(-limit, limit, generator=generator)
    return nn.Parameter(value, requires_grad=False)


def share_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Let a module on the meta device use these tensors as they are, without a copy.

    Raises RuntimeError where a name is missing or left over.
    """
    module.load_state_dict(dict(weights), strict=True, assign=True)
    module.eval()


def on_meta(build: Callable[[], Any]) -> Any:
    """What `build` makes, on the meta device."""
    with torch.device("meta"):
        return build()
