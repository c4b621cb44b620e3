"""Prompt files: `.txt` (a prompt a line), `.jsonl`, `.csv` and `.parquet` (`prompt` column), or a
prompts artifact.

A list of prompts is short and its row numbers name folders, so an unreadable row is an error at
once and not a hole in the numbering. Blank lines of a `.txt` are no rows, nor are the failed rows
of an artifact, which say there why they failed.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarkit.artifacts.artifact import open_artifact
from tarkit.errors import UserError

ENDINGS = ".txt, .jsonl, .csv or .parquet"


def read_prompts(path: Path, *, limit: int | None = None) -> list[str]:
    """The (first `limit`) prompts of a file or a prompts artifact, in order; at least one."""
    if not path.exists():
        raise UserError(f"the prompts {path} do not exist")
    readers = {".txt": _txt, ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.is_dir():
        rows = _artifact(path)
    elif path.suffix in readers:
        rows = readers[path.suffix](path)
    else:
        ending = path.suffix or "missing"
        raise UserError(f"the prompts {path}: the ending is {ending}, expected {ENDINGS}")
    prompts = []
    try:
        for place, prompt in itertools.islice(rows, limit):
            if not isinstance(prompt, str) or not prompt.strip():
                raise UserError(f"{path} {place} has no prompt: {prompt!r}")
            prompts.append(prompt.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start}") from None
    if not prompts:
        raise UserError(f"{path} holds no prompt")
    return prompts


def _txt(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", line


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for place, line in _txt(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} {place} is not JSON: {error}") from None
        yield place, row.get("prompt") if isinstance(row, dict) else None


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        if "prompt" not in names:
            raise UserError(f"{path} has no column prompt; it has {', '.join(names) or 'none'}")
        for row in reader:
            yield f"line {reader.line_num}", row["prompt"]


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "prompt" not in names:
                raise UserError(f"{path} has no column prompt; it has {', '.join(names)}")
            column = file.read(columns=["prompt"])["prompt"].to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from None
    for number, prompt in enumerate(column):
        yield f"row {number}", prompt


def _artifact(path: Path) -> Iterator[tuple[str, Any]]:
    artifact = open_artifact(path, "prompts")
    artifact.require_complete()
    for name in artifact.shards:
        for row in artifact.rows(name, ["key", "prompt", "status", "error"]):
            if row["status"] == "ok":
                yield f"row {row['key']}", row["prompt"]
