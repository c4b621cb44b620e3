"""Writes a published weight file as a model directory.

The directory keeps the sha256 of the published file as its identity, so that the codes of both are
interchangeable.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tarkit.checkpoints.directory import write_model
from tarkit.checkpoints.load import check_published
from tarkit.checkpoints.published_pth import read_published
from tarkit.errors import UserError

PUBLISHED = "published"
"""The key of config.json that names the published file."""


def write_published(file: Path, out: Path, dtype: torch.dtype | None = None) -> None:
    """Write a published TA-Tok, AR-DTok or image VQ to `out`; `dtype` None: as it is stored.

    Raises UserError where `file` is not a published file, its weights do not fit its sizes, or are
    beyond the range of `dtype`.
    """
    published = read_published(file)
    check_published(published, file)
    state = published.state
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        if not all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point()):
            name = str(dtype).removeprefix("torch.")
            raise UserError(f"{file} has weights beyond {name}'s range", hint="--precision float32")
    write_model(
        out,
        _apart(state),
        {
            "kind": published.kind,
            "arch": published.arch.model_dump(mode="json"),
            PUBLISHED: {"file": file.name, "ignored": list(published.ignored)},
        },
        identity=file,
    )


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, each with a storage of its own: two names in a file may share one."""
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in state.items():
        kept = value.contiguous()
        place = kept.untyped_storage().data_ptr()
        apart[name] = kept.clone() if place in storages else kept
        storages.add(place)
    return apart
