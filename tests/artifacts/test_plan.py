"""A plan: what its preview counts is what its run makes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tarkit.artifacts.artifact import Artifact, begin_artifact, shard_names
from tarkit.artifacts.map_rows import map_rows
from tarkit.artifacts.plan import RowPlan
from tarkit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CopyPlan(RowPlan):
    """Copies prompts."""

    tries: int | None = None

    kind = "prompts"
    input_kind = "prompts"

    @property
    def recorded(self) -> Mapping[str, Any]:
        return {"limit": self.limit}

    @property
    def max_tries(self) -> int | None:
        return self.tries

    def make(self, artifact: Artifact) -> None:
        map_rows(
            artifact,
            self.source,
            self.rows_of,
            lambda rows: ((row.place, {"prompt": row.row["prompt"]}) for row in rows),
            carry=lambda row: {"key": row["key"]},
            name="copy",
        )


def prompts(path: Path, sizes: Sequence[int]) -> Artifact:
    artifact = begin_artifact(path, "prompts", settings={}, shards=shard_names(len(sizes)))
    blank = dict.fromkeys(artifact.schema.names) | {"status": "ok", "prompt": "a ring"}
    for name, size in zip(artifact.shards, sizes, strict=True):
        artifact.write(name, [blank | {"key": f"{name}-{number}"} for number in range(size)])
    return artifact


def test_a_preview_counts_what_the_run_makes_and_writes_nothing(tmp_path: Path) -> None:
    source = prompts(tmp_path / "in", [3, 2, 4])
    plan = CopyPlan(source.path, out=tmp_path / "out", limit=4, tries=3)
    # 3 rows of the first shard and 1 of the second; 3 tries for each.
    assert plan.preview() == {"rows": 4, "calls_at_most": 12, "shards": 2, "shards_to_make": 2}
    assert not (tmp_path / "out").exists()
    artifact = plan.run()
    assert [len(artifact.rows(name)) for name in artifact.shards] == [3, 1]
    assert plan.preview()["shards_to_make"] == 0
    artifact.shard_path("00001").unlink()
    assert plan.preview()["shards_to_make"] == 1
    plan.run()
    assert artifact.missing() == []


def test_a_run_records_its_input_and_another_run_is_refused(tmp_path: Path) -> None:
    source = prompts(tmp_path / "in", [3, 2])
    artifact = CopyPlan(source.path, out=tmp_path / "out").run()
    assert artifact.parents["prompts"]["path"] == "../in" and artifact.settings == {"limit": None}
    with pytest.raises(UserError, match="limit: none there, 5 now"):
        CopyPlan(source.path, out=tmp_path / "out", limit=5).run()
    with pytest.raises(UserError, match="begun for 2 shards, this run has 1"):
        CopyPlan(source.path, out=tmp_path / "out", limit=3).preview()
