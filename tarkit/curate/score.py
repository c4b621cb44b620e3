"""`tarkit curate score`: numbers about pictures, in an artifact of their own.

Source: paper Sec. 3.4 and App. D (pairs of low quality are left out). Every picture gets its score
and no picture is deleted: `curate chats --keep SCORES --min NUMBER` selects pictures when it makes
chats. One row becomes one row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.map_rows import Result, Todo, map_rows
from tarkit.artifacts.plan import RowPlan
from tarkit.config import Config, load_config
from tarkit.errors import UserError
from tarkit.images import ImageError, decode
from tarkit.scoring.scorers import Plan, Scorer, Shown, checked, plan_scorer


class ScoreConfig(Config):
    """How pictures are given to a scorer."""

    batch_size: int = Field(default=32, ge=1)


@dataclass(frozen=True, kw_only=True)
class ScorePlan(RowPlan):
    """Writes a scores artifact with a row of numbers for every picture, by its key.

    `scorer` and `model` are those of `tarkit.scoring.scorers.plan_scorer`.
    """

    scorer: str
    model: str | None = None
    device: str = "cpu"

    kind = "scores"
    input_kind = "images"

    @cached_property
    def settings(self) -> ScoreConfig:
        return load_config(ScoreConfig, self.config, self.overrides)

    @cached_property
    def scorer_plan(self) -> Plan:
        return plan_scorer(self.scorer, self.model)

    @property
    def recorded(self) -> Mapping[str, Any]:
        plan = self.scorer_plan
        return {**plan.identity, "columns": list(plan.columns), "limit": self.limit}

    def make(self, artifact: Artifact) -> None:
        scorer = _BatchScorer(self.scorer_plan, self.settings.batch_size, self.device)
        map_rows(
            artifact,
            self.source,
            self.rows_of,
            scorer.score,
            carry=lambda row: {"key": row["key"]},
            name="score",
            retry_failed=self.retry_failed,
        )


class _BatchScorer:
    """Gives rows to a scorer in batches; the scorer is loaded at its first picture."""

    def __init__(self, plan: Plan, batch_size: int, device: str) -> None:
        self._plan, self._batch_size, self._device = plan, batch_size, device
        self._scorer: Scorer | None = None

    def score(self, todo: Iterator[Todo]) -> Iterator[tuple[int, Result]]:
        while batch := list(itertools.islice(todo, self._batch_size)):
            pictures: list[tuple[int, Shown]] = []
            for item in batch:
                try:
                    picture = decode(item.blob or b"", max_pixels=item.max_pixels)
                except ImageError as error:
                    yield item.place, f"the picture cannot be read: {error}"
                    continue
                pictures.append((item.place, Shown(picture, _prompt(item.row))))
            if not pictures:
                continue
            self._scorer = self._scorer or self._plan.load(self._device)
            scores = self._scorer.score([picture for _, picture in pictures])
            if len(scores) != len(pictures):
                raise UserError(
                    f"the scorer gave {len(scores)} scores for {len(pictures)} pictures"
                )
            for (place, _), numbers in zip(pictures, scores, strict=True):
                yield place, checked(numbers, self._plan.columns)


def _prompt(row: Mapping[str, Any]) -> str | None:
    """The prompt of a picture, or its first caption where it has no prompt."""
    texts = [row["prompt"], *(row["captions"] or ())]
    return next((text for text in texts if text and text.strip()), None)
