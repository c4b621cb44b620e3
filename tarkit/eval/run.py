"""One run of a benchmark on disk: items, samples or answers, scores.

RUN/manifest.json  items.parquet              the items; written first and never changed
RUN/samples/00000/{metadata.jsonl, samples/0000.png}   GenEval's own layout: prompt row, sample
RUN/answers/00000.jsonl                       one file for each batch of questions
RUN/scores/SCORER/{scores.parquet, results.json, report.md}
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt

from tarkit.artifacts.files import write_whole
from tarkit.artifacts.manifest import MANIFEST, begin_directory, read_manifest, read_settings
from tarkit.artifacts.parquet import read_parquet
from tarkit.errors import UserError
from tarkit.eval.sample_files import Failure, read_answers
from tarkit.seeds import sample_seed

ITEMS = "items.parquet"
MAX_N = 10_000
"""The most pictures of a prompt; the names of their files have four digits."""
SCHEMA = pa.schema(
    [
        ("item", pa.string()),
        ("tag", pa.string()),
        ("prompt", pa.string()),
        ("picture", pa.string()),
        ("truth", pa.string()),
        ("meta", pa.string()),
    ]
)


@dataclass(frozen=True)
class BenchmarkItem:
    """One prompt to draw, or one question about the file `picture` with its true answer.

    `tag` is the task, split or subtask. `meta` holds what else a scorer needs, such as GenEval's
    record of a prompt.
    """

    id: str
    tag: str
    prompt: str
    picture: str | None = None
    truth: str | None = None
    meta: Mapping[str, Any] | None = None

    @property
    def group(self) -> str:
        """The name of the picture, or pair of pictures, that the question shares with others."""
        return str((self.meta or {})["group"])

    @property
    def unasked(self) -> str | None:
        """The reason why a question cannot be asked, None if it can."""
        reason = (self.meta or {}).get("unasked")
        return None if reason is None else str(reason)

    @property
    def options(self) -> dict[str, str]:
        """Letter -> text of the option; empty for an open question."""
        return dict((self.meta or {}).get("options") or {})


class RunPicture(NamedTuple):
    """One picture of a run; `file` is its path below `samples/`, even before it is drawn."""

    row: int
    sample: int
    item: BenchmarkItem
    file: str


@dataclass(frozen=True)
class BenchmarkRun:
    """A run that was begun; each prompt has `n` pictures, each question `n` = 1 answers."""

    path: Path
    bench: str
    items: tuple[BenchmarkItem, ...]
    n: int
    seed: int

    def seed_of(self, item: BenchmarkItem, sample: int) -> int:
        """48 bits that depend on the run's seed, the benchmark, the item and the sample alone."""
        return sample_seed(self.seed, self.bench, item.id, sample)

    def pictures(self) -> list[RunPicture]:
        """Every picture of the run, `n` of the first prompt, then `n` of the second, ..."""
        return [
            RunPicture(row, sample, item, f"{row:05d}/samples/{sample:04d}.png")
            for row, item in enumerate(self.items)
            for sample in range(self.n)
        ]

    def picture_path(self, row: int, sample: int) -> Path:
        return self.path / "samples" / f"{row:05d}" / "samples" / f"{sample:04d}.png"

    def metadata_path(self, row: int) -> Path:
        return self.path / "samples" / f"{row:05d}" / "metadata.jsonl"

    def answers(self) -> list[str | Failure]:
        """The answer to every item; raises UserError where some are missing or damaged."""
        folder = self.path / "answers"
        if not (folder / MANIFEST).exists():
            raise UserError(
                f"{self.path} has no answers yet", hint=f"tarkit eval answer {self.path}"
            )
        size = read_settings(folder, _AnswersSettings).batch_size
        return read_answers(folder, len(self.items), batch_size=size)


@dataclass(frozen=True)
class _AnswersSettings:
    batch_size: PositiveInt


@dataclass(frozen=True)
class _RunSettings:
    bench: str
    n: Annotated[int, Field(ge=1, le=MAX_N)]
    seed: int
    items_sha256: str


def begin_run(
    out: Path,
    bench: str,
    items: Sequence[BenchmarkItem],
    *,
    n: int,
    seed: int,
    settings: Mapping[str, Any],
) -> BenchmarkRun:
    """Write the items.

    Raises UserError where `out` was begun with other settings or items, and for an `n` over MAX_N.
    """
    if n > MAX_N:
        raise UserError(f"--n {n}: a prompt has at most {MAX_N} pictures")
    repeated = len(items) - len({item.id for item in items})
    if repeated or not items:
        raise UserError(f"{bench} has {len(items)} items, {repeated} of them with a repeated id")
    rows = [_row(item) for item in items]
    try:
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
    except UnicodeEncodeError as error:
        raise UserError(
            f"a text of {bench} is not Unicode: it has {error.object[error.start :][:1]!r}",
            hint="correct the benchmark's file, and run the same command again",
        ) from None
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    begin_directory(
        out,
        "run",
        settings={
            **settings,
            "bench": bench,
            "n": n,
            "seed": seed,
            "num_items": len(items),
            "items_sha256": digest,
        },
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write_whole(out / ITEMS, sink.getvalue())
    return BenchmarkRun(out, bench, tuple(items), n, seed)


def open_run(path: Path) -> BenchmarkRun:
    """The run at `path`; raises UserError where there is none or its items have changed."""
    manifest = read_manifest(path)
    if manifest["kind"] != "run" or not (path / ITEMS).exists():
        raise UserError(
            f"{path} holds {manifest['kind']}, not a run of a benchmark",
            hint="tarkit eval prepare geneval --out DIR",
        )
    settings = read_settings(path, _RunSettings)
    table = read_parquet(path / ITEMS)
    rows = table.to_pylist() if table.schema.equals(SCHEMA) else []
    if hashlib.sha256(json.dumps(rows).encode()).hexdigest() != settings.items_sha256:
        raise UserError(
            f"{path / ITEMS} has changed since the run was begun",
            hint=f"rm {path / ITEMS} and run tarkit eval prepare {settings.bench} again",
        )
    items = tuple(
        BenchmarkItem(
            row["item"],
            row["tag"],
            row["prompt"],
            row["picture"],
            row["truth"],
            json.loads(row["meta"]) if row["meta"] else None,
        )
        for row in rows
    )
    return BenchmarkRun(path, settings.bench, items, settings.n, settings.seed)


def _row(item: BenchmarkItem) -> dict[str, Any]:
    fields = asdict(item)
    fields["item"] = fields.pop("id")
    fields["meta"] = json.dumps(item.meta) if item.meta is not None else None
    return {name: fields[name] for name in SCHEMA.names}


def scorer_folder(run: BenchmarkRun, scorer: str) -> Path:
    """The folder of a scorer's results, `scores/geneval@hf-m2f`; UserError for a bad name."""
    if not re.fullmatch(r"[\w.+-]+", scorer):
        raise UserError(f"a scorer's name is letters, digits, '.', '+', '-', not {scorer!r}")
    return run.path / "scores" / f"{run.bench}@{scorer}"
