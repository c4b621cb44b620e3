"""`tarkit curate download`: fetches a list of URLs into an images artifact, with img2dataset.

Shard i holds the rows i * shard_size to (i + 1) * shard_size of the list. Every URL is one row; a
URL that gave no usable picture is a failed row with its reason. The bytes come from strangers:
URLs of private addresses are never given to img2dataset, sizes are bounded, and every picture is
decoded. JPEG, PNG and WebP files that decode without an error keep their bytes, other formats
become PNG. A shard is fetched into OUT/.download, which is removed once the shard is written.

The list is never held in memory: it is read once to count and fingerprint it, and once more to cut
it into shards, one at a time.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from tarkit.artifacts.artifact import Artifact, shard_plan
from tarkit.artifacts.map_rows import REASONS_SHOWN, Row, kind_of
from tarkit.artifacts.picture_tar import MAX_MEMBER_BYTES, Blob, stored_pictures
from tarkit.artifacts.plan import ShardPlan
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.resume import pending_shards
from tarkit.artifacts.workers import mapping_workers, num_cores
from tarkit.config import Config, load_config
from tarkit.curate.img2dataset import Downloader, FetchResult, fetch, find_program
from tarkit.curate.sources.urls import (
    Link,
    ListSummary,
    file_state,
    read_urls,
    summarise_urls,
)
from tarkit.curate.url_safety import RefusedUrl, fetchable
from tarkit.errors import UserError
from tarkit.images import KEPT_AS_THEY_ARE, MAX_PIXELS, ImageError, decode, image_format, kept_bytes
from tarkit.progress import Progress

WORK = ".download"
NUM_RESOLVERS = 32
PICTURES_A_WORKER = 500
"""A process starts in about 2 s, in which one that is there decodes 200 photographs of 1 MP."""


class DownloadConfig(Config):
    """Which pictures are accepted, and how they are fetched; the latter may change between runs."""

    shard_size: pydantic.PositiveInt = 10_000
    max_bytes: int = pydantic.Field(default=32 << 20, ge=1, le=MAX_MEMBER_BYTES)
    max_pixels: pydantic.PositiveInt = MAX_PIXELS
    min_side_px: pydantic.PositiveInt = 16
    licence: str | None = None
    """The licence of rows that name none in their own column."""

    timeout_s: pydantic.PositiveInt = 10
    """Seconds without any byte. A server that sends slowly for ever is stopped by stall_s."""
    retries: pydantic.NonNegativeInt = 1
    num_threads: pydantic.PositiveInt = 64
    """Threads of each process."""
    num_processes: pydantic.PositiveInt = 2
    """Pieces that are fetched at a time, so that a slow one does not stop the others."""
    piece_size: pydantic.PositiveInt = 1000
    """URLs in a piece, which a run that was killed may have to fetch again."""
    stall_s: pydantic.PositiveFloat = 330
    """Seconds in which at least one piece must be finished, or img2dataset is stopped: 1000 dead
    hosts cost 1000 / 64 threads * 10 s * 2 tries = 313 s."""
    num_workers: pydantic.NonNegativeInt = 0
    """Processes that decode what was fetched; 0 is one per core, where each has PICTURES_A_WORKER
    to decode."""
    memory_mb: pydantic.PositiveInt = 8192
    """MiB of each process: 2 * 64 threads * 32 MiB of bodies are 4096, libraries need 2000."""


RECORDED = {"shard_size", "max_bytes", "max_pixels", "min_side_px", "licence"}
"""The settings that decide what the artifact holds."""


@dataclass(frozen=True)
class DownloadPlan(ShardPlan):
    """Fetches the list of URLs `urls`; a preview reads the list and resolves no host.

    `img2dataset` is the program, as a name or a path. With `retry_failed` the failed rows of
    finished shards are fetched again; their pictures are kept.
    """

    urls: Path
    _: KW_ONLY
    img2dataset: str = "img2dataset"
    retry_failed: bool = False
    allow_private: bool = False

    kind = "images"

    @cached_property
    def settings(self) -> DownloadConfig:
        return load_config(DownloadConfig, self.config, self.overrides)

    @cached_property
    def listing(self) -> ListSummary:
        """The list in numbers; the first use reads it whole."""
        return summarise_urls(self.urls, limit=self.limit)

    def links_of(self, artifact: Artifact, names: Sequence[str]) -> Iterator[list[Link]]:
        """The links of each of these shards, read anew; one shard is in memory at a time.

        Raises UserError when the list was written to after it was counted.
        """
        links = read_urls(self.urls, limit=self.limit)
        for shard_links in _cut(links, artifact, names):
            if file_state(self.urls) != self.listing.state:
                raise UserError(
                    f"{self.urls} was changed while it was read",
                    hint=f"restore the list that {self.out} was begun with, or give another --out",
                )
            yield shard_links

    @property
    def recorded(self) -> Mapping[str, Any]:
        return {
            **self.settings.model_dump(include=RECORDED),
            "num_urls": self.listing.num_links,
            "listing_sha256": self.listing.sha256,
        }

    @property
    def shards(self) -> Mapping[str, int]:
        return shard_plan(self.listing.num_links, self.settings.shard_size)

    @property
    def parents(self) -> Mapping[str, Artifact | Path]:
        return {"urls": self.urls}

    @property
    def counts(self) -> Mapping[str, int]:
        return {
            "urls": self.listing.num_links,
            "with_captions": self.listing.num_with_captions,
            "known_unusable": self.listing.num_unusable,
        }

    def make(self, artifact: Artifact) -> None:
        rank, world = rank_and_world()
        pending = set(pending_shards(artifact, rank=rank, world=world))
        own = artifact.shards[rank::world]
        names = [name for name in own if name in pending or self.retry_failed]
        if names:
            downloader = _downloader(self.settings, self.img2dataset)
            fetcher = _Fetcher(downloader, self.allow_private)
            links = self.links_of(artifact, names)
            _make_shards(artifact, names, pending, links, self.settings, fetcher)
        _remove_work(artifact, [name for name in own if name not in names])


def _cut(links: Iterator[Link], artifact: Artifact, names: Sequence[str]) -> Iterator[list[Link]]:
    """The links of each of the shards `names`, which are in order; the others are skipped."""
    remaining = collections.deque(names)
    for name in artifact.shards:
        if not remaining:
            return
        shard_links = itertools.islice(links, artifact.counts[name])
        if name != remaining[0]:
            collections.deque(shard_links, maxlen=0)
        else:
            remaining.popleft()
            yield list(shard_links)


def _make_shards(
    artifact: Artifact,
    names: Sequence[str],
    pending: Set[str],
    links: Iterable[Sequence[Link]],
    config: DownloadConfig,
    fetcher: _Fetcher,
) -> None:
    """Writes the pending shards, and again those of the others that have failed rows."""
    reasons: collections.Counter[str] = collections.Counter()
    total = sum(artifact.counts[name] for name in names)
    num_workers = config.num_workers or min(num_cores(), total // PICTURES_A_WORKER)
    decode_result = functools.partial(_decode_result, config)
    with (
        Progress("download", total=total, unit="urls") as progress,
        mapping_workers(decode_result, num_workers if num_workers > 1 else 0) as decoded_results,
    ):
        for name, shard_links in zip(names, links, strict=True):
            kept = _kept_places(artifact, name, shard_links, name in pending)
            progress.advance(len(kept))
            todo = {place: link for place, link in enumerate(shard_links) if place not in kept}
            if todo or name in pending:
                results = fetcher.fetch(todo, artifact.path / WORK / name, progress)
                old = _kept_pictures(artifact, name, shard_links, name in pending)
                decoded = decoded_results(results[place] for place in todo)
                pictures = _pictures(name, shard_links, todo, decoded, old, config)
                artifact.write_pictures(name, _counted(pictures, progress, reasons))
            _remove_work(artifact, [name])
        for reason, count in reasons.most_common(REASONS_SHOWN):
            progress.message(f"{count} failed: {reason}")


def _kept_places(
    artifact: Artifact, name: str, links: Sequence[Link], is_pending: bool
) -> set[int]:
    """The places of the rows that `_kept_pictures` gives."""
    if not is_pending:  # its statuses are read much faster than its pictures
        statuses = artifact.read(name, ["status"])["status"].to_pylist()
        return {place for place, status in enumerate(statuses) if status == "ok"}
    return {_place(row) for row, _ in _kept_pictures(artifact, name, links, is_pending)}


def _kept_pictures(
    artifact: Artifact, name: str, links: Sequence[Link], is_pending: bool
) -> Iterator[tuple[Row, bytes]]:
    """The rows and pictures of a shard that are not fetched again, in order.

    A run that was killed while it replaced a shard leaves its tar without an index. The rows in the
    tar say which links its pictures are of. Of a tar that differs from its index nothing is kept:
    its bytes may be damaged.
    """
    if not is_pending:
        yield from ((row, blob) for row, blob in artifact.read_images(name) if blob is not None)
    elif artifact.tar_path(name).exists() and not artifact.shard_path(name).exists():
        # A ValueError: the tar is damaged from here on. An IndexError: it is another list's.
        with contextlib.suppress(ValueError, IndexError):
            for row, blob in stored_pictures(artifact.tar_path(name)):
                place = _place(row)
                expected = {"key": f"{name}-{place:06d}", "source": links[place].url}
                if expected.items() <= row.items() and image_format(blob) in KEPT_AS_THEY_ARE:
                    yield row, blob


def _place(row: Row) -> int:
    """The number of a row in its shard, which ends its key."""
    return int(row["key"].rpartition("-")[2])


def _remove_work(artifact: Artifact, names: Sequence[str]) -> None:
    """Removes the working folders of shards."""
    work = artifact.path / WORK
    for name in names:
        shutil.rmtree(work / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # missing, or another rank's shards are in it
        work.rmdir()


# ---- fetching -----------------------------------------------------------------------------------


def _downloader(config: DownloadConfig, program: str) -> Downloader:
    return Downloader(
        program=find_program(program),
        timeout_s=config.timeout_s,
        retries=config.retries,
        num_threads=config.num_threads,
        num_processes=config.num_processes,
        piece_size=config.piece_size,
        stall_s=config.stall_s,
        memory_mb=config.memory_mb,
        max_bytes=config.max_bytes,
    )


@dataclass(frozen=True)
class _Fetcher:
    downloader: Downloader
    allow_private: bool

    def fetch(
        self, todo: Mapping[int, Link], work: Path, progress: Progress
    ) -> dict[int, FetchResult]:
        """A result for every link; a link that must not be fetched fails without a request."""
        results: dict[int, FetchResult] = {}
        urls: dict[int, str] = {}
        with ThreadPoolExecutor(NUM_RESOLVERS) as pool:
            for place, checked in zip(todo, pool.map(self._checked, todo.values()), strict=True):
                if isinstance(checked, FetchResult):
                    results[place] = checked
                else:
                    urls[place] = checked
        progress.advance(len(results))
        start = progress.done
        if urls:
            results |= fetch(
                urls,
                work,
                self.downloader,
                lambda num_done: progress.advance(start + num_done - progress.done),
            )
        return results

    def _checked(self, link: Link) -> str | FetchResult:
        """The URL for the downloader, or a failed result."""
        if link.error is not None:
            return FetchResult(link.error)
        try:
            return fetchable(link.url, allow_private=self.allow_private)
        except RefusedUrl as error:
            return FetchResult(error.message)


# ---- rows and pictures --------------------------------------------------------------------------


def _pictures(
    name: str,
    links: Sequence[Link],
    fetched: Container[int],
    decoded: Iterator[_SoundPicture | str],
    old: Iterator[tuple[Row, bytes]],
    config: DownloadConfig,
) -> Iterator[tuple[Row, Blob | None]]:
    """The rows of a shard in order: at the places `fetched` those of `decoded`, else of `old`."""
    for place, link in enumerate(links):
        row: Row
        if place in fetched:
            yield _picture(link, next(decoded), f"{name}-{place:06d}", config)
        else:
            row, blob = next(old)
            yield row, (KEPT_AS_THEY_ARE[image_format(blob)], blob)


def _counted(
    pictures: Iterable[tuple[Row, Blob | None]],
    progress: Progress,
    reasons: collections.Counter[str],
) -> Iterator[tuple[Row, Blob | None]]:
    for row, blob in pictures:
        if blob is None:
            progress.advance(0, failed=1)
            reasons[kind_of(row["error"])] += 1
        yield row, blob


def _picture(
    link: Link, decoded: _SoundPicture | str, key: str, config: DownloadConfig
) -> tuple[Row, Blob | None]:
    row: dict[str, Any] = {
        "key": key,
        "parent_key": None,
        "group": key,
        "role": "target",
        "split": None,
        "source": link.url,
        "width": None,
        "height": None,
        "prompt": link.captions[0] if link.captions else None,
        "captions": list(link.captions[1:]),
        "qa": [],
        "template": None,
        "scene": None,
        "seed": None,
        "licence": link.licence or config.licence,
        "status": "ok",
        "error": None,
    }
    if isinstance(decoded, str):
        return row | {"status": "failed", "error": decoded}, None
    return row | {"width": decoded.width, "height": decoded.height}, decoded.blob


class _SoundPicture(NamedTuple):
    """A picture that decodes without an error: its size, and what is kept of it."""

    width: int
    height: int
    blob: Blob


def _decode_result(config: DownloadConfig, result: FetchResult) -> _SoundPicture | str:
    """The picture of a result, or the reason why there is none."""
    if result.error is not None:
        return result.error
    if result.size > config.max_bytes:
        return f"{result.size} bytes, more than {config.max_bytes}"
    blob = result.read()
    try:
        picture = decode(blob, max_pixels=config.max_pixels, min_side_px=config.min_side_px)
    except ImageError as error:
        return error.message
    return _SoundPicture(picture.width, picture.height, kept_bytes(blob, picture))
