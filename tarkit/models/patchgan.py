"""PatchGAN: says of each patch of a picture whether it is a real one.

Source: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks",
Sec. 3.2.2 and Appendix 6.1.2; its size, initial weights and hinge loss in VQGAN (Esser et al. 2021)
and LlamaGen (Sun et al. 2024), whose image VQ is trained against it.

One departure: GroupNorm in place of BatchNorm. Statistics of a batch would make a picture's loss
depend on its neighbours, and a step on how it is split over processes and micro-batches.

Letters: B pictures, H W pixels, h w patches.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 32


class PatchDiscriminator(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> a logit of each patch (B, 1, h, w), high for real."""

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        """`layers` times the sides are halved; 64 and 3 make the published 70 x 70 patches."""
        super().__init__()
        widths = [channels * min(2**level, 8) for level in range(layers + 1)]
        blocks: list[nn.Module] = [_conv(3, channels, stride=2), nn.LeakyReLU(0.2)]
        for level in range(1, layers + 1):
            blocks += [
                _conv(
                    widths[level - 1], widths[level], stride=2 if level < layers else 1, norm=True
                ),
                nn.GroupNorm(NORM_GROUPS, widths[level]),
                nn.LeakyReLU(0.2),
            ]
        blocks.append(_conv(widths[-1], 1, stride=1))
        self.blocks = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.weight, mean=1.0, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


def _conv(width_in: int, width_out: int, *, stride: int, norm: bool = False) -> nn.Conv2d:
    """Without a bias where a norm follows."""
    return nn.Conv2d(width_in, width_out, 4, stride=stride, padding=1, bias=not norm)


def smallest_side(layers: int) -> int:
    """The side in pixels of the smallest picture that has a patch."""
    return 3 * 2**layers


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """() Hinge loss of logits: real ones should be above 1, those of reconstructions below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """() Falls as the logits of reconstructions rise."""
    return -fake.mean()
