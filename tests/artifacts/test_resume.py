"""How far a limit reaches, and what a run would still have to make."""

from pathlib import Path

import pytest

from tarkit.artifacts.artifact import Artifact, begin_artifact, shard_names
from tarkit.artifacts.resume import first_rows, num_failed, to_make
from tarkit.errors import UserError


def prompts(path: Path, sizes: list[int], *, failed: int = 0) -> Artifact:
    """Shards of `sizes` rows, the first `failed` rows of each without a result."""
    artifact = begin_artifact(path, "prompts", settings={}, shards=shard_names(len(sizes)))
    for name, size in zip(artifact.shards, sizes, strict=True):
        blank = dict.fromkeys(artifact.schema.names) | {"status": "ok"}
        keys = [f"{name}-{number}" for number in range(size)]
        rows = [artifact.failed_row(key, "refused") for key in keys[:failed]]
        artifact.write(name, rows + [blank | {"key": key} for key in keys[failed:]])
    return artifact


@pytest.mark.parametrize(
    ("limit", "taken"),
    [
        (None, {"00000": 3, "00001": 2, "00002": 4}),
        (9, {"00000": 3, "00001": 2, "00002": 4}),
        (100, {"00000": 3, "00001": 2, "00002": 4}),
        (5, {"00000": 3, "00001": 2}),
        (4, {"00000": 3, "00001": 1}),
        (1, {"00000": 1}),
    ],
)
def test_a_limit_takes_rows_from_the_front(
    tmp_path: Path, limit: int | None, taken: dict[str, int]
) -> None:
    assert first_rows(prompts(tmp_path / "p", [3, 2, 4]), limit) == taken


def test_only_the_shards_that_are_reached_must_exist(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "p", [3, 2, 4])
    artifact.shard_path("00001").unlink()
    assert first_rows(artifact, 3) == {"00000": 3}
    for limit in (4, None):
        with pytest.raises(UserError, match="00001"):
            first_rows(artifact, limit)


def test_failed_rows_are_counted_in_the_shards_that_exist(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "p", [3, 2, 4], failed=2)
    assert num_failed(artifact) == 6
    artifact.shard_path("00001").unlink()
    assert num_failed(artifact) == 4


def test_a_preview_counts_what_is_missing(tmp_path: Path) -> None:
    artifact = prompts(tmp_path / "p", [3, 2, 4])
    assert to_make(tmp_path / "new", 3) == 3
    artifact.shard_path("00001").unlink()
    assert to_make(artifact.path, 3) == 1
