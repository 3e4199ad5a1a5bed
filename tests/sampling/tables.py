"""Runs a solver's table in float64 on the host, with noise that is given."""

from __future__ import annotations

import numpy as np

from genjax.sampling.paths import Levels
from genjax.sampling.table import ANCHOR, NOISE, PAIRS, POINT, SECOND


def row_of(levels, i):
    """One level of many."""
    return Levels(*(np.float64(a[i]) for a in levels))


def run(table, predict, x, noises=()):
    """The point after each call; `predict(x, level)` gives (x0, epsilon) or, third, a fraction.

    Each row that draws noise takes the next of `noises`.
    """
    point, anchor, second, noises, points = x, 0.0 * x, 0.0 * x, iter(noises), []
    pairs = (table.point.shape[1] - PAIRS) // 2
    kept = [0.0 * x] * (2 * (pairs - 1))
    for i in range(table.calls):
        x0, epsilon, *fraction = predict(point, row_of(table.at, i))
        maps = (table.point[i], table.anchor[i], table.second[i])
        drawn = next(noises) if any(m[NOISE] for m in maps) else 0.0 * x
        if fraction:
            drawn = drawn * np.exp(table.spread[i] * fraction[0])
        known = [x0, epsilon, *kept]
        values = {POINT: point, ANCHOR: anchor, SECOND: second, NOISE: drawn}
        values |= {PAIRS + k: value for k, value in enumerate(known)}
        point, anchor, second = (sum(m[k] * v for k, v in values.items()) for m in maps)
        kept = known[: len(kept)] if table.keep[i] else kept
        points.append(point)
    return points
