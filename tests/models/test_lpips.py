"""LPIPS against its formula, written over a VGG16 as torchvision numbers it."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from tarkit.models.lpips import Lpips

# Convolutions of torchvision's VGG16 (configuration D), "M" for a pooling.
LAYOUT = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
# LPIPS compares relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3: what these modules put out.
ENDS = (4, 9, 16, 23, 30)


def vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for item in LAYOUT:
        if isinstance(item, int):
            layers += [nn.Conv2d(width, item, 3, padding=1), nn.ReLU()]
            width = item
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def test_it_is_the_published_formula_with_the_published_names() -> None:
    torch.manual_seed(0)
    features = vgg16()
    heads = [torch.rand(1, width, 1, 1) for width in (64, 128, 256, 512, 512)]
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    state |= {f"lin{k}.model.1.weight": head for k, head in enumerate(heads)}
    model = Lpips()
    model.load_state_dict(state)
    assert sorted({int(name.split(".")[1]) for name in state if "features" in name}) == [
        *(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    ]
    a, b = (torch.rand(2, 3, 24, 32) * 2 - 1 for _ in range(2))

    def outputs(x: Tensor) -> list[Tensor]:
        shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        x = (x - shift) / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        slices = itertools.pairwise((0, *ENDS))
        return [x := features[start:end](x) for start, end in slices]

    expected = torch.zeros(2)
    for one, other, head in zip(outputs(a), outputs(b), heads, strict=True):
        unit = [F.normalize(x, dim=1, eps=1e-10) for x in (one, other)]
        expected += F.conv2d((unit[0] - unit[1]) ** 2, head).mean((1, 2, 3))
    assert_close(model(a, b), expected)
    assert torch.equal(model(a, a), torch.zeros(2))


def test_a_black_feature_map_has_a_gradient() -> None:
    model = Lpips()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # every feature is 0, where the length has no derivative
    a = torch.zeros(1, 3, 16, 16, requires_grad=True)
    model(a, torch.ones(1, 3, 16, 16)).sum().backward()
    assert a.grad is not None and torch.equal(a.grad, torch.zeros_like(a))
    assert not any(p.requires_grad for p in model.parameters())
