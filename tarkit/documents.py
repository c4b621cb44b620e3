"""Text sources: a `.txt` (a document a line), `.jsonl` or `.parquet` file (a document a row).

A row of `.jsonl` or Parquet has `text`, or `messages` with roles user, assistant and system. A row
that cannot be read is a document with an error, so that counts add up; a blank line of a `.txt` is
no document.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarkit.errors import UserError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Document:
    """One document as (role, content) turns; plain text is one assistant turn."""

    turns: tuple[tuple[str, str], ...] = ()
    error: str | None = None


class TextSource:
    """A text file read front to back, with its fingerprint and its number of documents."""

    def __init__(self, path: Path, *, limit: int | None = None) -> None:
        if path.suffix not in (".txt", ".jsonl", ".parquet"):
            raise UserError(
                f"{path} is no text source: its ending is {path.suffix or 'missing'}",
                hint="give a .txt (a document a line), .jsonl or .parquet file (a document a row)",
            )
        if not path.is_file():
            raise UserError(f"the text source {path} does not exist")
        self.path = path
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found = sum(1 for _ in self._documents())
        self.num_documents = found if limit is None else min(limit, found)
        if not self.num_documents:
            raise UserError(f"the text source {path} holds no document")
        self._position = 0
        self._rest = self._documents()

    def read(self, start: int, stop: int) -> list[Document]:
        """Documents `start` to `stop`; ranges that follow each other cost one pass in all."""
        if start < self._position:
            self._position, self._rest = 0, self._documents()
        skip = start - self._position
        self._position = stop
        return list(itertools.islice(self._rest, skip, skip + stop - start))

    def _documents(self) -> Iterator[Document]:
        readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
        return readers[self.path.suffix](self.path)


def _read_txt(path: Path) -> Iterator[Document]:
    for number, line in _lines(path):
        yield _text(line, where=f"line {number}")


def _read_jsonl(path: Path) -> Iterator[Document]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Document(error=f"line {number} is not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield _document(row, where=f"line {number}")
        else:
            yield Document(error=f"line {number} is not a JSON object")


def _read_parquet(path: Path) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in ("text", "messages") if name in file.schema_arrow.names]
            if not columns:
                found = ", ".join(file.schema_arrow.names)
                raise UserError(f"{path} has neither a column text nor messages; it has {found}")
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    yield _document(row, where=f"row {number}")
                    number += 1
    except pa.ArrowException as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _text(line: bytes, *, where: str) -> Document:
    try:
        return Document(turns=(("assistant", line.decode("utf-8").strip()),))
    except UnicodeDecodeError as error:
        return Document(error=f"{where} is not UTF-8: {error.reason} at byte {error.start}")


def _document(row: Mapping[str, Any], *, where: str) -> Document:
    text, messages = row.get("text"), row.get("messages")
    if isinstance(text, str) and text.strip():
        turns: tuple[tuple[str, str], ...] = (("assistant", text.strip()),)
    elif isinstance(messages, list) and messages:
        turns = tuple(_turn(message) for message in messages)
    else:
        return Document(error=f"{where} has neither text nor messages")
    if not all(role in ROLES and content for role, content in turns):
        return Document(error=f"{where}: a message needs a role of {', '.join(ROLES)} and content")
    if any("\ud800" <= letter <= "\udfff" for _, content in turns for letter in content):
        return Document(error=f"{where} holds half a surrogate pair, which is no character")
    return Document(turns=turns)


def _turn(message: Any) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        return "", ""
    role, content = message.get("role"), message.get("content")
    return (role, content) if isinstance(role, str) and isinstance(content, str) else ("", "")
