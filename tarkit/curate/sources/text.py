"""Text sources: a `.txt` (a document per line), `.jsonl`, `.json` or `.parquet` (one per row).

A row has `text`, or `messages` with roles user, assistant and system, or ShareGPT's
`conversations` of human, gpt and system, or Alpaca's instruction, input and output, or query and
response. A row that cannot be read is a document with an error, so
that counts add up. Blank lines of a `.txt` are not documents. Rows that name a picture are not
documents either, but are counted in `num_with_pictures`; `curate ingest --questions` reads them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import numbered_lines
from tarkit.artifacts.tables import read_rows
from tarkit.curate.sources.annotation_rows import CONVERSATIONS, MESSAGES, OTHER_FORMS, usual_form
from tarkit.curate.sources.items import in_any_case
from tarkit.errors import UserError

ROLES = ("system", "user", "assistant")
PICTURES = ("image", "images")
OTHER_MEDIA = ("video", "videos", "audio", "audios")
COLUMNS = in_any_case(("text", MESSAGES, CONVERSATIONS, *OTHER_FORMS, *PICTURES, *OTHER_MEDIA))
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
SPEAKERS |= {"chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "system": "system"}
ENDINGS = (".txt", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Document:
    """One document as (role, content) turns; plain text is one assistant turn."""

    turns: tuple[tuple[str, str], ...] = ()
    error: str | None = None


class TextSource:
    """A text file read front to back, with its fingerprint and its number of documents."""

    def __init__(self, path: Path, *, limit: int | None = None) -> None:
        if path.suffix not in ENDINGS:
            raise UserError(
                f"{path} is not a text source: its ending is {path.suffix or 'missing'}",
                hint="give a .txt (a document per line), or a .jsonl, .json or .parquet (per row)",
            )
        if not path.is_file():
            raise UserError(f"the text source {path} does not exist")
        self.path = path
        with path.open("rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        kinds = Counter(document is not None for document in self._rows())
        num_documents = kinds[True]
        self.num_with_pictures = kinds[False]
        """Rows that name a picture, which are not documents."""
        self.num_documents = num_documents if limit is None else min(limit, num_documents)
        if not self.num_documents:
            raise UserError(
                f"the text source {path} holds no document: "
                f"{self.num_with_pictures} of its {kinds.total()} rows name a picture",
                hint=f"tarkit curate ingest PICTURES --questions {path} --out DIR takes those",
            )
        self._position = 0
        self._remaining = self._documents()

    def read(self, start: int, stop: int) -> list[Document]:
        """Documents `start` to `stop`; ranges in order need only one pass over the file."""
        if start < self._position:
            self._position, self._remaining = 0, self._documents()
        skip = start - self._position
        self._position = stop
        return list(itertools.islice(self._remaining, skip, skip + stop - start))

    def _documents(self) -> Iterator[Document]:
        return (document for document in self._rows() if document is not None)

    def _rows(self) -> Iterator[Document | None]:
        if self.path.suffix == ".txt":
            yield from _line_documents(self.path)
            return
        for row in read_rows(self.path, columns=COLUMNS):
            if row.error is not None:
                yield Document(error=f"{row.place} {row.error}")
            else:
                yield _document(row.values, where=row.place)


def _line_documents(path: Path) -> Iterator[Document]:
    for number, line, error in numbered_lines(path):
        if error is not None:
            yield Document(error=f"line {number} {error}")
        elif line.strip():
            yield Document(turns=(("assistant", line.strip()),))


def _document(row: Mapping[str, Any], *, where: str) -> Document | None:
    """None for a row that shows a picture."""
    row = usual_form(row)
    if any(row.get(name) for name in PICTURES):
        return None
    if media := [name for name in OTHER_MEDIA if row.get(name)]:
        return Document(error=f"{where} has a {media[0]}, of which tarkit can learn nothing")
    text, messages = row.get("text"), row.get("messages")
    if isinstance(text, str) and text.strip():
        turns: tuple[tuple[str, str], ...] = (("assistant", text.strip()),)
    elif isinstance(messages, list) and messages:
        turns = tuple(_turn(message) for message in messages)
    elif isinstance(row.get("question"), str) and isinstance(row.get("answer"), str):
        turns = (("user", row["question"].strip()), ("assistant", row["answer"].strip()))
    elif row.get(CONVERSATIONS):
        try:
            turns = conversation(row[CONVERSATIONS])
        except ValueError as error:
            return Document(error=f"{where}: {error}")
    else:
        return Document(error=f"{where} has neither text nor messages")
    if not all(role in ROLES and content for role, content in turns):
        others = [repr(role) for role, _ in turns if role and role not in ROLES]
        which = f", and one has the role {others[0]}" if others else ""
        return Document(
            error=f"{where}: a message needs a role of {', '.join(ROLES)} and content{which}"
        )
    if any("\ud800" <= letter <= "\udfff" for _, content in turns for letter in content):
        return Document(error=f"{where} holds half a surrogate pair, which is no character")
    return Document(turns=turns)


def conversation(turns: Any, *, may_be_empty: bool = False) -> tuple[tuple[str, str], ...]:
    """(role, content) of ShareGPT's turns; ValueError where one cannot be read.

    With `may_be_empty` a turn without words has the content "".
    """
    if not isinstance(turns, list) or not turns:
        raise ValueError("its conversations are no list of turns")
    pairs = []
    for number, turn in enumerate(turns):
        fields = turn if isinstance(turn, Mapping) else {}
        speaker, value = fields.get("from"), fields.get("value")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise ValueError(f"turn {number} is said by {speaker!r}, not by human or gpt")
        text = value.strip() if isinstance(value, str) else ""
        if not text and not may_be_empty:
            raise ValueError(f"turn {number} has no words")
        pairs.append((SPEAKERS[speaker], text))
    return tuple(pairs)


def _turn(message: Any) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        return "", ""
    role, content = message.get("role"), message.get("content")
    return (role, content) if isinstance(role, str) and isinstance(content, str) else ("", "")
