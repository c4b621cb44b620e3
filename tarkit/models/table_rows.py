"""Rows of tables of vectors: which of one are equal to rows of another, and which are near.

Both take a table of 65,536 x 1536 by chunks, so that no K x V matrix is in memory.

Letters: K rows, V rows of another table, E width of a row, Q rows that are asked about.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024


class Neighbours(NamedTuple):
    """The nearest rows of each asked row, the nearest first; never the row itself."""

    rows: Tensor  # (Q, n) int64
    cosines: Tensor  # (Q, n) float32


def equal_rows(rows: Tensor, table: Tensor) -> Tensor:
    """For each of `rows` (K, E) the first row of `table` (V, E) with the same values; -1: none.

    Both are float32. Rows are found by a hash of 64 bits and then compared value by value, so a
    row that is found is equal. Raises ValueError for other types or widths.
    """
    if rows.dtype != torch.float32 or table.dtype != torch.float32:
        raise ValueError(f"expected float32 tables, got {rows.dtype} and {table.dtype}")
    if rows.shape[1] != table.shape[1]:
        raise ValueError(f"rows of width {rows.shape[1]} and {table.shape[1]} cannot be equal")
    hashes, order = torch.sort(_hashes(table), stable=True)
    wanted = _hashes(rows)
    places = torch.searchsorted(hashes, wanted).clamp(max=len(hashes) - 1)
    found = order[places]
    equal = [
        (rows[start : start + CHUNK] == table[found[start : start + CHUNK]]).all(1)
        for start in range(0, len(rows), CHUNK)
    ]
    return torch.where(torch.cat(equal), found, -1)


def _hashes(table: Tensor) -> Tensor:
    """(V, E) float32 -> (V,) int64, equal for equal rows: a sum of the bits of all values, each
    times an odd number of its place, modulo 2^64."""
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (table.shape[1],), generator=generator) * 2 + 1
    parts = [
        # 0.0 is added because 0.0 and -0.0 are equal and have other bits.
        ((part + 0.0).view(torch.int32).long() * odd).sum(1)
        for part in table.contiguous().split(CHUNK)
    ]
    return torch.cat(parts)


def nearest_rows(table: Tensor, asked: Tensor, *, count: int) -> Neighbours:
    """The `count` rows of `table` (K, E) of the largest cosine with each `asked` (Q,) row of it.

    Fewer where the table has fewer other rows. The memory is one more table and CHUNK x K scores.
    """
    unit = F.normalize(table.float(), dim=-1)
    count = min(count, len(table) - 1)
    rows, cosines = [], []
    for part in asked.split(CHUNK):
        scores = unit[part] @ unit.T
        scores[torch.arange(len(part), device=scores.device), part] = -2.0  # below every cosine
        top = scores.topk(count, dim=1)
        rows.append(top.indices)
        cosines.append(top.values)
    return Neighbours(torch.cat(rows).cpu(), torch.cat(cosines).cpu())
