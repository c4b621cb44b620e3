"""Plots: where values stand, in drawing units, by hand."""

import re

import pytest

from tarkit.report.svg import Bar, Series, bars, deltas, lines, signed, thinned
from tests.report.sample_runs import Reader


def numbers(svg: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, svg)]


def test_a_bar_is_as_long_as_its_value() -> None:
    svg = bars([Bar("half", 0.5), Bar("full", 1.0), Bar("none", 0.0)])
    half, full, none = numbers(svg, r'<rect class="bar f0"[^>]* width="([\d.]+)"')
    assert half == pytest.approx(full / 2, abs=0.06)
    assert none == 0.5  # a hair, so that it is seen that there is a bar


def test_whiskers_and_chance_stand_at_their_values() -> None:
    svg = bars([Bar("a", 0.5, low=0.25, high=0.75, chance=0.125), Bar("b", 1.0)])
    left = numbers(svg, r'<rect class="bar f0" x="([\d.]+)"')[0]
    full = numbers(svg, r'<rect class="bar f0"[^>]* width="([\d.]+)"')[1]
    low, high = re.findall(r'<path class="whisker" d="M([\d.]+) \d+H([\d.]+)', svg)[0]
    assert float(low) == pytest.approx(left + full / 4, abs=0.1)
    assert float(high) == pytest.approx(left + full * 3 / 4, abs=0.1)
    chance = numbers(svg, r'<line class="chance" x1="([\d.]+)"')
    assert chance == [pytest.approx(left + full / 8, abs=0.1)]
    assert "a: 0.500 [0.250, 0.750], chance 0.125" in svg


def test_an_axis_ends_on_a_round_number_above_the_bars() -> None:
    svg = bars([Bar("a", 1560), Bar("b", 773)])
    # a quarter of 1560 is 390, the next of 1, 2, 5 is 500: ticks 0 to 2000
    ticks = re.findall(r'<text class="soft mid"[^>]*>([^<]*)<', svg)
    assert ticks == ["0", "500", "1000", "1500", "2000"]


def test_deltas_stand_on_both_sides_of_zero() -> None:
    svg = deltas([Bar("up", 0.25, 0.125, 0.375), Bar("down", -0.25, -0.375, -0.125)])
    up, down = numbers(svg, r'<circle[^>]* cx="([\d.]+)"')
    zero = numbers(svg, r'<line class="axis" x1="([\d.]+)"')[0]
    assert up - zero == pytest.approx(zero - down, abs=0.11)
    assert up > zero
    assert "+0.250" in svg and "−0.250" in svg
    assert "0.000" in deltas([Bar("none", 0.0, 0.0, 0.0)])


def test_signs() -> None:
    assert [signed(value) for value in (0.5, -0.5, 0.0, -0.0002)] == [
        "+0.500",
        "−0.500",
        "0.000",
        "0.000",
    ]


def test_a_line_goes_through_its_points() -> None:
    svg = lines([Series("loss", [0, 50, 100], [0, 1, 2])], x_name="step")
    points = re.findall(r'<polyline[^>]* points="([^"]*)"', svg)[0].split()
    (x0, y0), (x1, y1), (x2, y2) = ([float(v) for v in point.split(",")] for point in points)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11) and y0 > y2  # upwards on the screen


def test_a_wide_range_of_positive_values_is_logarithmic() -> None:
    svg = lines([Series("loss", [1, 2, 3], [100, 1, 0.01])], x_name="step")
    points = re.findall(r'<polyline[^>]* points="([^"]*)"', svg)[0].split()
    y0, y1, y2 = (float(point.split(",")[1]) for point in points)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.11)  # two decades each
    ticks = re.findall(r'<text class="soft end"[^>]*>([^<]*)<', svg)
    assert ticks == ["0.01", "0.1", "1", "10", "100"]


def test_numbers_of_candidates_stand_apart_evenly() -> None:
    series = [
        Series(name, [1, 2, 8], [0.5] * 3, [0.25] * 3, [0.75] * 3) for name in ("one", "other")
    ]
    svg = lines(series, x_name="N", x_ticks=[1, 2, 8], whiskers=True)
    first, second = (
        [float(point.split(",")[0]) for point in each.split()]
        for each in re.findall(r'<polyline[^>]* points="([^"]*)"', svg)
    )
    assert first[1] - first[0] == pytest.approx(first[2] - first[1], abs=0.11)
    assert [b - a for a, b in zip(first, second, strict=True)] == [pytest.approx(7, abs=0.11)] * 3
    # The figures below stand between the two lines.
    below = numbers(svg, r'<text class="soft mid" x="([\d.]+)"')[:3]
    assert below[0] == pytest.approx((first[0] + second[0]) / 2, abs=0.11)
    assert svg.count("[0.25, 0.75]</title>") == 6


def test_many_points_become_means_with_their_range() -> None:
    # 1000 points in 100 parts of 10: the first holds 0 .. 9, mean 4.5
    found = thinned(Series("a", list(range(1000)), list(range(1000))), most=100)
    assert len(found.x) == 100
    assert (found.x[0], found.y[0], found.low[0], found.high[0]) == (4.5, 4.5, 0, 9)
    assert (found.y[-1], found.high[-1]) == (994.5, 999)
    few = Series("a", [1.0], [2.0])
    assert thinned(few, most=100) is few


def test_odd_values_are_drawn_all_the_same() -> None:
    for series in (
        [Series("one", [5], [3])],
        [Series("flat", [1, 2], [0, 0])],
        [Series("tiny", [1, 2], [1e-30, 2e-30])],
        [Series("huge", [1, 1e12], [-1e300, 1e300])],
        [Series("same", [1, 1], [7.5, 7.5])],
        [Series("", [], [])],
    ):
        assert not Reader(lines(series, x_name="step")).faults
        assert "nan" not in lines(series, x_name="step")
    assert bars([]) == deltas([]) == lines([], x_name="step") == ""
    assert "nan" not in bars([Bar("a", 0.0), Bar("b", 0.0)], top=None)
    assert "nan" not in bars([Bar("a", 1e308), Bar("b", 5e-324)])


def test_names_are_escaped_and_cut() -> None:
    svg = bars([Bar("<script>" + "x" * 60, 0.5), Bar("b", 0.5)])
    assert not Reader(svg).faults
    assert "<script" not in svg
    assert f"&lt;script&gt;{'x' * 13}…</text>" in svg  # 21 characters and what tells of the rest
