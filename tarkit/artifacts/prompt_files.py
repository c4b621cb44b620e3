"""Reads prompts from a `.txt` (one per line), `.jsonl`, `.csv` or `.parquet` (column `prompt`),
from a prompts artifact, or from the captions of an images artifact.

A list of prompts is short and its row numbers name folders, so a row that cannot be read is an
error and not a gap in the numbers. Blank lines of a `.txt`, failed rows of an artifact and pictures
without a caption are not rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.files import numbered_lines, utf8_hint
from tarkit.artifacts.tables import AGAIN, read_rows
from tarkit.errors import UserError

ENDINGS = (".txt", ".jsonl", ".csv", ".parquet")


def read_prompts(path: Path, *, limit: int | None = None, split: str | None = None) -> list[str]:
    """The prompts of a file or an artifact in order, at least one; with `limit` the first.

    `split` takes only the captions of these pictures of an images artifact. Raises UserError with
    the place of the first row that has no prompt, and for a `split` of anything else.
    """
    if not path.exists():
        raise UserError(f"the prompts {path} do not exist")
    artifact = open_artifact(path) if path.is_dir() else None
    if split is not None and (artifact is None or artifact.kind != "images"):
        raise UserError(f"only pictures that tarkit took in have a split, and {path} holds none")
    rows: Iterator[tuple[str, Any]]
    if artifact is not None and artifact.kind == "images":
        captions = captioned_pictures(artifact, split=split)
        rows = ((f"row {key}", caption) for key, caption in captions)
    elif path.is_dir():
        rows = _artifact_rows(path)
    elif path.suffix == ".txt":
        rows = _lines(path)
    elif path.suffix in ENDINGS:
        tables = read_rows(path, columns=("prompt",))
        rows = ((row.place, row.require().get("prompt")) for row in tables)
    else:
        *others, last = ENDINGS
        expected = f"{', '.join(others)} or {last}"
        raise UserError(
            f"the prompts {path}: the ending is {path.suffix or 'missing'}, expected {expected}"
        )
    prompts = []
    for place, prompt in itertools.islice(rows, limit):
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{path} {place} has no prompt: {prompt!r}", hint=AGAIN)
        prompts.append(prompt.strip())
    if not prompts and split is not None:
        raise UserError(f"{path} holds no picture of the split {split!r} with a caption")
    if not prompts:
        raise UserError(f"{path} holds no prompt", hint="write one, and run the same command again")
    return prompts


def captioned_pictures(artifact: Artifact, *, split: str | None = None) -> list[tuple[str, str]]:
    """(key, caption) of the pictures of an images artifact that have one; with `split` of these."""
    artifact.require_complete()
    return [
        (row["key"], row["prompt"])
        for name in artifact.shards
        for row in artifact.rows(name, ["key", "prompt", "status", "split"])
        if row["status"] == "ok" and row["prompt"] and split in (None, row["split"])
    ]


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line, error in numbered_lines(path, newline=None):
        if error:
            raise UserError(f"{path} line {number} {error}", hint=utf8_hint(path))
        if line.strip():
            yield f"line {number}", line


def _artifact_rows(path: Path) -> Iterator[tuple[str, Any]]:
    artifact = open_artifact(path, "prompts")
    artifact.require_complete()
    for name in artifact.shards:
        for row in artifact.rows(name, ["key", "prompt", "status", "error"]):
            if row["status"] == "ok":
                yield f"row {row['key']}", row["prompt"]
