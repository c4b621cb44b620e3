"""`tarkit models convert`: turns a published weight file into a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from tarkit.artifacts.files import sweep
from tarkit.checkpoints.directory import PRECISIONS, WEIGHTS
from tarkit.checkpoints.published_directory import write_published
from tarkit.errors import UserError

Precision = Literal["stored", "float32", "float16", "bfloat16"]


def run(file: Path, *, out: Path, precision: Precision = "stored") -> Path:
    """Convert a TA-Tok, AR-DTok or image VQ, with the weights in `precision`; returns `out`.

    Raises UserError where `file` is not a published file, its weights do not fit its sizes, or
    `out` already holds a model.
    """
    if precision not in get_args(Precision):
        raise UserError(
            f"precision {precision!r} is unknown", hint=f"one of {', '.join(get_args(Precision))}"
        )
    sweep(out)  # of what a killed run left beside a whole model
    if (out / WEIGHTS).exists():
        raise UserError(f"{out} already holds a model", hint="give another --out")
    write_published(file, out, PRECISIONS.get(precision))
    return out
