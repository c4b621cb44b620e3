"""The discriminator of patches: its published size, what a patch sees, the hinge loss by hand."""

import pytest
import torch
from torch.testing import assert_close

from tarkit.models.patchgan import (
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    smallest_side,
)


def test_it_has_the_published_size() -> None:
    model = PatchDiscriminator()
    # 4 x 4 kernels from 3 to 64, 128, 256, 512 and 1 channels; biases of the first and the last;
    # scales and shifts of the three norms.
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    norms = 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in model.parameters()) == kernels + 64 + 1 + norms == 2_765_633
    # 256 px: 128, 64, 32, then 31 and 30 without stride.
    assert model(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_the_smallest_picture_has_a_patch_and_no_smaller_one_has() -> None:
    for layers in (1, 2, 3):
        model = PatchDiscriminator(32, layers)
        side = smallest_side(layers)
        assert model(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
        with pytest.raises(RuntimeError):
            model(torch.zeros(1, 3, side - 1, side - 1))


def test_a_pictures_logits_do_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    model = PatchDiscriminator(32, 2)
    pictures = torch.randn(3, 3, 24, 24)
    alone = torch.cat([model(picture[None]) for picture in pictures])
    assert_close(model(pictures), alone)
    assert alone.std() > 0


def test_the_hinge_loss_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    # Real: 0, .5, 2 of 3; fake: 0, 1, 2 of 3; half of both means.
    assert float(discriminator_loss(real, fake)) == pytest.approx(0.5 * (2.5 / 3 + 3 / 3))
    assert float(generator_loss(fake)) == pytest.approx(2 / 3)
