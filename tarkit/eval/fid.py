"""`tarkit eval rfid` and `gfid`: compare two sets of pictures, as pairs or as distributions.

`rfid`: samples are reconstructions of the reference, picture by picture in sorted order. Its
figures are the Frechet distance, PSNR, SSIM and the cosine of each pair's features (the paper says
that its reconstruction is faithful in meaning and not in pixels). `gfid`: samples are generated
without the reference. Its figures are the Frechet distance, precision and recall, and the Inception
Score where the features have a classifier. One directory holds one of the two.

Every picture counts. All are read once before anything is begun, and one that cannot be read ends
the run with its name. Pixels are the stored bytes; only the extractor resizes. Pictures are read
ahead of it, in threads or worker processes, which also compare the pixels of a pair.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from PIL import Image

from tarkit.artifacts.artifact import open_artifact
from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import is_system_file
from tarkit.artifacts.manifest import MANIFEST, begin_directory
from tarkit.artifacts.picture_reader import reading_ahead
from tarkit.artifacts.picture_tar import PicturePlace
from tarkit.artifacts.samples import is_samples, sample_files
from tarkit.artifacts.workers import default_readers, num_cores
from tarkit.errors import UserError
from tarkit.eval.metrics.features import FeatureExtractor, Features, load_extractor
from tarkit.eval.metrics.frechet import (
    NEIGHBOURS,
    SPLITS,
    Frechet,
    Gaussian,
    Moments,
    frechet_distance,
    gaussian_of,
    inception_score,
    precision_recall,
    read_gaussian,
    softmax,
)
from tarkit.eval.metrics.similarity import (
    SIGMA_PX,
    WINDOW_PX,
    cosines,
    mean_squared_error,
    similarity,
    ssim,
)
from tarkit.eval.outcome import write_outcome
from tarkit.eval.result_tables import Table, show
from tarkit.images import (
    MAX_PIXELS,
    PICTURE_SUFFIXES,
    ImageError,
    decode,
    read_picture,
    to_uint8,
)
from tarkit.progress import Progress

Metric = Literal["rfid", "gfid"]
ItemT = TypeVar("ItemT")

CONSTANTS: Mapping[Metric, Mapping[str, Any]] = {
    "rfid": {"psnr_peak": 255, "ssim_window_px": WINDOW_PX, "ssim_sigma_px": SIGMA_PX},
    "gfid": {"neighbours": NEIGHBOURS, "splits": SPLITS},
}
SINGULAR = (
    "No more pictures than features: a covariance is singular and the distance too large; compare "
    "it with nothing but figures of as many pictures."
)
NO_ROWS = "No precision and recall: the reference holds no single pictures."
LABELS = {
    "frechet": "Frechet distance",
    "dim": "features a picture",
    "num_samples": "samples",
    "num_reference": "reference pictures",
    "psnr": "PSNR of the mean squared error, dB",
    "psnr_mean": "mean PSNR of pairs that differ, dB",
    "num_identical": "identical pairs",
    "ssim": "SSIM",
    "cosine": "cosine of features",
    "precision": "precision",
    "recall": "recall",
    "neighbours": "neighbours of precision and recall",
    "inception_score": "Inception Score",
    "inception_score_std": "its deviation over splits",
    "splits": "its splits",
}


class _Stored(NamedTuple):
    """A picture that is not read yet: a file, or a row of an artifact."""

    name: str  # for messages
    at: Path | PicturePlace
    max_pixels: int = MAX_PIXELS


_ReadsPictures = Callable[[Sequence[_Stored]], Iterator[Image.Image]]


class _ComparedPair(NamedTuple):
    """A sample and its original, and how their pixels differ."""

    sample: Image.Image
    original: Image.Image
    squared_error: float
    ssim: float


@dataclass(frozen=True)
class _PictureSet:
    """Pictures in their order, each one's (width, height), and the sha256 of all pixels."""

    path: Path
    pictures: list[_Stored]
    sizes: list[tuple[int, int]]
    sha256: str

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"num_pictures": len(self.pictures), "pixels_sha256": self.sha256}


@dataclass(frozen=True)
class _StoredGaussian:
    """A reference without pictures: the mean and covariance of their features."""

    gaussian: Gaussian
    sha256: str

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"file_sha256": self.sha256}


def run(
    *,
    samples: Path,
    reference: Path,
    out: Path,
    features: str = "tatok",
    model: str = "mini",
    device: str = "cpu",
    batch_size: int = 32,
    num_workers: int | None = None,
    metric: Metric,
) -> Path:
    """Compare `samples` with `reference`; writes `results.json` and `report.md` and returns `out`.

    Each set is a folder of pictures, subfolders included, or an images artifact. The reference of
    gfid may be an npz of `mu` and `sigma` of the same features. The features `tatok` are those of
    the tokenizer of `model`. gfid keeps the features of all pictures in memory, 8 KB each for
    inception. `num_workers` processes read pictures ahead, 0: threads, as by default on a CPU.
    Raises UserError.
    """
    from tarkit.models.threads import threads_at_most  # brings torch, and workers import this file

    _check(metric, reference, batch_size)
    if num_workers is None:
        num_workers = default_readers(device.partition(":")[0])
    ahead = functools.partial(reading_ahead, num_workers=num_workers, ahead=batch_size)
    with ahead(_decoded) as pictures_of, threads_at_most(num_cores() - num_workers):
        drawn = _read(samples, "samples", pictures_of)
        real: _PictureSet | _StoredGaussian
        if reference.suffix == ".npz":
            real = _StoredGaussian(read_gaussian(reference), file_sha256(reference))
        else:
            real = _read(reference, "reference", pictures_of)
        if metric == "rfid" and isinstance(real, _PictureSet):
            _check_pairs(drawn, real)
        extractor = load_extractor(features, model=model, device=device)
        if isinstance(real, _StoredGaussian) and (n := len(real.gaussian.mean)) != extractor.dim:
            raise UserError(
                f"{reference} has {n} features, {extractor.name} has {extractor.dim}",
                hint="--features that the reference was made with",
            )
        manifest = begin_directory(
            out,
            "results",
            settings={
                "metric": metric,
                "features": extractor.identity(),
                "samples": drawn.fingerprint,
                "reference": real.fingerprint,
                **CONSTANTS[metric],
                "batch_size": batch_size,
            },
            parents={"samples": samples, "reference": reference},
        )
        if metric == "rfid" and isinstance(real, _PictureSet):
            with ahead(_compared) as pairs_of:
                figures = _pairs(drawn, real, extractor, batch_size, pairs_of)
        else:
            figures = _distributions(drawn, real, extractor, batch_size, pictures_of)
    _write(out, f"{metric}@{extractor.name}", manifest["settings"], figures)
    return out


def _check(metric: str, reference: Path, batch_size: int) -> None:
    if metric not in get_args(Metric):
        raise UserError(f"metric {metric!r} is unknown", hint="one of rfid, gfid")
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: give 1 or more")
    if metric == "rfid" and reference.suffix == ".npz":
        raise UserError(
            f"rfid compares pairs of pictures, and {reference} holds none",
            hint="name the folder of the originals, or the metric gfid",
        )


# - pictures -


def _read(path: Path, name: str, pictures_of: _ReadsPictures) -> _PictureSet:
    """Every picture of a set, read once; raises UserError with the first that cannot be read."""
    stored = list(_stored_pictures(path))
    if not stored:
        raise UserError(
            f"{path} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))})",
            hint="name a folder of pictures, or an images artifact",
        )
    sizes = []
    digest = hashlib.sha256()
    with Progress(f"read {name}", total=len(stored), unit="pictures") as progress:
        for picture in pictures_of(stored):
            sizes.append(picture.size)
            digest.update(f"{picture.width} x {picture.height}".encode())
            digest.update(to_uint8(picture).tobytes())
            progress.advance()
    return _PictureSet(path, stored, sizes, digest.hexdigest())


def _stored_pictures(path: Path) -> Iterator[_Stored]:
    """The pictures of a folder's files or an artifact's rows, in order."""
    if is_samples(path):  # without the sheet beside them
        yield from (_Stored(str(file), file) for file in sample_files(path))
        return
    if (path / MANIFEST).exists():
        artifact = open_artifact(path, "images")
        for shard in artifact.shards:
            rows = artifact.rows(shard, ["key", "error"])
            for row, place in zip(rows, artifact.picture_places(shard), strict=True):
                name = f"{row['key']} of {path}"
                if place is None:
                    raise _unreadable(name, path, str(row["error"]))
                yield _Stored(name, place, artifact.max_pixels)
        return
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(
            f"{path} {what}: pictures are compared in sets",
            hint="name a folder of pictures, or an images artifact",
        )
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        if file.suffix == ".error":  # stands for a sample that failed
            raise UserError(
                f"{file} stands for a picture that failed, and no picture is skipped",
                hint="the command that made the samples, with --retry-failed",
            )
        if is_system_file(file.relative_to(path)):
            continue
        if file.suffix.lower().removeprefix(".") in PICTURE_SUFFIXES:
            yield _Stored(str(file), file)


def _decoded(picture: _Stored) -> Image.Image:
    """The RGB picture; raises UserError where it cannot be read."""
    if isinstance(picture.at, Path):
        return read_picture(picture.at)
    try:
        return decode(picture.at.read(), max_pixels=picture.max_pixels)
    except ImageError as error:
        raise _unreadable(picture.name, Path(picture.at.tar).parent, error.message) from None


def _unreadable(name: str, path: Path, why: str) -> UserError:
    return UserError(
        f"the picture {name} cannot be read, and no picture is skipped: {why}",
        hint=f"tarkit inspect {path}",
    )


def _compared(pair: tuple[_Stored, _Stored]) -> _ComparedPair:
    """Two pictures of one size, with their mean squared error and SSIM."""
    sample, original = map(_decoded, pair)
    a, b = to_uint8(sample), to_uint8(original)
    return _ComparedPair(sample, original, mean_squared_error(a, b), ssim(a, b))


def _check_pairs(drawn: _PictureSet, real: _PictureSet) -> None:
    if len(drawn.pictures) != len(real.pictures):
        raise UserError(
            f"rfid compares pairs, but {drawn.path} holds {len(drawn.pictures)} pictures and "
            f"{real.path} {len(real.pictures)}",
            hint="name the originals of these samples, or the metric gfid",
        )
    pairs = zip(drawn.pictures, drawn.sizes, real.pictures, real.sizes, strict=True)
    for sample, size, original, other_size in pairs:
        if size != other_size:
            raise UserError(
                f"{sample.name} is {size[0]} x {size[1]} and its original {original.name} "
                f"{other_size[0]} x {other_size[1]}: pixels of pairs must match",
                hint="resize the originals as the reconstructions were, and compare with those",
            )
        if min(size) < WINDOW_PX:
            raise UserError(
                f"{sample.name} is {size[0]} x {size[1]}: SSIM needs sides of {WINDOW_PX} px",
                hint="compare larger pictures",
            )


def _batches(items: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    batch: list[ItemT] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# - figures -


def _pairs(
    drawn: _PictureSet,
    real: _PictureSet,
    extractor: FeatureExtractor,
    batch_size: int,
    pairs_of: Callable[[Sequence[tuple[_Stored, _Stored]]], Iterator[_ComparedPair]],
) -> dict[str, Any]:
    """The figures of rfid, from one pass over the pairs."""
    moments, originals = Moments(), Moments()
    errors: list[float] = []
    ssims: list[float] = []
    similarities: list[float] = []
    pairs = list(zip(drawn.pictures, real.pictures, strict=True))
    with Progress("compare", total=len(pairs), unit="pairs") as progress:
        for batch in _batches(pairs_of(pairs), batch_size):
            first = extractor.extract([pair.sample for pair in batch])
            second = extractor.extract([pair.original for pair in batch])
            moments.add(first)
            originals.add(second)
            similarities += cosines(first, second).tolist()
            errors += [pair.squared_error for pair in batch]
            ssims += [pair.ssim for pair in batch]
            progress.advance(len(batch))
    summary = similarity(errors, ssims)
    return {
        **_distance(frechet_distance(originals.gaussian(), moments.gaussian())),
        "psnr": _finite(summary.psnr),
        "psnr_mean": _finite(summary.psnr_mean),
        "num_identical": summary.num_identical,
        "ssim": summary.ssim,
        "cosine": float(np.mean(similarities)),
    }


def _distributions(
    drawn: _PictureSet,
    reference: _PictureSet | _StoredGaussian,
    extractor: FeatureExtractor,
    batch_size: int,
    pictures_of: _ReadsPictures,
) -> dict[str, Any]:
    """The figures of gfid; a stored reference gives the distance alone."""
    rows = _extract(drawn, "samples", extractor, batch_size, pictures_of)
    if isinstance(reference, _StoredGaussian):
        figures = _distance(frechet_distance(reference.gaussian, gaussian_of(rows)))
        figures["notes"].append(NO_ROWS)
    else:
        originals = _extract(reference, "reference", extractor, batch_size, pictures_of)
        figures = _distance(frechet_distance(gaussian_of(originals), gaussian_of(rows)))
        manifolds = precision_recall(originals, rows)
        figures |= {
            "precision": manifolds.precision,
            "recall": manifolds.recall,
            "neighbours": manifolds.neighbours,
        }
    if extractor.logits is not None:
        score = inception_score(softmax(extractor.logits(rows)))
        figures |= {
            "inception_score": score.mean,
            "inception_score_std": score.std,
            "splits": score.num_splits,
        }
    return figures


def _extract(
    drawn: _PictureSet,
    name: str,
    extractor: FeatureExtractor,
    batch_size: int,
    pictures_of: _ReadsPictures,
) -> Features:
    rows = []
    total = len(drawn.pictures)
    with Progress(f"features of {name}", total=total, unit="pictures") as progress:
        for batch in _batches(pictures_of(drawn.pictures), batch_size):
            rows.append(extractor.extract(batch))
            progress.advance(len(batch))
    return np.concatenate(rows)


def _distance(distance: Frechet) -> dict[str, Any]:
    return {
        "frechet": distance.value,
        "dim": distance.dim,
        "num_samples": distance.num_samples,
        "num_reference": distance.num_reference,
        "singular": distance.singular,
        "notes": [SINGULAR] if distance.singular else [],
    }


def _finite(value: float) -> float | None:
    """None for inf and nan, which JSON lacks; `num_identical` explains a PSNR that is None."""
    return value if math.isfinite(value) else None


# - results -


def _write(out: Path, name: str, settings: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    table = Table(
        name,
        ["figure", "value"],
        [[label, _text(figures[key])] for key, label in LABELS.items() if key in figures],
        " ".join(figures["notes"]),
    )
    show([table])
    features = ", ".join(f"{key} {value}" for key, value in settings["features"].items())
    report = f"# tarkit eval pictures\n\nFeatures: {features}.\n\n{table.markdown()}"
    write_outcome(out, {name: figures}, settings=settings, report=report)


def _text(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
