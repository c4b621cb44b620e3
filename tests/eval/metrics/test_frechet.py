"""Distances of sets of features, by hand, against closed forms and against a plain matrix root."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tarkit.errors import UserError
from tarkit.eval.metrics.frechet import (
    Gaussian,
    Moments,
    frechet_distance,
    gaussian_of,
    inception_score,
    precision_recall,
    read_gaussian,
    softmax,
)

Floats = NDArray[np.float64]


def gaussian(mean: list[float], covariance: list[list[float]]) -> Gaussian:
    return Gaussian(np.array(mean), np.array(covariance), None)


def features(num: int, dim: int, *, seed: int = 0) -> Floats:
    """Rows of a skewed cloud: neither its mean is 0 nor its covariance diagonal."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)


# - Frechet distance -


def test_two_gaussians_on_a_line() -> None:
    # (m1 - m2)^2 + (s1 - s2)^2 = (1 - 4)^2 + (2 - 3)^2 = 10; variances are 4 and 9
    found = frechet_distance(gaussian([1], [[4]]), gaussian([4], [[9]]))
    assert found.value == pytest.approx(10, abs=1e-12)


def test_diagonal_gaussians_add_up_over_their_axes() -> None:
    # axis 1: 3^2 + (2 - 3)^2 = 10; axis 2: 0 + (1 - 5)^2 = 16
    first, second = gaussian([1, 7], [[4, 0], [0, 1]]), gaussian([4, 7], [[9, 0], [0, 25]])
    assert frechet_distance(first, second).value == pytest.approx(26, abs=1e-12)


def test_rotating_both_gaussians_changes_nothing() -> None:
    # the same 26 as above, off the axes by 30 degrees: the roots must be the matrices' own
    turn = np.array([[np.sqrt(3) / 2, -0.5], [0.5, np.sqrt(3) / 2]])
    first, second = (
        Gaussian(turn @ np.array(mean), turn @ np.diag(variances) @ turn.T, None)
        for mean, variances in (([1.0, 7.0], [4.0, 1.0]), ([4.0, 7.0], [9.0, 25.0]))
    )
    assert frechet_distance(first, second).value == pytest.approx(26, abs=1e-12)


def test_covariances_that_do_not_commute() -> None:
    # For 2 x 2 matrices tr(P^(1/2)) = sqrt(tr P + 2 sqrt(det P)), P = S1 S2.
    # S1 = diag(1, 4), S2 = [[2, 1], [1, 2]]: P = [[2, 1], [4, 8]], tr 10, det 4 * 3 = 12
    # 5 + 4 - 2 sqrt(10 + 2 sqrt 12) = 0.7715276; diagonals alone would give
    # 9 - 2 (sqrt 2 + sqrt 8) = 0.514719
    found = frechet_distance(gaussian([0, 0], [[1, 0], [0, 4]]), gaussian([0, 0], [[2, 1], [1, 2]]))
    expected = 9 - 2 * np.sqrt(10 + 2 * np.sqrt(12))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.value > 0.7


def root_by_newton(matrix: Floats) -> Floats:
    """A square root by Denman and Beavers' iteration, which knows nothing of eigenvalues."""
    root, inverse = matrix, np.eye(len(matrix))
    for _ in range(60):
        root, inverse = (
            (root + np.linalg.inv(inverse)) / 2,
            (inverse + np.linalg.inv(root)) / 2,
        )
    return root


def formula(first: Gaussian, second: Gaussian, root: Floats) -> float:
    step = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(step @ step + traces - 2 * np.trace(root))


def test_random_covariances_as_by_the_root_of_the_plain_product() -> None:
    # the formula as it is written, its root by other means than eigenvalues
    first, second = gaussian_of(features(50, 6, seed=1)), gaussian_of(features(60, 6, seed=2))
    root = root_by_newton(first.covariance @ second.covariance)
    assert np.allclose(root @ root, first.covariance @ second.covariance)
    expected = formula(first, second, root)
    assert expected > 1
    assert frechet_distance(first, second).value == pytest.approx(expected, rel=1e-9)


def test_random_covariances_as_scipy_has_them() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    first, second = gaussian_of(features(90, 20, seed=1)), gaussian_of(features(90, 20, seed=2))
    root = linalg.sqrtm(first.covariance @ second.covariance).real
    expected = formula(first, second, root)
    assert frechet_distance(first, second).value == pytest.approx(expected, rel=1e-6)


def test_a_set_is_no_distance_from_itself_even_where_its_covariance_is_singular() -> None:
    # 200 rows of 32 features: regular, rounding only. 20 rows: rank 19, and the 13 eigenvalues that
    # should be 0 are about 1e-16 of the largest, their roots 1e-8: 1e-7 of the trace together.
    for num, rounding in ((200, 1e-12), (20, 1e-6)):
        own = gaussian_of(features(num, 32))
        assert abs(frechet_distance(own, own).value) < rounding * np.trace(own.covariance)


def test_covariances_of_disjoint_support_have_no_common_part() -> None:
    # S1 S2 = 0: the distance is the sum of the traces, 4 + 9
    found = frechet_distance(gaussian([0, 0], [[4, 0], [0, 0]]), gaussian([0, 0], [[0, 0], [0, 9]]))
    assert found.value == pytest.approx(13)


def test_the_result_says_when_rows_are_too_few_for_their_width() -> None:
    # n rows have a covariance of rank n - 1 at most: 8 rows of 8 features are too few, 9 are not
    wide = [gaussian_of(features(num, 8)) for num in (8, 9, 9)]
    assert np.linalg.matrix_rank(wide[0].covariance) == 7
    assert np.linalg.matrix_rank(wide[1].covariance) == 8
    assert frechet_distance(wide[0], wide[1]).singular
    assert frechet_distance(wide[1], wide[0]).singular
    assert not frechet_distance(wide[1], wide[2]).singular
    unknown = wide[1]._replace(num_rows=None)
    assert frechet_distance(unknown, wide[0])[1:] == (8, None, 8)


def test_what_is_no_covariance_is_refused() -> None:
    # eigenvalues of [[1, 2], [2, 1]] are 3 and -1
    good, bad = gaussian([0, 0], [[1, 0], [0, 1]]), gaussian([0, 0], [[1, 2], [2, 1]])
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(UserError, match="has the eigenvalue -1"):
            frechet_distance(*pair)
    with pytest.raises(UserError, match="2 features a picture, the samples have 1"):
        frechet_distance(good, gaussian([0], [[1]]))


# - moments -


def test_moments_by_hand() -> None:
    # rows (0, 0), (2, 4), (4, 2): mean (2, 2); sums of squares 4 + 0 + 4 = 8 and 4 + 4 + 0 = 8, of
    # products 4 + 0 + 0 = 4; divided by 3 - 1
    found = gaussian_of(np.array([[0, 0], [2, 4], [4, 2]]))
    assert found.mean.tolist() == [2, 2]
    assert found.covariance.tolist() == [[4, 2], [2, 4]]
    assert found.num_rows == 3


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("batch", [7, 33, 101])
def test_batches_have_the_moments_of_the_whole(offset: float, batch: int) -> None:
    # at an offset of 1e6 sums of squares keep four digits of a variance of about 1; deviations
    # from a running mean keep nine
    rows = features(101, 5) + offset
    moments = Moments()
    for first in range(0, 101, batch):
        moments.add(rows[first : first + batch])
    mean, covariance, count = moments.gaussian()
    expected = np.cov(rows, rowvar=False)
    assert count == 101
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(covariance, expected, rtol=1e-8, atol=1e-8 * expected.max())


def test_moments_refuse_what_has_none() -> None:
    one = Moments()
    one.add(np.zeros((1, 3)))
    with pytest.raises(UserError, match="two pictures or more, not 1"):
        one.gaussian()
    with pytest.raises(UserError, match="1 of 2 pictures"):
        one.add(np.array([[0, 0, 0], [0, np.nan, np.inf]]))
    with pytest.raises(ValueError, match="2 features a row where there were 3"):
        one.add(np.zeros((1, 2)))
    assert one.count == 1


# - reference files -


def test_a_reference_file_holds_mu_and_sigma(tmp_path: Path) -> None:
    rows = features(40, 4)
    file = tmp_path / "reference.npz"
    np.savez(file, mu=rows.mean(axis=0), sigma=np.cov(rows, rowvar=False), other=np.zeros(3))
    found = read_gaussian(file)
    assert found.num_rows is None
    np.testing.assert_array_equal(found.mean, rows.mean(axis=0))
    assert abs(frechet_distance(found, gaussian_of(rows)).value) < 1e-9


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a reference file was run')",)


def test_a_hostile_reference_is_refused_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "reference.npz"
    np.savez(file, mu=np.array([Bomb()], dtype=object), sigma=np.eye(1))
    with pytest.raises(UserError, match="Object arrays cannot be loaded"):
        read_gaussian(file)
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="does not hold mu and sigma"):
        read_gaussian(file)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mu": np.zeros(2)}, "no sigma"),
        ({}, "it holds nothing"),
        ({"mu": np.zeros(2), "sigma": np.eye(3)}, "are not"),
        ({"mu": np.zeros((1, 2)), "sigma": np.eye(2)}, "are not"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.inf)}, "nan or inf"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, "not symmetric"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "not floating-point"),
    ],
)
def test_a_reference_of_something_else_is_refused(
    tmp_path: Path, arrays: dict[str, Floats], reason: str
) -> None:
    file = tmp_path / "reference.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=reason):
        read_gaussian(file)


def test_a_torn_reference_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "reference.npz"
    np.savez(file, mu=np.zeros(64), sigma=np.eye(64))
    whole = file.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], whole[:400] + b"\1" * 64 + whole[464:]):
        file.write_bytes(torn)
        with pytest.raises(UserError, match="does not hold mu and sigma"):
            read_gaussian(file)
    with pytest.raises(UserError, match="No such file"):
        read_gaussian(tmp_path / "nowhere.npz")


# - Inception Score -


def test_the_score_of_certain_and_even_classes_is_their_number() -> None:
    # each row is sure, the mean is (1/2, 1/2): KL = log 2 for both, exp of which is 2
    assert inception_score(np.eye(2), splits=1)[:2] == pytest.approx((2, 0))


def test_the_score_by_hand() -> None:
    # rows (3/4, 1/4) and (1/4, 3/4), mean (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2 for both
    rows = np.array([[0.75, 0.25], [0.25, 0.75]])
    expected = np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5))  # 1.1398
    assert inception_score(rows, splits=1).mean == pytest.approx(expected, abs=1e-12)
    assert inception_score(softmax(np.log(rows) + 1e4), splits=1).mean == pytest.approx(expected)


def test_equal_rows_score_one() -> None:
    found = inception_score(np.tile([0.2, 0.8, 0.0], (20, 1)))
    assert found == pytest.approx((1, 0, 10))


def test_splits_are_in_file_order() -> None:
    # first half: one class, score 1; second half: two classes, score 2; mean 1.5, std 0.5.
    # Whole: means (3/4, 1/4), KL = 3/4 log 4/3 + 1/4 log 4 = .5623, exp of which is 1.7548
    rows = np.eye(2)[[0, 0, 0, 1]]
    assert inception_score(rows, splits=2) == pytest.approx((1.5, 0.5, 2))
    assert inception_score(rows, splits=1).mean == pytest.approx(4 / 3**0.75)
    # 5 rows in 2 splits: from 0 and from 5 // 2 = 2 on
    uneven = np.eye(2)[[0, 1, 0, 0, 0]]
    assert inception_score(uneven, splits=2).mean == pytest.approx((2 + 1) / 2)


def test_scores_refuse_what_they_cannot_score() -> None:
    with pytest.raises(UserError, match="9 pictures cannot be cut into 10 splits"):
        inception_score(np.full((9, 2), 0.5))
    with pytest.raises(ValueError, match="through softmax"):
        inception_score(np.full((10, 2), 3.0))
    with pytest.raises(UserError, match="nan or inf"):
        softmax(np.array([[0.0, np.inf]]))


# - precision and recall -


def line(*places: float) -> Floats:
    return np.array(places)[:, None]


def test_disjoint_sets_have_neither_precision_nor_recall() -> None:
    found = precision_recall(line(0, 1, 2, 3), line(100, 101, 102, 103, 104))
    assert found == (0, 0, 3)


def test_a_set_has_all_of_itself() -> None:
    rows = features(40, 3)
    assert precision_recall(rows, rows)[:2] == (1, 1)


def test_a_part_is_precise_and_recalls_what_its_balls_reach() -> None:
    # k = 1. Reference 0 1 2 10 11 12: every ball reaches 1. Samples 0 1 2: likewise, on all of the
    # reference's left half (3 of 6) and no further: precision 3/3, recall 3/6.
    found = precision_recall(line(0, 1, 2, 10, 11, 12), line(0, 1, 2), neighbours=1)
    assert found[:2] == (1, 0.5)
    # Exchanged: three of six samples lie on the reference's manifold, and all of it is covered.
    found = precision_recall(line(0, 1, 2), line(0, 1, 2, 10, 11, 12), neighbours=1)
    assert found[:2] == (0.5, 1)


def test_balls_reach_to_the_kth_other_row_edge_included() -> None:
    # k = 2. The second nearest others of 0 1 3 7 are 3, 2, 3 and 6 away: balls [-3, 3], [-1, 3],
    # [0, 6], [1, 13]. Of the samples -3.5 -3 13 14 the middle two lie on their edges: 2 / 4.
    # Of -3 the others are .5, 16 and 17 away: its ball [-19, 13] alone covers the reference.
    found = precision_recall(line(0, 1, 3, 7), line(-3, -3.5, 13, 14), neighbours=2)
    assert found[:2] == (0.5, 1)


def test_more_samples_raise_recall() -> None:
    # samples 0 and 1 with k = 1 reach [-1, 2]: of 0 2 4 6 two, .5; with 4 and 5 more, [3, 6]: all
    reference = line(0, 2, 4, 6)
    few, more = line(0, 1), line(0, 1, 4, 5)
    assert precision_recall(reference, few, neighbours=1).recall == 0.5
    assert precision_recall(reference, more, neighbours=1).recall == 1


def test_blocks_change_nothing() -> None:
    reference, samples = features(57, 4, seed=1), features(43, 4, seed=2)
    whole = precision_recall(reference, samples)
    assert 0 < whole.precision < 1
    assert 0 < whole.recall < 1
    for block in (1, 10, 43):
        assert precision_recall(reference, samples, block=block) == whole


def test_equal_rows_are_at_no_distance_though_rounding_says_otherwise() -> None:
    # All distances and radii are 0, but |a|^2 + |b|^2 - 2 a b is about 1e-16 |a|^2, and another
    # 1e-16 in a block of another shape: of 100 widths some would lose rows to that.
    rng = np.random.default_rng(0)
    for dim in range(200, 300):
        equal = np.tile(30 * rng.normal(size=dim).astype(np.float32), (9, 1))
        assert precision_recall(equal, equal[:5], block=2)[:2] == (1, 1)


def test_too_few_rows_have_no_neighbours() -> None:
    with pytest.raises(UserError, match="3 pictures of the samples have no 3 neighbours"):
        precision_recall(line(0, 1, 2, 3), line(0, 1, 2))


def test_hostile_references_are_refused_before_they_unpack(tmp_path: Path) -> None:
    empty, bomb, pipe = (tmp_path / name for name in ("e.npz", "b.npz", "p.npz"))
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("mu.npy", b"")
        archive.writestr("sigma.npy", b"")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (20_000, 20_000)}
    )
    with zipfile.ZipFile(bomb, "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
        archive.writestr("sigma.npy", header.getvalue())
    os.mkfifo(pipe)
    for file, why in ((empty, "mu and sigma"), (bomb, "more than 8192"), (pipe, "it is no file")):
        with pytest.raises(UserError, match=why):
            read_gaussian(file)
