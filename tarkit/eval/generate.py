"""`tarkit eval generate`: the pictures of a run, in GenEval's own folders.

A picture's seed is a hash of what it is for; the whole of the sampling is passed on and written
down. `WORLD_SIZE` processes share the batches; the same command again draws what is missing.
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
from tarkit.eval.run import Item, Run, open_run
from tarkit.eval.samples import make_pictures
from tarkit.inference.tar import Tar
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
) -> Run:
    """Draw the pictures of the run at `path`. Raises UserError."""
    asked = open_run(path)
    if any(item.truth is not None for item in asked.items):
        raise UserError(
            f"{path} asks questions of {asked.bench}", hint=f"tarkit eval answer {path}"
        )
    tar = Tar.load(model, device=device)
    complete = tar.sampling.changed(sampling)
    drawn_at = Scale(scale) if scale is not None else tar.default_scale
    begin_directory(
        path / "samples",
        "samples",
        settings={
            "scale": int(drawn_at),
            "sampling": complete.model_dump(mode="json"),
            "batch_size": batch_size,
            "model": tar.fingerprints(),
        },
    )
    for row, item in enumerate(asked.items):
        line = json.dumps({"prompt": item.prompt, **(item.meta or {})}) + "\n"
        write_whole(asked.metadata(row), line.encode())

    def draw(jobs: Sequence[tuple[Item, int]]) -> list[Image.Image]:
        return tar.imagine_many(
            [item.prompt for item, _ in jobs],
            seeds=[seed for _, seed in jobs],
            scale=drawn_at,
            sampling=complete,
        )

    jobs = [
        (asked.picture(one.row, one.sample), (one.item, asked.seed_of(one.item, one.sample)))
        for one in asked.drawn()
    ]
    rank, world = rank_and_world()
    mine = [
        job
        for start in range(rank * batch_size, len(jobs), world * batch_size)
        for job in jobs[start : start + batch_size]
    ]
    make_pictures(asked.bench, mine, draw, batch_size=batch_size, retry_failed=retry_failed)
    return asked
