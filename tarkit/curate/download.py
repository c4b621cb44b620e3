"""Pictures of a list of URLs into an images artifact; img2dataset fetches, as another process.

Shard i holds the rows i * shard_size to (i + 1) * shard_size of the list: every URL is one row,
and one that gave no usable picture is a failed row with its reason. What comes is a stranger's:
URLs of private addresses are never handed over, sizes are bounded, and every picture is decoded;
bytes of sound JPEG, PNG and WebP files are kept as they are, other formats become PNG. A shard is
fetched into OUT/.download, which is gone once it is written.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from PIL import Image

from tarkit.artifacts.artifact import Artifact, begin_artifact, shard_plan
from tarkit.artifacts.map_rows import REASONS_SHOWN, Row, kind_of
from tarkit.artifacts.picture_tar import MAX_MEMBER_BYTES, Blob
from tarkit.artifacts.preview import to_make
from tarkit.artifacts.ranks import rank_and_world
from tarkit.config import Config, load_config
from tarkit.curate.img2dataset import Answer, Downloader, fetch, find_program
from tarkit.curate.sources.urls import Link, list_urls
from tarkit.curate.url_safety import RefusedUrl, fetchable
from tarkit.images import KEPT_AS_THEY_ARE, MAX_PIXELS, ImageError, decode, image_format, kept_bytes
from tarkit.progress import Progress

WORK = ".download"
NUM_RESOLVERS = 32


class DownloadConfig(Config):
    """What is taken, and how it is fetched, which may change from one run to the next."""

    shard_size: pydantic.PositiveInt = 10_000
    max_bytes: int = pydantic.Field(default=32 << 20, ge=1, le=MAX_MEMBER_BYTES)
    max_pixels: pydantic.PositiveInt = MAX_PIXELS
    min_side_px: pydantic.PositiveInt = 16
    licence: str | None = None
    """Of rows whose own column says nothing."""

    timeout_s: pydantic.PositiveInt = 10
    """Of silence: a server that goes on sending, however slowly, is left to stall_s."""
    retries: pydantic.NonNegativeInt = 1
    num_threads: pydantic.PositiveInt = 64
    """Of each process."""
    num_processes: pydantic.PositiveInt = 2
    """Pieces at a time: one that is held up leaves the other going on."""
    piece_size: pydantic.PositiveInt = 1000
    """URLs that a killed run may have to fetch again."""
    stall_s: pydantic.PositiveFloat = 330
    """Without a piece finished: 1000 dead hosts cost 1000 / 64 threads * 10 s * 2 tries = 313 s."""
    memory_mb: pydantic.PositiveInt = 8192
    """Of each process: 2 * 64 threads * 32 MiB of bodies are 4096, libraries and stacks 2000."""


PLANNED = {"shard_size", "max_bytes", "max_pixels", "min_side_px", "licence"}


def run(
    urls: Path,
    *,
    out: Path,
    img2dataset: str = "img2dataset",
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    allow_private: bool = False,
) -> Artifact:
    """Fetches the list `urls` into `out`, or goes on where an earlier run stopped.

    `img2dataset` is the program, by name or path. With `retry_failed` the failed rows of finished
    shards are fetched again and their pictures kept. Raises UserError.
    """
    settings = load_config(DownloadConfig, config, overrides)
    links = list_urls(urls)[:limit]
    artifact = begin_artifact(
        out,
        "images",
        settings=settings.model_dump(include=PLANNED)
        | {"num_urls": len(links), "listing_sha256": _fingerprint(links)},
        shards=shard_plan(len(links), settings.shard_size),
        parents={"urls": urls},
    )
    rank, world = rank_and_world()
    pending = set(artifact.pending(None, rank, world))
    mine = [name for name in artifact.shards[rank::world] if name in pending or retry_failed]
    if mine:
        fetcher = _Fetcher(_downloader(settings, img2dataset), allow_private)
        _make_shards(artifact, mine, pending, links, settings, fetcher)
    _sweep(artifact, [name for name in artifact.shards[rank::world] if name not in mine])
    return artifact


def preview(
    urls: Path,
    *,
    out: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, int]:
    """How many rows and shards a run would make; reads the list, looks no host up."""
    settings = load_config(DownloadConfig, config, overrides)
    links = list_urls(urls)[:limit]
    shards = len(shard_plan(len(links), settings.shard_size))
    return {
        "urls": len(links),
        "with_captions": sum(bool(link.captions) for link in links),
        "known_unusable": sum(link.error is not None for link in links),
        "shards": shards,
        "shards_to_make": to_make(out, shards),
    }


def _fingerprint(links: Sequence[Link]) -> str:
    """Changes with any URL, caption or licence, and with their order."""
    digest = hashlib.sha256()
    for link in links:
        facts = [link.url, link.captions, link.licence, link.error]
        digest.update(json.dumps(facts).encode() + b"\n")
    return digest.hexdigest()


def _make_shards(
    artifact: Artifact,
    names: Sequence[str],
    pending: Set[str],
    links: Sequence[Link],
    config: DownloadConfig,
    fetcher: _Fetcher,
) -> None:
    """Writes the pending shards, and of the others those that have failed rows."""
    reasons: collections.Counter[str] = collections.Counter()
    total = sum(artifact.counts[name] for name in names)
    with Progress("download", total=total, unit="urls") as progress:
        for name in names:
            first = int(name) * config.shard_size
            these = links[first : first + artifact.counts[name]]
            kept = set() if name in pending else _ok_places(artifact, name)
            progress.advance(len(kept))
            todo = {place: link for place, link in enumerate(these) if place not in kept}
            if todo:
                answers = fetcher.answers(todo, artifact.path / WORK / name, progress)
                old = artifact.read_images(name) if kept else None
                pictures = _pictures(name, these, answers, old, config)
                artifact.write_pictures(name, _counted(pictures, progress, reasons))
            _sweep(artifact, [name])
        for reason, count in reasons.most_common(REASONS_SHOWN):
            progress.message(f"{count} failed: {reason}")


def _ok_places(artifact: Artifact, name: str) -> set[int]:
    statuses = artifact.read(name, ["status"])["status"].to_pylist()
    return {place for place, status in enumerate(statuses) if status == "ok"}


def _sweep(artifact: Artifact, names: Sequence[str]) -> None:
    """Removes what shards were fetched into."""
    work = artifact.path / WORK
    for name in names:
        shutil.rmtree(work / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # not there, or another rank's shards are still in it
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
    how: Downloader
    allow_private: bool

    def answers(
        self, todo: Mapping[int, Link], work: Path, progress: Progress
    ) -> dict[int, Answer]:
        """One for every link; those that may not be fetched are answered without being asked."""
        answers: dict[int, Answer] = {}
        given: dict[int, str] = {}
        with ThreadPoolExecutor(NUM_RESOLVERS) as pool:
            for place, found in zip(todo, pool.map(self._checked, todo.values()), strict=True):
                if isinstance(found, Answer):
                    answers[place] = found
                else:
                    given[place] = found
        progress.advance(len(answers))
        start = progress.done
        if given:
            answers |= fetch(
                given,
                work,
                self.how,
                lambda settled: progress.advance(start + settled - progress.done),
            )
        return answers

    def _checked(self, link: Link) -> str | Answer:
        """The URL to hand over, or the answer that it gets here."""
        if link.error is not None:
            return Answer(link.error)
        try:
            return fetchable(link.url, allow_private=self.allow_private)
        except RefusedUrl as error:
            return Answer(error.message)


# ---- adopting -----------------------------------------------------------------------------------


def _pictures(
    name: str,
    links: Sequence[Link],
    answers: Mapping[int, Answer],
    old: Iterator[tuple[Row, bytes | None]] | None,
    config: DownloadConfig,
) -> Iterator[tuple[Row, Blob | None]]:
    """The rows of a shard in order: what was answered, and what `old` has of the rest."""
    for place, link in enumerate(links):
        row, blob = next(old) if old else ({}, None)
        if blob is not None:
            yield row, (KEPT_AS_THEY_ARE[image_format(blob)], blob)
        else:
            yield _picture(link, answers[place], f"{name}-{place:06d}", config)


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
    link: Link, answer: Answer, key: str, config: DownloadConfig
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
    try:
        blob, picture = _sound(answer, config)
    except ImageError as error:
        return row | {"status": "failed", "error": error.message}, None
    row |= {"width": picture.width, "height": picture.height}
    return row, kept_bytes(blob, picture)


def _sound(answer: Answer, config: DownloadConfig) -> tuple[bytes, Image.Image]:
    """The bytes of an answer and the picture that they are; raises ImageError."""
    if answer.error is not None:
        raise ImageError(answer.error)
    if answer.size > config.max_bytes:
        raise ImageError(f"{answer.size} bytes, more than {config.max_bytes}")
    blob = answer.read()
    return blob, decode(blob, max_pixels=config.max_pixels, min_side_px=config.min_side_px)
