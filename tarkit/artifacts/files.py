"""Single files that a user names: a picture in, its name in every complaint; bytes out, whole."""

from __future__ import annotations

import os
from pathlib import Path

from tarkit.errors import UserError


def read_text(path: Path, *, hint: str = "") -> str:
    """The text of a UTF-8 file; raises UserError with the line that is none, and with `hint`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        where, why = str(path), error.strerror
    except UnicodeDecodeError as error:
        where = f"{path}:{1 + bytes(error.object[: error.start]).count(10)}"  # 10: a line feed
        why = "it is not UTF-8 text"
    raise UserError(f"{where} cannot be read: {why}", hint=hint)


def read_lines(path: Path, *, hint: str = "") -> list[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank; raises UserError as `read_text`."""
    # Not splitlines, which also splits at U+2028 and the like, and JSON may hold those as they are.
    lines = read_text(path, hint=hint).split("\n")
    return [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]


def write_whole(path: Path, data: bytes) -> None:
    """`data` under its name, whole or not at all; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    draft.write_bytes(data)
    os.replace(draft, path)
