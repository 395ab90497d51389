"""Small charts as inline SVG text: lines, points, horizontal bars. No script, no font, no file from anywhere else.

Sizes are in units of a 440-wide view box, chosen so that a chart fills a phone and stands two abreast on a desk; the page
scales it. Colours and line styles come from the page's style sheet through the classes `c0`...`c5` (see `page`), which has a
light and a dark set; every series also differs by marker and dash, so no reader depends on colour. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

WIDTH = 440
SMALL = 320
COLOURS = 6
_FONT = 12.5
_CHARACTER = 0.56 * _FONT
_PADDING = 6.0


@dataclass(frozen=True)
class Series:
    """A line: points in order of x, an optional band between low and high, a colour slot 0..5."""

    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Point:
    """A labelled point with a vertical interval."""

    name: str
    colour: int
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """A horizontal bar, the text that is shown after it, and whether it is drawn faint."""

    name: str
    value: float
    text: str
    colour: int = 0
    faint: bool = False


@dataclass(frozen=True)
class _Frame:
    """The plotting area in view box units and the data ranges it shows."""

    left: float
    top: float
    right: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / ((self.x_high - self.x_low) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y_low) / ((self.y_high - self.y_low) or 1.0) * (self.bottom - self.top)


def line_chart(
    description: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str, str]] = (),
    zero: bool = True,
    markers: bool = True,
    width: float = WIDTH,
) -> str:
    """Return a line chart with every line named at its end.

    Args:
        description: what the chart shows, for those who cannot see it.
        series: at least one, each with at least one point.
        x_label, y_label: axis titles.
        x_ticks: (position, label, small second line); none means round numbers.
        zero: the y axis begins at 0.
        markers: a marker at every point; leave out for dense lines.
        width: of the view box; `SMALL` for charts that stand three abreast.
    """
    names = [_shortened(each.name, 17) for each in series]
    label_width = max(len(name) for name in names) * _CHARACTER + 12 if len(series) > 1 else 10
    xs = [value for each in series for value in each.x]
    ys = [value for each in series for value in (*each.y, *each.low, *each.high)]
    y_ticks = round_ticks(min(0.0, *ys) if zero else min(ys), max(ys))
    bottom = 214.0 if any(second for _, _, second in x_ticks) else 226.0
    left = _axis_width(y_ticks)
    frame = _Frame(left, 24, width - label_width - _PADDING, bottom, min(xs), max(xs), y_ticks[0], y_ticks[-1])
    ticks = list(x_ticks) or [(tick, number_text(tick), "") for tick in round_ticks(min(xs), max(xs), 5, inside=True)]
    parts = [_y_axis(frame, y_ticks, y_label), _x_axis(frame, ticks, x_label, 266)]
    parts += [_band(frame, each) for each in series if each.low]
    for number, each in enumerate(series):
        points = [(frame.x(x), frame.y(y)) for x, y in zip(each.x, each.y, strict=True)]
        path = " ".join(f"{'L' if place else 'M'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(points))
        parts.append(f'<path class="line c{each.colour} d{number % 4}" d="{path}"/>')
        if markers:
            parts += [
                _marker(number, x, y, each.colour, f"{each.name}: {number_text(value)} at {label}")
                for (x, y), value, label in zip(points, each.y, _labels_at(each.x, ticks), strict=True)
            ]
    if len(series) > 1:
        ends = [frame.y(each.y[-1]) for each in series]
        for each, name, end, place in zip(series, names, ends, _spread(ends, 15, frame.top, frame.bottom), strict=True):
            x = frame.x(each.x[-1])
            if abs(place - end) > 3 or frame.right - x > 1:
                parts.append(f'<path class="leader" d="M{x + 4:.1f} {end:.1f}L{frame.right + 8:.1f} {place:.1f}"/>')
            parts.append(_text(frame.right + 11, place + 4, name, f"name c{each.colour}", full=each.name))
    return _svg(description, 270, parts, width)


def scatter_chart(
    description: str,
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    front: Sequence[str] | None = None,
    joined: Sequence[str] = (),
) -> str:
    """Return a chart of named points with vertical intervals; the x axis begins at 0, and so does the y axis.

    The x axis is logarithmic, and says so, when no value is (nearly) 0 and they span more than a factor of 5. With a
    `front`, names of points by ascending x, these are joined by a line of steps and only they are named and have their
    interval drawn; the y axis then begins near the lowest point, for small differences among many points. `joined` draws
    such a line and leaves all else as it is.
    """
    lowest, highest = min(point.x for point in points), max(point.x for point in points)
    if lowest > 1e-6 and highest > 5 * lowest:
        scaled = [replace(point, x=math.log10(point.x)) for point in points]
        ticks = [(math.log10(tick), number_text(tick), "") for tick in _logarithmic_ticks(lowest, highest)]
        x_label = f"{x_label} (log scale)"
    else:
        scaled = list(points)
        ticks = [(tick, number_text(tick), "") for tick in round_ticks(0.0, highest * 1.04)]
    return _scatter(description, points, scaled, ticks, x_label, y_label, front, joined)


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, from the last at or below `low` to the first at or above `high`."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    first = max(place for place, tick in enumerate(ticks) if tick <= low * 0.97)
    last = min(place for place, tick in enumerate(ticks) if tick >= high * 1.03)
    return ticks[first : last + 1]


def _scatter(
    description: str,
    points: Sequence[Point],
    scaled: Sequence[Point],
    x_ticks: Sequence[tuple[float, str, str]],
    x_label: str,
    y_label: str,
    front: Sequence[str] | None,
    joined: Sequence[str],
) -> str:
    named = [point for point in scaled if front is None or point.name in front]
    lowest = 0.0 if front is None else min(*(point.y for point in points), *(point.low for point in named))
    y_ticks = round_ticks(lowest, max(point.high for point in named) if named else max(point.y for point in points))
    frame = _Frame(_axis_width(y_ticks), 24, WIDTH - 14, 226, x_ticks[0][0], x_ticks[-1][0], y_ticks[0], y_ticks[-1])
    parts = [
        _y_axis(frame, y_ticks, y_label),
        _x_axis(frame, x_ticks, x_label, 266),
    ]
    if line := front or joined:
        steps = [next(point for point in scaled if point.name == name) for name in line]
        parts.append(_steps(frame, steps, f"line c{steps[0].colour}" if front else "front"))
    for point in named:
        x = frame.x(point.x)
        parts.append(
            f'<path class="whisker c{point.colour}" d="M{x:.1f} {frame.y(point.low):.1f}V{frame.y(point.high):.1f}"/>'
        )
    for point, place in zip(points, scaled, strict=True):
        label = f"{point.name}: {number_text(point.y)} at {number_text(point.x)}"
        parts.append(_marker(point.colour, frame.x(place.x), frame.y(place.y), point.colour, label, size=5.5))
    parts += _point_labels(frame, named)
    return _svg(description, 270, parts)


def _steps(frame: _Frame, points: Sequence[Point], style: str) -> str:
    """Return what is reachable at each cost: level from every point to the next, then up."""
    path = f"M{frame.x(points[0].x):.1f} {frame.y(points[0].y):.1f}"
    path += "".join(f"H{frame.x(point.x):.1f}V{frame.y(point.y):.1f}" for point in points[1:])
    return f'<path class="{style}" d="{path}H{frame.right:.1f}"/>'


def bar_chart(description: str, bars: Sequence[Bar]) -> str:
    """Return horizontal bars from 0, each with its name on the left and its text after it."""
    names = [_shortened(bar.name, 22) for bar in bars]
    left = max(len(name) for name in names) * _CHARACTER + 10
    room = max(len(bar.text) for bar in bars) * _CHARACTER + 14
    highest = max((bar.value for bar in bars), default=0.0) or 1.0
    parts = []
    for row, (bar, name) in enumerate(zip(bars, names, strict=True)):
        y = 6 + row * 26
        length = max(0.0, bar.value) / highest * (WIDTH - left - room)
        faint = " faint" if bar.faint else ""
        parts.append(_text(left - 8, y + 14, name, "tick", anchor="end", full=bar.name))
        if length > 0:
            parts.append(
                f'<rect class="bar c{bar.colour}{faint}" x="{left:.1f}" y="{y}" width="{max(1.5, length):.1f}" '
                'height="18" rx="2"/>'
            )
        parts.append(_text(left + length + 7, y + 14, bar.text, "value"))
    return _svg(description, 26 * len(bars) + 8, parts)


def round_ticks(low: float, high: float, count: int = 5, inside: bool = False) -> list[float]:
    """Return about `count` ticks at multiples of 1, 2 or 5 times a power of ten.

    They enclose [low, high] (first <= low, last >= high), or lie inside it when `inside` is true.
    """
    if not high - low > max(1e-12 * abs(low), 1e-100):  # nothing to tell apart
        high = low + (abs(low) if abs(low) > 1e-100 else 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9) if inside else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if inside else math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def number_text(value: float) -> str:
    """Return a number as axes and tooltips show it: three significant digits, thousands as k, no needless zeros."""
    if value == 0:
        return "0"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if suffix == "k" else 1):
            return f"{value / size:.3g}{suffix}"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.4g}" if abs(value) >= 100 else f"{value:.3g}"


def _svg(description: str, height: float, parts: Iterable[str], width: float = WIDTH) -> str:
    label = escape(description, quote=True)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, style: str, anchor: str = "start", full: str = "") -> str:
    tip = f"<title>{escape(full)}</title>" if full and full != text else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}{tip}</text>'


def _axis_width(ticks: Sequence[float]) -> float:
    return max(len(number_text(tick)) for tick in ticks) * _CHARACTER + 12


def _y_axis(frame: _Frame, ticks: Sequence[float], label: str) -> str:
    lines = "".join(f'<path class="grid" d="M{frame.left:.1f} {frame.y(tick):.1f}H{frame.right:.1f}"/>' for tick in ticks)
    texts = "".join(_text(frame.left - 7, frame.y(tick) + 4, number_text(tick), "tick", "end") for tick in ticks)
    return lines + texts + _text(2, 11, label, "axis")


def _x_axis(frame: _Frame, ticks: Sequence[tuple[float, str, str]], label: str, y: float) -> str:
    widest = max(max(len(text), len(second) * 0.9) for _, text, second in ticks) * _CHARACTER + 6
    step = max(1, math.ceil(widest * (len(ticks) - 1) / max(1.0, frame.right - frame.left)))
    parts = [f'<path class="base" d="M{frame.left:.1f} {frame.bottom:.1f}H{frame.right:.1f}"/>']
    for position, text, second in list(ticks)[::step]:
        parts.append(_text(frame.x(position), frame.bottom + 16, text, "tick", "middle"))
        if second:
            parts.append(_text(frame.x(position), frame.bottom + 30, second, "small", "middle"))
    parts.append(_text((frame.left + frame.right) / 2, y, label, "axis", "middle"))
    return "".join(parts)


def _labels_at(xs: Sequence[float], ticks: Sequence[tuple[float, str, str]]) -> list[str]:
    named = {position: text for position, text, _ in ticks}
    return [named.get(x, number_text(x)) for x in xs]


def _band(frame: _Frame, series: Series) -> str:
    upper = [f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in zip(series.x, series.high, strict=True)]
    lower = [f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in zip(series.x, series.low, strict=True)]
    return f'<path class="band c{series.colour}" d="M{" L".join(upper + lower[::-1])}Z"/>'


def _marker(shape: int, x: float, y: float, colour: int, label: str, size: float = 3.6) -> str:
    r, d = size, 1.3 * size
    outlines: tuple[Callable[[], str], ...] = (
        lambda: f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
        lambda: f"M{x - r * 0.9:.1f} {y - r * 0.9:.1f}h{r * 1.8:.2f}v{r * 1.8:.2f}h{-r * 1.8:.2f}Z",
        lambda: f"M{x:.1f} {y - r * 1.2:.1f}l{r * 1.2:.2f} {r * 2.1:.2f}h{-r * 2.4:.2f}Z",
        lambda: f"M{x:.1f} {y - d:.1f}l{d:.2f} {d:.2f}l{-d:.2f} {d:.2f}l{-d:.2f} {-d:.2f}Z",
    )
    return f'<path class="marker c{colour}" d="{outlines[shape % 4]()}"><title>{escape(label)}</title></path>'


def _spread(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Return places near the wanted ones, in their order, at least `distance` apart and inside [low, high] if they fit."""
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    places = [wanted[number] for number in order]
    for position in range(1, len(places)):
        places[position] = max(places[position], places[position - 1] + distance)
    places[-1] = min(places[-1], high)
    for position in range(len(places) - 2, -1, -1):
        places[position] = min(places[position], places[position + 1] - distance)
    shift = max(0.0, low - places[0])
    result = [0.0] * len(wanted)
    for number, place in zip(order, places, strict=True):
        result[number] = place + shift
    return result


def _point_labels(frame: _Frame, points: Sequence[Point]) -> list[str]:
    """Return the points' names, each where it covers the least of other names, points and the border."""
    obstacles = [
        (frame.x(point.x) - 6, frame.y(point.y) - 6, frame.x(point.x) + 6, frame.y(point.y) + 6) for point in points
    ]
    parts = []
    for point in sorted(points, key=lambda each: -each.y):
        name = _shortened(point.name, 24)
        width = len(name) * _CHARACTER
        x, y = frame.x(point.x), frame.y(point.y)
        boxes = [
            (left, y + shift - 7, left + width, y + shift + 7)
            for shift in (0, -13, 13, -26, 26, -39, 39)
            for left in (x + 10, x - 10 - width, x - width / 2)
            if not (shift == 0 and left == x - width / 2)
        ]
        box = min(
            boxes,
            key=lambda each: (_outside(each, frame) + sum(_shared(each, other) for other in obstacles), boxes.index(each)),
        )
        obstacles.append(box)
        if abs((box[1] + box[3]) / 2 - y) > 20:
            parts.append(
                f'<path class="leader" d="M{x:.1f} {y:.1f}L{min(max(x, box[0]), box[2]):.1f} {(box[1] + box[3]) / 2:.1f}"/>'
            )
        parts.append(_text(box[0], box[3] - 3, name, f"name c{point.colour}", full=point.name))
    return parts


_Box = tuple[float, float, float, float]


def _shared(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: _Box, frame: _Frame) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return 3 * (area - _shared(box, (frame.left, frame.top - 6, WIDTH - 2, frame.bottom)))


def _shortened(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
