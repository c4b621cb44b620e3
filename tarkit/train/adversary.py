"""The discriminator that the image VQ is trained against, with its optimizer and adaptive weight.

Source: VQGAN (Esser et al. 2021, Eq. 6 and 7): the adversarial loss is weighted by the ratio of two
gradients' norms at the decoder's last layer, that of the reconstruction and its own. Both are
gradients of the whole step here, whatever micro-batches and processes share it. They are known
after its last pass, so the weight is that of the step before: VQGAN's own step, one step late.

Everything that a resumed training needs is a parameter or a buffer, and so in the model's state.

Letters: B pictures, H W pixels, P parameters of the discriminator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.optim.adamw import adamw

from tarkit.models.patchgan import PatchDiscriminator, discriminator_loss, generator_loss
from tarkit.models.vqvae import Vqvae, VqvaeOutput
from tarkit.train.loop_config import LoopConfig, rate_factor
from tarkit.train.processes import sum_over_processes

LARGEST_WEIGHT = 1e4  # of the adversarial loss (VQGAN)


class Adversarial(NamedTuple):
    """The adversarial loss of some pictures."""

    weighted: Tensor  # () the generator's loss times its adaptive weight; 0 before its first step
    figures: dict[str, float]


class Adversary(nn.Module):
    """A discriminator, its AdamW, and the adaptive weight of the loss against it.

    Its parameters take no gradient from the image VQ's loss, so the training loop and its
    optimizers leave them alone: `take_step` trains them, at the image VQ's rate, betas and clip,
    and without weight decay (LlamaGen). Gradients add up over the micro-batches of a step.
    """

    mean: Tensor
    square: Tensor
    steps: Tensor
    weight: Tensor

    def __init__(
        self, discriminator: PatchDiscriminator, config: LoopConfig, *, begins: int
    ) -> None:
        """`begins`: the step from which the two are trained against each other."""
        super().__init__()
        self.discriminator = discriminator.requires_grad_(False)
        self.config = config
        self.begins = begins
        count = sum(p.numel() for p in discriminator.parameters())
        self.register_buffer("mean", torch.zeros(count))  # AdamW's state
        self.register_buffer("square", torch.zeros(count))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))
        self._step = -1
        self._sums: list[Tensor] = []  # of that step's micro-batches

    @property
    def first_step(self) -> int:
        """The first step that calls `loss`: the one before `begins` measures the weight."""
        return max(0, self.begins - 1)

    def loss(
        self, fake: Tensor, real: Tensor, reconstruction: Tensor, last_layer: Tensor, step: int
    ) -> Adversarial:
        """The loss of reconstructions `fake` (B, 3, H, W) of `real`, at step `first_step` or later.

        `reconstruction`: the loss () that the adaptive weight balances it with, `last_layer`: the
        decoder's last weights.
        """
        if step != self._step:  # the one before may have been skipped
            self._sums.clear()
            self._step = step
        adversarial = generator_loss(self.discriminator(fake))
        figures = {"adversarial": float(adversarial.detach())}
        dtype = self.mean.dtype  # float32 under autocast too
        gradients = [
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].flatten().to(dtype)
            for loss in (reconstruction, adversarial)
        ]
        if step >= self.begins:
            parameters = {
                name: parameter.detach().requires_grad_()
                for name, parameter in self.discriminator.named_parameters()
            }
            both = torch.cat([real, fake.detach()])
            logits = functional_call(self.discriminator, parameters, (both,))
            own = discriminator_loss(*logits.to(dtype).chunk(2))
            gradients += [g.flatten() for g in torch.autograd.grad(own, list(parameters.values()))]
            figures["discriminator"] = float(own.detach())
        rows = torch.tensor([len(real)], dtype=dtype, device=real.device)
        self._sums.append(torch.cat([rows, torch.cat(gradients) * len(real)]))
        weighted = self.weight * adversarial if step >= self.begins else adversarial.detach() * 0
        return Adversarial(weighted, figures)

    def take_step(self, step: int, last_layer: Tensor) -> dict[str, float]:
        """Train the discriminator and measure the weight for the next step; figures of this one."""
        if not self._sums:
            return {}
        figures = {"adaptive_weight": float(self.weight)}
        sums = sum_over_processes(torch.stack(self._sums).sum(0))
        self._sums.clear()
        size = last_layer.numel()
        gradients = sums[1:] / sums[0]
        reconstruction, adversarial, own = gradients.split([size, size, len(gradients) - 2 * size])
        ratio = reconstruction.norm() / (adversarial.norm() + 1e-4)
        self.weight.copy_(ratio.clamp(max=LARGEST_WEIGHT))
        if step >= self.begins:
            self._update(own, step)
        return figures

    @torch.no_grad()
    def _update(self, gradient: Tensor, step: int) -> None:
        """One step of AdamW on all P values as one vector."""
        parameters = list(self.discriminator.parameters())
        values = parameters_to_vector(parameters)
        values.grad = gradient
        clip_grad_norm_(values, self.config.clip)
        adamw(
            [values],
            [gradient],
            [self.mean],
            [self.square],
            [],
            [self.steps],
            amsgrad=False,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            lr=self.config.learning_rate * rate_factor(self.config, step),
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        vector_to_parameters(values, parameters)


class AdversarialVqvae(nn.Module):
    """The image VQ with its adversary: a checkpoint holds both; a pass is the image VQ's alone."""

    def __init__(self, vqvae: Vqvae, adversary: Adversary) -> None:
        super().__init__()
        self.vqvae = vqvae
        self.adversary = adversary

    def forward(self, x: Tensor, *, quantised: float = 1.0) -> VqvaeOutput:
        out: VqvaeOutput = self.vqvae(x, quantised=quantised)
        return out
