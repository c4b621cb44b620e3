"""PSNR, SSIM and cosines by hand."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tarkit.eval.metrics.similarity import cosines, mean_squared_error, psnr, similarity, ssim

Pixels = NDArray[np.uint8]


def plain(value: int | list[int], height: int = 12, width: int = 13) -> Pixels:
    return np.broadcast_to(np.array(value, np.uint8), (height, width, 3)).copy()


def noise(seed: int, height: int = 16, width: int = 14) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_difference_of_one_everywhere_is_48_decibels() -> None:
    # error 1: 10 log10(255^2) = 20 log10 255 = 48.1308; of 255 - 0 it is 0 dB. Bytes must not wrap
    # around: 0 - 1 is 255 in uint8
    assert mean_squared_error(plain(0), plain(1)) == 1
    assert psnr(1) == pytest.approx(48.1308, abs=5e-5)
    assert psnr(mean_squared_error(plain(0), plain(255))) == 0


def test_the_error_is_of_all_values() -> None:
    # one of 12 x 13 x 3 = 468 values differs, by 6: 36 / 468
    other = plain(9)
    other[3, 4, 1] = 15
    assert mean_squared_error(plain(9), other) == pytest.approx(36 / 468)


def test_a_picture_is_like_itself() -> None:
    picture = noise(0)
    assert ssim(picture, picture) == pytest.approx(1, abs=1e-12)
    assert psnr(mean_squared_error(picture, picture)) == math.inf


def test_plain_pictures_differ_in_luminance_alone() -> None:
    # without variance the second factor is C2 / C2 = 1: (2ab + C1) / (a^2 + b^2 + C1), with
    # C1 = (.01 x 255)^2 = 6.5025. a = 100, b = 150: 30006.5025 / 32506.5025 = .923092
    assert ssim(plain(100), plain(150)) == pytest.approx(30006.5025 / 32506.5025, abs=1e-9)
    # channels are judged one by one: two alike, one of 0 and 255 at C1 / (255^2 + C1)
    found = ssim(plain([0, 7, 7]), plain([255, 7, 7]))
    assert found == pytest.approx((2 + 6.5025 / (255**2 + 6.5025)) / 3, abs=1e-9)


def windows_by_loop(a: Pixels, b: Pixels) -> float:
    """SSIM as its paper writes it, window by window, with the two-dimensional Gaussian."""
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = 6.5025, 58.5225  # (.01 x 255)^2 and (.03 x 255)^2
    found = []
    for channel in range(3):
        for top in range(a.shape[0] - 10):
            for left in range(a.shape[1] - 10):
                p = a[top : top + 11, left : left + 11, channel].astype(float)
                q = b[top : top + 11, left : left + 11, channel].astype(float)
                mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
                variance_p = (weights * (p - mean_p) ** 2).sum()
                variance_q = (weights * (q - mean_q) ** 2).sum()
                covariance = (weights * (p - mean_p) * (q - mean_q)).sum()
                found.append(
                    (2 * mean_p * mean_q + c1)
                    * (2 * covariance + c2)
                    / (mean_p**2 + mean_q**2 + c1)
                    / (variance_p + variance_q + c2)
                )
    # valid windows only: of 16 x 14 pixels 6 x 4, in 3 channels
    assert len(found) == 72
    return float(np.mean(found))


def test_ssim_is_its_formula_window_by_window() -> None:
    first = noise(0)
    second = (first.astype(int) + noise(1)) // 2
    expected = windows_by_loop(first, second.astype(np.uint8))
    assert 0.1 < expected < 0.9
    assert ssim(first, second.astype(np.uint8)) == pytest.approx(expected, abs=1e-12)


def test_a_negative_is_unlike() -> None:
    assert ssim(noise(0), 255 - noise(0)) < -0.5


def test_the_summary_leaves_identical_pairs_out_of_the_mean_only() -> None:
    # errors 0, 1 and 100: PSNR of their mean 101 / 3; own PSNRs inf, 48.1308 and 28.1308, of which
    # the finite have the mean 38.1308; SSIMs 1, .5, .3 have the mean .6
    found = similarity([0.0, 1.0, 100.0], [1.0, 0.5, 0.3])
    assert found.psnr == pytest.approx(10 * math.log10(255**2 * 3 / 101))
    assert found.psnr_mean == pytest.approx(38.1308, abs=5e-5)
    assert found.num_identical == 1
    assert found.ssim == pytest.approx(0.6)


def test_the_summary_of_identical_pairs_is_infinite() -> None:
    found = similarity([0.0, 0.0], [1.0, 1.0])
    assert found.psnr == math.inf
    assert math.isnan(found.psnr_mean)
    assert found.num_identical == 2


def test_cosines_are_of_rows() -> None:
    # (3, 4) . (4, 3) / 25 = .96; opposite; at a right angle
    first = np.array([[3, 4], [1, 0], [0, 2]], np.float32)
    second = np.array([[4, 3], [-5, 0], [7, 0]], np.float32)
    assert cosines(first, second) == pytest.approx([0.96, -1, 0])
    with pytest.raises(ValueError, match="no direction"):
        cosines(first, second * 0)
    with pytest.raises(ValueError, match="do not form pairs"):
        cosines(first, second[:2])


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (plain(0), plain(0, 12, 12), "do not compare"),
        (plain(0).astype(float), plain(0), "uint8"),
        (plain(0)[..., 0], plain(0)[..., 0], "uint8"),
        (plain(0, 10, 40), plain(0, 10, 40), "a window of 11 px does not fit into 40 x 10"),
    ],
)
def test_other_arrays_are_refused(first: Any, second: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ssim(first, second)
    with pytest.raises(ValueError, match="0 squared errors"):
        similarity([], [])
