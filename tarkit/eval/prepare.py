"""`tarkit eval prepare`: what a benchmark asks, written down before anything is answered.

GenEval's prompts are made here (or read from a file of the same layout, which is another benchmark
and recorded as one); every other benchmark is read from files that the user has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import write_whole
from tarkit.errors import UserError
from tarkit.eval.benchmarks.choices import read_choices
from tarkit.eval.benchmarks.dpg import _dpg
from tarkit.eval.benchmarks.geneval import _geneval
from tarkit.eval.benchmarks.gqa import read_short
from tarkit.eval.benchmarks.mme import read_mme
from tarkit.eval.benchmarks.pope import read_pope
from tarkit.eval.run import Item, Run, begin_run
from tarkit.images import ImageError, decode, kept_bytes, read_picture

PICTURES = ("geneval", "dpg")
QUESTIONS = ("pope", "mme", "mmbench", "seed", "gqa", "mmmu")
BENCHES = PICTURES + QUESTIONS
NEEDS = {
    "dpg": "DPG-Bench's csv of questions",
    "pope": "a POPE file of questions, or a folder of them",
    "mme": "MME's folder, a subfolder a subtask",
    "mmbench": "MMBench's .tsv",
    "seed": "SEED-Bench's questions as .jsonl or .parquet",
    "gqa": "GQA's questions as .json or .jsonl",
    "mmmu": "MMMU's questions as .parquet or .jsonl, or a folder of them",
}


def run(
    bench: str,
    *,
    out: Path,
    data: Path | None = None,
    images: Path | None = None,
    n: int | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> Run:
    """Begin the run `out` of a benchmark, `n` pictures a prompt (4), an answer a question.

    `data` are its questions, `images` the folder that they name pictures of. `limit` takes the
    first items, spread over the tasks. Raises UserError.
    """
    if bench not in BENCHES:
        raise UserError(f"no benchmark {bench!r}: known are {', '.join(BENCHES)}")
    if data is None and bench in NEEDS:
        raise UserError(f"{bench} needs its data", hint=f"--data PATH: {NEEDS[bench]}")
    if bench in QUESTIONS and n is not None:
        raise UserError(f"--n is of pictures; a question of {bench} is asked once")
    if data is not None and not data.exists():
        raise UserError(f"{data} does not exist", hint=f"--data PATH: {NEEDS.get(bench, 'jsonl')}")
    rows = _spread(_READERS[bench](data, images), limit)
    items = [_item(row, out) for row in rows]
    for picture in (item.picture for item in items[:1]):
        if picture is not None:
            read_picture(Path(picture))  # a wrong --images is told before anything is begun
    source = {
        "data": data.name if data else "generated",
        "images": str(images) if images else None,
        "limit": limit,
    }
    number = (n or 4) if bench in PICTURES else 1
    return begin_run(out, bench, items, n=number, seed=seed, settings=source)


def _item(row: Mapping[str, Any], out: Path) -> Item:
    """The item of a row; a picture that the row holds is written into the run."""
    given = dict(row)
    blob = given.pop("blob", None)
    if blob is not None:
        try:
            extension, kept = kept_bytes(blob, decode(blob))
        except ImageError as error:
            return Item(**given | {"meta": {"unasked": f"its picture is damaged: {error}"}})
        name = hashlib.sha256(kept).hexdigest()[:16]
        given["picture"] = str(out / "pictures" / f"{name}.{extension}")
        write_whole(Path(given["picture"]), kept)
    return Item(**given)


def _spread(items: Sequence[Mapping[str, Any]], limit: int | None) -> list[Mapping[str, Any]]:
    """The first items of every tag in turn, in their own order: a prefix of any longer limit."""
    if limit is None:
        return list(items)
    seen: dict[str, int] = {}
    ranks = []
    for place, item in enumerate(items):
        tag = item["tag"]
        ranks.append((seen.get(tag, 0), place))
        seen[tag] = seen.get(tag, 0) + 1
    return [items[place] for place in sorted(place for _, place in sorted(ranks)[:limit])]


_Reader = Callable[[Path | None, Path | None], Sequence[Mapping[str, Any]]]


def _of(reader: Callable[[Path, Path | None], Sequence[Mapping[str, Any]]]) -> _Reader:
    def read(data: Path | None, images: Path | None) -> Sequence[Mapping[str, Any]]:
        assert data is not None
        return reader(data, images)

    return read


_READERS: dict[str, _Reader] = {
    "geneval": _geneval,
    "dpg": _dpg,
    "pope": _of(read_pope),
    "mme": _of(read_mme),
    "mmbench": _of(read_choices),
    "seed": _of(read_choices),
    "mmmu": _of(read_choices),
    "gqa": _of(read_short),
}
