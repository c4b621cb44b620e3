"""A small program with img2dataset's options that leaves img2dataset's layout, by urllib alone.

As it does: pieces in order, rows in the order in which they came, a tar that is whole only once its
_stats.json is there, failures in the Parquet alone. Run by the tests, never imported by tarkit.
"""

import hashlib
import io
import json
import sys
import tarfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [("place", pa.int64()), ("url", pa.string()), ("key", pa.string())]
    + [(name, pa.string()) for name in ("status", "error_message", "sha256")]
)


def fetched(url: str, timeout_s: int, tries: int) -> tuple[bytes | None, str | None]:
    error = ""
    for _ in range(tries):
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:
                return answer.read(), None
        except Exception as problem:
            error = str(problem)
    return None, error


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    assert tar.fileobj is not None
    tar.fileobj.flush()  # type: ignore[attr-defined]


def make_piece(output: Path, piece: int, rows: list[dict], options: dict[str, str]) -> None:
    tries = int(options["retries"]) + 1
    done: list[dict[str, Any]] = []
    with (
        tarfile.open(output / f"{piece:05d}.tar", "w") as tar,
        ThreadPoolExecutor(int(options["thread_count"])) as pool,
    ):
        jobs = {
            pool.submit(fetched, row["url"], int(options["timeout"]), tries): (number, row)
            for number, row in enumerate(rows)
        }
        for job in as_completed(jobs):
            number, row = jobs[job]
            blob, error = job.result()
            made = row | {"key": f"{piece:05d}{number:04d}", "error_message": error}
            made["status"] = "failed_to_download" if blob is None else "success"
            made["sha256"] = None if blob is None else hashlib.sha256(blob).hexdigest()
            done.append(made)
            if blob is not None:
                add(tar, f"{made['key']}.jpg", blob)
                add(tar, f"{made['key']}.json", json.dumps(made).encode())
    pq.write_table(pa.Table.from_pylist(done, schema=SCHEMA), output / f"{piece:05d}.parquet")
    (output / f"{piece:05d}_stats.json").write_text(json.dumps({"count": len(rows)}))


def main() -> None:
    options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    assert options["output_format"] == "webdataset" and options["resize_mode"] == "no"
    assert options["disable_all_reencoding"] == "True" and options["compute_hash"] == "sha256"
    rows = pq.read_table(options["url_list"]).to_pylist()
    size = int(options["number_sample_per_shard"])
    for piece in range(-(-len(rows) // size)):
        part = rows[piece * size : (piece + 1) * size]
        make_piece(Path(options["output_folder"]), piece, part, options)


if __name__ == "__main__":
    main()
