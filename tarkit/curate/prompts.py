"""`tarkit curate prompts`: cleans prompts that people wrote and removes duplicates.

Source: paper App. D.1 (user prompts of JourneyDB and Midjourney besides the captions). Duplicates
are known only after all rows have been read, so there are two passes: the first reads, cleans and
hashes every row and plans the shards, the second writes them. A row that cannot be used is a
failed row. Left out, and counted in the manifest, are prompts that differ from an earlier one only
in case, spaces and punctuation, and prompts of a benchmark that training must not see.
"""

from __future__ import annotations

import array
import csv
import functools
import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field

from tarkit.artifacts.artifact import Artifact, shard_plan
from tarkit.artifacts.commands import COMMANDS
from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import UTF8, is_system_file, require_file
from tarkit.artifacts.plan import ShardPlan
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.resume import pending_shards
from tarkit.artifacts.tables import batch_rows
from tarkit.config import Config, Seed, load_config
from tarkit.curate.prompt_templates import STYLES
from tarkit.errors import UserError
from tarkit.progress import Progress
from tarkit.scoring.geneval_prompts import geneval_prompts
from tarkit.terminal import print_note

COLUMNS = ("prompt", "Prompt", "text", "TEXT", "caption")
MAX_LINE_BYTES = 1 << 20

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
# What Discord and Midjourney add to a prompt.
BOLD = re.compile(r"\*\*(.+?)\*\*(?:\s+-\s.*)?")
LINKS = re.compile(r"<?https?://[^\s>]+>?|<[@#]!?&?\d+>")
PARAMETERS = re.compile(r"(?:^|\s)(?:--|—|––)(?=[A-Za-z]).*", re.DOTALL)


class PromptsConfig(Config):
    """Which prompts are accepted; one that is too short or too long is a failed row."""

    shard_size: int = Field(default=10_000, ge=1)
    min_chars: int = Field(default=3, ge=1)
    max_chars: int = Field(default=2_000, ge=1)
    licence: str | None = None
    count: int = Field(default=10_000, ge=1)
    """The number of prompts that a style makes."""
    seed: Seed = 0


@dataclass(frozen=True)
class _SourceRow:
    """One row of a source: its cleaned text, or the error why there is none.

    `place` names the file and line, or the style and number. `cleaned` says that cleaning changed
    more than white space.
    """

    place: str
    text: str = ""
    error: str | None = None
    cleaned: bool = False


@dataclass(frozen=True)
class PromptsPlan(ShardPlan):
    """Takes the prompts of a file, or of a folder of such files.

    `.txt` has one prompt per line; `.jsonl`, `.csv` and `.parquet` have a column of `COLUMNS`. In
    place of a source, `style` (`geneval`, `dpg`) names a rule that makes prompts. Prompts that are
    also in a file of `exclude`, which is read in the same way, are left out, and of a style also
    the prompts of GenEval itself. `limit` keeps the first rows of the source.
    """

    source_path: Path | None = None
    _: KW_ONLY
    style: str | None = None
    exclude: Sequence[Path] = ()

    kind = "prompts"

    @cached_property
    def settings(self) -> PromptsConfig:
        return load_config(PromptsConfig, self.config, self.overrides)

    @cached_property
    def prompts(self) -> _PromptSource:
        return _open_source(self.source_path, self.style, self.settings)

    @cached_property
    def selection(self) -> _Selection:
        return _select(self.prompts, self.limit, self.exclude)

    @property
    def recorded(self) -> Mapping[str, Any]:
        return {
            **self.settings.model_dump(mode="json"),
            "limit": self.limit,
            "files": {path.name: file_sha256(path) for path in self.prompts.files},
            "style": self.style,
            "exclude": {path.name: file_sha256(path) for path in self.exclude},
            "counts": self.selection.counts,
        }

    @property
    def shards(self) -> Mapping[str, int]:
        return shard_plan(int(self.selection.kept.sum()), self.settings.shard_size)

    @property
    def parents(self) -> Mapping[str, Artifact | Path]:
        return {"source": self.source_path} if self.source_path else {}

    @property
    def counts(self) -> Mapping[str, int]:
        return self.selection.counts

    def make(self, artifact: Artifact) -> None:
        summary = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        print_note(f"prompts: {summary}")
        rank, world = rank_and_world()
        pending = set(pending_shards(artifact, rank=rank, world=world))
        rows = _kept_rows(self.prompts, self.selection.kept)
        num_rows = sum(artifact.counts[name] for name in pending)
        with Progress("prompts", total=num_rows, unit="rows") as progress:
            _write(artifact, rows, pending, self.settings, progress)


def clean(text: str) -> str:
    """`text` without what Discord and Midjourney add to it, and with single spaces.

    Removed are links, mentions, control characters, the `**` around a prompt with the text after
    them, and everything from the first parameter (`--ar 16:9`) on.
    """
    plain = LINKS.sub(" ", CONTROLS.sub(" ", text)).strip()
    bold = BOLD.fullmatch(plain)
    plain = PARAMETERS.sub("", bold[1] if bold else plain)
    return " ".join(plain.split())


def same(text: str) -> bytes:
    """8 bytes of a hash of a prompt's words, which are equal for duplicates.

    Case, width, spaces and punctuation do not count. Among ten million prompts the probability
    that two different ones have the same hash is 3e-6.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = " ".join(re.findall(r"[^\W_]+", folded)) or folded
    return hashlib.blake2b(words.encode(), digest_size=8).digest()


@dataclass(frozen=True)
class _PromptSource:
    """A source of prompts: its name, a function that reads its rows anew, and its files."""

    name: str
    read: Callable[[], Iterator[_SourceRow]]
    files: Sequence[Path] = ()
    benchmark: Sequence[str] = ()
    """Prompts that are always left out."""


class _Selection(NamedTuple):
    """`kept` has a boolean for each row of a source: whether it becomes a row of the artifact."""

    kept: np.ndarray
    counts: dict[str, int]


def _open_source(source: Path | None, style: str | None, config: PromptsConfig) -> _PromptSource:
    if (source is None) == (style is None):
        raise UserError("give either a SOURCE of prompts or --style", hint="--style geneval | dpg")
    if source is not None:
        files = _files(source)
        return _PromptSource(str(source), functools.partial(_rows, files, config), files)
    if style is None or style not in STYLES:
        raise UserError(f"there is no style {style!r}; the styles are {', '.join(STYLES)}")
    make = STYLES[style]

    def rows() -> Iterator[_SourceRow]:
        for number, text in enumerate(make(config.count, config.seed)):
            yield _cleaned(f"{style} style:{number}", text, config)

    benchmark = [str(each["prompt"]) for each in geneval_prompts()]
    return _PromptSource(f"the style {style}", rows, benchmark=benchmark)


def _select(source: _PromptSource, limit: int | None, exclude: Sequence[Path]) -> _Selection:
    """Reads the whole source; needs 8 bytes of memory per row."""
    excluded_hashes = _excluded_hashes(exclude, source.benchmark)
    hashes = array.array("Q")
    cleaned = failed = 0
    for number, row in enumerate(source.read()):
        if number == limit:
            break
        # A failed row is the duplicate of no other row.
        key = same(row.text) if row.error is None else hashlib.sha256(row.place.encode()).digest()
        hashes.append(int.from_bytes(key[:8], "little"))
        cleaned += row.cleaned
        failed += row.error is not None
    if not hashes:
        raise UserError(f"{source.name} holds no prompt")
    _, first = np.unique(np.frombuffer(hashes, np.uint64), return_index=True)
    kept = np.zeros(len(hashes), bool)
    kept[first] = True
    excluded = kept & np.isin(np.frombuffer(hashes, np.uint64), excluded_hashes)
    counts = {
        "read": len(hashes),
        "duplicates left out": len(hashes) - len(first),
        "excluded": int(excluded.sum()),
        "cleaned": cleaned,
        "failed": failed,
    }
    return _Selection(kept & ~excluded, counts)


def _excluded_hashes(files: Sequence[Path], texts: Sequence[str]) -> np.ndarray:
    """Hashes of `texts` and of the prompts in `files`; UserError for a row without a prompt."""
    hashes = array.array("Q", (int.from_bytes(same(text), "little") for text in texts))
    for file in files:
        for row in _rows(_files(file), PromptsConfig(min_chars=1, max_chars=MAX_LINE_BYTES)):
            if row.error is not None:
                raise UserError(f"{file} cannot be excluded: {row.place}: {row.error}")
            hashes.append(int.from_bytes(same(row.text), "little"))
    return np.frombuffer(hashes, np.uint64)


def _kept_rows(source: _PromptSource, kept: np.ndarray) -> Iterator[_SourceRow]:
    for row, keep in zip(source.read(), kept, strict=False):
        if keep:
            yield row


def _write(
    artifact: Artifact,
    rows: Iterator[_SourceRow],
    pending: set[str],
    config: PromptsConfig,
    progress: Progress,
) -> None:
    for name in artifact.shards:
        source_rows = list(itertools.islice(rows, artifact.counts[name]))
        if name not in pending:
            continue
        shard = [
            _row(artifact, f"{name}-{i:06d}", row, config) for i, row in enumerate(source_rows)
        ]
        artifact.write(name, shard)
        progress.advance(len(shard), failed=sum(row["status"] == "failed" for row in shard))


def _row(artifact: Artifact, key: str, row: _SourceRow, config: PromptsConfig) -> dict[str, Any]:
    origin = {"source": row.place, "licence": config.licence}
    if row.error is not None:
        return artifact.failed_row(key, row.error, **origin)
    blank = dict.fromkeys(artifact.schema.names)
    return blank | origin | {"key": key, "prompt": row.text, "status": "ok"}


# ---- reading ------------------------------------------------------------------------------------


def _files(source: Path) -> list[Path]:
    if not source.exists():
        raise UserError(f"the source {source} does not exist")
    if not source.is_dir():
        require_file(source)
    paths = [source] if source.is_file() else sorted(set(source.iterdir()) - {source / COMMANDS})
    files = [path for path in paths if _is_prompts(path)]
    if not files:
        raise UserError(f"{source} is not a file of prompts: {', '.join(READERS)} are read")
    return files


def _is_prompts(path: Path) -> bool:
    return path.suffix in READERS and path.is_file() and not is_system_file(path.name)


def _rows(files: Sequence[Path], config: PromptsConfig) -> Iterator[_SourceRow]:
    """Every row of every file in order, cleaned and checked."""
    for path in files:
        try:
            for place, value in READERS[path.suffix](path):
                yield _cleaned(f"{path.name}:{place}", value, config)
        except (OSError, csv.Error, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read: {reason}") from None


def _cleaned(place: str, value: Any, config: PromptsConfig) -> _SourceRow:
    """The row for a value of a reader, which is a text, or an Exception or another type."""
    if isinstance(value, Exception):
        return _SourceRow(place, error=str(value))
    if not isinstance(value, str):
        return _SourceRow(place, error=f"no text: {type(value).__name__}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return _SourceRow(place, error="half a surrogate pair, which is no character")
    text = clean(value)
    if len(text) < config.min_chars:
        return _SourceRow(place, error=f"too short: {len(text)} characters are left")
    if len(text) > config.max_chars:
        return _SourceRow(place, error=f"too long: {len(text)} characters")
    return _SourceRow(place, text, cleaned=text != " ".join(value.split()))


def _txt(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if not line.strip():
                continue
            try:
                yield str(number), line.decode(UTF8 if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield str(number), ValueError(f"not UTF-8: {error.reason}")


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for place, line in _txt(path):
        if isinstance(line, Exception):
            yield place, line
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield place, ValueError(f"not JSON: {str(error)[:80]}")
            continue
        yield place, value if isinstance(value, str) else _column(value)


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding=UTF8, errors="surrogateescape", newline="") as file:
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
                for row, problem in batch_rows(batch):
                    yield str(number), ValueError(problem) if problem else row[columns[0]]
                    number += 1
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None


def _column(row: Any) -> Any:
    """The prompt of a row, from the first of COLUMNS that it has, or an error."""
    if not isinstance(row, Mapping):
        return ValueError(f"no prompt: {type(row).__name__}")
    prompt = next((row[name] for name in COLUMNS if row.get(name) is not None), None)
    return ValueError(f"no prompt: none of {', '.join(COLUMNS)}") if prompt is None else prompt


READERS: Mapping[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
