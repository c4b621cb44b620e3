"""One run of a benchmark on disk: items, samples or answers, scores.

    RUN/manifest.json  items.parquet              what is asked; written first, and once
    RUN/samples/00000/{metadata.jsonl, samples/0000.png}   GenEval's own layout: prompt row, sample
    RUN/answers/00000.jsonl                       one file a batch of questions
    RUN/scores/SCORER/{scores.parquet, results.json, report.md}

A seed is a hash of the run's seed, the benchmark, the item and the sample, whatever the order.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.artifacts.files import write_whole
from tarkit.artifacts.manifest import MANIFEST, begin_directory, read_manifest
from tarkit.errors import UserError
from tarkit.eval.samples import Failure, read_answers
from tarkit.seeds import sample_seed

ITEMS = "items.parquet"
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
class Item:
    """One prompt to draw, or one question about `picture` with its true answer.

    `meta` is what a scorer needs beyond it; GenEval's record of a prompt, for example.
    """

    id: str
    tag: str
    prompt: str
    picture: str | None = None
    truth: str | None = None
    meta: Mapping[str, Any] | None = None

    @property
    def group(self) -> str:
        """The name of the picture that a question of POPE or MME shares with others."""
        return str((self.meta or {})["group"])

    @property
    def unasked(self) -> str | None:
        """Why a question cannot be asked, None if it can."""
        why = (self.meta or {}).get("unasked")
        return None if why is None else str(why)

    @property
    def options(self) -> dict[str, str]:
        """Letter -> text of a choice; empty for an open question."""
        return dict((self.meta or {}).get("options") or {})


class Drawn(NamedTuple):
    """One picture of a run; `place` is its name below `samples/`, whether it is there or not."""

    row: int
    sample: int
    item: Item
    place: str


@dataclass(frozen=True)
class Run:
    """A run that was begun; `n` pictures of every item are drawn."""

    path: Path
    bench: str
    items: tuple[Item, ...]
    n: int
    seed: int

    def seed_of(self, item: Item, sample: int) -> int:
        """A seed that depends on nothing but the run's seed and what the sample is."""
        return sample_seed(self.seed, self.bench, item.id, sample)

    def drawn(self) -> list[Drawn]:
        """Every picture there should be, prompts one after the other, `n` pictures each."""
        return [
            Drawn(row, sample, item, f"{row:05d}/samples/{sample:04d}.png")
            for row, item in enumerate(self.items)
            for sample in range(self.n)
        ]

    def picture(self, row: int, sample: int) -> Path:
        return self.path / "samples" / f"{row:05d}" / "samples" / f"{sample:04d}.png"

    def metadata(self, row: int) -> Path:
        return self.path / "samples" / f"{row:05d}" / "metadata.jsonl"

    def answers(self) -> list[str | Failure]:
        """The answer to every item; raises UserError where the run was not answered to its end."""
        made = self.path / "answers"
        if not (made / MANIFEST).exists():
            raise UserError(
                f"{self.path} has no answers yet", hint=f"tarkit eval answer {self.path}"
            )
        size = read_manifest(made)["settings"]["batch_size"]
        return read_answers(made, len(self.items), batch_size=size)


def begin_run(
    out: Path, bench: str, items: Sequence[Item], *, n: int, seed: int, settings: Mapping[str, Any]
) -> Run:
    """Writes what is asked. Raises UserError where `out` was begun with other settings or items."""
    repeated = len(items) - len({item.id for item in items})
    if repeated or not items:
        raise UserError(f"{len(items)} items of {bench}, {repeated} of them with an id twice")
    rows = [_row(item) for item in items]
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
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
    write_whole(out / ITEMS, sink.getvalue())
    return Run(out, bench, tuple(items), n, seed)


def open_run(path: Path) -> Run:
    """The run at `path`; raises UserError where there is none or it holds other items."""
    manifest = read_manifest(path)
    if manifest["kind"] != "run" or not (path / ITEMS).exists():
        raise UserError(
            f"{path} holds {manifest['kind']}, not a run of a benchmark",
            hint="tarkit eval prepare geneval --out DIR",
        )
    rows = pq.read_table(path / ITEMS).to_pylist()
    settings = manifest["settings"]
    if hashlib.sha256(json.dumps(rows).encode()).hexdigest() != settings["items_sha256"]:
        raise UserError(f"{path / ITEMS} is not what the run was begun with")
    items = tuple(
        Item(
            row["item"],
            row["tag"],
            row["prompt"],
            row["picture"],
            row["truth"],
            json.loads(row["meta"]) if row["meta"] else None,
        )
        for row in rows
    )
    return Run(path, settings["bench"], items, settings["n"], settings["seed"])


def _row(item: Item) -> dict[str, Any]:
    found = asdict(item)
    found["item"] = found.pop("id")
    found["meta"] = json.dumps(item.meta) if item.meta is not None else None
    return {name: found[name] for name in SCHEMA.names}


def scorer_folder(run: Run, scorer: str) -> Path:
    """Where the scores of one scorer lie, `scores/geneval@hf-m2f`."""
    if not re.fullmatch(r"[\w.+-]+", scorer):
        raise UserError(f"a scorer's name is letters, digits, '.', '+', '-', not {scorer!r}")
    return run.path / "scores" / f"{run.bench}@{scorer}"
