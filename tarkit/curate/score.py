"""`tarkit curate score`: numbers about pictures, in columns beside them.

Source: paper Sec. 3.4 and App. D (pairs of low quality are left out). A score is kept for every
picture and nothing is deleted: `curate chats --keep SCORES --min NUMBER` decides, where rows are
put together. A row in, a row out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tarkit.artifacts.artifact import Artifact, begin_artifact, open_artifact
from tarkit.artifacts.map_rows import Result, Todo, map_rows
from tarkit.artifacts.preview import first_rows
from tarkit.config import Config, load_config
from tarkit.errors import UserError
from tarkit.images import ImageError, decode
from tarkit.scoring.scorers import Plan, Scorer, Shown, checked, plan_scorer


class ScoreConfig(Config):
    """How pictures are given to a scorer."""

    batch_size: int = Field(default=32, ge=1)


def run(
    images: Path,
    *,
    out: Path,
    scorer: str,
    model: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    device: str = "cpu",
) -> Artifact:
    """Write the scores artifact `out`, a row of numbers for every picture, by the same key.

    `scorer` and `model` as in `tarkit.scoring.scorers.plan_scorer`.
    """
    settings = load_config(ScoreConfig, config, overrides)
    found = plan_scorer(scorer, model)
    source = open_artifact(images, "images")
    rows_of = first_rows(source, limit)
    artifact = begin_artifact(
        out,
        "scores",
        settings={**found.identity, "columns": list(found.columns), "limit": limit},
        shards=list(rows_of),
        parents={"images": source},
    )
    maker = _Maker(found, settings.batch_size, device)
    map_rows(
        artifact,
        source,
        rows_of,
        maker.make,
        carry=lambda row: {"key": row["key"]},
        name="score",
        retry_failed=retry_failed,
    )
    return artifact


class _Maker:
    """The scorer, loaded when the first picture comes."""

    def __init__(self, found: Plan, batch_size: int, device: str) -> None:
        self._plan, self._batch_size, self._device = found, batch_size, device
        self._scorer: Scorer | None = None

    def make(self, todo: Iterator[Todo]) -> Iterator[tuple[int, Result]]:
        while batch := list(itertools.islice(todo, self._batch_size)):
            shown: list[tuple[int, Shown]] = []
            for one in batch:
                try:
                    picture = decode(one.blob or b"")
                except ImageError as error:
                    yield one.place, f"the picture cannot be read: {error}"
                    continue
                shown.append((one.place, Shown(picture, _said(one.row))))
            if not shown:
                continue
            self._scorer = self._scorer or self._plan.load(self._device)
            numbers = self._scorer.score([one for _, one in shown])
            if len(numbers) != len(shown):
                raise UserError(f"the scorer gave {len(numbers)} scores of {len(shown)} pictures")
            for (place, _), scores in zip(shown, numbers, strict=True):
                yield place, checked(scores, self._plan.columns)


def _said(row: Mapping[str, Any]) -> str | None:
    """What the picture is said to show: its prompt, or where it has none its first caption."""
    texts = [row["prompt"], *(row["captions"] or ())]
    return next((text for text in texts if text and text.strip()), None)
