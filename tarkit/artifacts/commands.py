"""`commands.jsonl`: the command lines that wrote into a directory, oldest first.

A line is {"argv": ["tarkit", ...], "version": of tarkit}. It is a log of how a directory was made;
no result depends on it.
"""

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tarkit.artifacts.files import read_lines

COMMANDS = "commands.jsonl"
PASSWORD = re.compile(r"(://[^/@:\s]*:)[^/@\s]+@")

log = logging.getLogger("tarkit")


def append_command(folder: Path, argv: Sequence[str]) -> None:
    """Add a command line to `folder`, unless it is the same as the last one there.

    The line is written by one call to a file opened for appending, so lines of several processes
    are never mixed. A password within a URL is not written down. Raises OSError where the folder
    cannot be written.
    """
    from tarkit.config import provenance  # pydantic: a third of the time of `tarkit --help`

    words = [PASSWORD.sub(r"\1***@", word) for word in argv]
    record = {"argv": words, "version": provenance()["tarkit"]}
    # ASCII: an argument that is not UTF-8 holds lone surrogates, which cannot be encoded.
    line = json.dumps(record).encode("ascii") + b"\n"
    path = folder / COMMANDS
    before = path.read_bytes() if path.exists() else b""
    if before.splitlines(keepends=True)[-1:] == [line]:
        return
    # A full disk may have cut the last line off.
    start = b"\n" if before and not before.endswith(b"\n") else b""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, start + line)
    finally:
        os.close(descriptor)


def read_commands(folder: Path) -> list[list[str]]:
    """The command lines that wrote into `folder`, oldest first; empty where none is recorded.

    A command that several processes ran at once is one command. A damaged line is left out, with a
    warning.
    """
    path = folder / COMMANDS
    if not path.exists():
        return []
    commands: list[list[str]] = []
    for number, line in read_lines(path):
        try:
            argv = json.loads(line)["argv"]
        except (ValueError, KeyError, TypeError, RecursionError):
            argv = None
        if not isinstance(argv, list) or not all(map(_is_argument, argv)):
            log.warning("%s:%d is not a command and is left out: %s", path, number, line[:80])
            continue
        if argv not in commands[-1:]:
            commands.append(argv)
    return commands


def _is_argument(word: Any) -> bool:
    """Whether it can be a word of a command line: text without NUL that a program can be given."""
    if not isinstance(word, str) or "\0" in word:
        return False
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True
