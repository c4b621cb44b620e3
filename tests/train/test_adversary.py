"""The discriminator beside the image VQ: its step, its adaptive weight, and when it joins."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.testing import assert_close

from tarkit.models.patchgan import PatchDiscriminator, discriminator_loss, generator_loss
from tarkit.train.adversary import Adversary
from tarkit.train.loop_config import LoopConfig, rate_factor

CONFIG: dict[str, Any] = {"steps": 10, "batch_size": 4, "learning_rate": 0.01, "clip": 0.05}


def adversary(*, begins: int = 0, **changes: Any) -> Adversary:
    torch.manual_seed(0)
    config = LoopConfig(**CONFIG | changes)
    return Adversary(PatchDiscriminator(32, 2), config, begins=begins).double()


class Decoder(nn.Module):
    """Pictures from features by one layer, the last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.last = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(x).tanh()
        return out


RNG = torch.Generator().manual_seed(0)
FEATURES = torch.randn(4, 2, 16, 16, dtype=torch.float64, generator=RNG)
REAL = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=RNG) * 2 - 1


def step(made: Adversary, decoder: Decoder, number: int, *sizes: int) -> tuple[Tensor, Any]:
    """A step in micro-batches; the weighted loss of the whole step, and the figures."""
    total = torch.zeros((), dtype=torch.float64)
    for x, real in zip(FEATURES.split(list(sizes)), REAL.split(list(sizes)), strict=True):
        fake = decoder(x)
        reconstruction = (fake - real).square().mean()
        part = made.loss(fake, real, reconstruction, decoder.last.weight, number)
        total = total + part.weighted * (len(x) / 4)
    return total, made.take_step(number, decoder.last.weight)


def test_the_weight_is_the_ratio_of_two_gradients_of_the_step_before() -> None:
    made, decoder = adversary(), Decoder()
    fake = decoder(FEATURES)
    losses = ((fake - REAL).square().mean(), generator_loss(made.discriminator(fake)))
    norms = [
        float(torch.autograd.grad(loss, decoder.last.weight, retain_graph=True)[0].norm())
        for loss in losses
    ]
    first, figures = step(made, decoder, 0, 4)
    # Nothing was measured before the first step.
    assert first.item() == 0.0 == figures["adaptive_weight"]
    ratio = norms[0] / (norms[1] + 1e-4)
    assert float(made.weight) == pytest.approx(ratio)
    adversarial = generator_loss(made.discriminator(decoder(FEATURES))).item()
    second, figures = step(made, decoder, 1, 4)
    assert second.item() == pytest.approx(ratio * adversarial)
    assert figures["adaptive_weight"] == pytest.approx(ratio)


def test_a_weight_has_an_upper_bound() -> None:
    made, decoder = adversary(), Decoder()
    with torch.no_grad():
        for parameter in made.discriminator.parameters():
            parameter.mul_(1e-9)
    fake = decoder(FEATURES)
    made.loss(fake, REAL, (fake * 1e3 - REAL).square().mean(), decoder.last.weight, 0)
    made.take_step(0, decoder.last.weight)
    assert float(made.weight) == 1e4


def test_the_discriminator_takes_the_step_of_adamw_on_the_clipped_hinge_loss() -> None:
    made, reference = adversary(), adversary().discriminator.requires_grad_(True)
    decoder = Decoder()
    optimizer = torch.optim.AdamW(
        reference.parameters(), lr=0.01, betas=made.config.betas[:2], weight_decay=0.0
    )
    for number in range(3):
        fake = decoder(FEATURES).detach()
        loss = discriminator_loss(reference(REAL), reference(fake))
        optimizer.zero_grad()
        loss.backward()
        assert clip_grad_norm_(reference.parameters(), 0.05) > 0.05
        optimizer.param_groups[0]["lr"] = 0.01 * rate_factor(made.config, number)
        optimizer.step()
        step(made, decoder, number, 4)
        for mine, expected in zip(
            made.discriminator.parameters(), reference.parameters(), strict=True
        ):
            assert_close(mine, expected, atol=1e-9, rtol=1e-7)
    assert not any(p.requires_grad for p in made.discriminator.parameters())


def test_micro_batches_of_any_size_are_one_pass() -> None:
    whole, split = adversary(), adversary()
    decoder = Decoder()
    for number, sizes in enumerate(((1, 3), (2, 2))):
        step(whole, decoder, number, 4)
        step(split, decoder, number, *sizes)
    assert int(whole.steps) == 2
    assert_close(whole.state_dict(), split.state_dict(), atol=1e-10, rtol=1e-8)


def test_before_it_joins_it_only_measures_the_weight_one_step_ahead() -> None:
    made, decoder = adversary(begins=3), Decoder()
    assert made.first_step == 2
    before = [p.clone() for p in made.discriminator.parameters()]
    weighted, _ = step(made, decoder, 2, 4)
    assert weighted.item() == 0.0 and float(made.weight) > 0 and float(made.steps) == 0
    assert all(map(torch.equal, before, made.discriminator.parameters()))
    weighted, _ = step(made, decoder, 3, 4)
    assert weighted.item() != 0.0 and float(made.steps) == 1
    *moved, last_bias = made.discriminator.parameters()
    assert not any(map(torch.equal, before, moved))
    # Within the hinges, shifting all logits alike changes nothing.
    assert torch.equal(last_bias, before[-1])
    # A step that called for no loss leaves all as it is.
    assert made.take_step(4, decoder.last.weight) == {}


def test_a_step_that_was_skipped_leaves_nothing_to_the_next() -> None:
    skipping, plain = adversary(), adversary()
    decoder = Decoder()
    step(skipping, decoder, 3, 4)
    step(plain, decoder, 3, 4)
    # The loop takes no step after a loss that is not finite.
    broken = decoder(FEATURES)
    skipping.loss(broken, REAL * float("nan"), broken.mean() * float("nan"), decoder.last.weight, 4)
    step(skipping, decoder, 5, 2, 2)
    step(plain, decoder, 5, 2, 2)
    for name, values in skipping.state_dict().items():
        assert torch.equal(values, plain.state_dict()[name]), name
