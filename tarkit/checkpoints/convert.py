"""`tarkit models convert`: turns a published weight file into a model directory.

The directory keeps the sha256 of the published file as its identity, so that the codes of both are
interchangeable.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from tarkit.checkpoints.directory import WEIGHTS, write_model
from tarkit.checkpoints.load import check_published
from tarkit.checkpoints.published_pth import read_published
from tarkit.errors import UserError

Precision = Literal["stored", "float32", "float16", "bfloat16"]


def run(file: Path, *, out: Path, precision: Precision = "stored") -> Path:
    """Convert a TA-Tok, AR-DTok or image VQ, with the weights in `precision`; returns `out`.

    Raises UserError where `file` is not a published file, its weights do not fit its sizes, or
    `out` already holds a model.
    """
    import torch

    if precision not in get_args(Precision):
        raise UserError(
            f"precision {precision!r} is unknown", hint=f"one of {', '.join(get_args(Precision))}"
        )
    published = read_published(file)
    check_published(published, file)
    if (out / WEIGHTS).exists():
        raise UserError(f"{out} already holds a model", hint="give another --out")
    state = published.state
    if precision != "stored":
        dtype = getattr(torch, precision)
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        if not all(bool(v.isfinite().all()) for v in state.values() if v.is_floating_point()):
            raise UserError(
                f"{file} has weights beyond {precision}'s range", hint="--precision float32"
            )
    write_model(
        out,
        {name: value.contiguous() for name, value in state.items()},
        {
            "kind": published.kind,
            "arch": published.arch.model_dump(mode="json"),
            "published": {"file": os.path.basename(file), "ignored": list(published.ignored)},
        },
        identity=file,
    )
    return out
