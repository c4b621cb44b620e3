"""`tarkit encode`: pictures to the codes of every scale, in one encoder pass.

Source: paper Sec. 3.1 (scale-adaptive pooling comes after the encoder, so one pass serves all
scales). Each row of the images artifact gives one row in the shard of the same number, with its
texts; a picture that cannot be read gives a failed row. The tokenizer is float32, and pictures are
squashed to its input size, by default as for the training of the published language model. Every
batch has the same shape, so that the codes of a picture do not depend on its batch: a short batch
is filled up with blank pictures, whose codes are dropped.

S: side of the tokenizer's input in pixels.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.plan import RowPlan
from tarkit.artifacts.ranks import rank_and_world
from tarkit.artifacts.resume import pending_shards
from tarkit.artifacts.schema import ABOUT_PICTURE, TEXTS
from tarkit.checkpoints.load import LoadedTaTok, Resize, load_ta_tok
from tarkit.config import Config, load_config
from tarkit.images import ImageError, decode, to_uint8
from tarkit.images import resize as resize_picture
from tarkit.models.pixel_range import channels_first, to_unit
from tarkit.progress import Progress
from tarkit.vocab import Scale

DTYPE = "float32"
NUM_READERS = 4
READ_AHEAD = 256
CARRIED = [field[0] for field in (*ABOUT_PICTURE, *TEXTS)]


class EncodeConfig(Config):
    """Which codes are stored, and how pictures become the pixels that they are made from."""

    scales: tuple[Scale, ...] = tuple(Scale)
    """Any subset; by default all scales."""
    resize: Resize = "pil-bicubic"
    """One of the three published ways, which give different codes (`LoadedTaTok.encode`)."""
    batch_size: int = Field(default=32, ge=1)


@dataclass(frozen=True, kw_only=True)
class EncodePlan(RowPlan):
    """Writes a tokens artifact from an images artifact.

    `tokenizer` is a TA-Tok directory. The same plan again encodes the shards that are missing or
    whose input has changed, and with `retry_failed` also the failed rows of finished shards.
    """

    tokenizer: Path
    device: str = "cpu"

    kind = "tokens"
    input_kind = "images"

    @cached_property
    def settings(self) -> EncodeConfig:
        return load_config(EncodeConfig, self.config, self.overrides)

    @cached_property
    def ta_tok(self) -> LoadedTaTok:
        return load_ta_tok(self.tokenizer)

    @property
    def scales(self) -> Sequence[Scale]:
        return sorted(set(self.settings.scales))

    @property
    def recorded(self) -> Mapping[str, Any]:
        ta_tok = self.ta_tok
        return {
            **self.settings.model_dump(mode="json"),
            "limit": self.limit,
            "tokenizer_sha256": ta_tok.sha256,
            "codebook_size": ta_tok.num_codes,
            "sides": {str(int(scale)): scale.side(ta_tok.grid) for scale in self.scales},
            "resize": f"{self.settings.resize}, {ta_tok.size_px} px",
            "dtype": DTYPE,
        }

    @property
    def parents(self) -> Mapping[str, Artifact | Path]:
        return {"images": self.source, "tokenizer": Path(self.tokenizer)}

    def make(self, artifact: Artifact) -> None:
        self.ta_tok.model.to(self.device)
        rank, world = rank_and_world()
        pending = set(pending_shards(artifact, self.source, rank=rank, world=world))
        names = [n for n in artifact.shards[rank::world] if n in pending or self.retry_failed]
        total = sum(self.rows_of[name] for name in names)
        with Progress("encode", total=total, unit="pictures") as progress:
            for name in names:
                table = _shard(
                    self.source.read(name).slice(0, self.rows_of[name]),
                    self.source.read_images(name),
                    old=None if name in pending else artifact.read(name),
                    ta_tok=self.ta_tok,
                    scales=self.scales,
                    settings=self.settings,
                    device=self.device,
                    progress=progress,
                )
                artifact.write(name, table, source_sha256=self.source.shard_sha256(name))


def _shard(
    index: pa.Table,
    pictures: Iterator[tuple[dict[str, Any], bytes | None]],
    *,
    old: pa.Table | None,
    ta_tok: LoadedTaTok,
    scales: Sequence[Scale],
    settings: EncodeConfig,
    device: str,
    progress: Progress,
) -> pa.Table:
    """The rows of `index` with their codes; rows that have codes in `old` keep them."""
    num_rows = index.num_rows
    codes = {s: np.zeros((num_rows, s.num_codes(ta_tok.grid)), np.uint16) for s in scales}
    finished = _keep(old, codes)
    errors: list[str | None] = [None] * num_rows
    progress.advance(len(finished))
    remaining = (
        (row, facts, blob)
        for row, (facts, blob) in enumerate(itertools.islice(pictures, num_rows))
        if row not in finished
    )
    batch: list[tuple[int, np.ndarray]] = []
    for row, pixels in _read_ahead(remaining, ta_tok, settings.resize):
        if isinstance(pixels, str):
            errors[row] = pixels
            progress.advance(1, failed=1)
        else:
            batch.append((row, pixels))
        if len(batch) == settings.batch_size:
            _encode_batch(batch, settings.batch_size, ta_tok, codes, device)
            progress.advance(len(batch))
            batch = []
    if batch:
        _encode_batch(batch, settings.batch_size, ta_tok, codes, device)
        progress.advance(len(batch))
    return _table(index, codes, errors)


def _encode_batch(
    batch: Sequence[tuple[int, np.ndarray]],
    batch_size: int,
    ta_tok: LoadedTaTok,
    codes: dict[Scale, np.ndarray],
    device: str,
) -> None:
    """Encode `batch`, filled up to `batch_size` pictures, and put its codes into `codes`."""
    pixels = np.zeros((batch_size, *batch[0][1].shape), batch[0][1].dtype)
    for place, (_, picture) in enumerate(batch):
        pixels[place] = picture
    to_tensor = to_unit if pixels.dtype == np.uint8 else channels_first
    images = to_tensor(pixels, device)
    batch_codes = ta_tok.encode_scales(images, scales=list(codes))
    for scale, array in codes.items():
        numbers = batch_codes[scale].cpu().numpy()
        for place, (row, _) in enumerate(batch):
            array[row] = numbers[place]


def _read_ahead(
    rows: Iterator[tuple[int, dict[str, Any], bytes | None]], ta_tok: LoadedTaTok, way: Resize
) -> Iterator[tuple[int, np.ndarray | str]]:
    """(row, pixels or error) in order, decoded by threads while the encoder works."""
    waiting: collections.deque[tuple[int, Future[np.ndarray | str]]] = collections.deque()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for row, facts, blob in rows:
            waiting.append((row, pool.submit(_pixels, facts, blob, ta_tok, way)))
            if len(waiting) >= READ_AHEAD:
                ready, future = waiting.popleft()
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()


def _pixels(
    facts: dict[str, Any], blob: bytes | None, ta_tok: LoadedTaTok, way: Resize
) -> np.ndarray | str:
    """RGB pixels (S, S, 3): uint8 by Pillow, float32 in [0, 1] by the other ways; or the error."""
    if blob is None:
        return f"its images row failed: {facts['error']}"
    try:
        picture = decode(blob)
    except ImageError as error:
        return str(error)
    if way == "pil-bicubic":
        return to_uint8(resize_picture(picture, ta_tok.size_px, "squash"))
    return ta_tok.sized(to_unit(to_uint8(picture)[None]), way)[0].permute(1, 2, 0).numpy()


def _keep(old: pa.Table | None, codes: dict[Scale, np.ndarray]) -> set[int]:
    """Copy the codes of the ok rows of `old` into `codes`; returns the numbers of those rows."""
    if old is None:
        return set()
    ok = [row for row, status in enumerate(old["status"].to_pylist()) if status == "ok"]
    for scale, array in codes.items():
        column = old[f"codes_{int(scale)}"].combine_chunks().take(pa.array(ok, pa.int64()))
        array[ok] = column.flatten().to_numpy().reshape(len(ok), -1)
    return set(ok)


def _table(
    index: pa.Table, codes: dict[Scale, np.ndarray], errors: Sequence[str | None]
) -> pa.Table:
    """The rows of a tokens artifact; a row with an error is failed and has no codes."""
    failed = np.array([error is not None for error in errors], bool)
    table = index.select(CARRIED)
    for scale, array in codes.items():
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(array.reshape(-1)), array.shape[1], mask=pa.array(failed)
        )
        table = table.append_column(f"codes_{int(scale)}", column)
    status = pa.array(["failed" if bad else "ok" for bad in failed], pa.string())
    table = table.append_column("status", status)
    return table.append_column("error", pa.array(errors, pa.string()))
