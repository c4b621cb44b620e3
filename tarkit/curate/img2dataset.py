"""img2dataset as another process: its command line, its bounds, and its layout read back.

It is called and never imported: it pins other releases of what tarkit uses, and so may stand in an
environment of its own. Source: img2dataset 1.47.0. What it does not do, and what is done here:
- its timeout is one of silence, so a server that sends a byte a second keeps it for ever: it is
  killed when no piece of the list is finished within `stall_s`;
- a body is read into memory whatever its length: the process has `memory_mb` and no more;
- with bytes kept as they came it checks neither pictures nor sizes: who adopts them does;
- sidecars of NNNNN.tar are NNNNN.parquet, which lists the failures too but is readable only once it
  is finished, and NNNNN_stats.json, which comes last: without it the tar is a torn one.

A working folder holds one folder for each time it was run: 0, 1, ...
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tarkit.errors import UserError

POLL_S = 0.1
LIST, LOG, OUTPUT = "urls.parquet", "log.txt", "out"
COLUMNS = ["place", "url", "key", "status", "error_message", "sha256"]

# What it may know of this process: proxies, and the certificates that such a proxy needs.
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")
# glibc reserves 64 MiB of addresses for each of 8 arenas a core, which would count as its memory.
SET = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": os.defpath,
}
# The shell sets the bounds (running Python between fork and exec is not safe beside threads) and
# leaves a watcher on its input, which ends when tarkit does, killed or not: then the watcher kills
# the whole group. A bound that the system does not know is left out.
SHELL = """ulimit -v "$1"; ulimit -f "$2"; shift 2
exec 3<&0; { read -r _ <&3; kill -s KILL 0; } &
exec "$@" 3<&- </dev/null"""


@dataclass(frozen=True)
class Downloader:
    """The program, and how it is to be called; the pictures do not depend on it."""

    program: Path
    timeout_s: int
    retries: int
    num_threads: int
    num_processes: int
    piece_size: int
    stall_s: float
    memory_mb: int
    max_bytes: int


@dataclass(frozen=True)
class Answer:
    """What became of a URL: `size` bytes at `offset` of a tar, or the reason why there are none."""

    error: str | None = None
    tar: Path = Path()
    offset: int = 0
    size: int = 0

    def read(self) -> bytes:
        """The bytes as the server sent them."""
        with self.tar.open("rb") as file:
            return _read_at(file, self.offset, self.size)


def find_program(name: str) -> Path:
    """The program in PATH or in tarkit's own environment; UserError with how to install it."""
    found = shutil.which(name) or shutil.which(Path(sys.executable).parent / name)
    if found is None:
        raise UserError(
            f"the program {name} is not here",
            hint="pip install 'tarkit[download]', or in an environment of its own: python -m venv "
            "downloader && downloader/bin/pip install 'img2dataset>=1.47,<2' 'standard-imghdr; "
            'python_version >= "3.13"\', and then --img2dataset downloader/bin/img2dataset',
        )
    return Path(found).absolute()


def fetch(
    urls: Mapping[int, str], work: Path, how: Downloader, report: Callable[[int], None]
) -> dict[int, Answer]:
    """An answer for every place of `urls`; `report` is told how many are settled so far.

    Pictures that an earlier, killed call left whole in `work` are taken; its torn tars and its
    failures are done again. UserError where the program does nothing at all.
    """
    answers: dict[int, Answer] = {}
    for folder in _earlier(work):
        for place, url, answer in _found(folder):
            if answer.error is None and urls.get(place) == url:
                answers[place] = answer
    report(len(answers))
    while todo := {place: url for place, url in urls.items() if place not in answers}:
        answers |= _once(todo, _next_folder(work), how, len(answers), report)
        report(len(answers))
    return answers


def _once(
    urls: Mapping[int, str],
    folder: Path,
    how: Downloader,
    num_before: int,
    report: Callable[[int], None],
) -> dict[int, Answer]:
    """Runs the program once: answers for at least one piece of the list, else UserError."""
    _write_list(folder / LIST, urls)

    def finished(num_pieces: int) -> None:
        report(num_before + min(num_pieces * how.piece_size, len(urls)))

    ended = _run(folder, how, finished)
    settled = _settled(folder, list(urls), how, ended)
    if not settled:
        raise UserError(
            f"{how.program} fetched nothing, {ended}; it said: {_last_line(folder / LOG)}",
            hint=f"all that it said stands in {folder / LOG}",
        )
    return settled


# ---- calling it ---------------------------------------------------------------------------------


def _run(folder: Path, how: Downloader, finished: Callable[[int], None]) -> str:
    """Runs it to its end, or kills it with all its workers; returns how it ended."""
    kib, blocks = how.memory_mb << 10, -(-how.piece_size * how.max_bytes // 512)
    shell = ["/bin/sh", "-c", SHELL, "sh", str(kib), str(blocks)]
    with (
        (folder / LOG).open("wb") as log,
        subprocess.Popen(
            [*shell, str(how.program), *_options(folder, how)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        ) as process,
    ):
        try:
            return _watch(process, folder / OUTPUT, how, finished)
        finally:
            # The watcher is of the group and lives, so the number cannot be another's by now.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _options(folder: Path, how: Downloader) -> list[str]:
    options: dict[str, Any] = {
        "url_list": folder.absolute() / LIST,
        "input_format": "parquet",
        "url_col": "url",
        "save_additional_columns": '["place"]',
        "output_folder": folder.absolute() / OUTPUT,
        "output_format": "webdataset",
        "resize_mode": "no",
        # Bytes as they came. It also turns every check of pictures and sizes off.
        "disable_all_reencoding": True,
        "compute_hash": "sha256",
        "extract_exif": False,
        "processes_count": how.num_processes,
        "thread_count": how.num_threads,
        "number_sample_per_shard": how.piece_size,
        "timeout": how.timeout_s,
        "retries": how.retries,
        "max_shard_retry": 0,
        "user_agent_token": "tarkit",
    }
    return [f"--{name}={value}" for name, value in options.items()]


def _environment(folder: Path) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name.lower() in PASSED_ON}
    return passed | SET | {"HOME": str(folder.absolute())}


def _watch(
    process: subprocess.Popen[bytes],
    output: Path,
    how: Downloader,
    finished: Callable[[int], None],
) -> str:
    """Tells how many pieces are finished, until it ends or none was for too long."""
    seen, last = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_S)
        num_finished = len(_pieces(output, "_stats.json"))
        if num_finished > seen:
            finished(num_finished)
            seen, last = num_finished, time.monotonic()
        elif time.monotonic() - last > how.stall_s:
            return f"timed out: no piece of the list was finished in {how.stall_s:g} s"
    return f"the downloader ended early: status {process.returncode}"


def _pieces(output: Path, ending: str) -> set[int]:
    """Numbers of the pieces of which there is a file with this ending."""
    found = (path.name.removesuffix(ending) for path in output.glob(f"*{ending}"))
    return {int(name) for name in found if name.isdigit()}


# ---- reading its layout -------------------------------------------------------------------------


def _settled(folder: Path, todo: Sequence[int], how: Downloader, ended: str) -> dict[int, Answer]:
    """Answers for the pieces that were begun: what was found of them, the rest failed.

    Of one that was cut off, that is every picture but those of the file's last 8 KiB, which it
    took along, and none of its failures.
    """
    answers = {place: answer for place, _, answer in _found(folder)}
    output = folder / OUTPUT
    finished = _pieces(output, "_stats.json")
    lost = "the downloader lost it: no memory for its bytes, or a fault of its own"
    settled: dict[int, Answer] = {}
    for piece in sorted(_pieces(output, ".tar") | finished):
        reason = lost if piece in finished else ended
        for place in todo[piece * how.piece_size : (piece + 1) * how.piece_size]:
            settled[place] = answers.get(place, Answer(reason))
    return settled


def _found(folder: Path) -> Iterator[tuple[int, str, Answer]]:
    """(place, url, answer) of every row in the tars of a run, torn ones as far as they go."""
    for tar in sorted((folder / OUTPUT).glob("*.tar")):
        members = _members(tar)
        with tar.open("rb") as file:
            for row in _sidecar(tar) or _told(file, members):
                answer = _answer(row, tar, file, members)
                if answer is not None:
                    yield row["place"], row["url"], answer


def _answer(
    row: Mapping[str, Any], tar: Path, file: BinaryIO, members: Mapping[str, tuple[int, int]]
) -> Answer | None:
    """None where the tar does not hold what the row promises."""
    if row["status"] != "success":
        # MemoryError is the one error of Python's that has no words.
        words = " ".join((row["error_message"] or "").split())
        return Answer(words or "no memory for its bytes: see memory_mb")
    offset, size = members.get(f"{row['key']}.jpg", (0, -1))
    if size < 0 or hashlib.sha256(_read_at(file, offset, size)).hexdigest() != row["sha256"]:
        return None
    return Answer(None, tar, offset, size)


def _sidecar(tar: Path) -> list[dict[str, Any]]:
    """The rows of a finished piece, its failures among them; none of one that was cut off."""
    if not tar.with_name(f"{tar.stem}_stats.json").exists():
        return []
    try:
        with pq.ParquetFile(tar.with_suffix(".parquet")) as parquet:
            rows: list[dict[str, Any]] = parquet.read(columns=COLUMNS).to_pylist()
    except (OSError, pa.ArrowException):
        return []
    return rows


def _told(file: BinaryIO, members: Mapping[str, tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """What the tar itself says of its pictures."""
    for name, (offset, size) in members.items():
        # A machine that lost its power may leave the right length with the wrong bytes.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if name.endswith(".json"):
                row = json.loads(_read_at(file, offset, size))
                yield {column: row[column] for column in COLUMNS}


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """(offset, size) by name of the members that are whole; a torn tar has fewer."""
    num_bytes = path.stat().st_size
    members: dict[str, tuple[int, int]] = {}
    with contextlib.suppress(tarfile.TarError, OSError), tarfile.open(path, "r:") as tar:
        for member in tar:
            if not member.isreg() or member.offset_data + member.size > num_bytes:
                break
            members[member.name] = (member.offset_data, member.size)
    return members


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


# ---- the working folder -------------------------------------------------------------------------


def _earlier(work: Path) -> list[Path]:
    return [path for path in sorted(work.glob("*")) if path.name.isdigit()]


def _next_folder(work: Path) -> Path:
    number = max((int(path.name) for path in _earlier(work)), default=-1) + 1
    folder = work / str(number)
    (folder / OUTPUT).mkdir(parents=True)
    return folder


def _write_list(path: Path, urls: Mapping[int, str]) -> None:
    places = pa.array(urls.keys(), pa.int64())
    pq.write_table(pa.table({"place": places, "url": list(urls.values())}), path)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
