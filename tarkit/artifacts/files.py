"""Reads text files with errors that name the file, and writes files whole or not at all.

A file is written into a temporary folder next to it and renamed at the end, so that no process
sees it half written, and whatever a library writes beside it is in that folder too. The name of the
folder has the host and the process id of the writer: the next process that writes anything in the
same place removes what killed processes left there.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import json
import os
import re
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarkit.errors import UserError

MAX_LINE_CHARS = 256 << 20
"""The limit of a line and of a CSV cell, which may hold a picture in base64."""
MAX_JSON_BYTES = 256 << 20
UTF8 = "utf-8-sig"
"""UTF-8 with or without a byte order mark."""
SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
MAX_DEPTH = 64
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def text_encoding(path: Path) -> str:
    """The encoding of a text file that a spreadsheet may have written, for the functions below.

    It is UTF-8, UTF-16 where the file begins with its byte order mark, or else Windows' code page
    1252. Raises UserError where the file is none of them or cannot be read.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(2)
        marked = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        for encoding in ("utf-16",) if marked else (UTF8, "cp1252"):
            if _is_encoded(path, encoding):
                return encoding
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    raise UserError(
        f"{path} is not text in UTF-8, UTF-16 or Windows' code page 1252",
        hint=f"iconv -f ITS_ENCODING -t UTF-8 {shlex.quote(str(path))} > NEW",
    )


def _is_encoded(path: Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                decoder.decode(part)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    return True


def is_system_file(path: Path | str) -> bool:
    """Whether macOS or Windows puts this file beside those of people: `._x`, `__MACOSX/x`."""
    *folders, name = str(path).split("/")
    return name.startswith("._") or name in SYSTEM_FILES or "__MACOSX" in (*folders, name)


def utf8_hint(path: Path) -> str:
    """The command that makes UTF-8 of a text in UTF-16, or in a Windows or Latin code page."""
    with path.open("rb") as file:
        begin = file.read(2)
    encoding = "UTF-16" if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "WINDOWS-1252"
    name, new = (shlex.quote(str(p)) for p in (path, path.with_suffix(f".utf8{path.suffix}")))
    return f"if it is {encoding}: iconv -f {encoding} -t UTF-8 {name} > {new}"


def read_text(path: Path, *, encoding: str = UTF8, hint: str = "") -> str:
    """The text of a file; UserError with `hint` where it cannot be read or is not UTF-8."""
    require_file(path, hint)
    try:
        return path.read_text(encoding=encoding)
    except OSError as error:
        where, why = str(path), error.strerror
    except UnicodeDecodeError as error:
        where = f"{path}:{1 + bytes(error.object[: error.start]).count(10)}"  # 10: a line feed
        why, hint = "it is not UTF-8 text", hint or utf8_hint(path)
    raise UserError(f"{where} cannot be read: {why}", hint=hint)


def numbered_lines(
    path: Path, *, newline: str | None = "\n", encoding: str = UTF8, hint: str = ""
) -> Iterator[tuple[int, str, str | None]]:
    """(number from 1, line with its end, error) of every line, one at a time.

    `error` says why a line is not UTF-8, else None. `newline` is that of `open`: with a line feed
    no other character ends a line. Raises UserError with `hint` when the file cannot be read, or a
    line is longer than `MAX_LINE_CHARS`.
    """
    require_file(path, hint)
    try:
        # A byte that is not UTF-8 becomes a lone surrogate, which no UTF-8 text has, and reading
        # continues with the right line numbers.
        with path.open(encoding=encoding, errors="surrogateescape", newline=newline) as file:
            lines = iter(lambda: file.readline(MAX_LINE_CHARS + 1), "")
            for number, line in enumerate(lines, start=1):
                if len(line) > MAX_LINE_CHARS:
                    raise UserError(
                        f"{path}:{number} is longer than {MAX_LINE_CHARS} characters", hint=hint
                    )
                yield number, line, _not_utf8(line)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", hint=hint) from None


def require_file(path: Path, hint: str = "") -> None:
    """Raise UserError for a pipe or a device, whose end may never come."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise UserError(f"{path} cannot be read: it is {kind}, not a file", hint=hint)


def _not_utf8(line: str) -> str | None:
    if line.isascii() or not LONE_SURROGATE.search(line):
        return None
    try:
        line.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not UTF-8: {error.reason} at byte {error.start}"
    raise AssertionError(f"{line!r} is UTF-8, and has lone surrogates")


def read_lines(path: Path, *, encoding: str = UTF8, hint: str = "") -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank; raises UserError with `hint`."""
    for number, line, error in numbered_lines(path, encoding=encoding, hint=hint):
        if error:
            raise UserError(
                f"{path}:{number} cannot be read: it {error}", hint=hint or utf8_hint(path)
            )
        if line.strip():
            yield number, line.rstrip("\n")


def read_object(path: Path, *, hint: str = "") -> dict[str, Any]:
    """The JSON object in a file that may come from elsewhere.

    Raises UserError with `hint` where it cannot be read, is too large, is not one object of JSON,
    or nests objects and lists `MAX_DEPTH` deep.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES or not path.is_file():
            raise ValueError(f"it has {size:,} bytes, or is no file")
        value = json.loads(path.read_text(encoding=UTF8))
        if is_deep(value):
            raise RecursionError
    except UnicodeDecodeError:
        why = "it is not UTF-8 text"
    except json.JSONDecodeError as error:
        why = f"it is not JSON: {error}"
    except OSError as error:
        why = error.strerror or str(error)
    except RecursionError:
        why = f"it holds tables in tables to a depth of {MAX_DEPTH} and more"
    except ValueError as error:
        why = str(error)
    else:
        if isinstance(value, dict):
            return value
        why = f"it holds a {type(value).__name__}, not a table"
    raise UserError(f"{path} cannot be read: {why}", hint=hint)


def is_deep(value: Any) -> bool:
    """Whether objects and lists nest too deep for the functions that walk through them."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = inner
    return bool(level)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; missing folders are made."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_once(path: Path, data: bytes) -> bool:
    """Write a file unless it exists; True for the one process that wrote it."""
    with _temporary(path) as folder:
        temporary = folder / path.name
        temporary.write_bytes(data)
        _sync(temporary)
        try:
            os.link(temporary, path)  # unlike rename, never replaces a file
        except FileExistsError:
            return False
        _sync(path.parent)
    return True


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to; at the end of the block its file becomes `path`.

    It appears whole or not at all, even if the machine stops: the file is synced to the disk before
    it is renamed, and the folder after. After an exception in the block, `path` is as before. Its
    permissions are those of any new file, also where a library chose narrower ones, as safetensors
    does. Missing folders are made.
    """
    with _temporary(path) as folder:
        temporary = folder / path.name
        yield temporary
        temporary.chmod(folder.stat().st_mode & 0o666)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file if it exists, and wait until its name is gone from the disk."""
    if path.exists():
        path.unlink()
        _sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write to; at the end of the block it becomes `path`.

    It appears whole or not at all, even if the machine stops: all that is in it is synced to the
    disk before it is renamed. `path` must not exist or must be an empty folder; else OSError is
    raised at the end.
    """
    with _temporary(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        mode = temporary.stat().st_mode
        for written in temporary.rglob("*"):
            written.chmod(mode & (0o777 if written.is_dir() else 0o666))
            _sync(written)
        rename_folder(temporary, path)


def rename_folder(folder: Path, path: Path) -> None:
    """Give a folder of whole, synced files its name, even if the machine stops after.

    `path` must not exist or must be an empty folder; else OSError is raised.
    """
    _sync(folder)
    os.replace(folder, path)
    _sync(path.parent)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """This process's temporary folder for `path`; it is removed at the end with what is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_first(path.parent.absolute())
    folder = path.with_name(f".{path.name}{temporary_ending()}")
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        _remove(folder)


def temporary_ending() -> str:
    """The end of the name of a file or folder that `sweep` removes once this process is dead."""
    return f".{socket.gethostname()}.{os.getpid()}.tmp"


def sweep(folder: Path) -> None:
    """Remove what dead processes of this host left in a folder under temporary names."""
    name = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.([0-9]{{1,10}})\.tmp")
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = name.fullmatch(entry.name)
            if match and not _is_alive(int(match[1])):
                _remove(Path(entry.path))


_sweep_first = functools.cache(sweep)
"""Once a process and folder: to list a folder before every write would take quadratic time."""


def _remove(temporary: Path) -> None:
    if temporary.is_dir() and not temporary.is_symlink():
        shutil.rmtree(temporary, ignore_errors=True)  # another process may sweep it too
    else:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder, and say so with one of these.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    """Whether a process can still write, which a zombie cannot."""
    with contextlib.suppress(OSError):  # no /proc: ask the system
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return state[:1] not in ([b"Z"], [b"X"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
