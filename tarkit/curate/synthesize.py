"""`tarkit curate synthesize`: a text-to-image model draws the prompts.

Source: paper Sec. 3.4 and App. D.1 (FLUX.1-schnell, 4 steps, 512 px), App. D.2 (two seeds of one
prompt are an I2I pair; the phrase of a split prompt is drawn as TI2I's reference). One prompts row
becomes `seeds` pictures, the first the target and the others similar to it, and one more for its
phrase; they are a group, under keys that append to the row's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tarkit.artifacts.artifact import Artifact, begin_artifact, open_artifact
from tarkit.artifacts.picture_tar import Blob
from tarkit.artifacts.preview import first_rows, preview_shards
from tarkit.artifacts.ranks import rank_and_world
from tarkit.config import Config, load_config
from tarkit.curate.text_to_image import Job, Painter, load_painter
from tarkit.images import png_bytes
from tarkit.progress import Progress
from tarkit.seeds import row_seed

Row = Mapping[str, Any]


class SynthesizeConfig(Config):
    """The paper's numbers (App. D.1); guidance 0, as the model was distilled without."""

    seeds: int = Field(default=1, ge=1)
    """Pictures of one prompt; two make an I2I pair."""
    steps: int = Field(default=4, ge=1)
    size_px: int = Field(default=512, ge=16, multiple_of=16)
    guidance: float = Field(default=0.0, ge=0)
    max_prompt_tokens: int = Field(default=256, ge=1)
    """What FLUX.1-schnell reads of a prompt; other pipelines keep their own limit."""
    batch_size: int = Field(default=8, ge=1)
    seed: int = 0
    licence: str | None = None
    """Of what the generator draws; the prompt's own where it is left out."""


@dataclass(frozen=True)
class _Picture:
    """A row to write, and what is still to be drawn for it."""

    row: dict[str, Any]
    job: Job | None


def run(
    prompts: Path,
    *,
    out: Path,
    generator: str,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    device: str = "cpu",
    precision: str = "float32",
) -> Artifact:
    """Draw the prompts artifact `prompts` into the images artifact `out`.

    `generator` is a folder or hub id in diffusers' layout. `limit` takes the first prompts. A
    failed prompts row is one failed row; a picture that cannot be drawn is a failed row as well.
    """
    settings = load_config(SynthesizeConfig, config, overrides)
    source = open_artifact(prompts, "prompts")
    rows_of = first_rows(source, limit)
    artifact = begin_artifact(
        out,
        "images",
        settings={
            **settings.model_dump(mode="json"),
            "limit": limit,
            "generator": generator,
            "precision": precision,
        },
        shards=list(rows_of),
        parents={"prompts": source},
    )
    rank, world = rank_and_world()
    pending = set(artifact.pending(source, rank, world))
    mine = [name for name in artifact.shards[rank::world] if name in pending or retry_failed]
    painter: Painter | None = None
    total = sum(_num_pictures(source, name, rows_of[name], settings) for name in mine)
    with Progress("synthesize", total=total, unit="pictures") as progress:
        for name in mine:
            pictures = list(_pictures(artifact, source.rows(name)[: rows_of[name]], settings))
            kept = {} if name in pending else _kept(artifact, name)
            if name not in pending and len(kept) == len(pictures):
                progress.advance(len(kept))
                continue
            painter = painter or load_painter(generator, device=device, precision=precision)
            drawn = _drawn(pictures, kept, painter, settings, progress)
            artifact.write_pictures(name, drawn, source_sha256=source.shard_sha256(name))
    return artifact


def preview(
    prompts: Path,
    *,
    out: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, int]:
    """What `run` would do with the same arguments; writes nothing and loads no generator."""
    settings = load_config(SynthesizeConfig, config, overrides)
    source = open_artifact(prompts, "prompts")
    rows_of = first_rows(source, limit)
    counts = [_num_pictures(source, name, count, settings) for name, count in rows_of.items()]
    return {
        "rows": sum(rows_of.values()),
        "pictures": sum(counts),
    } | preview_shards(source, out, list(rows_of))


def _num_pictures(source: Artifact, name: str, num_rows: int, config: SynthesizeConfig) -> int:
    """Rows that the first `num_rows` of a shard become; a failed one stays one."""
    rows = source.read(name, ["status", "template", "phrase"]).slice(0, num_rows).to_pylist()
    return sum(1 if row["status"] != "ok" else config.seeds + _is_split(row) for row in rows)


def _is_split(row: Row) -> bool:
    return bool(row["template"] and row["phrase"])


def _pictures(
    artifact: Artifact, rows: Sequence[Row], config: SynthesizeConfig
) -> Iterator[_Picture]:
    blank = dict.fromkeys(artifact.schema.names) | {"captions": [], "qa": []}
    for row in rows:
        key = row["key"]
        known = {"source": row["source"], "licence": config.licence or row["licence"]}
        known |= {"parent_key": key, "group": key, "prompt": row["prompt"]}
        if row["status"] != "ok":
            error = f"its prompts row failed: {row['error']}"
            failed = {"key": f"{key}-0", "role": "target", "status": "failed", "error": error}
            yield _Picture(blank | known | failed, None)
            continue
        told = [
            (row["prompt"], "similar" if number else "target") for number in range(config.seeds)
        ]
        if _is_split(row):
            told.append((row["phrase"], "reference"))
        for number, (prompt, role) in enumerate(told):
            job = Job(prompt, row_seed(config.seed, key, number))
            about = {"key": f"{key}-{number}", "role": role, "prompt": prompt, "seed": job.seed}
            about |= {"template": row["template"] if role == "target" else None, "status": "ok"}
            yield _Picture(blank | known | about, job)


def _kept(artifact: Artifact, name: str) -> dict[str, tuple[Row, Blob]]:
    """The pictures of a finished shard that did not fail, by key."""
    return {row["key"]: (row, ("png", blob)) for row, blob in artifact.read_images(name) if blob}


def _drawn(
    pictures: Sequence[_Picture],
    kept: Mapping[str, tuple[Row, Blob]],
    painter: Painter,
    config: SynthesizeConfig,
    progress: Progress,
) -> Iterator[tuple[Row, Blob | None]]:
    """Rows with their pictures in order; what is not kept is drawn in batches."""
    todo = iter(pictures)
    while batch := list(itertools.islice(todo, config.batch_size)):
        wanted = [(p.row["key"], p.job) for p in batch if p.job and p.row["key"] not in kept]
        images = painter.paint(
            [job for _, job in wanted],
            size_px=config.size_px,
            steps=config.steps,
            guidance=config.guidance,
            max_prompt_tokens=config.max_prompt_tokens,
        )
        found = {key: image for (key, _), image in zip(wanted, images, strict=True)}
        for picture in batch:
            key = picture.row["key"]
            made: tuple[Row, Blob | None]
            made = kept[key] if key in kept else _made(picture, found.get(key))
            progress.advance(1, failed=int(made[1] is None))
            yield made


def _made(picture: _Picture, image: np.ndarray | str | None) -> tuple[Row, Blob | None]:
    """The row with its picture, or why it has none; without an image it had failed before."""
    if image is None:
        return picture.row, None
    if isinstance(image, str):
        return picture.row | {"status": "failed", "error": image}, None
    height, width = image.shape[:2]
    return picture.row | {"width": width, "height": height}, ("png", png_bytes(image))
