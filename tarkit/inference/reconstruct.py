"""`tarkit reconstruct`: pictures to codes and back at every scale, on one sheet."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.files import is_system_file, write_whole
from tarkit.artifacts.manifest import MANIFEST
from tarkit.artifacts.samples import is_samples, sample_files
from tarkit.checkpoints.hub import DtokName
from tarkit.checkpoints.tar_config import Sampling
from tarkit.errors import UserError
from tarkit.images import (
    contact_sheet,
    decode,
    png_bytes,
    read_picture,
    require_own_png,
    require_png,
)
from tarkit.inference.ar_detokenizer import note_acceptance
from tarkit.inference.tar_model import Tar
from tarkit.progress import Progress

BATCH_SIZE = 8
MAX_PICTURES = 200


@dataclass
class Reconstructed:
    """The sheet, the number of pictures on it, and the names of unreadable ones with the reason."""

    path: Path
    num_pictures: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def run(
    images: Sequence[Path],
    *,
    out: Path,
    model: str = "mini",
    seed: int = 0,
    limit: int | None = None,
    device: str = "cpu",
    size_px: int | None = None,
    dtok: DtokName = "ar",
    precision: str = "float32",
    sampling: Mapping[str, float | int] | None = None,
    draft: Path | None = None,
) -> Reconstructed:
    """Write a sheet with one row for each picture: the original, then each scale, full first.

    `images` are files, folders of files (also those of `tarkit generate`), or images artifacts.
    The result lists pictures that cannot be read. Raises UserError when none can be read, for more
    than MAX_PICTURES, and where `out` is another picture.
    """
    require_png(out)
    result = Reconstructed(out)
    named_pictures = []
    for name, picture in itertools.islice(_pictures(images), limit):
        if isinstance(picture, str):
            result.failed[name] = picture
        else:
            named_pictures.append((name, picture))
        if len(named_pictures) > MAX_PICTURES:
            raise UserError(
                f"more than {MAX_PICTURES} pictures do not fit on a sheet",
                hint=f"the same command with --limit {MAX_PICTURES}",
            )
    if not named_pictures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in result.failed.items())
        raise UserError(f"none of the pictures can be read: {reasons or 'there are none'}")
    tar = Tar.load(
        model, device=device, size_px=size_px, dtok=dtok, precision=precision, draft=draft
    )
    all_sampling = tar.sampling.changed(sampling)
    text = {
        "images": json.dumps([name for name, _ in named_pictures]),
        "model": model,
        "model_sha256": tar.sha256,
        "seed": str(seed),
        "sampling": json.dumps(all_sampling.model_dump(mode="json")),
    }
    require_own_png(out, text)
    scale_captions = [f"scale {int(s)}: {s.num_codes(tar.grid)} codes" for s in tar.scales]
    cells: list[Image.Image] = []
    captions: list[str] = []
    with Progress("reconstruct", total=len(named_pictures), unit="pictures") as progress:
        for start in range(0, len(named_pictures), BATCH_SIZE):
            batch = named_pictures[start : start + BATCH_SIZE]
            seeds = range(seed + start, seed + start + len(batch))
            names, originals = zip(*batch, strict=True)
            for name, row in zip(names, _rows(tar, originals, seeds, all_sampling), strict=True):
                cells += row
                captions += [name, *scale_captions]
            progress.advance(len(batch))
    note_acceptance(tar.dtok)
    sheet = contact_sheet(cells, captions, columns=1 + len(tar.scales))
    write_whole(out, png_bytes(sheet, text))
    result.num_pictures = len(named_pictures)
    return result


def _rows(
    tar: Tar, pictures: Sequence[Image.Image], seeds: Sequence[int], sampling: Sampling
) -> Iterator[tuple[Image.Image, ...]]:
    """For each picture: the original and its reconstruction from the codes of every scale."""
    codes = tar.encode(list(pictures), tar.scales)
    reconstructions = [
        tar.draw(codes[scale], seeds=seeds, sampling=sampling) for scale in tar.scales
    ]
    yield from zip(pictures, *reconstructions, strict=True)


def _pictures(images: Sequence[Path]) -> Iterator[tuple[str, Image.Image | str]]:
    """(name, picture or the reason why it cannot be read) of everything in `images`, in order."""
    for path in images:
        if is_samples(path):
            for file in sample_files(path):
                yield str(file), _read(file)
        elif (path / MANIFEST).exists():
            artifact = open_artifact(path, "images")
            for shard in artifact.shards:
                for row, blob in artifact.read_images(shard):
                    yield (
                        row["key"],
                        _decoded(blob, artifact.max_pixels) if blob else str(row["error"]),
                    )
        elif path.is_dir():
            for file in sorted(
                item for item in path.iterdir() if item.is_file() and not is_system_file(item.name)
            ):
                yield str(file), _read(file)
        else:
            yield str(path), _read(path)


def _read(path: Path) -> Image.Image | str:
    try:
        return read_picture(path)
    except UserError as error:
        return error.message


def _decoded(blob: bytes, max_pixels: int) -> Image.Image | str:
    try:
        return decode(blob, max_pixels=max_pixels)
    except UserError as error:
        return error.message
