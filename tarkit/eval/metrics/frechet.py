"""Distances of two sets of features: Frechet distance, Inception Score, precision and recall.

Sources: Heusel et al. 2017 (FID), Salimans et al. 2016 (Inception Score), Kynkaanniemi et al. 2019
(improved precision and recall). All in float64; `features.py` makes the features. Figures of
different features, or of different numbers of pictures, cannot be compared.
Letters: n rows (pictures), D features, C classes.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tarkit.errors import UserError

Floats = NDArray[np.float64]

NEIGHBOURS = 3
SPLITS = 10
# An eigenvalue of a covariance may be this share of the largest one below 0: float32 rounding.
MAX_FEATURES = 8192  # of a picture; the largest extractors have 2,048
ROUNDING = 1e-5
REFERENCE_HINT = (
    "np.savez(FILE, mu=x.mean(0), sigma=np.cov(x, rowvar=False)) makes one of features x"
)


class Gaussian(NamedTuple):
    """Mean (D,) and unbiased covariance (D, D); `num_rows` is None where a file does not say."""

    mean: Floats
    covariance: Floats
    num_rows: int | None


class Moments:
    """Mean and covariance of features that come in batches; it holds no more than (D, D) numbers.

    It sums deviations from the running mean (Chan et al. 1979), so that a mean far from 0 costs no
    digits.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def add(self, features: NDArray[Any]) -> None:
        """Add (n, D) features.

        Raises UserError where they are not finite, ValueError for a D other than before.
        """
        rows = _rows(features)
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        scatter = centred.T @ centred
        if not self.count:
            self.count, self._mean, self._scatter = len(rows), mean, scatter
            return
        if mean.shape != self._mean.shape:
            raise ValueError(f"{len(mean)} features a row where there were {len(self._mean)}")
        total = self.count + len(rows)
        step = mean - self._mean
        self._mean = self._mean + step * (len(rows) / total)
        self._scatter += scatter + np.outer(step, step) * (self.count * len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Their mean and unbiased covariance; UserError for fewer than two rows."""
        if self.count < 2:
            raise UserError(
                f"a covariance needs two pictures or more, not {self.count}",
                hint="give more pictures",
            )
        return Gaussian(self._mean.copy(), self._scatter / (self.count - 1), self.count)


class Frechet(NamedTuple):
    """A squared distance, and the numbers of rows behind it (None: unknown)."""

    value: float
    dim: int
    num_reference: int | None
    num_samples: int | None

    @property
    def singular(self) -> bool:
        """Whether a covariance is known to be singular, n <= D, which makes the figure too large.

        For any n the estimate lies above the true distance by about 1 / n, so only figures of
        equal numbers of rows compare.
        """
        known = [n for n in (self.num_reference, self.num_samples) if n is not None]
        return any(n <= self.dim for n in known)


def gaussian_of(features: NDArray[Any]) -> Gaussian:
    """(n, D) features -> mean and unbiased covariance; raises UserError as `Moments` does."""
    moments = Moments()
    moments.add(features)
    return moments.gaussian()


def frechet_distance(reference: Gaussian, samples: Gaussian) -> Frechet:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), FID where the features are Inception's pool_3.

    The last trace is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is
    symmetric, so no root is complex. Eigenvalues that rounding put below 0 count as 0. Where a
    covariance is singular, rounding is about 1e-7 of its trace (2e-3 of 19,000 for 100 rows of
    512), and may put the value below 0 by as much. Raises UserError where the widths differ or a
    matrix is not a covariance.
    """
    (m1, s1, n1), (m2, s2, n2) = reference, samples
    if m1.shape != m2.shape:
        raise UserError(
            f"the reference has {len(m1)} features a picture, the samples have {len(m2)}",
            hint="name the features that the reference was made with",
        )
    _require_covariance("the samples' covariance", np.linalg.eigvalsh(_symmetric(s2)))
    values, vectors = np.linalg.eigh(_symmetric(s1))
    _require_covariance("the reference's covariance", values)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.maximum(np.linalg.eigvalsh(_symmetric(root @ s2 @ root)), 0)
    step = m1 - m2
    value = step @ step + np.trace(s1) + np.trace(s2) - 2 * np.sqrt(product).sum()
    return Frechet(float(value), len(m1), n1, n2)


def read_gaussian(path: Path) -> Gaussian:
    """The `mu` (D,) and `sigma` (D, D) of an npz, as ADM's and pytorch-fid's reference files.

    Such a file records neither the number of pictures nor the kind of features. It is read without
    pickle. Raises UserError where it is damaged, would run code, or holds anything else.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("it is one array, not an npz")
            mean, covariance = (_numbers(stored, name) for name in ("mu", "sigma"))
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"{path} does not hold mu and sigma: {error}", hint=REFERENCE_HINT
        ) from None
    dim = mean.size
    if mean.shape != (dim,) or covariance.shape != (dim, dim) or not dim:
        raise UserError(
            f"{path}: mu {mean.shape} and sigma {covariance.shape} are not (D,) and (D, D)",
            hint=REFERENCE_HINT,
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma holds nan or inf", hint=REFERENCE_HINT)
    if not np.allclose(covariance, covariance.T, rtol=0, atol=ROUNDING * np.abs(covariance).max()):
        raise UserError(f"{path}: sigma is not symmetric", hint=REFERENCE_HINT)
    return Gaussian(mean, covariance, None)


class InceptionScore(NamedTuple):
    """Mean and population standard deviation over splits, each in [1, C]."""

    mean: float
    std: float
    num_splits: int


def softmax(logits: NDArray[Any]) -> Floats:
    """(n, C) logits -> (n, C) probabilities; UserError where they are not finite."""
    rows = _rows(logits)
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def inception_score(probabilities: NDArray[Any], *, splits: int = SPLITS) -> InceptionScore:
    """exp of the mean KL divergence of (n, C) class probabilities from their own mean, by splits.

    Split i holds the rows from i n / splits on, in file order and not shuffled: if the files are
    ordered by class, the order is part of the figure, as in the published programs. Those take the
    logits without their bias. Raises UserError for fewer rows than splits.
    """
    rows = _rows(probabilities)
    if (rows < 0).any() or not np.allclose(rows.sum(axis=1), 1, atol=1e-4):
        raise ValueError("rows of probabilities must sum to 1; give logits through softmax")
    if splits < 1 or len(rows) < splits:
        raise UserError(
            f"{len(rows)} pictures cannot be cut into {splits} splits",
            hint=f"give {max(splits, 1)} pictures or more",
        )
    bounds = [len(rows) * i // splits for i in range(splits + 1)]
    scores = [_score(rows[i:j]) for i, j in zip(bounds[:-1], bounds[1:], strict=True)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), splits)


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1], and the number of neighbours that a ball reaches."""

    precision: float
    recall: float
    neighbours: int


def precision_recall(
    reference: NDArray[Any],
    samples: NDArray[Any],
    *,
    neighbours: int = NEIGHBOURS,
    block: int = 1024,
) -> PrecisionRecall:
    """Improved precision and recall of (n, D) features.

    A set's manifold is the union of balls around its rows. Each ball reaches to the row's
    `neighbours`-th nearest other row, edge included. Precision is the share of samples on the
    reference's manifold; recall is the share of the reference on the samples' manifold, which grows
    with their number. Distances are held `block` x `block` at a time. Raises UserError for too few
    rows.
    """
    real, drawn = _features(reference), _features(samples)
    if real.shape[1] != drawn.shape[1]:
        raise ValueError(f"{real.shape[1]} features a row and {drawn.shape[1]} do not compare")
    for name, rows in (("reference", real), ("samples", drawn)):
        if len(rows) <= neighbours:
            raise UserError(
                f"{len(rows)} pictures of the {name} have no {neighbours} neighbours each",
                hint=f"give {neighbours + 1} pictures or more",
            )
    real_radii = _radii(real, neighbours, block)
    drawn_radii = _radii(drawn, neighbours, block)
    covered, precise = np.zeros(len(real), bool), np.zeros(len(drawn), bool)
    for i in _blocks(len(drawn), block):
        for j in _blocks(len(real), block):
            distances = _squared_distances(drawn[i], real[j])
            precise[i] |= (distances <= real_radii[j]).any(axis=1)
            covered[j] |= (distances <= drawn_radii[i, None]).any(axis=0)
    return PrecisionRecall(float(precise.mean()), float(covered.mean()), neighbours)


def _radii(rows: NDArray[Any], neighbours: int, block: int) -> Floats:
    """(n,) squared distances of rows to their `neighbours`-th nearest other row."""
    radii = np.empty(len(rows))
    for i in _blocks(len(rows), block):
        nearest = np.full((len(rows[i]), neighbours), np.inf)
        for j in _blocks(len(rows), block):
            distances = _squared_distances(rows[i], rows[j])
            if i == j:
                np.fill_diagonal(distances, np.inf)
            both = np.concatenate([nearest, distances], axis=1)
            nearest = np.partition(both, neighbours - 1, axis=1)[:, :neighbours]
        radii[i] = nearest[:, -1]
    return radii


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _squared_distances(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """(n, D), (m, D) -> (n, m) in float64; equal rows have exactly 0, whatever the rounding."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    lengths = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
    distances: Floats = lengths - 2 * (a @ b.T)
    distances[distances < 1e-12 * lengths] = 0
    return distances


def _score(probabilities: Floats) -> float:
    mean = probabilities.mean(axis=0)
    # 0 log 0 is 0; where the mean is 0, so is every row.
    shares = probabilities / np.where(mean > 0, mean, 1)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return float(np.exp((probabilities * logs).sum(axis=1).mean()))


def _features(features: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(features)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"one row of numbers a picture is needed, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UserError(
            f"{int((~np.isfinite(array)).any(axis=1).sum())} of {len(array)} pictures have "
            "features that are nan or inf",
            hint="check the weights that the features come from",
        )
    return array


def _rows(features: NDArray[Any]) -> Floats:
    return np.asarray(_features(features), dtype=np.float64)


def _symmetric(matrix: Floats) -> Floats:
    return (matrix + matrix.T) / 2


def _require_covariance(name: str, eigenvalues: NDArray[Any]) -> None:
    """Raise UserError if the first of ascending eigenvalues is below 0 by more than rounding."""
    if eigenvalues[0] < -ROUNDING * abs(eigenvalues[-1]):
        raise UserError(
            f"{name} has the eigenvalue {eigenvalues[0]:.3g}, so it is not a covariance",
            hint=REFERENCE_HINT,
        )


def _numbers(stored: Any, name: str) -> Floats:
    if name not in stored:
        raise ValueError(f"it holds {', '.join(stored) or 'nothing'} and no {name}")
    with stored.zip.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        one, two = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
        shape = (one if version == (1, 0) else two)(member)[0]
    if math.prod(shape) > MAX_FEATURES**2:
        raise ValueError(f"its {name} is {shape}, of more than {MAX_FEATURES} features")
    array = stored[name]
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"its {name} holds {array.dtype}, not floating-point numbers")
    return np.asarray(array, dtype=np.float64)
