"""Bytes to floats and back: ranges, both ways to round, and the bits that older results rest on."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tarkit.models.pixel_range import (
    channels_first,
    from_unit,
    from_unit_truncated,
    to_signed,
    to_unit,
)

EVERY = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)


def test_ranges_run_over_every_byte() -> None:
    assert to_unit(EVERY).shape == to_signed(EVERY).shape == (1, 3, 16, 16)
    assert_close(to_unit(EVERY).aminmax(), (torch.tensor(0.0), torch.tensor(1.0)))
    assert_close(to_signed(EVERY).aminmax(), (torch.tensor(-1.0), torch.tensor(1.0)))


def test_channels_come_first_and_rows_may_be_a_list() -> None:
    rows = np.arange(2 * 2 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 3)
    # Picture 1, row 0, column 2 begins at byte 1 * 24 + 0 * 12 + 2 * 3 = 30; its blue is 32.
    assert channels_first(rows)[1, :, 0, 2].tolist() == [30, 31, 32]
    assert torch.equal(to_unit(list(rows)), to_unit(rows))
    assert np.array_equal(from_unit(to_unit(rows)), rows)


def test_bytes_are_rounded_or_truncated_by_name() -> None:
    # 0.9999 * 255 = 254.97 and 0.5 / 255 * 255 = 0.5, which rounds to the even 0.
    values = (
        torch.tensor([0.9999, 0.5 / 255, 1.5 / 255, 1.0]).reshape(1, 1, 1, 4).repeat(1, 3, 1, 1)
    )
    assert from_unit(values)[0, 0, :, 0].tolist() == [255, 0, 2, 255]
    assert from_unit_truncated(values)[0, 0, :, 0].tolist() == [254, 0, 1, 255]


def test_every_byte_comes_back() -> None:
    assert np.array_equal(from_unit(to_unit(EVERY)), EVERY)
    # Truncation needs half a level first: to_signed * 0.5 + 0.5 is a last bit below some bytes.
    signed = to_signed(EVERY) * 0.5 + 0.5
    assert np.array_equal(from_unit_truncated(signed + 0.5 / 255), EVERY)
    assert not torch.equal(signed, to_unit(EVERY))


@pytest.mark.parametrize(
    ("byte", "unit", "signed"), [(1, 1 / 255, -1 + 2 / 255), (200, 200 / 255, 145 / 255)]
)
def test_a_byte_by_hand(byte: int, unit: float, signed: float) -> None:
    # 200 / 127.5 - 1 = 72.5 / 127.5 = 145 / 255.
    row = np.full((1, 1, 1, 3), byte, np.uint8)
    assert float(to_unit(row)[0, 0, 0, 0]) == pytest.approx(unit, abs=1e-7)
    assert float(to_signed(row)[0, 0, 0, 0]) == pytest.approx(signed, abs=1e-7)
