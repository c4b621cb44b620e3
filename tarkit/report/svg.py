"""Plots as inline SVG, written by hand: lines with bands or whiskers, bars and deltas.

Colours are classes of the page's style sheet, so a plot follows the page into the dark. A drawing
is 400 units wide, which is about its width in pixels on a phone and in a column on a desktop, so
its text stays readable. Points and bars carry their figures as titles, which browsers show on
hovering. Every function returns markup, with the names in it escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tarkit.report.escaping import escape, shorten

WIDTH = 400
HEIGHT = 230
NUM_COLOURS = 6
MAX_POINTS = 100
LOG_FROM = 30.0
"""The axis is logarithmic if the highest value is at least this many times the lowest."""


@dataclass(frozen=True)
class Series:
    """Points of one line, x ascending; `low` and `high` are its band, or its whiskers."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Bar:
    """A value with its interval and, where it is known, the value of chance."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None


def thinned(series: Series, *, most: int = MAX_POINTS) -> Series:
    """At most `most` points: means of neighbours, with their lowest and highest as the band."""
    count = len(series.x)
    if count <= most:
        return series
    edges = [round(part * count / most) for part in range(most + 1)]
    parts = [slice(*pair) for pair in zip(edges, edges[1:], strict=False)]

    def reduced(values: Sequence[float], reduce: Callable[[Sequence[float]], float]) -> list[float]:
        return [reduce(values[part]) for part in parts]

    return Series(
        series.name,
        reduced(series.x, _mean),
        reduced(series.y, _mean),
        reduced(series.low or series.y, min),
        reduced(series.high or series.y, max),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---- lines --------------------------------------------------------------------------------------


def lines(
    series: Sequence[Series],
    *,
    x_name: str,
    x_ticks: Sequence[float] = (),
    whiskers: bool = False,
    y_name: str = "",
) -> Markup:
    """One line for each series. `x_ticks`, such as N = 1, 2, 4, 8, are drawn at equal distances.

    `whiskers` draws the interval of each point as a stroke, with the series side by side, where
    bands would hide each other. All values must be finite.
    """
    series = [each for each in series if len(each.x)]
    if not series:
        return Markup("")
    ys = [y for each in series for y in (*each.y, *each.low, *each.high)]
    y_axis = _Axis.of(ys, logarithmic=_is_wide(ys))
    left = 14 + 7 * max(len(name) for _, name in y_axis.ticks)
    legend = _legend([each.name for each in series], left=left)
    top = 8 + legend.height
    height = HEIGHT + legend.height
    bottom = height - 38
    places = {x: place for place, x in enumerate(x_ticks)}
    xs = [x for each in series for x in each.x]
    x_axis = _Axis.of(xs, exact=True)
    right = WIDTH - 14

    def across(x: float, number: int) -> float:
        if places:
            dodge = (number - (len(series) - 1) / 2) * 7 if whiskers else 0.0
            return left + (places[x] + 0.5) / len(places) * (right - left) + dodge
        return left + x_axis.share(x) * (right - left)

    def down(y: float) -> float:
        return bottom - y_axis.share(y) * (bottom - top)

    parts = [legend.svg]
    for value, name in y_axis.ticks:
        y = down(value)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 4, name, "soft end"))
    centre = (len(series) - 1) // 2 if len(series) % 2 else 0
    ticks = [(x, _number(x)) for x in x_ticks] if places else x_axis.ticks
    for value, name in ticks:
        x = across(value, centre)
        if places and whiskers and len(series) % 2 == 0:
            x += (len(series) - 1) / 2 * 7
        parts.append(_text(x, bottom + 16, name, "soft mid"))
    parts.append(
        f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>'
    )
    parts.append(_text((left + right) / 2, height - 6, x_name, "soft mid"))
    for number, each in enumerate(series):
        at = [(across(x, number), down(y)) for x, y in zip(each.x, each.y, strict=True)]
        ends = list(zip(each.low, each.high, strict=True))
        if ends and not whiskers:
            upper = [(x, down(high)) for (x, _), (_, high) in zip(at, ends, strict=True)]
            lower = [(x, down(low)) for (x, _), (low, _) in zip(at, ends, strict=True)]
            around = _points([*upper, *reversed(lower)])
            parts.append(f'<polygon class="band f{number % NUM_COLOURS}" points="{around}"/>')
        parts.append(f'<polyline class="line s{number % NUM_COLOURS}" points="{_points(at)}"/>')
        if ends and whiskers:
            parts += [
                f'<line class="line s{number % NUM_COLOURS}" x1="{x:.1f}" x2="{x:.1f}" '
                f'y1="{down(low):.1f}" y2="{down(high):.1f}"/>'
                for (x, _), (low, high) in zip(at, ends, strict=True)
            ]
        if len(at) <= 40:
            parts += _dots(each, at, number)
    name = y_name or ", ".join(each.name for each in series)
    return _svg(height, f"{name} over {x_name}", parts)


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOG_FROM


def _dots(series: Series, at: Sequence[tuple[float, float]], number: int) -> Iterator[str]:
    for place, (x, y) in enumerate(at):
        title = f"{series.name}, {_number(series.x[place])}: {_number(series.y[place])}"
        if series.low:
            title += f" [{_number(series.low[place])}, {_number(series.high[place])}]"
        yield (
            f'<circle class="f{number % NUM_COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">'
            f"<title>{escape(title)}</title></circle>"
        )


@dataclass(frozen=True)
class _Legend:
    svg: str
    height: int


def _legend(names: Sequence[str], *, left: float) -> _Legend:
    """Names with their colours in rows above the plot; empty for a single line."""
    if len(names) < 2:
        return _Legend("", 0)
    parts, x, y = [], left, 12.0
    for number, name in enumerate(names):
        shown = shorten_label(name, 34)
        width = 22 + 6.6 * len(shown)
        if x > left and x + width > WIDTH:
            x, y = left, y + 17
        parts.append(
            f'<rect class="f{number % NUM_COLOURS}" x="{x:.1f}" y="{y - 8:.1f}" width="10" '
            f'height="10" rx="2"/>{_text(x + 15, y + 1, shown, "soft")}'
        )
        x += width + 6
    return _Legend("".join(parts), round(y) + 8)


# ---- bars and deltas ----------------------------------------------------------------------------


def bars(group: Sequence[Bar], *, top: float | None = None) -> Markup:
    """Horizontal bars from 0 to `top`, with whiskers for intervals and a red stroke for chance.

    Without `top` the axis ends at 1.0, or above that where a value does.
    """
    if not group:
        return Markup("")
    highest = max(value for bar in group for value in _values(bar))
    limit = top or (1.0 if highest <= 1 else _Axis.of([0.0, highest]).high)
    left, right, step = _label_width([bar.name for bar in group]), WIDTH - 52, 26
    height = step * len(group) + 26

    def across(value: float) -> float:
        return left + min(1.0, max(0.0, value / limit)) * (right - left)

    parts = _vertical_grid(_Axis.between(0.0, limit), left, right, height)
    for number, bar in enumerate(group):
        y = step * number + 6
        parts.append(_text(left - 8, y + 12, shorten_label(bar.name, 22), "end"))
        title = f"<title>{escape(_bar_text(bar))}</title>"
        parts.append(
            f'<rect class="bar f0" x="{left:.1f}" y="{y}" height="16" rx="2" '
            f'width="{max(0.5, across(bar.value) - left):.1f}">{title}</rect>'
        )
        if bar.low is not None and bar.high is not None:
            parts.append(_whisker(across(bar.low), across(bar.high), y + 8))
        if bar.chance is not None:
            x = across(bar.chance)
            parts.append(
                f'<line class="chance" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2}" y2="{y + 18}"/>'
            )
        parts.append(_text(right + 8, y + 12, _short(bar.value), ""))
    return _svg(height, "; ".join(_bar_text(bar) for bar in group), parts)


def deltas(group: Sequence[Bar]) -> Markup:
    """Differences with their intervals around a line at zero."""
    if not group:
        return Markup("")
    reach = max(abs(value) for bar in group for value in _values(bar)) or 1.0
    axis = _Axis.of([-reach, reach])
    left, right, step = _label_width([bar.name for bar in group]), WIDTH - 58, 26
    height = step * len(group) + 26

    def across(value: float) -> float:
        return left + axis.share(value) * (right - left)

    parts = _vertical_grid(axis, left, right, height, signed=True)
    zero = across(0.0)
    parts.append(f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height - 22}"/>')
    for number, bar in enumerate(group):
        y = step * number + 13
        parts.append(_text(left - 8, y + 4, shorten_label(bar.name, 22), "end"))
        if bar.low is not None and bar.high is not None:
            parts.append(_whisker(across(bar.low), across(bar.high), y))
        parts.append(
            f'<circle class="f0" cx="{across(bar.value):.1f}" cy="{y}" r="4.5">'
            f"<title>{escape(_bar_text(bar))}</title></circle>"
        )
        parts.append(_text(right + 12, y + 4, signed(bar.value), ""))
    return _svg(height, "; ".join(_bar_text(bar) for bar in group), parts)


def signed(value: float) -> str:
    """`+0.120` or `−0.033`, and `0.000` without a sign."""
    text = f"{abs(value):.3f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def shorten_label(text: str, length: int) -> str:
    """At most `length` characters, the last one an ellipsis if the text was cut."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _values(bar: Bar) -> list[float]:
    values = (bar.value, bar.low, bar.high, bar.chance)
    return [value for value in values if value is not None]


def _bar_text(bar: Bar) -> str:
    text = f"{shorten(bar.name, 80)}: {_short(bar.value)}"
    if bar.low is not None and bar.high is not None:
        text += f" [{_short(bar.low)}, {_short(bar.high)}]"
    return text + (f", chance {_short(bar.chance)}" if bar.chance is not None else "")


def _label_width(names: Sequence[str]) -> float:
    return 16 + 7.3 * min(22, max(len(name) for name in names))


def _vertical_grid(
    axis: _Axis, left: float, right: float, height: int, *, signed: bool = False
) -> list[str]:
    """Vertical lines at the ticks, with the values below."""
    parts = []
    for value, name in axis.ticks:
        x = left + axis.share(value) * (right - left)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 22}"/>')
        shown = f"+{name}" if signed and value > 0 else name
        parts.append(_text(x, height - 7, shown, "soft mid"))
    return parts


def _whisker(low: float, high: float, y: float) -> str:
    ends = "".join(f"M{x:.1f} {y - 4}V{y + 4}" for x in (low, high))
    return f'<path class="whisker" d="M{low:.1f} {y}H{high:.1f}{ends}"/>'


# ---- axes and text ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """An axis from `low` to `high`, with the values and names of its ticks."""

    low: float
    high: float
    ticks: list[tuple[float, str]]
    logarithmic: bool = False

    @classmethod
    def of(
        cls, values: Sequence[float], *, logarithmic: bool = False, exact: bool = False
    ) -> _Axis:
        """Wide enough for the values; ends on ticks, or with `exact` on the values themselves."""
        low, high = min(values), max(values)
        if logarithmic:
            return cls._decades(low, high)
        if high - low <= abs(high) * 1e-9:
            room = abs(high) * 0.1 or 1.0
            low, high = low - room, high + room
        step = _step((high - low) / 4)
        if not exact:
            low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        return cls.between(low, high, step=step)

    @classmethod
    def between(cls, low: float, high: float, *, step: float | None = None) -> _Axis:
        step = step or _step((high - low) / 4)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        ticks = [(number * step, _tick(number * step, step)) for number in range(first, last + 1)]
        return cls(low, high, ticks)

    @classmethod
    def _decades(cls, low: float, high: float) -> _Axis:
        first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        every = max(1, (last - first) // 5)
        powers = range(first, last + 1, every)
        ticks = [(10.0**power, _number(10.0**power)) for power in powers]
        return cls(10.0**first, 10.0**last, ticks, logarithmic=True)

    def share(self, value: float) -> float:
        """The position of a value, 0.0 at the low end and 1.0 at the high."""
        if self.logarithmic:
            low, high, value = (math.log10(each) for each in (self.low, self.high, value))
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low)


def _step(least: float) -> float:
    """The lowest of 1, 2, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= least * (1 - 1e-9))


def _tick(value: float, step: float) -> str:
    if abs(value) >= 10_000 or step < 1e-4:
        return _number(value)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{abs(value):.{digits}f}"
    return f"−{text}" if value < 0 and float(text) else text


def _number(value: float) -> str:
    """At most four significant digits: 12k, 0.0125, 3e-05."""
    if value and abs(value) >= 1e6 and not value % 1e5:
        return f"{value / 1e6:g}M"
    if value and abs(value) >= 1e4 and not value % 100:
        return f"{value / 1e3:g}k"
    return f"{value:.4g}"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def _points(at: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in at)


def _text(x: float, y: float, text: str, classes: str) -> str:
    kind = f' class="{classes}"' if classes else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(height: float, label: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
