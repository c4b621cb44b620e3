"""`tarkit eval answer`: a model answers the questions of a run, by greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tarkit.artifacts.manifest import begin_directory
from tarkit.errors import UserError
from tarkit.eval.benchmarks import PICTURES
from tarkit.eval.run import BenchmarkItem, BenchmarkRun, open_run
from tarkit.eval.sample_files import make_answers
from tarkit.images import read_picture
from tarkit.inference.tar_model import Tar
from tarkit.vocab import Scale

MAX_TOKENS = 64


def run(
    path: Path,
    *,
    model: str | Path = "mini",
    scale: int | None = None,
    batch_size: int = 16,
    retry_failed: bool = False,
    device: str = "cpu",
) -> BenchmarkRun:
    """Answer the questions of the run at `path`. Raises UserError."""
    started = open_run(path)
    if started.bench in PICTURES:
        raise UserError(
            f"{path} asks for pictures of {started.bench}", hint=f"tarkit eval generate {path}"
        )
    tar = Tar.load(model, device=device, dtok=None)
    read_scale = Scale(scale) if scale is not None else tar.read_scale
    begin_directory(
        path / "answers",
        "answers",
        settings={
            "scale": int(read_scale),
            "decoding": "greedy",
            "max_tokens": MAX_TOKENS,
            "batch_size": batch_size,
            "model": tar.fingerprints(),
        },
    )

    def answer(items: Sequence[BenchmarkItem]) -> list[str]:
        for item in items:
            if item.picture is None:
                raise UserError(item.unasked or "the question has no picture")
        pictures = [read_picture(Path(str(item.picture))) for item in items]
        return tar.describe_many(
            pictures, [item.prompt for item in items], scale=read_scale, max_tokens=MAX_TOKENS
        )

    make_answers(
        started.bench,
        path / "answers",
        started.items,
        answer,
        batch_size=batch_size,
        retry_failed=retry_failed,
    )
    return started
