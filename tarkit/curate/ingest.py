"""A user's own pictures into an images artifact: everything is listed first, then read.

Shard i holds the pictures i * shard_size to (i + 1) * shard_size of the sorted list. Bytes of
JPEG, PNG and WebP files that decode cleanly are kept as they are; other formats become PNG. A
damaged or hostile file is a failed row with its reason.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydantic

from tarkit.artifacts.artifact import Artifact, begin_artifact, shard_plan
from tarkit.artifacts.picture_tar import Blob
from tarkit.artifacts.preview import to_make
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.workers import Report, make_shards
from tarkit.config import Config, load_config
from tarkit.curate.sources import list_source
from tarkit.curate.sources.items import Item, Listing
from tarkit.curate.sources.tables import add_captions, add_questions
from tarkit.errors import UserError
from tarkit.images import MAX_PIXELS, ImageError, decode, kept_bytes
from tarkit.progress import Progress


class IngestConfig(Config):
    """What is taken in; `num_workers` processes share the shards, 0 for one a core."""

    shard_size: pydantic.PositiveInt = 1000
    max_pixels: pydantic.PositiveInt = MAX_PIXELS
    min_side_px: pydantic.PositiveInt = 16
    licence: str | None = None
    num_workers: pydantic.NonNegativeInt = 0


def run(
    source: Path,
    *,
    out: Path,
    captions: Path | None = None,
    questions: Path | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> Artifact:
    """Takes a folder, Parquet or tars into `out`, or goes on where an earlier run stopped.

    `captions` (csv, jsonl, Parquet: image and prompt, caption, text or captions) and `questions`
    (image, question, answer) name pictures by their path in the source. A captions file may also
    have the columns group, role (target, similar, reference) and template of I2I and TI2I data; a
    group belongs into one shard.
    """
    settings = load_config(IngestConfig, config, overrides)
    listing = _listing(source, captions, questions, limit)
    for note in listing.notes:
        print(f"{source}: {note}", file=sys.stderr)
    artifact = begin_artifact(
        out,
        "images",
        settings=settings.model_dump(exclude={"num_workers"})
        | {
            "form": listing.form,
            "num_pictures": len(listing.items),
            "listing_sha256": _fingerprint(listing.items),
        },
        shards=shard_plan(len(listing.items), settings.shard_size),
        parents={"source": source},
    )
    names = artifact.pending(None, *rank_and_world())
    total = sum(artifact.counts[name] for name in names)
    job = functools.partial(_make_shard, artifact, settings, listing.items)
    with Progress("ingest", total=total, unit="pictures") as progress:
        make_shards(job, names, num_workers=settings.num_workers, progress=progress)
    return artifact


def preview(
    source: Path,
    *,
    out: Path,
    captions: Path | None = None,
    questions: Path | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, int]:
    """How many pictures and shards a run would make; lists the source and writes nothing."""
    settings = load_config(IngestConfig, config, overrides)
    items = _listing(source, captions, questions, limit).items
    shards = len(shard_plan(len(items), settings.shard_size))
    return {
        "pictures": len(items),
        "with_captions": sum(bool(item.captions) for item in items),
        "with_questions": sum(bool(item.qa) for item in items),
        "known_unusable": sum(item.error is not None for item in items),
        "shards": shards,
        "shards_to_make": to_make(out, shards),
    }


def _listing(
    source: Path, captions: Path | None, questions: Path | None, limit: int | None
) -> Listing:
    listing = list_source(source, besides=[path for path in (captions, questions) if path])
    items = listing.items
    if captions:
        items = add_captions(items, captions)
    if questions:
        items = add_questions(items, questions)
    return Listing(listing.form, items[:limit], listing.notes)


def _fingerprint(items: Sequence[Item]) -> str:
    """Changes when a picture, caption or question is added, dropped, renamed or resized."""
    digest = hashlib.sha256()
    for item in items:
        facts = [item.name, item.fingerprint, item.captions, item.qa, item.about, item.error]
        digest.update(json.dumps(facts, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _make_shard(
    artifact: Artifact, config: IngestConfig, items: Sequence[Item], name: str, report: Report
) -> None:
    artifact.write_pictures(name, _pictures(config, items, name, report))


def _pictures(
    config: IngestConfig, items: Sequence[Item], name: str, report: Report
) -> Iterator[tuple[dict[str, Any], Blob | None]]:
    first = int(name) * config.shard_size
    for index, item in enumerate(items[first : first + config.shard_size]):
        row, blob = _picture(item, f"{name}-{index:06d}", config)
        yield row, blob
        report(1, int(blob is None))


def _picture(item: Item, key: str, config: IngestConfig) -> tuple[dict[str, Any], Blob | None]:
    row: dict[str, Any] = {
        "key": key,
        "parent_key": None,
        "group": item.about.get("group", key),
        "role": item.about.get("role", "target"),
        "split": None,
        "source": item.name,
        "width": None,
        "height": None,
        "prompt": item.captions[0] if item.captions else None,
        "captions": list(item.captions[1:]),
        "qa": [{"question": question, "answer": answer} for question, answer in item.qa],
        "template": item.about.get("template"),
        "scene": None,
        "seed": None,
        "licence": config.licence,
        "status": "ok",
        "error": None,
    }
    try:
        if item.error is not None:
            raise ImageError(item.error)
        blob = item.read()
        picture = decode(blob, max_pixels=config.max_pixels, min_side_px=config.min_side_px)
    except (UserError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return row | {"status": "failed", "error": reason}, None
    row |= {"width": picture.width, "height": picture.height}
    return row, kept_bytes(blob, picture)
