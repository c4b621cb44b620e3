"""Single files: text and lines in, the file's name in every error; bytes out, whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from tarkit.errors import UserError

MAX_LINE_CHARS = 256 << 20
"""Of a line and of a CSV cell; a cell may hold a picture in base64."""
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: Path, *, hint: str = "") -> str:
    """The text of a UTF-8 file; raises UserError with the line that is not UTF-8, and `hint`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        where, why = str(path), error.strerror
    except UnicodeDecodeError as error:
        where = f"{path}:{1 + bytes(error.object[: error.start]).count(10)}"  # 10: a line feed
        why = "it is not UTF-8 text"
    raise UserError(f"{where} cannot be read: {why}", hint=hint)


def numbered_lines(
    path: Path, *, newline: str | None = "\n", hint: str = ""
) -> Iterator[tuple[int, str, str | None]]:
    """(number from 1, line with its end, error) of every line, one at a time.

    `error` says why a line is not UTF-8. `newline` is that of `open`: with a line feed no other
    character ends a line. Raises UserError with `hint` where a file cannot be read, or a line is
    longer than `MAX_LINE_CHARS`.
    """
    try:
        # A byte that is not UTF-8 becomes a lone surrogate, which no UTF-8 text has, and the lines
        # after it keep their numbers.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as file:
            lines = iter(lambda: file.readline(MAX_LINE_CHARS + 1), "")
            for number, line in enumerate(lines, start=1):
                if len(line) > MAX_LINE_CHARS:
                    raise UserError(
                        f"{path}:{number} is longer than {MAX_LINE_CHARS} characters", hint=hint
                    )
                yield number, line, _not_utf8(line)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", hint=hint) from None


def _not_utf8(line: str) -> str | None:
    if line.isascii() or not LONE_SURROGATE.search(line):
        return None
    try:
        line.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not UTF-8: {error.reason} at byte {error.start}"
    raise AssertionError(f"{line!r} is UTF-8, and has lone surrogates")


def read_lines(path: Path, *, hint: str = "") -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank; raises UserError with `hint`."""
    for number, line, error in numbered_lines(path, hint=hint):
        if error:
            raise UserError(f"{path}:{number} cannot be read: it {error}", hint=hint)
        if line.strip():
            yield number, line.rstrip("\n")


def write_whole(path: Path, data: bytes) -> None:
    """`data` under its name, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_bytes(data)
    os.replace(draft, path)
