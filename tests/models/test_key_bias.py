"""The bias of attention's keys changes nothing, and training leaves it as it is."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tarkit.models.encoder import VitAttention, VitAttentionPool


class Case(NamedTuple):
    """A layer with attention, the shape of its input, and the name of the bias."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    bias: str


CASES = {
    "attention": Case(lambda: VitAttention(16, 2), (2, 5, 16), "k_proj.bias"),
    "pool": Case(lambda: VitAttentionPool(16, 2, 32), (2, 5, 16), "attention.in_proj_bias"),
}


def of_keys(bias: Tensor, name: str) -> Tensor:
    """The part of a bias that is added to keys; `in_proj_bias` is of queries, keys and values."""
    return bias.chunk(3)[1] if name.endswith("in_proj_bias") else bias


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_bias_of_keys_has_a_gradient_of_zero_and_everything_else_another(case: Case) -> None:
    torch.manual_seed(0)
    layer, x = case.make(), torch.randn(case.shape)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer(x).pow(2).sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    zeros = 0
    for name, gradient in gradients.items():
        assert gradient is not None, name
        zeros += int((gradient == 0).sum())
    bias = layer.get_parameter(case.bias)
    assert bias.grad is not None
    keys = of_keys(bias.grad, case.bias)
    assert not keys.any()
    assert zeros == keys.numel()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention_ignores_the_bias_of_keys(case: Case) -> None:
    torch.manual_seed(0)
    layer, x = case.make(), torch.randn(case.shape)
    with torch.no_grad():
        before = layer(x)
        of_keys(layer.get_parameter(case.bias), case.bias).add_(3.0)
        assert_close(layer(x), before)
