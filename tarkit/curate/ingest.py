"""`tarkit curate ingest`: puts a user's own pictures into an images artifact.

The source is listed first, into a temporary file, and read afterwards. Shard i holds the pictures
i * shard_size to (i + 1) * shard_size of the sorted list. JPEG, PNG and WebP files that decode
without an error keep their bytes; other formats become PNG. A damaged or hostile file is a failed
row with its reason.

Pictures in tars are copied too: a tar of an artifact holds exactly its ok rows, under the
artifact's keys and with the rows as JSON, so that no tar of another program can take its place.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pydantic

from tarkit.artifacts.artifact import Artifact, shard_plan
from tarkit.artifacts.picture_tar import Blob
from tarkit.artifacts.plan import ShardPlan
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.remote import FetchError
from tarkit.artifacts.resume import pending_shards
from tarkit.artifacts.workers import Report, make_shards
from tarkit.config import Config, load_config
from tarkit.curate.sources import list_source
from tarkit.curate.sources.annotations import add_captions, add_questions
from tarkit.curate.sources.items import ORIGIN_COLUMNS, Listing, SourceItem
from tarkit.curate.sources.remote import SourceLost
from tarkit.curate.sources.shard_names import shown_source
from tarkit.curate.sources.stored_items import StoredItems
from tarkit.errors import UserError
from tarkit.images import MAX_PIXELS, ImageError, decode, kept_bytes
from tarkit.progress import Progress
from tarkit.terminal import print_note


class IngestConfig(Config):
    """Which pictures are accepted; `num_workers` processes share the shards, 0 is one per core."""

    shard_size: pydantic.PositiveInt = 1000
    max_pixels: pydantic.PositiveInt = MAX_PIXELS
    min_side_px: pydantic.PositiveInt = 16
    licence: str | None = None
    num_workers: pydantic.NonNegativeInt = 0
    held_out_every: pydantic.PositiveInt | None = None
    """Every so many-th picture of the sorted list gets the split "test", which trainings leave out,
    and the others "train"; None: no picture has a split, and trainings take all of them."""


@dataclass(frozen=True)
class IngestPlan(ShardPlan):
    """Takes the pictures of `source_path`: a folder, a Parquet file or tars.

    `source_path` may also name many shards, as `data-{00..99}.tar` or as a .txt with one per line,
    and tars at http and https URLs. Those are streamed once to list them, in every run, and once
    more to read them. With `allow_private` their hosts may have private addresses. A folder, file
    or pattern may be at a URL of fsspec, as `hf://`: its shards are fetched one by one.

    `captions` (csv, jsonl, Parquet: image and prompt, caption, text or captions) and `questions`
    (image, question, answer) name pictures by their path in the source. A captions file may also
    have the columns group, role (target, similar, reference) and template of I2I and TI2I data; all
    pictures of a group must be in one shard.
    """

    source_path: str | Path
    _: KW_ONLY
    captions: Path | None = None
    questions: Path | None = None
    allow_private: bool = False

    kind = "images"

    @cached_property
    def settings(self) -> IngestConfig:
        return load_config(IngestConfig, self.config, self.overrides)

    @cached_property
    def listing(self) -> Listing:
        """The pictures of the source, with their captions and questions.

        They are in a temporary file, but all in memory for a moment where they are joined with a
        captions or questions file.
        """
        if self.out.resolve() == Path(self.source_path).resolve():
            raise UserError(
                f"--out {self.out} is the source: name another folder, beside the pictures",
                hint=f"--out {self.out.resolve().name}-images",
            )
        tables = [path for path in (self.captions, self.questions) if path]
        listing = list_source(self.source_path, exclude=tables, allow_private=self.allow_private)
        items = listing.items
        if self.captions:
            items = add_captions(items, self.captions)
        if self.questions:
            items = add_questions(items, self.questions)
        if self.limit is not None or not isinstance(items, StoredItems):
            items = StoredItems(itertools.islice(items, self.limit))
        return Listing(listing.form, items, listing.notes)

    @cached_property
    def summary(self) -> _Summary:
        return _summary_of(self.listing.items)

    @cached_property
    def is_file_or_folder(self) -> bool:
        """Whether the source is one path here, and not a pattern or a URL of shards."""
        return os.path.exists(self.source_path)  # unlike Path.exists, takes a name of any length

    @property
    def recorded(self) -> Mapping[str, Any]:
        return {
            **_settings_of_rows(self.settings),
            "form": self.listing.form,
            "num_pictures": len(self.listing.items),
            "listing_sha256": self.summary.sha256,
            **({"origin": True} if self.summary.num_with_origin else {}),
            **({} if self.is_file_or_folder else {"source": shown_source(self.source_path)}),
        }

    @property
    def shards(self) -> Mapping[str, int]:
        return shard_plan(len(self.listing.items), self.settings.shard_size)

    @property
    def parents(self) -> Mapping[str, Artifact | Path]:
        return {"source": Path(self.source_path)} if self.is_file_or_folder else {}

    @property
    def counts(self) -> Mapping[str, int]:
        return {
            "pictures": len(self.listing.items),
            "with_captions": self.summary.num_with_captions,
            "with_questions": self.summary.num_with_questions,
            "known_unusable": self.summary.num_unusable,
        }

    def make(self, artifact: Artifact) -> None:
        for note in self.listing.notes:
            print_note(f"{self.source_path}: {note}")
        rank, world = rank_and_world()
        names = pending_shards(artifact, rank=rank, world=world)
        num_pictures = sum(artifact.counts[name] for name in names)
        job = functools.partial(_make_shard, artifact, self.settings, self.listing.items)
        with Progress("ingest", total=num_pictures, unit="pictures") as progress:
            make_shards(job, names, num_workers=self.settings.num_workers, progress=progress)
        print_note(f"{self.source_path}: {self.summary.captions_note}")


@dataclass(frozen=True)
class _Summary:
    """A listing in numbers, and a hash of the names, sizes, texts and errors of all items."""

    num_with_captions: int
    num_with_questions: int
    num_with_origin: int
    num_unusable: int
    sha256: str
    captions_note: str
    """How many pictures have captions, and from where."""


def _summary_of(items: Iterable[SourceItem]) -> _Summary:
    digest = hashlib.sha256()
    counts: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    left_aside: Counter[str] = Counter()
    for item in items:
        sources.update(item.captions_from)
        left_aside.update(item.left_aside)
        facts = [item.name, item.fingerprint, item.captions, item.qa, item.about, item.error]
        facts += [item.origin] if item.origin else []
        digest.update(json.dumps(facts, sort_keys=True).encode() + b"\n")
        counts["pictures"] += 1
        counts["captions"] += bool(item.captions)
        counts["questions"] += bool(item.qa)
        counts["origin"] += bool(item.origin)
        counts["unusable"] += item.error is not None
    return _Summary(
        counts["captions"],
        counts["questions"],
        counts["origin"],
        counts["unusable"],
        digest.hexdigest(),
        f"{counts['captions']} of {counts['pictures']} pictures have captions"
        + "".join(f"; {number} from {source}" for source, number in sources.most_common(8))
        + "".join(f"; {number} {name} left aside" for name, number in left_aside.most_common(8)),
    )


def _settings_of_rows(config: IngestConfig) -> dict[str, Any]:
    """The settings that decide a row; one that a manifest of an older version lacks, if it is set.

    An artifact begun by that version can be continued.
    """
    settings = config.model_dump(exclude={"num_workers", "held_out_every"})
    held_out = config.held_out_every
    return settings if held_out is None else {**settings, "held_out_every": held_out}


def _make_shard(
    artifact: Artifact, config: IngestConfig, items: Sequence[SourceItem], name: str, report: Report
) -> None:
    origin_columns = ORIGIN_COLUMNS if artifact.settings.get("origin") else ()
    artifact.write_pictures(name, _pictures(config, items, name, origin_columns, report))


def _pictures(
    config: IngestConfig,
    items: Sequence[SourceItem],
    name: str,
    origin_columns: Sequence[str],
    report: Report,
) -> Iterator[tuple[dict[str, Any], Blob | None]]:
    first = int(name) * config.shard_size
    for index, item in enumerate(items[first : first + config.shard_size]):
        row, blob = _picture(item, f"{name}-{index:06d}", config)
        row["split"] = _split_of(first + index, config.held_out_every)
        yield row | {column: item.origin.get(column) for column in origin_columns}, blob
        report(1, int(blob is None))


def _split_of(number: int, held_out_every: int | None) -> str | None:
    """The split of picture `number` of the sorted list."""
    if held_out_every is None:
        return None
    return "test" if number % held_out_every == held_out_every - 1 else "train"


def _picture(
    item: SourceItem, key: str, config: IngestConfig
) -> tuple[dict[str, Any], Blob | None]:
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
    except (SourceLost, FetchError):
        raise
    except (UserError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return row | {"status": "failed", "error": reason}, None
    row |= {"width": picture.width, "height": picture.height}
    return row, kept_bytes(blob, picture)
