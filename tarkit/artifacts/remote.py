"""Data and models at URLs of fsspec (`hf://`, `s3://` and others), fetched as they are read.

A URL that a user names stands for a folder or a file of a cache here. An artifact's folder has its
manifest at first; a shard is fetched when it is opened, or by `fetch_ahead` before that. A folder
of another kind (a model, results, pictures) is fetched whole. So all that reads files reads them
here, and nothing knows of URLs but this module, what names a path, and what opens a shard.

The cache is `$XDG_CACHE_HOME/tarkit/remote` (TARKIT_REMOTE_CACHE names another folder):

    DIGEST OF THE URL/listing.json       what it holds: sizes and versions, listed at every start
    DIGEST OF THE URL/files/NAME[/...]   what has been fetched of it

A file appears whole or not at all, of the size that the listing says, and where the listing has a
sha256, with that. It is fetched anew when the listing has another version of it. Shards that were
not used for longest are removed when the cache has more than TARKIT_REMOTE_CACHE_GB (100), but none
that was used within the last minute, and nothing of a file or folder that a process named and has
fetched whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from threading import Thread
from typing import Any, BinaryIO, TypeVar

from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import read_object, whole_file, write_whole
from tarkit.errors import UserError

AnyShard = TypeVar("AnyShard")
# Path("s3://bucket") has one slash, so one is enough. A scheme of one letter is a disk of Windows.
URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(?=[^/])", re.IGNORECASE)
LOCAL = ("file", "local")
WEB = ("http", "https")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
LISTING, FILES, LOCKS, IN_USE = "listing.json", "files", "locks", "in_use"
MANIFEST = "manifest.json"
# What a filesystem may say of a file's version: another value is another file.
VERSIONS = (
    *("ETag", "etag", "md5Hash", "content_md5", "blob_id", "generation", "LastModified"),
    *("last_modified", "mtime", "updated", "created"),
)
STATE = "state"
"""The folder in which a training keeps what it resumes from: no reader of its result needs it."""
DEFAULT_GB = 100.0
KEPT_S = 60.0  # what is opened right after it was fetched is still there
NUM_LOCKS = 256
NUM_THREADS = 8  # each file is a wait
NUM_TRIES = 3
PAUSE_S = 1.0
MAX_REASON = 300


@dataclass(frozen=True)
class RemoteEntry:
    """What a listing says of a file: its size, its version, and its sha256 where that is known."""

    num_bytes: int
    version: str
    sha256: str | None


@dataclass(frozen=True)
class RemoteFolder:
    """What a URL holds, by names below it. Of the URL of a file, the one name is the file's own."""

    url: str
    is_file: bool
    entries: Mapping[str, RemoteEntry]

    def url_of(self, name: str) -> str:
        """The URL of a file of it."""
        return self.url if self.is_file else f"{self.url}/{name}"


class FetchError(UserError):
    """A URL that cannot be read now; no fault of what it holds."""


# ---- URLs ---------------------------------------------------------------------------------------


def is_url(named: str | Path) -> bool:
    """Whether a path that a user named is a URL."""
    return URL.match(str(named)) is not None


def clean_url(named: str | Path) -> str:
    """A URL with both slashes and none at its end; UserError for one that must not be used.

    A URL stands in manifests and logs, so that one with a key in it is refused.
    """
    match = URL.match(str(named))
    if match is None:
        raise ValueError(f"{named} is no URL")
    scheme, rest = match[1].lower(), str(named)[match.end() :].rstrip("/")
    if not _is_inside(rest):
        raise UserError(
            f"a URL that begins with {scheme}:// has an empty name, .. or a backslash in it",
            hint="write it without them",
        )
    if re.match(r"[^@]*:[^@]*@", rest) or "?" in rest or "#" in rest or "::" in rest:
        raise UserError(
            f"a URL that begins with {scheme}:// has a password, a query or another URL in it, "
            "which would be written into manifests",
            hint="give the key by the environment (AWS_ACCESS_KEY_ID, HF_TOKEN, "
            "GOOGLE_APPLICATION_CREDENTIALS) and the URL without it",
        )
    return f"{scheme}:///{rest}" if scheme in LOCAL else f"{scheme}://{rest}"


def refuse_url(out: str | Path) -> None:
    """Raises UserError where the path of a result is a URL: results are written here."""
    if is_url(out):
        url = clean_url(out)
        name = PurePosixPath(url).name
        raise UserError(
            f"a result is written to a folder of this machine, not to {url}",
            hint=f"name a folder here, as --out {name}, and copy it afterwards: python -c "
            f"\"import fsspec; fsspec.url_to_fs('{url}')[0].put('{name}', '{url}', "
            'recursive=True)"',
        )


def url_of(path: Path) -> str | None:
    """The URL that a path in the cache stands for; None for any other path."""
    place = _place(path)
    if place is None:
        return None
    home, name = place
    remote = _listed(home)
    return remote.url_of(name) if name else remote.url


def made_again(path: Path) -> str:
    """The hint for a damaged file of an artifact."""
    url = url_of(path.parent)
    if url:
        return (
            f"tarkit verify {url} fetches it anew; if it is damaged there too, copy it there again"
        )
    return f"rm {path} and run the command that made it again"


def shown_path(path: Path) -> str:
    """A path as its reader knows it: the URL where it stands for one."""
    return url_of(path) or str(path)


def with_urls(text: str) -> str:
    """A text in which URLs stand in place of the paths of the cache that stand for them."""
    for home in set(re.findall(re.escape(str(_root())) + "/[0-9a-f]{32}", text)):
        with contextlib.suppress(UserError):
            url = _listed(Path(home)).url
            text = text.replace(f"{home}/{FILES}/{PurePosixPath(url).name}", url)
    return text


# ---- from a URL to the cache --------------------------------------------------------------------


def local_path(named: str | Path) -> Path:
    """The path here of what a user named: of a URL its place in the cache, else the path itself.

    A URL is listed anew. Of an artifact's folder the manifest is fetched, and shards later, by
    `fetched`; anything else is fetched whole. Raises UserError where it cannot be, and for a folder
    larger than the cache.
    """
    if not is_url(named):
        return Path(named)
    url = clean_url(named)
    if url.startswith(tuple(f"{scheme}:" for scheme in LOCAL)):
        return Path(URL.sub("/", url))
    path = listed_path(url)
    place = _place(path)
    assert place is not None
    home, _ = place
    remote = _listed(home)
    if remote.is_file:
        _hold(home)
        return fetched(path)
    if MANIFEST in remote.entries and "shards" in read_object(fetched(path / MANIFEST)):
        return path
    _fetch_whole(home, remote)
    return path


def listed_path(named: str | Path) -> Path:
    """The place of a URL in the cache, after it was listed; nothing is fetched."""
    url = clean_url(named)
    remote = _list(url)
    home = _home(url)
    _forget_others(home, remote)
    facts = {name: [e.num_bytes, e.version, e.sha256] for name, e in remote.entries.items()}
    text = json.dumps({"url": url, "is_file": remote.is_file, "entries": facts})
    write_whole(home / LISTING, text.encode())
    _read_listing.cache_clear()
    path = home / FILES / PurePosixPath(url).name
    if not remote.is_file:
        path.mkdir(parents=True, exist_ok=True)
    return path


def listed_names(path: Path) -> Sequence[str] | None:
    """The names below a folder of the cache, fetched or not; None for any other folder."""
    place = _place(path)
    if place is None:
        return None
    home, name = place
    below = f"{name}/" if name else ""
    names = _listed(home).entries
    return [each.removeprefix(below) for each in names if each.startswith(below)]


def is_there(path: Path) -> bool:
    """Whether a file exists, here or at the URL that its path stands for."""
    return _entry(path) is not None or path.exists()


def file_stamp(path: Path) -> list[Any]:
    """What changes when a file does: size and time; of a file at a URL size and version.

    Raises OSError where there is none.
    """
    entry = _entry(path)
    if entry is not None:
        return [entry.num_bytes, entry.version]
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def fetched(path: Path) -> Path:
    """The same path, after its file was fetched if it stands for one at a URL.

    A file that its folder does not list is not there. Raises UserError where it cannot be fetched.
    """
    place = _place(path)
    if place is None:
        return path
    home, name = place
    remote = _listed(home)
    entry = remote.entries.get(name)
    if entry is None or _is_here(path, entry):
        return path
    with _locked(home / LOCKS / str(int(_hash_of(name)[:8], 16) % NUM_LOCKS)):
        if not _is_here(path, entry):  # another process or thread may have fetched it meanwhile
            _make_room(entry.num_bytes)
            _fetch(remote.url_of(name), entry, path)
    return path


def forget(path: Path) -> None:
    """Remove what was fetched of a folder's shards, to compare what is at the URL itself."""
    place = _place(path)
    if place is None:
        return
    home, _ = place
    for name in _listed(home).entries:
        if name != MANIFEST:
            (path / name).unlink(missing_ok=True)


@contextlib.contextmanager
def opened_ranges(path: Path) -> Iterator[BinaryIO | Path]:
    """A file of a URL to read some ranges of, without fetching it whole; else the path itself."""
    place = _place(path)
    entry = _entry(path)
    if place is None or entry is None or _is_here(path, entry):
        yield path
        return
    home, name = place
    url = _listed(home).url_of(name)
    filesystem, where = _filesystem(url)
    with _explaining(url):
        # No cache of fsspec's: a reader of Parquet asks for the ranges that it needs.
        with filesystem.open(where, "rb", cache_type="none") as file:
            yield file


# ---- ahead of the reader ------------------------------------------------------------------------


class FetchAhead:
    """Fetches files in threads before they are opened; what fails is raised where they are opened.

    Files that were asked for earlier, and are not being fetched yet, are given up for newer ones.
    """

    NUM_THREADS = 4

    def __init__(self) -> None:
        self._queues: list[SimpleQueue[Sequence[Path]]] = []
        self._asked: set[Path] = set()

    def __call__(self, paths: Iterable[Path]) -> None:
        wanted = [path for path in paths if _place(path) is not None]
        if not wanted or self._asked.issuperset(wanted):
            return
        self._asked = set(wanted)
        if not self._queues:
            self._queues = [SimpleQueue() for _ in range(self.NUM_THREADS)]
            for queue in self._queues:
                # Daemons: a process that ends does not wait for gigabytes.
                Thread(target=_fetch_asked, args=(queue,), daemon=True).start()
        for number, queue in enumerate(self._queues):
            queue.put(wanted[number :: self.NUM_THREADS])

    def __reduce__(self) -> Any:
        return FetchAhead, ()


def with_next_fetched(
    shards: Sequence[AnyShard], files: Callable[[AnyShard], Sequence[Path]]
) -> Iterator[AnyShard]:
    """The shards in order; while one is worked on, the `files` of the next are fetched."""
    ahead = FetchAhead()
    for number, shard in enumerate(shards):
        ahead(path for each in shards[number : number + 2] for path in files(each))
        yield shard


def _fetch_asked(queue: SimpleQueue[Sequence[Path]]) -> None:
    while True:
        for path in queue.get():
            if not queue.empty():
                break
            with contextlib.suppress(UserError, OSError):
                fetched(path)


# ---- listing ------------------------------------------------------------------------------------


def _list(url: str) -> RemoteFolder:
    filesystem, path = _filesystem(url)
    with _explaining(url):
        filesystem.invalidate_cache()
        info = filesystem.info(path)
        if info["type"] == "file":
            name = PurePosixPath(url).name
            return RemoteFolder(url, True, {name: _entry_of(info, url)})
        base = str(info["name"]).strip("/")
        found = filesystem.find(path, detail=True)
        entries = {}
        for full, facts in sorted(found.items()):
            name = str(full).strip("/").removeprefix(base).strip("/")
            if not name or facts["type"] != "file" or str(full).endswith("/"):
                continue  # an object that stands for a folder
            if any(part.startswith(".") and part not in (".", "..") for part in name.split("/")):
                continue  # hidden: of git, or a cache of another machine
            if not _is_inside(name) or not str(full).strip("/").startswith(f"{base}/"):
                raise UserError(
                    f"{url} lists a file whose name leaves the folder: {str(full)[:100]!r}",
                    hint="name another folder",
                )
            entries[name] = _entry_of(facts, f"{url}/{name}")
    if not entries:
        raise UserError(f"{url} holds no file", hint="look for a letter that is wrong")
    return RemoteFolder(url, False, entries)


def _is_inside(name: str) -> bool:
    parts = name.split("/")
    return all(part not in ("", ".", "..") for part in parts) and not set(name) & {"\\", "\0", "\n"}


def _entry_of(info: Mapping[str, Any], url: str) -> RemoteEntry:
    size = info.get("size")
    if type(size) is not int or size < 0:
        raise UserError(f"{url} has no known size, so that a copy of it could not be checked")
    version = "|".join(str(info[key]) for key in VERSIONS if info.get(key))
    stored = info.get("lfs")  # of the hub
    sha256 = stored.get("sha256") if isinstance(stored, Mapping) else None
    return RemoteEntry(size, sha256 or version, sha256)


def _listed(home: Path) -> RemoteFolder:
    """The listing of a URL, as `listed_path` wrote it in this process or in another."""
    file = home / LISTING
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        raise UserError(
            f"{file} is gone, which says what was fetched", hint="give the same command again"
        ) from None
    return _read_listing(file, stamp)


@functools.lru_cache(maxsize=256)
def _read_listing(file: Path, _: int) -> RemoteFolder:
    facts = read_object(file, hint=f"rm {file} and give the same command again")
    entries = {name: RemoteEntry(*entry) for name, entry in facts["entries"].items()}
    return RemoteFolder(facts["url"], facts["is_file"], entries)


# ---- the cache ----------------------------------------------------------------------------------


def _root() -> Path:
    named = os.environ.get("TARKIT_REMOTE_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return _resolved(named or f"{base}/tarkit/remote")


@functools.cache
def _resolved(folder: str) -> Path:
    return Path(folder).resolve()


def _limit() -> int:
    text = os.environ.get("TARKIT_REMOTE_CACHE_GB", str(DEFAULT_GB))
    try:
        limit = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise UserError(
            f"TARKIT_REMOTE_CACHE_GB is {text[:40]!r}, not a number of gigabytes above 0",
            hint="export TARKIT_REMOTE_CACHE_GB=100",
        )
    return limit


def _home(url: str) -> Path:
    return _root() / _hash_of(url)


def _hash_of(text: str) -> str:
    """The name of a URL's folder in the cache, and of a file's lock."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _place(path: Path) -> tuple[Path, str] | None:
    """The folder of a URL in the cache, and the name of a path below it; None outside of it."""
    root = str(_root())
    if not str(path).startswith(root):  # the path of a local artifact, at every shard
        return None
    parts = path.parts[len(Path(root).parts) :]
    if len(parts) < 3 or parts[1] != FILES:
        return None
    home = Path(root) / parts[0]
    if _listed(home).is_file:
        return home, parts[2]
    return home, "/".join(parts[3:])


def _entry(path: Path) -> RemoteEntry | None:
    place = _place(path)
    return _listed(place[0]).entries.get(place[1]) if place else None


def _is_here(path: Path, entry: RemoteEntry) -> bool:
    """Whether a file was fetched; notes that it is used."""
    try:
        status = path.stat()
        if status.st_size != entry.num_bytes:
            return False
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def _forget_others(home: Path, remote: RemoteFolder) -> None:
    """Remove the files of which the URL has another version now."""
    if not (home / LISTING).exists():
        return
    try:
        old = _listed(home)
    except (UserError, KeyError, TypeError):  # damaged: nothing of it is known
        old = RemoteFolder(remote.url, remote.is_file, {})
        for path in [p for p in (home / FILES).rglob("*") if p.is_file()]:
            path.unlink(missing_ok=True)
    folder = home / FILES / (PurePosixPath(remote.url).name if not remote.is_file else "")
    for name, entry in old.entries.items():
        if remote.entries.get(name) != entry:
            (folder / name).unlink(missing_ok=True)


def _fetch(url: str, entry: RemoteEntry, path: Path) -> None:
    filesystem, where = _filesystem(url)
    with _explaining(url), whole_file(path) as temporary:
        for number in range(1, NUM_TRIES + 1):
            try:
                filesystem.get_file(where, str(temporary))
                fault = _fault(temporary, entry)
            except (FileNotFoundError, PermissionError):
                raise
            except OSError as error:
                if number == NUM_TRIES or error.errno == errno.ENOSPC:
                    raise
                fault = _reason(error)
            if fault is None:
                return
            time.sleep(PAUSE_S * (number < NUM_TRIES))
        raise FetchError(f"{url} cannot be fetched: {fault}", hint="give the same command again")


def _fault(copy: Path, entry: RemoteEntry) -> str | None:
    num_bytes = copy.stat().st_size if copy.exists() else 0
    if num_bytes != entry.num_bytes:
        return f"{num_bytes} of its {entry.num_bytes} bytes came"
    copy.touch()  # some filesystems make no file of an empty one
    if entry.sha256 is not None and file_sha256(copy) != entry.sha256:
        return "its bytes are not those whose sha256 is listed"
    return None


def _fetch_whole(home: Path, remote: RemoteFolder) -> None:
    """Fetch all files of a folder, and hold it; UserError where it is larger than the cache."""
    folder = home / FILES / PurePosixPath(remote.url).name
    entries = {
        name: entry
        for name, entry in remote.entries.items()
        if not (name.startswith(f"{STATE}/") and MANIFEST in remote.entries)
    }
    total = sum(entry.num_bytes for entry in entries.values())
    if total > _limit():
        raise UserError(
            f"{remote.url} holds {total / 1e9:,.1f} GB in {len(entries):,} files, and the cache "
            f"{_root()} {_limit() / 1e9:,.1f} GB",
            hint="name a folder in it, or allow more: export TARKIT_REMOTE_CACHE_GB="
            f"{int(total / 1e9) + 1}",
        )
    _hold(home)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        for _ in threads.map(lambda name: fetched(folder / name), entries):
            pass


_held: dict[Path, BinaryIO] = {}
"""The open files whose locks say that this process uses a folder; they end with the process."""


def _hold(home: Path) -> None:
    """Keep what was fetched of a URL until this process ends."""
    if home not in _held:
        _held[home] = _open_lock(home / IN_USE)
        fcntl.flock(_held[home], fcntl.LOCK_SH)


def _open_lock(file: Path) -> BinaryIO:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.open("ab")


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Alone among all processes and threads of this machine that lock the same file."""
    with _open_lock(file) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_looked_at: dict[str, int] = {}
"""By the cache's folder: the bytes that this process may fetch before it looks at its size."""


def _make_room(num_bytes: int) -> None:
    """Remove what was not used for longest, where the cache would become larger than its limit.

    To look through the cache takes a while, so a process looks again after a 64th of the limit.
    """
    root, limit = _root(), _limit()
    left = _looked_at.get(str(root), 0) - num_bytes
    if left < 0:
        with _locked(root / LOCKS):
            used = _remove_oldest(root, limit - num_bytes)
        left = min(limit // 64, max(0, limit - num_bytes - used))
    _looked_at[str(root)] = left


def _remove_oldest(root: Path, limit: int) -> int:
    """Remove files until `limit` bytes are left, as far as files may go; returns what is left."""
    files = []
    for home in root.iterdir():
        if home.is_dir():
            free = _is_free(home)
            for path in (home / FILES).rglob("*"):
                with contextlib.suppress(OSError):
                    if path.is_file():
                        status = path.stat()
                        files.append((status.st_atime, status.st_size, path, free))
    used = sum(size for _, size, _, _ in files)
    for last_used, size, path, free in sorted(files):
        if used <= limit or time.time() - last_used < KEPT_S:
            break
        if free and path.name != MANIFEST:
            path.unlink(missing_ok=True)
            used -= size
    return used


def _is_free(home: Path) -> bool:
    """Whether no process holds what it fetched of a URL."""
    with _open_lock(home / IN_USE) as lock:
        if home in _held:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


# ---- fsspec -------------------------------------------------------------------------------------


def _filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL, and the URL's path in it."""
    import fsspec

    scheme = url.partition(":")[0]
    if scheme in WEB:
        raise UserError(
            f"{url} is a page of the web, which lists no files",
            hint="curl -O fetches a file; tarkit curate ingest reads tars at such URLs",
        )
    with _explaining(url):
        filesystem, path = fsspec.url_to_fs(url)
    return filesystem, str(path)


@contextlib.contextmanager
def _explaining(url: str) -> Iterator[None]:
    """Turns the errors of filesystems, each of which has its own, into UserError."""
    scheme = url.partition(":")[0]
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        raise FetchError(
            f"{scheme}:// needs a package that is not installed: {_reason(error)}",
            hint=f"pip install 'tarkit[{extra}]'"
            if extra
            else f"pip install {error.name or scheme}",
        ) from None
    except FileNotFoundError:
        raise FetchError(
            f"{url} does not exist, or is not for you to see",
            hint="look for a letter that is wrong",
        ) from None
    except PermissionError as error:
        raise FetchError(
            f"{url} may not be read: {_reason(error)}",
            hint="give the key by the environment (AWS_ACCESS_KEY_ID, HF_TOKEN, "
            "GOOGLE_APPLICATION_CREDENTIALS)",
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        if isinstance(error, ValueError) and "Protocol not known" in str(error):
            raise FetchError(
                f"{url}: no filesystem is known by the name {scheme}",
                hint="hf://, s3://, gs:// and all others of fsspec are",
            ) from None
        raise FetchError(
            f"{url} cannot be read: {_reason(error)}", hint="give the same command again"
        ) from None


def _reason(error: Exception) -> str:
    """One line of an error, without queries of URLs, which may hold signatures."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"\?\S*", "", text)[:MAX_REASON]
