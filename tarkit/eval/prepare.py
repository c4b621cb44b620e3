"""`tarkit eval prepare`: write down the items of a benchmark before a model sees any of them.

GenEval's prompts are made here, or read from a file in the same layout, which is another benchmark
and recorded as one. Every other benchmark is read from files that the user has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import write_whole
from tarkit.errors import UserError
from tarkit.eval.benchmarks import load_benchmark
from tarkit.eval.benchmarks.base import Benchmark, ItemRow, PictureBenchmark
from tarkit.eval.run import BenchmarkItem, BenchmarkRun, begin_run
from tarkit.images import ImageError, decode, kept_bytes, read_picture

PICTURES_A_PROMPT = 4


def run(
    bench: str,
    *,
    out: Path,
    data: Path | None = None,
    images: Path | None = None,
    n: int | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> BenchmarkRun:
    """Begin the run `out` of a benchmark: `n` pictures a prompt (4), one answer a question.

    `data` holds its prompts or questions, `images` the pictures that they name. `limit` takes the
    first items, spread over the tags. Raises UserError.
    """
    benchmark = load_benchmark(bench)
    draws = isinstance(benchmark, PictureBenchmark)
    if not draws and n is not None:
        raise UserError(f"--n counts pictures, and {bench} asks each question once")
    rows = _spread(_rows(benchmark, data, images), limit)
    items = [_item(row, out) for row in rows]
    if items and items[0].picture is not None:
        read_picture(Path(items[0].picture))  # finds a wrong --images before anything is begun
    settings: dict[str, Any] = {
        "data": data.name if data else "generated",
        "images": str(images) if images else None,
        "limit": limit,
    }
    number = (n or PICTURES_A_PROMPT) if draws else 1
    return begin_run(out, bench, items, n=number, seed=seed, settings=settings)


def _rows(benchmark: Benchmark, data: Path | None, images: Path | None) -> Sequence[ItemRow]:
    hint = f"--data PATH: {benchmark.data}"
    if data is None:
        if benchmark.default_items is None:
            raise UserError(f"{benchmark.name} needs its data", hint=hint)
        return benchmark.default_items()
    if not data.exists():
        raise UserError(f"{data} does not exist", hint=hint)
    return benchmark.read(data, images)


def _item(row: Mapping[str, Any], out: Path) -> BenchmarkItem:
    """The item of a row; a picture that the row holds is written into the run."""
    fields = dict(row)
    blob = fields.pop("blob", None)
    if blob is not None:
        try:
            extension, kept = kept_bytes(blob, decode(blob))
        except ImageError as error:
            return BenchmarkItem(
                **fields | {"meta": {"unasked": f"its picture is damaged: {error}"}}
            )
        name = hashlib.sha256(kept).hexdigest()[:16]
        fields["picture"] = str(out / "pictures" / f"{name}.{extension}")
        write_whole(Path(fields["picture"]), kept)
    return BenchmarkItem(**fields)


def _spread(items: Sequence[ItemRow], limit: int | None) -> list[ItemRow]:
    """The first items of every tag in turn, in their own order: a prefix of any longer limit."""
    if limit is None:
        return list(items)
    counts: dict[str, int] = {}
    ranks = []
    for index, item in enumerate(items):
        tag = item["tag"]
        ranks.append((counts.get(tag, 0), index))
        counts[tag] = counts.get(tag, 0) + 1
    return [items[index] for index in sorted(index for _, index in sorted(ranks)[:limit])]
