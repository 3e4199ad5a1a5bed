"""Curves as a small inline SVG: no library, no network, readable in light and dark.

Colours come from the CSS variables of the page. `data-points` has the numbers of the points, which
the page's script shows under the pointer.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 28
MAX_POINTS = 500
MAX_DOTS = 40
HUES = 10  # colours of curves in one chart, `.hue0` ... of the page; more are dashed
CURVES_HEIGHT = 320
LEGEND_COLUMNS, LEGEND_LINE = 3, 18


def number(value: float | None) -> str:
    """Formats a number: 4 significant digits, thousands grouped, "not finite" for None.

    Args:
      value: any number.

    Returns:
      For example `12,000`, `0.03125`, `1.5e-06`.
    """
    if value is None:
        return "not finite"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.3e}"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], about `count` of them.

    Args:
      low: lower end.
      high: upper end, above `low`.
      count: the number of ticks wanted.

    Returns:
      The ticks in ascending order.
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [
        round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, last + 1)
    ]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [low, high], with 2 and 5 times each when there are few.

    Args:
      low: lower end, above 0.
      high: upper end.

    Returns:
      The ticks in ascending order.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, (last - first) // 6)
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [f * 10.0**p for p in range(first, last + 1, stride) for f in factors]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def smooth(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Moving average over a 25th of the curve, centred except near the end.

    The windows shrink symmetrically towards the start, so that a steep beginning is not
    flattened, and are cut off at the end, so that the last values stay an average.

    Args:
      values: finite numbers.

    Returns:
      As many numbers; the noise of N independent values shrinks by about sqrt(N / 25).
    """
    index = np.arange(len(values))
    before = np.minimum(index, len(values) // 50)
    after = np.minimum(before, len(values) - 1 - index)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + after + 1] - sums[index - before]) / (before + after + 1)


def is_noisy(values: Float[np.ndarray, " N"]) -> bool:
    """Whether the curve's total variation is large for its range, so that smoothing helps."""
    if len(values) < 50:
        return False
    span = np.ptp(np.percentile(values, [2, 98]))
    return bool(span > 0 and np.abs(np.diff(values)).sum() > 6 * span)


def thin(values: Float[np.ndarray, " N"], most: int = MAX_POINTS) -> list[int]:
    """Picks points to draw, keeping the first, the last and every spike.

    Args:
      values: finite numbers.
      most: the approximate maximum number of points to keep.

    Returns:
      Ascending indices: the lowest and the highest of each of `most` / 2 equal stretches.
    """
    if len(values) <= most:
        return list(range(len(values)))
    keep = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), most // 2 - 1):
        keep |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    return sorted(keep)


class _Scale:
    """Maps a curve's steps and values to pixels."""

    def __init__(
        self,
        steps: tuple[float, float],
        values: Float[np.ndarray, " N"],
        *,
        log_above: float = 10.0,
        log_steps: bool = False,
        height: int = HEIGHT,
    ):
        self.first, self.last = steps
        self.log_steps, self.height = log_steps, height
        # A few values that dwarf the rest (the first losses) need a logarithmic axis.
        self.log = bool(values.min() > 0 and values.max() > log_above * np.median(values))
        low, high = float(values.min()), float(values.max())
        if self.log:
            self.low, self.high = low / 1.15, high * 1.15
            self.ticks = log_ticks(self.low, self.high)
        else:
            pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
            self.low = 0.0 if 0 <= low < 0.25 * (high - low) else low - pad
            self.high = high + pad
            self.ticks = nice_ticks(self.low, self.high, 4)

    def x(self, step: float) -> float:
        transform = math.log if self.log_steps else float
        first, last = transform(self.first), transform(self.last)
        share = (transform(step) - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        transform = math.log10 if self.log else float
        share = (transform(value) - transform(self.low)) / (
            transform(self.high) - transform(self.low)
        )
        return round(self.height - BOTTOM - share * (self.height - TOP - BOTTOM), 1)


def _axes(scale: _Scale) -> str:
    parts = []
    for tick in scale.ticks:
        y = scale.y(tick)
        parts.append(f'<path class="rule" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">')
        parts.append(f"{_tick(tick)}</text>")
    wide = scale.last > scale.first
    ticks = log_ticks if scale.log_steps else nice_ticks
    for tick in ticks(scale.first, scale.last) if wide else [scale.first]:
        parts.append(f'<text class="tick" x="{scale.x(tick)}" y="{scale.height - 8}"')
        parts.append(f' text-anchor="middle">{_tick(tick)}</text>')
    bottom = scale.height - BOTTOM
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    return "".join(parts)


def _tick(value: float) -> str:
    """A tick's label: short, `20k` for 20000."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}".replace("e-0", "e-")


def _lines(
    scale: _Scale, steps: Sequence[float], values: Sequence[float | None], picked: set[int]
) -> str:
    """The path through the picked points, broken where a value was not finite."""
    path, pen = [], "M"
    for index, (step, value) in enumerate(zip(steps, values, strict=True)):
        if value is None:
            pen = "M"
        elif index in picked:
            path.append(f"{pen}{scale.x(step)} {scale.y(value)}")
            pen = "L"
    return "".join(path)


def line_chart(name: str, curve: Mapping[int, float | None], steps: tuple[int, int]) -> str:
    """Draws a metric over the training steps.

    A noisy curve is drawn lightly with its moving average over it (geometric on a logarithmic
    axis); the value axis is logarithmic when a few values dwarf the rest; values that were not
    finite are red marks on the step axis.

    Args:
      name: the metric, for screen readers.
      curve: value by step in ascending order; None where it was not finite.
      steps: first and last step of the axis, common to the charts of a page.

    Returns:
      One `<svg>` element.
    """
    at, values = list(curve), list(curve.values())
    finite = [index for index, value in enumerate(values) if value is not None]
    head = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(name)} over training steps"'
    )
    if not finite:
        middle = f'x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle"'
        return f'{head}><text class="bad" {middle}>never finite</text></svg>'
    numbers = np.array([values[index] for index in finite], float)
    scale = _Scale(steps, numbers)
    picked = [finite[index] for index in thin(numbers)]
    noisy = is_noisy(numbers)
    parts = [_axes(scale)]
    parts.append(f'<path class="raw{" faint" if noisy else ""}" d="')
    parts.append(_lines(scale, at, values, set(picked)) + '"/>')
    if noisy:
        average: list[float | None] = [None] * len(values)
        means = np.exp(smooth(np.log(numbers))) if scale.log else smooth(numbers)
        for index, value in zip(finite, means, strict=True):
            average[index] = float(value)
        picked_means = set(finite[:: max(1, len(finite) // (MAX_POINTS // 2))]) | {finite[-1]}
        parts.append(f'<path class="mean" d="{_lines(scale, at, average, picked_means)}"/>')
    if len(picked) <= MAX_DOTS:
        for index in picked:
            spot = f'cx="{scale.x(at[index])}" cy="{scale.y(values[index])}"'
            parts.append(f'<circle class="dot" {spot} r="3"/>')
    lost = [scale.x(at[index]) for index, value in enumerate(values) if value is None]
    marks = "".join(f"M{x} {HEIGHT - BOTTOM}v-8" for x in sorted(set(lost)))
    if marks:
        parts.append(f'<path class="lost" d="{marks}"/>')
    if scale.log:
        parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{TOP + 8}" ')
        parts.append('text-anchor="end">log scale</text>')
    points = [[scale.x(at[i]), scale.y(values[i]), at[i], number(values[i])] for i in picked]
    data = json.dumps(points, separators=(",", ":"))  # numbers only: no quote to escape
    return f"{head} data-points='{data}'>{''.join(parts)}</svg>"


def curves_chart(
    name: str, curves: Mapping[str, Sequence[tuple[float, float | None]]], over: str
) -> str:
    """Draws several curves of one quantity over another, with a legend below.

    The value axis is logarithmic when the highest value is more than three times the median, the
    x axis when it spans more than a factor of three.

    Args:
      name: the quantity, for screen readers.
      curves: by name, the points (x, value) in ascending order of x; None where it was not finite.
        A curve without points is not drawn, but keeps its colour.
      over: the name of x.

    Returns:
      One `<svg>` element.
    """
    labels = [label for label, points in curves.items() if points]
    at = [x for points in curves.values() for x, _ in points]
    numbers = np.array([v for points in curves.values() for _, v in points if v is not None], float)
    legend_top = CURVES_HEIGHT + 24
    height = legend_top + LEGEND_LINE * -(-len(labels) // LEGEND_COLUMNS)
    head = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{html.escape(name)} over {html.escape(over)}"'
    )
    if not len(numbers):
        middle = f'x="{WIDTH / 2}" y="{height / 2}" text-anchor="middle"'
        return f'{head}><text class="bad" {middle}>never finite</text></svg>'
    ends = (min(at), max(at))
    wide = ends[0] > 0 and ends[1] > 3 * ends[0]
    scale = _Scale(ends, numbers, log_above=3.0, log_steps=wide, height=CURVES_HEIGHT)
    parts = [_axes(scale)]
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{CURVES_HEIGHT + 9}" ')
    parts.append(f'text-anchor="middle">{html.escape(over)}</text>')
    shown: list[list] = []
    for index, (label, points) in enumerate(curves.items()):
        if not points:
            continue
        kind = f"hue{index % HUES}" + " dashed" * (index >= HUES)
        steps, values = zip(*points, strict=True)
        lines = _lines(scale, steps, values, set(range(len(points))))
        parts.append(f'<path class="curve {kind}" d="{lines}"/>')
        for x, value in points:
            if value is not None:
                px, py = scale.x(x), scale.y(value)
                parts.append(f'<circle class="spot {kind}" cx="{px}" cy="{py}" r="3"/>')
                shown.append([px, py, x, number(value), f"{label}, {number(x)} {over}"])
        row, column = divmod(labels.index(label), LEGEND_COLUMNS)
        x, y = LEFT + (WIDTH - LEFT) // LEGEND_COLUMNS * column, legend_top + LEGEND_LINE * row
        parts.append(f'<path class="curve {kind}" d="M{x} {y}h18"/>')
        parts.append(f'<text class="tick" x="{x + 24}" y="{y + 4}">{html.escape(label)}</text>')
    if scale.log:
        parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{TOP + 8}" ')
        parts.append('text-anchor="end">log scale</text>')
    data = html.escape(json.dumps(shown, separators=(",", ":")))
    return f"{head} data-points='{data}'>{''.join(parts)}</svg>"
