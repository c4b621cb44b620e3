"""`tarkit curate prompts`: prompts that people wrote, cleaned, each once, as a prompts artifact.

Source: paper App. D.1 (user prompts of JourneyDB and Midjourney beside the captions). What must
see everything is done first: one pass reads, cleans and hashes every row and plans the shards, a
second writes them. A row that cannot be used is a failed row; a prompt that is another's but for
case, spaces and punctuation is left out and counted in the manifest, and so is one of a benchmark
that is to stay unseen.
"""

from __future__ import annotations

import array
import csv
import functools
import hashlib
import itertools
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tarkit.artifacts.artifact import Artifact, begin_artifact, shard_plan
from tarkit.artifacts.commands import COMMANDS
from tarkit.artifacts.manifest import file_sha256
from tarkit.artifacts.preview import to_make
from tarkit.artifacts.ranks import rank_and_world
from tarkit.config import Config, load_config
from tarkit.curate.prompt_templates import STYLES
from tarkit.errors import UserError
from tarkit.progress import Progress
from tarkit.scoring.geneval_prompts import geneval_prompts

COLUMNS = ("prompt", "Prompt", "text", "TEXT", "caption")
MAX_LINE_BYTES = 1 << 20

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
# What Discord and Midjourney put around a prompt.
BOLD = re.compile(r"\*\*(.+?)\*\*(?:\s+-\s.*)?")
LINKS = re.compile(r"<?https?://[^\s>]+>?|<[@#]!?&?\d+>")
PARAMETERS = re.compile(r"(?:^|\s)(?:--|—|––)(?=[A-Za-z]).*", re.DOTALL)


class PromptsConfig(Config):
    """What is taken; a prompt beyond the limits is a failed row."""

    shard_size: int = Field(default=10_000, ge=1)
    min_chars: int = Field(default=3, ge=1)
    max_chars: int = Field(default=2_000, ge=1)
    licence: str | None = None
    count: int = Field(default=10_000, ge=1)
    """Of prompts that are made in a style."""
    seed: int = 0


@dataclass(frozen=True)
class _Read:
    """One row of a source: `text` cleaned, or why there is none."""

    place: str
    text: str = ""
    error: str | None = None
    cleaned: bool = False


def run(
    source: Path | None,
    *,
    out: Path,
    style: str | None = None,
    exclude: Sequence[Path] = (),
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> Artifact:
    """Write the prompts artifact `out` from a file of prompts, or a folder of such files.

    Instead of a source, `style` (`geneval`, `dpg`) names a rule that makes them. A prompt that
    stands in a file of `exclude`, whose layouts are the same, is left out, and of those that are
    made also whatever is GenEval's own.

    `.txt` has a prompt a line, `.jsonl`, `.csv` and `.parquet` a column of `COLUMNS`. `limit` takes
    the first rows of the source.
    """
    settings = load_config(PromptsConfig, config, overrides)
    found = _source(source, style, settings)
    kept, counts = _plan(found, limit, exclude)
    planned = shard_plan(int(kept.sum()), settings.shard_size)
    artifact = begin_artifact(
        out,
        "prompts",
        settings={
            **settings.model_dump(mode="json"),
            "limit": limit,
            "files": {path.name: file_sha256(path) for path in found.files},
            "style": style,
            "exclude": {path.name: file_sha256(path) for path in exclude},
            "counts": counts,
        },
        shards=planned,
        parents={"source": source} if source else {},
    )
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"prompts: {said}", file=sys.stderr)
    pending = set(artifact.pending(None, *rank_and_world()))
    with Progress("prompts", total=sum(planned[n] for n in pending), unit="rows") as progress:
        _write(artifact, _kept_rows(found, kept), pending, planned, settings, progress)
    return artifact


def preview(
    source: Path | None,
    *,
    out: Path,
    style: str | None = None,
    exclude: Sequence[Path] = (),
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, int]:
    """What `run` would take with the same arguments; reads everything and writes nothing."""
    settings = load_config(PromptsConfig, config, overrides)
    kept, counts = _plan(_source(source, style, settings), limit, exclude)
    shards = -(-int(kept.sum()) // settings.shard_size)
    return {**counts, "shards": shards, "shards_to_make": to_make(out, shards)}


def clean(text: str) -> str:
    """`text` without Discord's and Midjourney's trimmings and with plain white space.

    Links and mentions go, `**` around the prompt and what follows them, parameters (`--ar 16:9`)
    to the end, and control characters.
    """
    plain = LINKS.sub(" ", CONTROLS.sub(" ", text)).strip()
    bold = BOLD.fullmatch(plain)
    plain = PARAMETERS.sub("", bold[1] if bold else plain)
    return " ".join(plain.split())


def same(text: str) -> bytes:
    """What two prompts share that are each other's duplicates: 8 bytes of a hash of their words.

    Case, width, spaces and punctuation make no difference. Of ten million prompts, two different
    ones are taken for the same with a probability of 3e-6.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(re.findall(r"[^\W_]+", folded)) or folded
    return hashlib.blake2b(words.encode(), digest_size=8).digest()


@dataclass(frozen=True)
class _Source:
    """Where prompts come from: rows that can be read again, the files they are in, its name."""

    name: str
    read: Callable[[], Iterator[_Read]]
    files: Sequence[Path] = ()
    benchmark: Sequence[str] = ()
    """Prompts that are never taken from it."""


def _source(source: Path | None, style: str | None, config: PromptsConfig) -> _Source:
    if (source is None) == (style is None):
        raise UserError("give either a SOURCE of prompts or --style", hint="--style geneval | dpg")
    if source is not None:
        files = _files(source)
        return _Source(str(source), functools.partial(_rows, files, config), files)
    if style is None or style not in STYLES:
        raise UserError(f"no style {style!r}: there are {', '.join(STYLES)}")
    make = STYLES[style]

    def made() -> Iterator[_Read]:
        for number, text in enumerate(make(config.count, config.seed)):
            yield _checked(f"{style} style:{number}", text, config)

    own = [str(each["prompt"]) for each in geneval_prompts()]
    return _Source(f"the style {style}", made, benchmark=own)


def _plan(
    source: _Source, limit: int | None, exclude: Sequence[Path]
) -> tuple[np.ndarray, dict[str, int]]:
    """(whether each row is kept, counts); 8 bytes a row are held."""
    unseen = _unseen(exclude, source.benchmark)
    hashes = array.array("Q")
    cleaned = failed = 0
    for number, row in enumerate(source.read()):
        if number == limit:
            break
        # A failed row is nobody's duplicate.
        key = same(row.text) if row.error is None else hashlib.sha256(row.place.encode()).digest()
        hashes.append(int.from_bytes(key[:8], "little"))
        cleaned += row.cleaned
        failed += row.error is not None
    if not hashes:
        raise UserError(f"{source.name} holds no prompt")
    _, first = np.unique(np.frombuffer(hashes, np.uint64), return_index=True)
    kept = np.zeros(len(hashes), bool)
    kept[first] = True
    excluded = kept & np.isin(np.frombuffer(hashes, np.uint64), unseen)
    return kept & ~excluded, {
        "read": len(hashes),
        "duplicates left out": len(hashes) - len(first),
        "excluded": int(excluded.sum()),
        "cleaned": cleaned,
        "failed": failed,
    }


def _unseen(files: Sequence[Path], texts: Sequence[str]) -> np.ndarray:
    """Hashes of texts and of the prompts in files; a row without one is an error here."""
    hashes = array.array("Q", (int.from_bytes(same(text), "little") for text in texts))
    for file in files:
        for row in _rows(_files(file), PromptsConfig(min_chars=1, max_chars=MAX_LINE_BYTES)):
            if row.error is not None:
                raise UserError(f"{file} cannot be excluded: {row.place}: {row.error}")
            hashes.append(int.from_bytes(same(row.text), "little"))
    return np.frombuffer(hashes, np.uint64)


def _kept_rows(source: _Source, kept: np.ndarray) -> Iterator[_Read]:
    for row, keep in zip(source.read(), kept, strict=False):
        if keep:
            yield row


def _write(
    artifact: Artifact,
    rows: Iterator[_Read],
    pending: set[str],
    planned: Mapping[str, int],
    config: PromptsConfig,
    progress: Progress,
) -> None:
    for name, count in planned.items():
        taken = list(itertools.islice(rows, count))
        if name not in pending:
            continue
        made = [_row(artifact, f"{name}-{i:06d}", row, config) for i, row in enumerate(taken)]
        artifact.write(name, made)
        progress.advance(count, failed=sum(row["status"] == "failed" for row in made))


def _row(artifact: Artifact, key: str, read: _Read, config: PromptsConfig) -> dict[str, Any]:
    known = {"source": read.place, "licence": config.licence}
    if read.error is not None:
        return artifact.failed_row(key, read.error, **known)
    blank = dict.fromkeys(artifact.schema.names)
    return blank | known | {"key": key, "prompt": read.text, "status": "ok"}


# ---- reading ------------------------------------------------------------------------------------


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise UserError(f"the source {source} does not exist")
    found = [source] if source.is_file() else sorted(set(source.iterdir()) - {source / COMMANDS})
    files = [path for path in found if path.suffix in READERS and path.is_file()]
    if not files:
        raise UserError(f"{source} is no file of prompts: {', '.join(READERS)} are read")
    return files


def _rows(files: Sequence[Path], config: PromptsConfig) -> Iterator[_Read]:
    """Every row of every file in order, cleaned and checked."""
    for path in files:
        try:
            for place, found in READERS[path.suffix](path):
                yield _checked(f"{path.name}:{place}", found, config)
        except (OSError, csv.Error, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read: {why}") from None


def _checked(place: str, found: Any, config: PromptsConfig) -> _Read:
    if isinstance(found, Exception):
        return _Read(place, error=str(found))
    if not isinstance(found, str):
        return _Read(place, error=f"no text: {type(found).__name__}")
    if any("\ud800" <= letter <= "\udfff" for letter in found):
        return _Read(place, error="half a surrogate pair, which is no character")
    text = clean(found)
    if len(text) < config.min_chars:
        return _Read(place, error=f"too short: {len(text)} characters are left")
    if len(text) > config.max_chars:
        return _Read(place, error=f"too long: {len(text)} characters")
    return _Read(place, text, cleaned=text != " ".join(found.split()))


def _txt(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if not line.strip():
                continue
            try:
                yield str(number), line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield str(number), ValueError(f"not UTF-8: {error.reason}")


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for place, line in _txt(path):
        if isinstance(line, Exception):
            yield place, line
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield place, ValueError(f"not JSON: {str(error)[:80]}")
            continue
        yield place, found if isinstance(found, str) else _column(found)


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            yield str(reader.line_num), _column(row)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            if not columns:
                raise ValueError(f"none of the columns {', '.join(COLUMNS)}")
            number = 0
            for batch in file.iter_batches(columns=columns[:1]):
                for text in batch.column(0).to_pylist():
                    yield str(number), text
                    number += 1
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None


def _column(row: Any) -> Any:
    """The prompt of a row by the first of its columns, or an error."""
    if not isinstance(row, Mapping):
        return ValueError(f"no prompt: {type(row).__name__}")
    found = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    return ValueError(f"no prompt: none of {', '.join(COLUMNS)}") if found is None else found


READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
