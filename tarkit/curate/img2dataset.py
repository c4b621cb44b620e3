"""img2dataset as another process: its command line, its limits, and reading its output.

It is run and never imported, because it pins other releases of packages that tarkit uses; it may be
installed in another environment. Source: img2dataset 1.47.0. Its limits, and what is done here:
- Its timeout counts only silence, so that a server which sends a byte per second stops it for ever.
  It is killed when no piece of the list is finished within `stall_s`.
- It reads a body into memory whatever its length. The process has at most `memory_mb`.
- When it keeps bytes unchanged, it checks neither pictures nor sizes. The caller checks them.
- Next to NNNNN.tar it writes NNNNN.parquet, which also lists the failures but can be read only when
  it is finished, and NNNNN_stats.json, which comes last: without it the tar is incomplete.

A working folder holds one folder for each run of the program: 0, 1, ...
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

# The program gets only these variables: proxies, and the certificates that a proxy needs.
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")
# glibc reserves 64 MiB of addresses for each of 8 arenas per core; `ulimit -v` would count them.
SET = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": os.defpath,
}
# The shell sets the limits, as running Python between fork and exec is not safe with threads. It
# also starts a watcher that reads its input. The input ends when tarkit does, even if tarkit is
# killed, and then the watcher kills the whole group. A limit that the system lacks is left out.
SHELL = """ulimit -v "$1"; ulimit -f "$2"; shift 2
exec 3<&0; { read -r _ <&3; kill -s KILL 0; } &
exec "$@" 3<&- </dev/null"""


@dataclass(frozen=True)
class Downloader:
    """The program and its settings; the pictures do not depend on them."""

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
class FetchResult:
    """The result for a URL: `size` bytes at `offset` of a tar, or the error why there are none."""

    error: str | None = None
    tar: Path = Path()
    offset: int = 0
    size: int = 0

    def read(self) -> bytes:
        """The bytes as the server sent them."""
        with self.tar.open("rb") as file:
            return _read_at(file, self.offset, self.size)


def find_program(name: str) -> Path:
    """The program in PATH or in tarkit's own environment; UserError where it is not installed."""
    path = shutil.which(name) or shutil.which(Path(sys.executable).parent / name)
    if path is None:
        raise UserError(
            f"the program {name} is not installed",
            hint="pip install 'tarkit[download]', or in an environment of its own: python -m venv "
            "downloader && downloader/bin/pip install 'img2dataset>=1.47,<2' 'standard-imghdr; "
            'python_version >= "3.13"\', and then --img2dataset downloader/bin/img2dataset',
        )
    return Path(path).absolute()


def fetch(
    urls: Mapping[int, str], work: Path, downloader: Downloader, report: Callable[[int], None]
) -> dict[int, FetchResult]:
    """A result for every place of `urls`; calls `report(number of results so far)`.

    Complete pictures that an earlier, killed call left in `work` are used; its other URLs are
    fetched again. Raises UserError where the program fetches nothing at all.
    """
    results: dict[int, FetchResult] = {}
    for folder in _run_folders(work):
        for place, url, result in _read_results(folder):
            if result.error is None and urls.get(place) == url:
                results[place] = result
    report(len(results))
    while todo := {place: url for place, url in urls.items() if place not in results}:
        results |= _run_once(todo, _next_folder(work), downloader, len(results), report)
        report(len(results))
    return results


def _run_once(
    urls: Mapping[int, str],
    folder: Path,
    downloader: Downloader,
    num_before: int,
    report: Callable[[int], None],
) -> dict[int, FetchResult]:
    """Results for at least one piece of the list, from one run of the program, or UserError."""
    _write_list(folder / LIST, urls)

    def finished(num_pieces: int) -> None:
        report(num_before + min(num_pieces * downloader.piece_size, len(urls)))

    ending = _run(folder, downloader, finished)
    results = _piece_results(folder, list(urls), downloader, ending)
    if not results:
        last_line = _last_line(folder / LOG)
        raise UserError(
            f"{downloader.program} fetched nothing, {ending}; its last line: {last_line}",
            hint=f"its whole output is in {folder / LOG}",
        )
    return results


# ---- running the program ------------------------------------------------------------------------


def _run(folder: Path, downloader: Downloader, finished: Callable[[int], None]) -> str:
    """Runs the program to its end, or kills it with all its workers; returns how it ended."""
    kib = downloader.memory_mb << 10
    blocks = -(-downloader.piece_size * downloader.max_bytes // 512)
    shell = ["/bin/sh", "-c", SHELL, "sh", str(kib), str(blocks)]
    with (
        (folder / LOG).open("wb") as log,
        subprocess.Popen(
            [*shell, str(downloader.program), *_options(folder, downloader)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        ) as process,
    ):
        try:
            return _watch(process, folder / OUTPUT, downloader, finished)
        finally:
            # The watcher is alive and in the group, so no other group can have this number.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _options(folder: Path, downloader: Downloader) -> list[str]:
    options: dict[str, Any] = {
        "url_list": folder.absolute() / LIST,
        "input_format": "parquet",
        "url_col": "url",
        "save_additional_columns": '["place"]',
        "output_folder": folder.absolute() / OUTPUT,
        "output_format": "webdataset",
        "resize_mode": "no",
        # Keeps the bytes unchanged. It also turns off all checks of pictures and sizes.
        "disable_all_reencoding": True,
        "compute_hash": "sha256",
        "extract_exif": False,
        "processes_count": downloader.num_processes,
        "thread_count": downloader.num_threads,
        "number_sample_per_shard": downloader.piece_size,
        "timeout": downloader.timeout_s,
        "retries": downloader.retries,
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
    downloader: Downloader,
    finished: Callable[[int], None],
) -> str:
    """Waits for the program's end, or for `stall_s` without a finished piece; returns which.

    Calls `finished(number of finished pieces)` whenever the number grows.
    """
    num_before, last = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_S)
        num_finished = len(_pieces(output, "_stats.json"))
        if num_finished > num_before:
            finished(num_finished)
            num_before, last = num_finished, time.monotonic()
        elif time.monotonic() - last > downloader.stall_s:
            return f"timed out: no piece of the list was finished in {downloader.stall_s:g} s"
    return f"the downloader ended early: status {process.returncode}"


def _pieces(output: Path, ending: str) -> set[int]:
    """The numbers of the pieces that have a file with this ending."""
    names = (path.name.removesuffix(ending) for path in output.glob(f"*{ending}"))
    return {int(name) for name in names if name.isdigit()}


# ---- reading its output -------------------------------------------------------------------------


def _piece_results(
    folder: Path, places: Sequence[int], downloader: Downloader, ending: str
) -> dict[int, FetchResult]:
    """Results for every place of the pieces that were begun; what has no picture has failed.

    An incomplete piece gives its pictures except those in the last 8 KiB of the tar, which were
    lost, and none of its failures.
    """
    read = {place: result for place, _, result in _read_results(folder)}
    output = folder / OUTPUT
    finished = _pieces(output, "_stats.json")
    lost = "the downloader lost it: no memory for its bytes, or a fault of its own"
    results: dict[int, FetchResult] = {}
    for piece in sorted(_pieces(output, ".tar") | finished):
        reason = lost if piece in finished else ending
        for place in places[piece * downloader.piece_size : (piece + 1) * downloader.piece_size]:
            results[place] = read.get(place, FetchResult(reason))
    return results


def _read_results(folder: Path) -> Iterator[tuple[int, str, FetchResult]]:
    """(place, url, result) of every row in the tars of a run; of an incomplete tar what it has."""
    for tar in sorted((folder / OUTPUT).glob("*.tar")):
        members = _members(tar)
        with tar.open("rb") as file:
            for row in _parquet_rows(tar) or _tar_rows(file, members):
                result = _result(row, tar, file, members)
                if result is not None:
                    yield row["place"], row["url"], result


def _result(
    row: Mapping[str, Any], tar: Path, file: BinaryIO, members: Mapping[str, tuple[int, int]]
) -> FetchResult | None:
    """None where the tar does not hold the picture of a row that succeeded."""
    if row["status"] != "success":
        # A MemoryError has no message.
        message = " ".join((row["error_message"] or "").split())
        return FetchResult(message or "no memory for its bytes: see memory_mb")
    offset, size = members.get(f"{row['key']}.jpg", (0, -1))
    if size < 0 or hashlib.sha256(_read_at(file, offset, size)).hexdigest() != row["sha256"]:
        return None
    return FetchResult(None, tar, offset, size)


def _parquet_rows(tar: Path) -> list[dict[str, Any]]:
    """The rows of a finished piece, with its failures; no rows of an incomplete one."""
    if not tar.with_name(f"{tar.stem}_stats.json").exists():
        return []
    try:
        with pq.ParquetFile(tar.with_suffix(".parquet")) as parquet:
            rows: list[dict[str, Any]] = parquet.read(columns=COLUMNS).to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return []
    return rows


def _tar_rows(file: BinaryIO, members: Mapping[str, tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """The rows of the pictures in a tar, from its JSON members."""
    for name, (offset, size) in members.items():
        # After a power failure a file may have the right length and wrong bytes.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if name.endswith(".json"):
                row = json.loads(_read_at(file, offset, size))
                yield {column: row[column] for column in COLUMNS}


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """(offset, size) of every complete member by name; an incomplete tar has fewer."""
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


def _run_folders(work: Path) -> list[Path]:
    return [path for path in sorted(work.glob("*")) if path.name.isdigit()]


def _next_folder(work: Path) -> Path:
    number = max((int(path.name) for path in _run_folders(work)), default=-1) + 1
    folder = work / str(number)
    (folder / OUTPUT).mkdir(parents=True)
    return folder


def _write_list(path: Path, urls: Mapping[int, str]) -> None:
    places = pa.array(urls.keys(), pa.int64())
    pq.write_table(pa.table({"place": places, "url": list(urls.values())}), path)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
