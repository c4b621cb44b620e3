"""sha256 of files, remembered by size and time, and the check of a file against a recorded one.

A file is hashed once while its size and its time of change stay the same: within a process, and
for large files also from one process to the next, in the user's cache folder. A changed byte under
an unchanged time is found by `tarkit verify`, which remembers nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tarkit.artifacts.files import write_whole
from tarkit.errors import UserError

LARGE_BYTES = 64 << 20
"""Files of at least this size are remembered on disk; smaller ones are hashed in .05 s."""

_remembered: dict[tuple[str, int, int], str] = {}


def file_sha256(path: Path) -> str:
    """The sha256 of a file as it is now, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """The sha256 of a file, read anew only where its size or time of change is another."""
    place = path.resolve()
    status = place.stat()
    key = (str(place), status.st_size, status.st_mtime_ns)
    if key not in _remembered:
        large = status.st_size >= LARGE_BYTES
        sha256 = _recall(key) if large else None
        if sha256 is None:
            sha256 = file_sha256(place)
            if large:
                _keep(key, sha256)
        _remembered[key] = sha256
    return _remembered[key]


def files_sha256(files: Iterable[Path]) -> str:
    """One sha256 of several files: of their names and sha256s, in the order of names."""
    lines = [f"{remembered_sha256(file)}  {file.name}\n" for file in sorted(files)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def require_sha256(path: Path, sha256: str, *, recorded_in: Path, hint: str) -> None:
    """Raises UserError with `hint` where a file's bytes are not those whose sha256 is recorded."""
    actual = remembered_sha256(path)
    if actual != sha256:
        raise UserError(
            f"{path} is damaged or another file: its sha256 is {actual[:12]}..., and "
            f"{recorded_in} records {sha256[:12]}...",
            hint=hint,
        )


def _cache_file(place: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tarkit" / "sha256" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"


def _recall(key: tuple[str, int, int]) -> str | None:
    """What an earlier process kept; None where it is not there or not readable."""
    with contextlib.suppress(OSError, ValueError, RuntimeError, RecursionError):
        kept = json.loads(_cache_file(key[0]).read_text(encoding="utf-8"))
        if isinstance(kept, dict) and kept.get("key") == list(key):
            sha256 = kept.get("sha256")
            return sha256 if isinstance(sha256, str) else None
    return None


def _keep(key: tuple[str, int, int], sha256: str) -> None:
    """Keep a digest for later processes; a cache that cannot be written is done without."""
    text = json.dumps({"key": list(key), "sha256": sha256})
    with contextlib.suppress(OSError, RuntimeError):
        write_whole(_cache_file(key[0]), text.encode())
