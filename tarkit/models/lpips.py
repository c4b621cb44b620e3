"""LPIPS: how different two pictures look, by a VGG16 that people's judgements were fitted to.

Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
Eq. 1, version 0.1 of their weights for VGG16 (Simonyan & Zisserman 2015, configuration D). The
image VQ is trained with it (Esser et al. 2021; Sun et al. 2024).

The names of the tensors are those of the two published files: `features.N.weight` and `.bias` of
torchvision's VGG16, `linK.model.1.weight` of LPIPS.

Letters: B pictures, H W pixels, C channels of a layer, h w its positions.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Output channels of VGG16's convolutions, in blocks with a pooling between them. LPIPS compares the
# output of each block; the classifier behind them is left out.
BLOCKS: tuple[tuple[int, ...], ...] = (
    (64, 64),
    (128, 128),
    (256, 256, 256),
    (512, 512, 512),
    (512, 512, 512),
)
# Mean and standard deviation of ImageNet's colours, for pixels in [-1, 1], as LPIPS rounds them.
MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """The distance of pictures in [-1, 1]; its weights are fixed, gradients reach the pictures."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A convolution, its ReLU and each pooling have one place each in VGG16's numbering.
        places: dict[str, nn.Module] = {}
        place, channels = 0, 3
        self._blocks: list[list[str]] = []
        for block in BLOCKS:
            self._blocks.append([])
            for width in block:
                places[str(place)] = nn.Conv2d(channels, width, 3, padding=1)
                self._blocks[-1].append(str(place))
                place, channels = place + 2, width
            place += 1
        self.features = nn.ModuleDict(places)
        for number, block in enumerate(BLOCKS):
            # Place 0 of the published module is a dropout, which has no weights.
            linear = nn.ModuleDict({"1": nn.Conv2d(block[-1], 1, 1, bias=False)})
            self.add_module(f"lin{number}", nn.ModuleDict({"model": linear}))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def _layers(self, x: Tensor) -> Iterator[Tensor]:
        """Pictures (B, 3, H, W) -> the output (B, C, h, w) of each block."""
        x = (x - self.mean) / self.std
        for number, block in enumerate(self._blocks):
            x = F.max_pool2d(x, 2) if number else x
            for place in block:
                x = F.relu(self.features[place](x))
            yield x

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], of at least 16 px -> their distances (B,)."""
        total = a.new_zeros(len(a))
        for number, (one, other) in enumerate(zip(self._layers(a), self._layers(b), strict=True)):
            weigh = self.get_submodule(f"lin{number}.model.1")
            total = total + weigh((_unit(one) - _unit(other)).square()).mean((1, 2, 3))
        return total


def _unit(x: Tensor) -> Tensor:
    """Each position's features (B, C, h, w) at length 1; all zeros stay zeros."""
    # As x.norm(dim=1), whose gradient at zero is no number.
    length = (x.square().sum(1, keepdim=True) + 1e-20).sqrt()
    return x / (length + 1e-10)
