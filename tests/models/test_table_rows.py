"""Rows of tables: equal ones are found exactly, near ones as the whole matrix of cosines says."""

import pytest
import torch
import torch.nn.functional as F

from tarkit.models import table_rows
from tarkit.models.table_rows import equal_rows, nearest_rows


def test_equal_rows_are_found_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "CHUNK", 7)  # several chunks, the last one shorter
    table = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    table[31] = table[12]  # of equal rows the first counts
    rows = table[[49, 0, 31, 7, 8, 9, 10, 11, 12]].clone()
    rows[3, 5] = torch.nextafter(rows[3, 5], torch.tensor(9.0))  # one bit off
    assert equal_rows(rows, table).tolist() == [49, 0, 12, -1, 8, 9, 10, 11, 12]


def test_swapped_values_are_another_row_and_negative_zero_is_zero() -> None:
    table = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    assert equal_rows(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), table).tolist() == [-1, 1]
    zeros = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
    zeros[:, 1] = 0.0
    negative = zeros.clone()
    negative[:, 1] = -0.0
    assert equal_rows(negative, zeros).tolist() == list(range(20))


def test_tables_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="width 2 and 3"):
        equal_rows(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="float32"):
        equal_rows(torch.zeros(1, 2), torch.zeros(1, 2).half())


def test_neighbours_by_hand() -> None:
    # Unit vectors at 0, 10, 30 and 90 degrees; lengths do not matter.
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 30.0, 90.0]))
    table = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor(
        [[1.0], [5.0], [2.0], [9.0]]
    )
    near = nearest_rows(table, torch.tensor([0, 2]), count=2)
    assert near.rows.tolist() == [[1, 2], [1, 0]]
    expected = torch.deg2rad(torch.tensor([[10.0, 30.0], [20.0, 30.0]])).cos()
    torch.testing.assert_close(near.cosines, expected)


def test_neighbours_by_chunks_are_those_of_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_rows, "CHUNK", 7)
    table = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    cosines = F.normalize(table, dim=1) @ F.normalize(table, dim=1).T
    cosines.fill_diagonal_(-2)
    near = nearest_rows(table, torch.arange(40), count=3)
    assert torch.equal(near.rows, cosines.topk(3, dim=1).indices)
    assert nearest_rows(table[:2], torch.tensor([0]), count=5).rows.tolist() == [[1]]
