"""`tarkit eval generate`: a model draws the pictures of a run, in GenEval's own folders.

A picture's seed is a hash of its prompt and number (`BenchmarkRun.seed_of`), and every sampling
option is recorded. `WORLD_SIZE` processes share the batches; the same command again draws what is
missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from tarkit.artifacts.files import write_whole
from tarkit.artifacts.manifest import begin_directory
from tarkit.artifacts.ranks import rank_and_world
from tarkit.errors import UserError
from tarkit.eval.benchmarks import QUESTIONS
from tarkit.eval.run import BenchmarkItem, BenchmarkRun, open_run
from tarkit.eval.sample_files import make_pictures
from tarkit.inference.tar_model import Tar, require_unguided
from tarkit.vocab import Scale


def run(
    path: Path,
    *,
    model: str | Path = "mini",
    scale: int | None = None,
    sampling: Mapping[str, float | int] | None = None,
    batch_size: int = 16,
    retry_failed: bool = False,
    device: str = "cpu",
    server: str | None = None,
) -> BenchmarkRun:
    """Draw the pictures of the run at `path`; `server` draws their codes. Raises UserError."""
    started = open_run(path)
    if started.bench in QUESTIONS:
        raise UserError(
            f"{path} asks questions of {started.bench}", hint=f"tarkit eval answer {path}"
        )
    tar = Tar.load(model, device=device, server=server)
    complete = tar.sampling.changed(sampling)
    if server is not None:
        require_unguided(complete)
    draw_scale = Scale(scale) if scale is not None else tar.default_scale
    begin_directory(
        path / "samples",
        "samples",
        settings={
            "scale": int(draw_scale),
            "sampling": complete.model_dump(mode="json"),
            "batch_size": batch_size,
            "model": tar.fingerprints(),
            # Its draws are other ones, whatever the seed.
            **({"drawn_by": "server"} if server else {}),
        },
    )
    for row, item in enumerate(started.items):
        line = json.dumps({"prompt": item.prompt, **(item.meta or {})}) + "\n"
        write_whole(started.metadata_path(row), line.encode())

    def draw(jobs: Sequence[tuple[BenchmarkItem, int]]) -> list[Image.Image]:
        return tar.imagine_many(
            [item.prompt for item, _ in jobs],
            seeds=[seed for _, seed in jobs],
            scale=draw_scale,
            sampling=complete,
        )

    jobs = [
        (
            started.picture_path(one.row, one.sample),
            (one.item, started.seed_of(one.item, one.sample)),
        )
        for one in started.pictures()
    ]
    rank, world = rank_and_world()
    mine = [
        job
        for start in range(rank * batch_size, len(jobs), world * batch_size)
        for job in jobs[start : start + batch_size]
    ]
    make_pictures(started.bench, mine, draw, batch_size=batch_size, retry_failed=retry_failed)
    return started
