"""`tarkit curate synthesize`: a text-to-image model draws the prompts.

Source: paper Sec. 3.4 and App. D.1 (FLUX.1-schnell, 4 steps, 512 px), App. D.2 (two seeds of one
prompt are an I2I pair; a picture of the phrase of a split prompt is TI2I's reference). One row of
the prompts becomes `seeds` pictures, the first the target and the others similar to it, and one
more for its phrase. These pictures are a group, and their keys begin with the key of the row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.map_rows import Row
from tarkit.artifacts.picture_tar import Blob
from tarkit.artifacts.plan import RowPlan
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.resume import pending_shards
from tarkit.config import Config, Seed, load_config
from tarkit.curate.text_to_image import (
    Offload,
    Painter,
    PictureRequest,
    check_offload,
    load_painter,
)
from tarkit.images import png_bytes
from tarkit.progress import Progress
from tarkit.seeds import row_seed


class SynthesizeConfig(Config):
    """The paper's numbers (App. D.1). Guidance is 0, as the model was distilled without it."""

    seeds: int = Field(default=1, ge=1)
    """Pictures per prompt; two are an I2I pair."""
    steps: int = Field(default=4, ge=1)
    size_px: int = Field(default=512, ge=16, multiple_of=16)
    guidance: float = Field(default=0.0, ge=0)
    max_prompt_tokens: int = Field(default=256, ge=1)
    """Tokens of a prompt that FLUX.1-schnell reads; other pipelines have their own limit."""
    batch_size: int = Field(default=8, ge=1)
    offload: Offload = "none"
    """none, model or sequential: which weights wait in the CPU's memory, for a GPU that the whole
    pipeline does not fit into. The pictures do not depend on it, and it may change between runs."""
    seed: Seed = 0
    licence: str | None = None
    """The licence of the pictures; without it they have the licence of their prompts."""


@dataclass(frozen=True)
class _PlannedPicture:
    """A row to write and the picture to draw for it; no picture where the prompts row failed."""

    row: dict[str, Any]
    request: PictureRequest | None


@dataclass(frozen=True, kw_only=True)
class SynthesizePlan(RowPlan):
    """Draws a prompts artifact into an images artifact.

    `generator` is a folder or hub id in diffusers' layout. `limit` keeps the first prompts. A
    failed prompts row becomes one failed row; a picture that cannot be drawn is a failed row too.
    """

    generator: str
    device: str = "cpu"
    precision: str = "float32"

    kind = "images"
    input_kind = "prompts"

    @cached_property
    def settings(self) -> SynthesizeConfig:
        settings = load_config(SynthesizeConfig, self.config, self.overrides)
        check_offload(settings.offload, self.device)
        return settings

    @property
    def recorded(self) -> Mapping[str, Any]:
        return {
            **self.settings.model_dump(mode="json", exclude={"offload"}),
            "limit": self.limit,
            "generator": self.generator,
            "precision": self.precision,
        }

    @property
    def counts(self) -> Mapping[str, int]:
        return {**super().counts, "pictures": sum(map(self._num_pictures, self.rows_of))}

    def make(self, artifact: Artifact) -> None:
        rank, world = rank_and_world()
        pending = set(pending_shards(artifact, self.source, rank=rank, world=world))
        own = artifact.shards[rank::world]
        names = [name for name in own if name in pending or self.retry_failed]
        painter: Painter | None = None
        num_pictures = sum(map(self._num_pictures, names))
        with Progress("synthesize", total=num_pictures, unit="pictures") as progress:
            for name in names:
                rows = self.source.rows(name)[: self.rows_of[name]]
                pictures = list(_plan_pictures(artifact, rows, self.settings))
                kept = set() if name in pending else _ok_keys(artifact, name)
                if name not in pending and len(kept) == len(pictures):
                    progress.advance(len(kept))
                    continue
                painter = painter or load_painter(
                    self.generator,
                    device=self.device,
                    precision=self.precision,
                    offload=self.settings.offload,
                )
                old = _ok_pictures(artifact, name) if kept else iter(())
                made = _pictures(pictures, kept, old, painter, self.settings, progress)
                artifact.write_pictures(name, made, source_sha256=self.source.shard_sha256(name))

    def _num_pictures(self, name: str) -> int:
        """Output rows of an input shard; a failed input row gives one."""
        table = self.source.read(name, ["status", "template", "phrase"])
        rows = table.slice(0, self.rows_of[name]).to_pylist()
        seeds = self.settings.seeds
        return sum(seeds + _is_split(row) if row["status"] == "ok" else 1 for row in rows)


def _is_split(row: Row) -> bool:
    return bool(row["template"] and row["phrase"])


def _plan_pictures(
    artifact: Artifact, rows: Sequence[Row], config: SynthesizeConfig
) -> Iterator[_PlannedPicture]:
    blank = dict.fromkeys(artifact.schema.names) | {"captions": [], "qa": []}
    for row in rows:
        key = row["key"]
        shared = {"source": row["source"], "licence": config.licence or row["licence"]}
        shared |= {"parent_key": key, "group": key, "prompt": row["prompt"]}
        if row["status"] != "ok":
            error = f"its prompts row failed: {row['error']}"
            failed = {"key": f"{key}-0", "role": "target", "status": "failed", "error": error}
            yield _PlannedPicture(blank | shared | failed, None)
            continue
        prompts = [
            (row["prompt"], "similar" if number else "target") for number in range(config.seeds)
        ]
        if _is_split(row):
            prompts.append((row["phrase"], "reference"))
        for number, (prompt, role) in enumerate(prompts):
            seed = row_seed(config.seed, key, number)
            own = {"key": f"{key}-{number}", "role": role, "prompt": prompt, "seed": seed}
            own |= {"template": row["template"] if role == "target" else None, "status": "ok"}
            yield _PlannedPicture(blank | shared | own, PictureRequest(prompt, seed))


def _ok_keys(artifact: Artifact, name: str) -> set[str]:
    rows = artifact.rows(name, ["key", "status"])
    return {row["key"] for row in rows if row["status"] == "ok"}


def _ok_pictures(artifact: Artifact, name: str) -> Iterator[tuple[Row, Blob]]:
    """The rows and pictures of a finished shard that did not fail, in order."""
    return ((row, ("png", blob)) for row, blob in artifact.read_images(name) if blob is not None)


def _pictures(
    pictures: Sequence[_PlannedPicture],
    kept: Set[str],
    old: Iterator[tuple[Row, Blob]],
    painter: Painter,
    config: SynthesizeConfig,
    progress: Progress,
) -> Iterator[tuple[Row, Blob | None]]:
    """Rows with their pictures in order: those of the keys `kept` are `old`, others are drawn."""
    waiting = iter(pictures)
    while batch := list(itertools.islice(waiting, config.batch_size)):
        requests = {
            picture.row["key"]: picture.request
            for picture in batch
            if picture.request and picture.row["key"] not in kept
        }
        images = painter.paint(
            list(requests.values()),
            size_px=config.size_px,
            steps=config.steps,
            guidance=config.guidance,
            max_prompt_tokens=config.max_prompt_tokens,
        )
        image_of = dict(zip(requests, images, strict=True))
        for picture in batch:
            key = picture.row["key"]
            row, blob = next(old) if key in kept else _result(picture, image_of.get(key))
            assert row["key"] == key
            progress.advance(1, failed=int(blob is None))
            yield row, blob


def _result(picture: _PlannedPicture, image: np.ndarray | str | None) -> tuple[Row, Blob | None]:
    """The row with its picture or its error; `image` is None where the prompts row failed."""
    if image is None:
        return picture.row, None
    if isinstance(image, str):
        return picture.row | {"status": "failed", "error": image}, None
    height, width = image.shape[:2]
    return picture.row | {"width": width, "height": height}, ("png", png_bytes(image))
