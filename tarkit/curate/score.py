"""`tarkit curate score`: numbers about pictures, in an artifact of their own.

Source: paper Sec. 3.4 and App. D (pairs of low quality are left out). Every picture gets its score
and no picture is deleted: `curate chats --keep SCORES --min NUMBER` selects pictures when it makes
chats. One row becomes one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image
from pydantic import Field, NonNegativeInt

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.map_rows import Result, Todo, map_rows
from tarkit.artifacts.picture_reader import ReadsPictures, as_decoded, picture_reader
from tarkit.artifacts.plan import RowPlan
from tarkit.artifacts.workers import default_readers, num_cores
from tarkit.config import Config, load_config
from tarkit.errors import UserError
from tarkit.images import ImageError
from tarkit.models.threads import threads_at_most
from tarkit.scoring.scorers import Plan, Scorer, Shown, checked, plan_scorer


class ScoreConfig(Config):
    """How pictures are given to a scorer."""

    batch_size: int = Field(default=32, ge=1)
    num_workers: NonNegativeInt | None = None
    """Processes that read and decode a batch of pictures ahead of the scorer; 0: threads. By
    default 0 on a CPU, and on a GPU one a core that is left, at most 8. The scores are the same."""


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
        batch_size, num_workers = self.settings.batch_size, self.settings.num_workers
        if num_workers is None:
            num_workers = default_readers(self.device.partition(":")[0])
        reader = picture_reader(
            as_decoded,
            max_pixels=self.source.max_pixels,
            num_workers=num_workers,
            ahead=batch_size,  # pictures are held as they are, of any size
        )
        with reader as pictures_at, threads_at_most(num_cores() - num_workers):
            scorer = _BatchScorer(self.scorer_plan, batch_size, self.device, pictures_at)
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

    def __init__(
        self,
        plan: Plan,
        batch_size: int,
        device: str,
        pictures_at: ReadsPictures[Image.Image],
    ) -> None:
        self._plan, self._batch_size, self._device = plan, batch_size, device
        self._pictures_at = pictures_at
        self._scorer: Scorer | None = None

    def score(self, todo: Iterator[Todo]) -> Iterator[tuple[int, Result]]:
        items = list(todo)  # those of a shard, without their pictures
        pictures = self._pictures_at([item.picture for item in items if item.picture])
        for start in range(0, len(items), self._batch_size):
            shown: list[tuple[int, Shown]] = []
            for item in items[start : start + self._batch_size]:
                picture = next(pictures)
                if isinstance(picture, ImageError):
                    yield item.place, f"the picture cannot be read: {picture}"
                else:
                    shown.append((item.place, Shown(picture, _prompt(item.row))))
            if shown:
                yield from self._score(shown)

    def _score(self, shown: Sequence[tuple[int, Shown]]) -> Iterator[tuple[int, Result]]:
        self._scorer = self._scorer or self._plan.load(self._device)
        scores = self._scorer.score([one for _, one in shown])
        if len(scores) != len(shown):
            raise UserError(f"the scorer gave {len(scores)} scores for {len(shown)} pictures")
        for (place, _), numbers in zip(shown, scores, strict=True):
            yield place, checked(numbers, self._plan.columns)


def _prompt(row: Mapping[str, Any]) -> str | None:
    """The prompt of a picture, or its first caption where it has no prompt."""
    texts = [row["prompt"], *(row["captions"] or ())]
    return next((text for text in texts if text and text.strip()), None)
