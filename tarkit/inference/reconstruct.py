"""`tarkit reconstruct`: pictures to codes and back, at every scale beside the originals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.files import write_whole
from tarkit.artifacts.manifest import MANIFEST
from tarkit.checkpoints.hub import DtokName
from tarkit.checkpoints.system import Sampling
from tarkit.errors import UserError
from tarkit.images import contact_sheet, decode, png_bytes, read_picture, require_png
from tarkit.inference.tar import Tar
from tarkit.progress import Progress
from tarkit.vocab import Scale

BATCH_SIZE = 8
MAX_PICTURES = 200


@dataclass
class Reconstructed:
    """The sheet, how many pictures are on it, and why the others are not."""

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
) -> Reconstructed:
    """Write a sheet with a row a picture: the original, then each scale, full first.

    `images` are files, folders of files, or images artifacts; what cannot be read is listed in the
    result. Raises UserError where nothing can be.
    """
    require_png(out)
    done = Reconstructed(out)
    named = []
    for name, picture in itertools.islice(_pictures(images), limit):
        if isinstance(picture, str):
            done.failed[name] = picture
        else:
            named.append((name, picture))
        if len(named) > MAX_PICTURES:
            raise UserError(
                f"more than {MAX_PICTURES} pictures do not fit on a sheet",
                hint=f"the same command with --limit {MAX_PICTURES}",
            )
    if not named:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in done.failed.items())
        raise UserError(f"none of the pictures can be read: {reasons or 'there are none'}")
    tar = Tar.load(model, device=device, size_px=size_px, dtok=dtok, precision=precision)
    how = tar.sampling.changed(sampling)
    scale_captions = [f"scale {int(s)}: {s.num_codes(tar.grid)} codes" for s in Scale]
    cells: list[Image.Image] = []
    captions: list[str] = []
    with Progress("reconstruct", total=len(named), unit="pictures") as progress:
        for start in range(0, len(named), BATCH_SIZE):
            batch = named[start : start + BATCH_SIZE]
            seeds = range(seed + start, seed + start + len(batch))
            names, originals = zip(*batch, strict=True)
            for name, row in zip(names, _rows(tar, originals, seeds, how), strict=True):
                cells += row
                captions += [name, *scale_captions]
            progress.advance(len(batch))
    sheet = contact_sheet(cells, captions, columns=1 + len(Scale))
    write_whole(out, png_bytes(sheet))
    done.num_pictures = len(named)
    return done


def _rows(
    tar: Tar, pictures: Sequence[Image.Image], seeds: Sequence[int], sampling: Sampling
) -> Iterator[tuple[Image.Image, ...]]:
    """For each picture: the original and its drawing from the codes of every scale."""
    codes = tar.encode(list(pictures), list(Scale))
    drawn = [tar.draw(codes[scale], seeds=seeds, sampling=sampling) for scale in Scale]
    yield from zip(pictures, *drawn, strict=True)


def _pictures(images: Sequence[Path]) -> Iterator[tuple[str, Image.Image | str]]:
    """(name, picture or the reason why there is none) of everything named, in order."""
    for path in images:
        if (path / MANIFEST).exists():
            artifact = open_artifact(path, "images")
            for shard in artifact.shards:
                for row, blob in artifact.read_images(shard):
                    yield row["key"], _decoded(blob) if blob else str(row["error"])
        elif path.is_dir():
            for file in sorted(item for item in path.iterdir() if item.is_file()):
                yield str(file), _read(file)
        else:
            yield str(path), _read(path)


def _read(path: Path) -> Image.Image | str:
    try:
        return read_picture(path)
    except UserError as error:
        return error.message


def _decoded(blob: bytes) -> Image.Image | str:
    try:
        return decode(blob)
    except UserError as error:
        return error.message
