"""A row in, a row out: what is kept, what is redone, what is counted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tarkit.artifacts.artifact import Artifact, begin_artifact
from tarkit.artifacts.map_rows import Result, Todo, map_rows
from tests import parts


def prompts(path: Path, texts: list[str | None]) -> Artifact:
    """Two shards of `texts`; None is a failed row."""
    artifact = begin_artifact(path, "prompts", settings={}, shards=["00000", "00001"])
    for name in artifact.shards:
        rows = []
        for number, text in enumerate(texts):
            row: dict[str, Any] = artifact.failed_row(f"{name}-{number:06d}", "no text")
            ok = {"prompt": text, "status": "ok", "error": None}
            rows.append(row if text is None else row | ok)
        artifact.write(name, rows)
    return artifact


def carry(row: Any) -> dict[str, Any]:
    return {"key": row["key"], "prompt": row["prompt"]}


class Upper:
    """Makes the phrase: the prompt in capitals, in reverse order; what is in `refused` fails."""

    def __init__(self, *refused: str) -> None:
        self.refused, self.asked = refused, 0

    def __call__(self, todo: Iterator[Todo]) -> Iterator[tuple[int, Result]]:
        for item in reversed(list(todo)):
            self.asked += 1
            text = item.row["prompt"]
            refused = text in self.refused
            yield item.place, f"refused: {text}" if refused else {"phrase": text.upper()}


def begin(source: Artifact, out: Path) -> Artifact:
    return begin_artifact(
        out, "prompts", settings={}, shards=source.shards, parents={"prompts": source}
    )


def test_every_row_comes_out_in_its_place_and_failures_keep_their_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = prompts(tmp_path / "in", ["a", None, "b", "c"])
    out = begin(source, tmp_path / "out")
    map_rows(out, source, {"00000": 4, "00001": 2}, Upper("b"), carry=carry, name="upper")
    rows = out.rows("00000")
    assert [row["key"] for row in rows] == [row["key"] for row in source.rows("00000")]
    assert [row["phrase"] for row in rows] == ["A", None, None, "C"]
    assert [row["error"] for row in rows] == [
        None,
        "its prompts row failed: no text",
        "refused: b",
        None,
    ]
    assert len(out.rows("00001")) == 2  # the prefix that a limit left
    said = capsys.readouterr().err
    assert "2 failed: its prompts row failed" in said and "1 failed: refused" in said


def test_the_same_call_again_makes_nothing_and_a_retry_only_the_failures(tmp_path: Path) -> None:
    source = prompts(tmp_path / "in", ["a", "b", "c"])
    out = begin(source, tmp_path / "out")
    counts = {"00000": 3, "00001": 3}
    map_rows(out, source, counts, Upper("b"), carry=carry, name="upper")
    again = Upper()
    map_rows(out, source, counts, again, carry=carry, name="upper")
    assert again.asked == 0
    map_rows(out, source, counts, again, carry=carry, name="upper", retry_failed=True)
    assert again.asked == 2  # one of each shard
    assert parts.status_counts(out) == {"ok": 6, "failed": 0}


def test_a_row_that_is_left_out_is_noticed(tmp_path: Path) -> None:
    source = prompts(tmp_path / "in", ["a", "b"])
    out = begin(source, tmp_path / "out")

    def lazy(todo: Iterator[Todo]) -> Iterator[tuple[int, Result]]:
        yield next(todo).place, {"phrase": "A"}

    with pytest.raises(RuntimeError, match="1 of 2 rows"):
        map_rows(out, source, {"00000": 2, "00001": 2}, lazy, carry=carry, name="lazy")
    assert out.missing() == ["00000", "00001"]
