"""An artifact on disk: its plan, its progress, and the rows of its shards, read and written.

An artifact is a directory: `manifest.json`, which is the plan, and numbered shards, which are the
progress. The plan is written once (the first worker wins, the others compare). A shard appears
whole or not at all and records the sha256 of the input shard that it was made from, so that the
same command again makes only shards that are missing or stale. The same input gives the same bytes.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from tarkit.artifacts.digests import file_sha256, remembered_sha256
from tarkit.artifacts.files import remove_file, whole_file
from tarkit.artifacts.manifest import (
    DAMAGED,
    MANIFEST,
    SHARD_NAME,
    begin_directory,
    read_manifest,
)
from tarkit.artifacts.parquet import (
    read_columns,
    read_metadata,
    read_num_rows,
    read_parquet,
    write_parquet,
)
from tarkit.artifacts.picture_tar import Blob, PicturePlace, picture_members, write_tar
from tarkit.artifacts.remote import fetched, is_there, listed_names, made_again, url_of
from tarkit.artifacts.schema import KINDS, Row, checked_table, needed_settings, schema_of
from tarkit.errors import UserError
from tarkit.images import MAX_PIXELS

PREFIX = "tarkit."


class Source(Protocol):
    """The input of shards: an artifact, or several joined by their keys (join.py)."""

    def shard_sha256(self, name: str) -> str: ...


@dataclass(frozen=True)
class Artifact:
    """A directory with its plan, which names the shards that exist and those still to make.

    `counts` holds the planned number of rows of each shard where the kind plans them (render,
    ingest) and is empty where it follows from the input. `parents` maps a name (`images`) to
    `{path, kind, manifest_sha256}`, the path relative to the artifact.
    """

    path: Path
    kind: str
    settings: dict[str, Any]
    shards: tuple[str, ...]
    parents: dict[str, dict[str, str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    # ---- schema -------------------------------------------------------------------------------

    @property
    def schema(self) -> pa.Schema:
        """Columns of a shard, without the metadata that each shard adds."""
        return schema_of(self.kind, self.settings)

    @property
    def max_pixels(self) -> int:
        """The limit of pixels with which its pictures were taken in."""
        limit = self.settings.get("max_pixels")
        return limit if type(limit) is int and limit > 0 else MAX_PIXELS

    def failed_row(self, key: str, error: str, **known: Any) -> dict[str, Any]:
        """A complete row of this kind that keeps its key and says why it has no result."""
        blank = dict.fromkeys(self.schema.names)
        return blank | known | {"key": key, "status": "failed", "error": error}

    # ---- progress -----------------------------------------------------------------------------

    def shard_path(self, name: str) -> Path:
        """The Parquet file of a shard; for images it is the index of the tar."""
        return self.path / f"{name}.parquet"

    def tar_path(self, name: str) -> Path:
        """The tar with the pictures of an images shard."""
        return self.path / f"{name}.tar"

    def files(self, name: str) -> list[Path]:
        """The files of a shard: for images its index and its tar."""
        tar = [self.tar_path(name)] if self.kind == "images" else []
        return [self.shard_path(name), *tar]

    def missing(self) -> list[str]:
        """Planned shards that do not exist yet."""
        # One listing: to ask for each file takes minutes on some network disks.
        names = listed_names(self.path)
        if names is None:
            names = os.listdir(self.path) if self.path.is_dir() else []
        files = set(names)
        return [name for name in self.shards if self.shard_path(name).name not in files]

    def require_complete(self) -> None:
        """Raises UserError that names the missing shards."""
        missing = self.missing()
        if missing:
            names = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
            raise UserError(
                f"{self.path} lacks {len(missing)} of its {len(self.shards)} shards ({names})",
                hint="run the command that began it again, with the same --out "
                f"{self.path}, to make what is missing",
            )

    def shard_sha256(self, name: str) -> str:
        """sha256 of a shard; for images that of its index, which records the sha256 of the tar."""
        return remembered_sha256(self._existing(name))

    def source_sha256(self, name: str) -> str | None:
        """The sha256 of the input shard that an existing shard was made from."""
        return read_metadata(self._existing(name)).get(PREFIX + "source_sha256")

    def _existing(self, name: str) -> Path:
        """The file of a shard, fetched where it is at a URL; UserError where it is not made."""
        return fetched(self._listed(name))

    def _listed(self, name: str) -> Path:
        """As `_existing`, without fetching it."""
        if name not in self.shards:
            raise UserError(
                f"{self.path} has no shard {name!r} in its plan of {len(self.shards)} shards",
                hint=f"tarkit inspect {self.path}",
            )
        path = self.shard_path(name)
        if not is_there(path):
            raise UserError(
                f"{path} is missing: shard {name} of {self.path} has not been made",
                hint=f"run the command that began {self.path} again, with the same --out, to make "
                "what is missing",
            )
        return path

    # ---- reading ------------------------------------------------------------------------------

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a shard (for images: of its index), all columns or those named.

        Raises UserError for a damaged shard, for columns that are missing, and for columns of other
        types than this kind has.
        """
        path = self._existing(name)
        expected = self.schema
        table = read_parquet(path, columns or expected.names)
        for column in table.schema:
            if column.name in expected.names and column.type != expected.field(column.name).type:
                raise UserError(
                    f"{path} has {column.name} as {column.type}, where {self.kind} have "
                    f"{expected.field(column.name).type}",
                    hint=made_again(path),
                )
        return table

    def read_few(self, name: str, columns: Sequence[str]) -> pa.Table:
        """The rows of a shard with small columns alone: all that is fetched of one at a URL.

        Raises what `read` does, but does not compare types.
        """
        return read_columns(self._listed(name), columns)

    def num_rows(self, name: str) -> int:
        """The number of rows of a shard, read from the end of its file."""
        return read_num_rows(self._listed(name))

    def rows(self, name: str, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of a shard as dicts; slow for codes, whose column buffers are faster."""
        return self.read(name, columns).to_pylist()

    def read_images(self, name: str) -> Iterator[tuple[dict[str, Any], bytes | None]]:
        """Each row with its encoded picture, None for a failed row.

        Raises UserError when the tar does not fit its index.
        """
        rows, places = self.rows(name), self.picture_places(name)
        with self.tar_path(name).open("rb", buffering=0) as tar:
            for row, place in zip(rows, places, strict=True):
                yield row, None if place is None else place.read(tar)

    def picture_places(self, name: str) -> list[PicturePlace | None]:
        """Where the picture of each row stands, None for a failed row.

        Other processes read pictures from their places, and look for no members of their own.
        Raises UserError as `image_offsets` does.
        """
        offsets, sizes = self.image_offsets(name)
        tar = str(self.tar_path(name))
        places = map(PicturePlace, itertools.repeat(tar), offsets.tolist(), sizes.tolist())
        statuses = self.read(name, ["status"])["status"].to_pylist()
        return [next(places) if status == "ok" else None for status in statuses]

    def image_offsets(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(offsets, sizes) in bytes, int64, one per ok row in order, for os.pread from the tar.

        Raises UserError when the tar is not the one that the index was written with.
        """
        why = self.tar_fault(name)
        if why:
            raise self._torn(name, why)
        rows = self.read(name, ["key", "status"]).to_pylist()
        keys = [row["key"] for row in rows if row["status"] == "ok"]
        try:
            members = picture_members(self.tar_path(name))
        except ValueError as error:
            raise self._torn(name, str(error)) from None
        if [member.key for member in members] != keys:
            raise self._torn(
                name, f"the index lists {len(keys)} pictures, the tar holds {len(members)} others"
            )
        places = np.array([[m.offset, m.size] for m in members], dtype=np.int64).reshape(-1, 2)
        return places[:, 0], places[:, 1]

    def tar_fault(self, name: str, *, anew: bool = False) -> str | None:
        """Why the tar of an images shard is not the one its index records; None where it is.

        With `anew` no remembered sha256 is trusted.
        """
        sha256 = read_metadata(self._existing(name)).get(PREFIX + "tar_sha256")
        try:
            actual = (file_sha256 if anew else remembered_sha256)(fetched(self.tar_path(name)))
        except OSError as error:
            return error.strerror or str(error)
        if sha256 is not None and actual != sha256:
            return f"its sha256 is {actual[:12]}..., and the index records {sha256[:12]}..."
        return None

    def _torn(self, name: str, why: str) -> UserError:
        index, tar = self.shard_path(name), self.tar_path(name)
        return UserError(
            f"{tar} is not the tar that {index.name} describes: {why}",
            hint=made_again(index)
            if url_of(self.path)
            else f"rm {index} and run the command that began {self.path} again",
        )

    # ---- writing ------------------------------------------------------------------------------

    def write(
        self, name: str, rows: Sequence[Row] | pa.Table, *, source_sha256: str | None = None
    ) -> None:
        """Writes a shard whole or not at all; ValueError for misspelt, missing or unknown keys."""
        if self.kind == "images":
            raise ValueError("images shards are written by write_pictures")
        self._write_table(
            name,
            checked_table(self.kind, self.settings, rows),
            metadata={},
            source_sha256=source_sha256,
        )

    def write_pictures(
        self,
        name: str,
        pictures: Iterable[tuple[Row, Blob | None]],
        *,
        source_sha256: str | None = None,
    ) -> None:
        """Writes a tar (`KEY.png`, `KEY.json`) and then its index; blobs are (extension, bytes).

        One pair is in memory at a time. A failed row has None for a blob and stands in the index
        alone. An index that exists is removed before its tar is replaced, so that a process killed
        between the two leaves a shard that is missing, and never one whose parts do not fit.
        """
        if self.kind != "images":
            raise ValueError(f"{self.path} holds {self.kind}, not images")
        with whole_file(self.tar_path(name)) as temporary:
            rows = write_tar(temporary, pictures, self.schema)
            table = checked_table(self.kind, self.settings, rows)
            self._check_planned(name, table)
            remove_file(self.shard_path(name))
        metadata = {PREFIX + "tar_sha256": file_sha256(self.tar_path(name))}
        self._write_table(name, table, metadata=metadata, source_sha256=source_sha256)

    def _check_planned(self, name: str, table: pa.Table) -> None:
        if name not in self.shards:
            raise ValueError(f"shard {name!r} is not in the plan of {self.path}")
        planned = self.counts.get(name, table.num_rows)
        if table.num_rows != planned:
            raise ValueError(f"shard {name}: {table.num_rows} rows, the plan says {planned}")

    def _write_table(
        self,
        name: str,
        table: pa.Table,
        *,
        metadata: dict[str, str],
        source_sha256: str | None,
    ) -> None:
        self._check_planned(name, table)
        metadata = metadata | {PREFIX + "kind": self.kind}
        if source_sha256:
            metadata[PREFIX + "source_sha256"] = source_sha256
        for key in needed_settings(self.kind, self.settings):
            value = self.settings[key]
            metadata[PREFIX + key] = (
                value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            )
        with whole_file(self.shard_path(name)) as temporary:
            write_parquet(table.replace_schema_metadata(metadata), temporary)


# ---- beginning and opening ----------------------------------------------------------------------


def begin_artifact(
    out: Path,
    kind: str,
    *,
    settings: Mapping[str, Any],
    shards: Sequence[str] | Mapping[str, int],
    parents: Mapping[str, Artifact | Path] | None = None,
    hint: str = "",
) -> Artifact:
    """Writes the plan of an artifact, or opens the artifact that `out` has with an equal plan.

    `shards` are names, or names with their planned numbers of rows. Raises UserError with
    `hint` when `out` was begun with other settings, shards or inputs.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")
    for key in needed_settings(kind, settings):
        if key not in settings:
            raise ValueError(f"{kind} need the setting {key!r}")
    bad = [name for name in shards if not SHARD_NAME.fullmatch(name)]
    if bad or len(set(shards)) != len(shards):
        raise ValueError(f"shard names are five or more digits, each once; got {bad or shards}")
    paths = {
        name: parent.path if isinstance(parent, Artifact) else parent
        for name, parent in (parents or {}).items()
    }
    counts = dict(shards) if isinstance(shards, Mapping) else {}
    plan = {"shards": list(shards), "counts": counts}
    manifest = begin_directory(out, kind, settings=settings, parents=paths, plan=plan, hint=hint)
    return _artifact(out, manifest)


def open_artifact(path: Path, kind: str | None = None) -> Artifact:
    """The artifact in a directory; UserError for another directory or another kind."""
    manifest = read_manifest(path)
    actual_kind = manifest.get("kind")
    if kind is not None and actual_kind != kind:
        raise UserError(
            f"{path} holds {actual_kind}, where {kind} are wanted", hint=f"tarkit inspect {path}"
        )
    if actual_kind not in KINDS:
        raise UserError(
            f"{path} is a {actual_kind} directory, not an artifact of shards",
            hint=f"tarkit inspect {path}",
        )
    return _artifact(path, manifest)


def shard_names(count: int) -> list[str]:
    """`00000`, `00001`, ...: `count` names of shards."""
    return [f"{number:05d}" for number in range(count)]


def shard_plan(num_rows: int, shard_size: int) -> dict[str, int]:
    """The shards that hold `num_rows`, with the rows of each: all full but the last."""
    names = shard_names(-(-num_rows // shard_size))
    return {name: min(shard_size, num_rows - n * shard_size) for n, name in enumerate(names)}


def _artifact(path: Path, manifest: Mapping[str, Any]) -> Artifact:
    for key in ("settings", "parents", "shards", "counts"):
        if key not in manifest:
            raise UserError(f"{path / MANIFEST} has no {key}", hint=DAMAGED)
    kind, settings = manifest["kind"], manifest["settings"]
    try:
        missing = [key for key in needed_settings(kind, settings) if key not in settings]
        schema_of(kind, settings)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        missing = [str(error)]
    if missing:
        raise UserError(
            f"{path / MANIFEST}: its settings are not those of {kind}: {', '.join(missing)}",
            hint=DAMAGED,
        )
    return Artifact(
        path=path,
        kind=kind,
        settings=settings,
        shards=tuple(manifest["shards"]),
        parents=manifest["parents"],
        counts=manifest["counts"],
    )
