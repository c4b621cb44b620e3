"""CAME against its paper's algorithm, in float64 and element by element."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tarkit.config import load_config
from tarkit.errors import UserError
from tarkit.train.came import Came
from tarkit.train.loop_config import LoopConfig
from tarkit.train.optimizers import make_optimizers

RATE, BETA1, BETA2, BETA3 = 0.01, 0.9, 0.999, 0.9999
EPS1, EPS2, CLIP = 1e-30, 1e-16, 1.0


def reference(start: Tensor, gradients: list[Tensor]) -> Tensor:
    """Luo et al. 2023, Algorithm 2, for one matrix: its symbols, sums where the paper has sums."""
    theta = start.double().clone()
    n, m = theta.shape
    ones_n, ones_m = torch.ones(n, dtype=torch.float64), torch.ones(m, dtype=torch.float64)
    mean = torch.zeros_like(theta)
    r, c = torch.zeros(n).double(), torch.zeros(m).double()
    big_r, big_c = torch.zeros(n).double(), torch.zeros(m).double()
    for gradient in gradients:
        g = gradient.double()
        r = BETA2 * r + (1 - BETA2) * ((g**2 + EPS1) @ ones_m)
        c = BETA2 * c + (1 - BETA2) * (ones_n @ (g**2 + EPS1))
        v = torch.outer(r, c) / (ones_n @ r)
        u = g / v.sqrt()
        u_hat = u / max(1.0, float((u**2).mean().sqrt()) / CLIP)
        mean = BETA1 * mean + (1 - BETA1) * u_hat
        instability = (u_hat - mean) ** 2
        big_r = BETA3 * big_r + (1 - BETA3) * ((instability + EPS2) @ ones_m)
        big_c = BETA3 * big_c + (1 - BETA3) * (ones_n @ (instability + EPS2))
        s = torch.outer(big_r, big_c) / (ones_n @ big_r)
        theta = theta - RATE / s.sqrt() * mean
    return theta


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(1)


def gradients_of(*shape: int, steps: int = 12) -> list[Tensor]:
    """Rows and columns of very different sizes, whose signs agree more often than not."""
    scale = torch.logspace(-3, 1, shape[-2]).unsqueeze(-1) * torch.linspace(0.2, 3, shape[-1])
    return [(torch.randn(*shape) + 0.5) * scale for _ in range(steps)]


def trained(start: Tensor, gradients: list[Tensor], **settings: Any) -> Tensor:
    parameter = nn.Parameter(start.clone())
    optimizer = Came([parameter], lr=RATE, **settings)
    for gradient in gradients:
        parameter.grad = gradient.to(parameter.dtype).clone()
        optimizer.step()
    return parameter.detach()


def test_a_matrix_is_trained_as_the_paper_says() -> None:
    start, gradients = torch.randn(5, 7), gradients_of(5, 7)
    expected = reference(start, gradients)
    assert float((expected - start).abs().min()) > 1e-4  # every element has moved
    assert_close(trained(start.double(), gradients), expected, rtol=1e-12, atol=1e-12)
    assert_close(trained(start, gradients).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_stack_of_matrices_is_as_many_matrices_and_clipped_as_one() -> None:
    # The clip is over the whole parameter, so equal layers must be given to see equal results.
    start, gradients = torch.randn(5, 7), gradients_of(5, 7)
    alone = trained(start, gradients)
    stacked = trained(torch.stack([start, start]), [torch.stack([g, g]) for g in gradients])
    assert_close(stacked, torch.stack([alone, alone]))


def test_a_vector_has_no_confidence() -> None:
    start, gradients = torch.randn(7), [g[2] for g in gradients_of(5, 7)]
    theta, mean, v = start.double(), torch.zeros(7).double(), torch.zeros(7).double()
    for gradient in gradients:
        g = gradient.double()
        v = BETA2 * v + (1 - BETA2) * (g**2 + EPS1)
        u = g / v.sqrt()
        mean = BETA1 * mean + (1 - BETA1) * u / max(1.0, float((u**2).mean().sqrt()) / CLIP)
        theta = theta - RATE * mean
    assert_close(trained(start, gradients).double(), theta, rtol=1e-5, atol=1e-5)


def test_weights_decay_apart_from_the_gradient() -> None:
    start, still = torch.randn(5, 7), [torch.zeros(5, 7)] * 3
    decayed = trained(start, still, weight_decay=0.5)
    assert_close(decayed, start * (1 - RATE * 0.5) ** 3)


def test_what_is_kept_is_rows_and_columns_and_goes_on_from_a_checkpoint() -> None:
    start, gradients = torch.randn(5, 7), gradients_of(5, 7)
    parameter = nn.Parameter(start.clone())
    optimizer = Came([parameter], lr=RATE)
    for number, gradient in enumerate(gradients):
        if number == 6:
            saved, weights = optimizer.state_dict(), parameter.detach().clone()
            parameter = nn.Parameter(weights)
            optimizer = Came([parameter], lr=RATE)
            optimizer.load_state_dict(saved)
        parameter.grad = gradient.clone()
        optimizer.step()
    assert torch.equal(parameter.detach(), trained(start, gradients))
    sizes = {name: tuple(kept.shape) for name, kept in optimizer.state[parameter].items()}
    assert sizes == {
        "update": (5, 7),
        "square_rows": (5,),
        "square_columns": (7,),
        "deviation_rows": (5,),
        "deviation_columns": (7,),
    }


def test_a_config_names_it_and_gives_it_three_betas() -> None:
    small: dict[str, Any] = {"steps": 8, "batch_size": 4, "learning_rate": 0.1}
    config = LoopConfig.model_validate(
        {**small, "optimizer": "came", "betas": [0.8, 0.9, 0.95], "weight_decay": 0.3}
    )
    (made,) = make_optimizers(nn.Linear(3, 2), config)
    assert isinstance(made, Came)
    assert [group["betas"] for group in made.param_groups] == [(0.8, 0.9, 0.95)] * 2
    assert [group["weight_decay"] for group in made.param_groups] == [0.3, 0.0]
    for optimizer, betas, needed in (("came", "[0.9, 0.99]", 3), ("adamw", "[0.9, 0.99, 0.9]", 2)):
        overrides = [f"optimizer={optimizer}", f"betas={betas}"]
        overrides += [f"{key}={value}" for key, value in small.items()]
        with pytest.raises(UserError, match=f"optimizer {optimizer} has {needed} betas"):
            load_config(LoopConfig, None, overrides)
