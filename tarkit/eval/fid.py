"""`tarkit eval rfid` and `gfid`: compare two sets of pictures, as pairs or as distributions.

`rfid`: samples are reconstructions of the reference, picture by picture in sorted order. Its
figures are the Frechet distance, PSNR, SSIM and the cosine of each pair's features (the paper says
that its reconstruction is faithful in meaning and not in pixels). `gfid`: samples are generated
without the reference. Its figures are the Frechet distance, precision and recall, and the Inception
Score where the features have a classifier. One directory holds one of the two.

Every picture counts. All are read once before anything is begun, and one that cannot be read ends
the run with its name. Pixels are the stored bytes; only the extractor resizes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from PIL import Image

from tarkit.artifacts.artifact import Artifact, open_artifact
from tarkit.artifacts.digests import file_sha256
from tarkit.artifacts.files import is_system_file
from tarkit.artifacts.manifest import MANIFEST, begin_directory
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
from tarkit.images import PICTURE_SUFFIXES, ImageError, decode, read_picture, to_uint8
from tarkit.progress import Progress

Metric = Literal["rfid", "gfid"]
ItemT = TypeVar("ItemT")
NamedPicture = tuple[str, Image.Image]

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


@dataclass(frozen=True)
class _PictureSet:
    """Pictures in their order: names for messages, (width, height), sha256 of all pixels."""

    path: Path
    names: list[str]
    sizes: list[tuple[int, int]]
    sha256: str

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"num_pictures": len(self.names), "pixels_sha256": self.sha256}


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
    metric: Metric,
) -> Path:
    """Compare `samples` with `reference`; writes `results.json` and `report.md` and returns `out`.

    Each set is a folder of pictures, subfolders included, or an images artifact. The reference of
    gfid may be an npz of `mu` and `sigma` of the same features. The features `tatok` are those of
    the tokenizer of `model`. gfid keeps the features of all pictures in memory, 8 KB each for
    inception. Raises UserError.
    """
    _check(metric, reference, batch_size)
    drawn = _read(samples, "samples")
    real: _PictureSet | _StoredGaussian
    if reference.suffix == ".npz":
        real = _StoredGaussian(read_gaussian(reference), file_sha256(reference))
    else:
        real = _read(reference, "reference")
    if metric == "rfid" and isinstance(real, _PictureSet):
        _check_pairs(drawn, real)
    extractor = load_extractor(features, model=model, device=device)
    if isinstance(real, _StoredGaussian) and (width := len(real.gaussian.mean)) != extractor.dim:
        raise UserError(
            f"{reference} has {width} features, {extractor.name} has {extractor.dim}",
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
        figures = _pairs(drawn, real, extractor, batch_size)
    else:
        figures = _distributions(drawn, real, extractor, batch_size)
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


def _read(path: Path, name: str) -> _PictureSet:
    """Every picture of a set, read once; raises UserError with the first that cannot be read."""
    names, sizes = [], []
    digest = hashlib.sha256()
    with Progress(f"read {name}", total=None, unit="pictures") as progress:
        for picture_name, picture in _pictures(path):
            names.append(picture_name)
            sizes.append(picture.size)
            digest.update(f"{picture.width} x {picture.height}".encode())
            digest.update(to_uint8(picture).tobytes())
            progress.advance()
    if not names:
        raise UserError(
            f"{path} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))})",
            hint="name a folder of pictures, or an images artifact",
        )
    return _PictureSet(path, names, sizes, digest.hexdigest())


def _pictures(path: Path) -> Iterator[NamedPicture]:
    """(name, RGB picture) of a folder's files or an artifact's rows, in order."""
    if (path / MANIFEST).exists():
        artifact = open_artifact(path, "images")
        for shard in artifact.shards:
            for row, blob in artifact.read_images(shard):
                yield _of_row(artifact, row, blob)
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
            yield str(file), read_picture(file)


def _of_row(artifact: Artifact, row: Mapping[str, Any], blob: bytes | None) -> NamedPicture:
    path = artifact.path
    why = str(row["error"])
    if blob is not None:
        try:
            return f"{row['key']} of {path}", decode(blob, max_pixels=artifact.max_pixels)
        except ImageError as error:
            why = error.message
    raise UserError(
        f"the picture {row['key']} of {path} cannot be read, and no picture is skipped: {why}",
        hint=f"tarkit inspect {path}",
    )


def _check_pairs(drawn: _PictureSet, real: _PictureSet) -> None:
    if len(drawn.names) != len(real.names):
        raise UserError(
            f"rfid compares pairs, but {drawn.path} holds {len(drawn.names)} pictures and "
            f"{real.path} {len(real.names)}",
            hint="name the originals of these samples, or the metric gfid",
        )
    pairs = zip(drawn.names, drawn.sizes, real.names, real.sizes, strict=True)
    for name, size, other, other_size in pairs:
        if size != other_size:
            raise UserError(
                f"{name} is {size[0]} x {size[1]} and its original {other} "
                f"{other_size[0]} x {other_size[1]}: pixels of pairs must match",
                hint="resize the originals as the reconstructions were, and compare with those",
            )
        if min(size) < WINDOW_PX:
            raise UserError(
                f"{name} is {size[0]} x {size[1]}: SSIM needs sides of {WINDOW_PX} px",
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
    drawn: _PictureSet, real: _PictureSet, extractor: FeatureExtractor, batch_size: int
) -> dict[str, Any]:
    """The figures of rfid, from one pass over the pairs."""
    moments, originals = Moments(), Moments()
    errors: list[float] = []
    ssims: list[float] = []
    similarities: list[float] = []
    pairs = zip(_pictures(drawn.path), _pictures(real.path), strict=True)
    with Progress("compare", total=len(drawn.names), unit="pairs") as progress:
        for batch in _batches(pairs, batch_size):
            first = extractor.extract([picture for (_, picture), _ in batch])
            second = extractor.extract([picture for _, (_, picture) in batch])
            moments.add(first)
            originals.add(second)
            similarities += cosines(first, second).tolist()
            for (_, sample), (_, original) in batch:
                a, b = to_uint8(sample), to_uint8(original)
                errors.append(mean_squared_error(a, b))
                ssims.append(ssim(a, b))
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
) -> dict[str, Any]:
    """The figures of gfid; a stored reference gives the distance alone."""
    rows = _extract(drawn, "samples", extractor, batch_size)
    if isinstance(reference, _StoredGaussian):
        figures = _distance(frechet_distance(reference.gaussian, gaussian_of(rows)))
        figures["notes"].append(NO_ROWS)
    else:
        originals = _extract(reference, "reference", extractor, batch_size)
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
    pictures: _PictureSet, name: str, extractor: FeatureExtractor, batch_size: int
) -> Features:
    rows = []
    with Progress(f"features of {name}", total=len(pictures.names), unit="pictures") as progress:
        for batch in _batches(_pictures(pictures.path), batch_size):
            rows.append(extractor.extract([picture for _, picture in batch]))
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
