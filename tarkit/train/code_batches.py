"""The codes that AR-DTok is trained on: from tokens artifacts, or from pictures as they come.

Source: paper Sec. 3.2: TA-Tok's codes are the condition, the image VQ's the target (Eq. 4).
`tarkit encode --vqvae` stores both, and training then runs no encoder. A small set of pictures can
do without: the device of the training encodes each batch.

Letters: B pictures, n condition positions, N image-VQ codes, S and P sides in pixels of TA-Tok's
and the image VQ's pictures.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from tarkit.artifacts.artifact import Artifact
from tarkit.artifacts.remote import shown_path, url_of
from tarkit.artifacts.row_counts import RowKind, row_counts
from tarkit.checkpoints.load import LoadedTaTok
from tarkit.errors import UserError
from tarkit.models.exact import exact_float32
from tarkit.models.pixel_range import bytes_to_unit, channels_first, from_unit_truncated
from tarkit.models.vqvae import Vqvae
from tarkit.train.loop_config import PicturesConfig
from tarkit.train.streams import MixedStream, PictureRow, PictureStream, Stream, sized
from tarkit.train.task import RowName
from tarkit.vocab import Scale

log = logging.getLogger("tarkit")

Codes = dict[Scale | None, Tensor]
"""TA-Tok's codes (B, n) int64 of each scale, and under None the image VQ's (B, N)."""


class SizedPixels(NamedTuple):
    """Pictures that the device has yet to encode."""

    names: list[RowName]
    ta_tok: Tensor  # (B, 3, S, S) uint8
    vqvae: Tensor  # (B, 3, P, P) uint8


class Examples(NamedTuple):
    """Pictures for a sample sheet, and their codes."""

    pictures: list[Image.Image]
    caption: str
    codes: Codes


class CodeSource(Protocol):
    """What the training needs to know of where its codes come from."""

    @property
    def stream(self) -> Stream[Any] | MixedStream[Any]:
        """The rows in training's order."""

    def read(self, rows: Sequence[Any]) -> Codes | SizedPixels:
        """The rows of a step, as far as the CPU makes them; runs in a background thread."""

    def codes(self, batch: Codes | SizedPixels) -> Codes:
        """The codes of what `read` gave, on the device where that has been moved to."""

    def examples(self, count: int, device: torch.device) -> Examples:
        """The first pictures of the stream, with their codes on `device`."""


# ---- from tokens ---------------------------------------------------------------------------------


class CodesRow(NamedTuple):
    """One row of a tokens artifact."""

    key: str
    codes: dict[Scale | None, np.ndarray]  # (n,) of each scale, (N,) under None
    source: str  # folder of the artifact

    @property
    def name(self) -> RowName:
        """Which row of which artifact it is."""
        return RowName(self.source, self.key)


class StoredRows:
    """The usable rows of tokens artifacts: status "ok", and of the split or without one.

    The rows of all artifacts are one set: an epoch visits each once.
    """

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        scales: Sequence[Scale],
        target: str,
        *,
        seed: int,
        split: str = "train",
    ) -> None:
        """`target`: the column that is trained on, kept under None next to the codes of `scales`.

        Raises UserError for an incomplete artifact, and where no row is usable.
        """
        self.split = split
        self.columns: dict[Scale | None, str] = {s: f"codes_{int(s)}" for s in scales}
        self.columns[None] = target
        self.needed = f"status ok, split {split!r} or none"
        self.num_failed: dict[Path, int] = {}
        self._shards: list[tuple[Artifact, str]] = []
        counts: list[int] = []
        for artifact in artifacts:
            of_artifact = row_counts(artifact)
            usable = [
                sum(kinds.get(RowKind(None, s, "ok"), 0) for s in (split, None))
                for kinds in of_artifact
            ]
            failed = sum(
                n for kinds in of_artifact for kind, n in kinds.items() if kind.status == "failed"
            )
            self.num_failed[artifact.path] = failed
            if failed:
                log.warning("%s: %d failed rows are left out", artifact.path, failed)
            if not sum(usable) and len(artifacts) > 1:
                log.warning("%s adds nothing: no row is usable (%s)", artifact.path, self.needed)
            counts += usable
            self._shards += [(artifact, name) for name in artifact.shards]
        if not sum(counts):
            paths = ", ".join(str(artifact.path) for artifact in artifacts)
            raise UserError(
                f"{paths}: no row is usable ({self.needed})",
                hint=f"tarkit inspect {artifacts[0].path}",
            )
        files = self._files if any(url_of(artifact.path) for artifact in artifacts) else None
        self.stream: Stream[CodesRow] = Stream(counts, self._load, seed=seed, files=files)

    def _usable(self, table: pa.Table) -> pa.ChunkedArray:
        in_split = pc.fill_null(pc.equal(table["split"], self.split), True)
        return pc.and_(pc.equal(table["status"], "ok"), in_split)

    def _files(self, index: int) -> list[Path]:
        artifact, name = self._shards[index]
        return artifact.files(name)

    def _load(self, index: int) -> list[CodesRow]:
        artifact, name = self._shards[index]
        table = artifact.read(name, ["key", "status", "split", *self.columns.values()])
        table = table.filter(self._usable(table))
        arrays = {
            part: table[column]
            .combine_chunks()
            .flatten()
            .to_numpy()
            .reshape(table.num_rows, table.schema.field(column).type.list_size)
            for part, column in self.columns.items()
        }
        source = shown_path(artifact.path)
        return [
            CodesRow(key, {part: array[row] for part, array in arrays.items()}, source)
            for row, key in enumerate(table["key"].to_pylist())
        ]


class StoredCodes(StoredRows):
    """The codes of TA-Tok and of the image VQ, as `encode` stored them."""

    def __init__(
        self, artifacts: Sequence[Artifact], scales: Sequence[Scale], vqvae: Vqvae, *, seed: int
    ) -> None:
        super().__init__(artifacts, scales, "vq_codes", seed=seed)
        self.vqvae = vqvae

    def read(self, rows: Sequence[CodesRow]) -> Codes:
        return {
            part: torch.from_numpy(np.stack([row.codes[part] for row in rows]).astype(np.int64))
            for part in self.columns
        }

    def codes(self, batch: Codes | SizedPixels) -> Codes:
        assert not isinstance(batch, SizedPixels)
        return batch

    def examples(self, count: int, device: torch.device) -> Examples:
        """The artifact holds no pictures: the image VQ draws them."""
        codes = self.read([self.stream[i] for i in range(count)])
        codes = {part: numbers.to(device) for part, numbers in codes.items()}
        pixels = self.vqvae.to(device).decode(codes[None])
        pictures = [Image.fromarray(a) for a in from_unit_truncated(pixels)]
        return Examples(pictures, "image VQ", codes)


def require_codes(
    artifact: Artifact,
    *,
    scales: Sequence[Scale],
    num_codes: int,
    tokenizer_sha256: str,
    vqvae_sha256: str,
) -> None:
    """Raises UserError unless tokens hold what an AR-DTok of `num_codes` codes is trained on."""
    path, settings = artifact.path, artifact.settings
    if "vq_side" not in settings:
        raise UserError(
            f"{path} has no codes of an image VQ (column vq_codes)",
            hint="tarkit encode IMAGES --tokenizer T --vqvae V --set vq_size_px=256 --out DIR "
            "stores them",
        )
    require_encoded_by(artifact, tokenizer_sha256, {"--vqvae": ("vqvae_sha256", vqvae_sha256)})
    stored = settings["vq_side"] ** 2
    if stored != num_codes:
        raise UserError(
            f"{path} has {stored} image-VQ codes a picture ({settings['vq_size_px']} px), "
            f"arch.num_codes is {num_codes}",
            hint=f"--set arch.num_codes={stored}, or tokens of another vq_size_px",
        )
    require_scales(artifact, scales)


def require_no_weights(settings: PicturesConfig) -> None:
    """Raises UserError where sources are weighed, and the rows come from tokens artifacts."""
    if settings.images_weights:
        raise UserError(
            "images_weights is for --images; every row of all --tokens comes once in an epoch",
            hint="leave images_weights out",
        )


def require_encoded_by(
    artifact: Artifact, tokenizer_sha256: str, others: Mapping[str, tuple[str, str]]
) -> None:
    """Raises UserError where tokens were made by other models than a training uses.

    `others` has, by option, a model's key in the artifact's settings and its sha256 now.
    """
    models = {"--tokenizer": ("tokenizer_sha256", tokenizer_sha256), **others}
    for option, (key, sha256) in models.items():
        recorded = artifact.settings[key]
        if recorded != sha256:
            raise UserError(
                f"{artifact.path} was encoded with {option} {str(recorded)[:12]}, "
                f"the {option} given is {sha256[:12]}",
                hint=f"name the {option} that it was encoded with, or encode the pictures again",
            )


def require_scales(artifact: Artifact, scales: Sequence[Scale]) -> None:
    """Raises UserError where tokens lack the codes of a scale."""
    missing = [int(scale) for scale in scales if str(int(scale)) not in artifact.settings["sides"]]
    if missing:
        raise UserError(
            f"{artifact.path} has no codes of scale {missing[0]}, which scale_ratio draws",
            hint=f"set the odds of scale {missing[0]} to 0 in scale_ratio, or encode the pictures "
            "at every scale",
        )


# ---- from pictures -------------------------------------------------------------------------------


class PictureCodes:
    """Codes of pictures that are encoded when a step comes to them, and then remembered."""

    def __init__(
        self,
        stream: PictureStream,
        scales: Sequence[Scale],
        ta_tok: LoadedTaTok,
        vqvae: Vqvae,
        *,
        vq_size_px: int,
        square: Literal["crop"] | None = None,
        remember: int = 0,
    ) -> None:
        """`remember`: pictures whose codes are kept in memory; when it is full, it is emptied."""
        self.stream = stream
        self.scales = scales
        self.ta_tok = ta_tok
        self.vqvae = vqvae
        self.vq_size_px = vq_size_px
        self.square = square
        self.remember = remember
        # The background thread looks codes up while a step stores others.
        self._lock = threading.Lock()
        self._rows: dict[RowName, int] = {}  # a picture's row in the tables
        self._tables: Codes = {}

    def _pixels(self, rows: Sequence[PictureRow]) -> SizedPixels:
        pictures = [row.pixels() for row in rows]
        return SizedPixels(
            [row.name for row in rows],
            channels_first([sized(a, self.ta_tok.size_px, square=self.square) for a in pictures]),
            channels_first([sized(a, self.vq_size_px, square=self.square) for a in pictures]),
        )

    def read(self, rows: Sequence[PictureRow]) -> Codes | SizedPixels:
        """The codes of a step's pictures if memory holds them all, else their pixels.

        A batch with a new picture is encoded as a whole: a smaller batch rounds differently, and
        codes must not depend on the pictures that this process encoded before.
        """
        codes = self._remembered([row.name for row in rows])
        return codes if codes is not None else self._pixels(rows)

    def _remembered(self, keys: Sequence[RowName]) -> Codes | None:
        with self._lock:
            if not all(key in self._rows for key in keys):
                return None
            cached = torch.tensor([self._rows[key] for key in keys])
            return {name: table[cached].long() for name, table in self._tables.items()}

    def encode(self, pixels: SizedPixels) -> Codes:
        """The pictures' TA-Tok codes at every scale that is trained, and their image-VQ codes."""
        device = pixels.ta_tok.device
        self.ta_tok.model.to(device)
        self.vqvae.to(device)
        with exact_float32(device):
            codes: Codes = {None: self.vqvae.encode(bytes_to_unit(pixels.vqvae))}
            inputs = bytes_to_unit(pixels.ta_tok)
            for scale, numbers in self.ta_tok.encode_scales(inputs, self.scales).items():
                codes[scale] = numbers
        return codes

    def codes(self, batch: Codes | SizedPixels) -> Codes:
        if not isinstance(batch, SizedPixels):
            return batch
        # A worker process reads pixels each time, as it does not know what this one remembers.
        codes = self._remembered(batch.names)
        if codes is None:
            codes = self.encode(batch)
            with self._lock:
                self._store(batch.names, codes)
        return {name: numbers.to(batch.ta_tok.device) for name, numbers in codes.items()}

    def _store(self, keys: Sequence[RowName], encoded: Codes) -> None:
        new = len(set(keys) - self._rows.keys())
        if len(self._rows) + new > self.remember:
            self._rows.clear()
        if len(set(keys)) > self.remember:
            return
        for name, codes in encoded.items():
            if name not in self._tables:
                # One block for all: small tensors kept between a step's large ones would leave
                # holes that no later step fits into.
                self._tables[name] = torch.zeros(self.remember, codes.shape[1], dtype=torch.int32)
        places = torch.tensor([self._rows.setdefault(key, len(self._rows)) for key in keys])
        for name, codes in encoded.items():
            self._tables[name][places] = codes.to("cpu", torch.int32)

    def examples(self, count: int, device: torch.device) -> Examples:
        pixels = self._pixels([self.stream[i] for i in range(count)])
        pictures = [Image.fromarray(a.numpy()) for a in pixels.vqvae.permute(0, 2, 3, 1)]
        moved = SizedPixels(pixels.names, pixels.ta_tok.to(device), pixels.vqvae.to(device))
        return Examples(pictures, "original", self.encode(moved))
