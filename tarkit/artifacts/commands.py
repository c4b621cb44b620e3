"""`commands.jsonl`: the commands that made a folder, as they were given, oldest first.

A line is {"argv": [the words of the command, from `tarkit` on], "version": tarkit's}. A run from
Python records none.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

COMMANDS = "commands.jsonl"

log = logging.getLogger("tarkit")


def append_command(folder: Path, argv: Sequence[str], version: str) -> None:
    """Record a command in an existing folder, unless it is the one that was recorded last.

    The line is one write in append mode, so that processes which share a folder do not mix lines.
    """
    path = folder / COMMANDS
    line = json.dumps({"argv": list(argv), "version": version}, ensure_ascii=False).encode()
    recorded = path.read_bytes() if path.exists() else b""
    if recorded.rstrip(b"\n").rpartition(b"\n")[2] == line:
        return
    # A line that was cut off has no end: the new one begins below it.
    begin = b"" if recorded.endswith(b"\n") or not recorded else b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, begin + line + b"\n")
    finally:
        os.close(descriptor)


def read_commands(folder: Path) -> list[list[str]]:
    """The recorded commands, each a list of words, oldest first; empty where there are none.

    A damaged line is skipped, with a warning in the log.
    """
    path = folder / COMMANDS
    if not path.is_file():
        return []
    commands = []
    # Not splitlines, which also splits at U+2028 and the like, and JSON may hold those as they are.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        argv = _argv(line)
        if argv is None:
            log.warning("%s:%d is no recorded command and is skipped", path, number)
        else:
            commands.append(argv)
    return commands


def _argv(line: bytes) -> list[str] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    argv = entry.get("argv") if isinstance(entry, dict) else None
    is_command = isinstance(argv, list) and argv and all(isinstance(word, str) for word in argv)
    return argv if is_command else None
