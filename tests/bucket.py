"""An object storage of the tests, `bucket://`: a folder, which says what was fetched from it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

ROOT, LOG = "TEST_BUCKET", "TEST_BUCKET_LOG"


class Bucket(AbstractFileSystem):
    """The files of the folder $TEST_BUCKET; each request is a line of the file $TEST_BUCKET_LOG."""

    protocol = "bucket"
    cachable = False

    def _note(self, what: str, path: str) -> Path:
        name = str(self._strip_protocol(path))
        with open(os.environ[LOG], "a") as log:
            log.write(json.dumps([what, name]) + "\n")
        return Path(os.environ[ROOT]) / name

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        place = self._note("list", path)
        if not place.exists():
            raise FileNotFoundError(path)
        paths = sorted(place.iterdir()) if place.is_dir() else [place]
        facts = [self._facts(each) for each in paths]
        return facts if detail else [each["name"] for each in facts]

    def _facts(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(os.environ[ROOT]).as_posix()
        if path.is_dir():
            return {"name": name, "size": 0, "type": "directory"}
        status = path.stat()
        version = {"ETag": str(status.st_mtime_ns)}
        return {"name": name, "size": status.st_size, "type": "file", **version}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        place = self._note("info", path)
        if not place.exists():
            raise FileNotFoundError(path)
        return self._facts(place)

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        shutil.copyfile(self._note("fetch", rpath), lpath)

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        return self._note("ranges", path).open("rb")


class Uses:
    """A bucket as a test sees it."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self.log = log

    def put(self, source: Path, name: str) -> str:
        """Copy a folder or file into the bucket; returns its URL."""
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, self.root / name)
        return f"bucket://{name}"

    def requests(self, what: str) -> list[str]:
        """The names that were fetched whole ("fetch"), or of which ranges were read ("ranges")."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [name for kind, name in map(json.loads, lines) if kind == what]

    def forget(self) -> None:
        """Count requests from here on."""
        self.log.unlink(missing_ok=True)


def new_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Uses:
    """An empty bucket and an empty cache, for this process and those that it starts.

    fsspec finds the filesystem in other processes by the entry point of an installed package.
    """
    (folder / "bucket").mkdir()
    package = folder / "packages" / "test_bucket-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: test-bucket\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[fsspec.specs]\nbucket=tests.bucket.Bucket\n")
    uses = Uses(folder / "bucket", folder / "requests.jsonl")
    here = Path(__file__).resolve().parents[1]
    paths = [str(package.parent), str(here), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.syspath_prepend(str(package.parent))  # spawned processes get the path of this one
    monkeypatch.setenv(ROOT, str(uses.root))
    monkeypatch.setenv(LOG, str(uses.log))
    monkeypatch.setenv("TARKIT_REMOTE_CACHE", str(folder / "cache"))
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    return uses
