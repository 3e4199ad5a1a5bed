"""What a solver's table means, in NumPy's float64 and a few lines; and the law of its samples."""

from __future__ import annotations

import numpy as np

from genjax.sampling.paths import Levels
from genjax.sampling.table import NOISE, PAIRS


def rows(table):
    """The level of each call, its three maps, and whether its pair is kept."""
    for i in range(table.calls):
        at = Levels(*(float(a[i]) for a in table.at))
        yield at, (table.point[i], table.anchor[i], table.second[i]), bool(table.keep[i])


def run(predict, table, x, noise=None):
    """The samples from a first point x, with noise of each row [N ...]."""
    point, anchor, second = x, np.zeros_like(x), np.zeros_like(x)
    kept = [np.zeros_like(x)] * (table.point.shape[1] - PAIRS - 2)
    for i, (at, maps, keep) in enumerate(rows(table)):
        pair = predict(point, at)
        known = [pair.x0, pair.epsilon, *kept]
        drawn = np.zeros_like(x) if noise is None else noise[i]
        values = [point, anchor, second, drawn, *known]
        point, anchor, second = (
            sum(c * v for c, v in zip(row, values, strict=True) if c) + np.zeros_like(x)
            for row in maps
        )
        if keep:
            kept = known[: len(kept)]
    return point


def moments(table, mu, s):
    """Mean and variance of an axis of the samples, if data are N(mu, s^2) and the denoiser knows.

    All is affine: mean and covariance of what the loop carries go through it exactly.
    """
    size = 3 + table.point.shape[1] - PAIRS - 2
    mean, covariance = np.zeros(size), np.zeros((size, size))
    covariance[0, 0] = table.start**2
    for at, maps, keep in rows(table):
        total = at.alpha**2 * s**2 + at.sigma**2
        x0 = np.zeros(size + 1)  # coefficients of what is carried, and of 1
        x0[[0, -1]] = at.alpha * s**2 / total, at.sigma**2 / total * mu
        epsilon = np.zeros(size + 1)
        epsilon[[0, -1]] = at.sigma / total, -at.sigma * at.alpha / total * mu
        unit = np.eye(size + 1)
        known = [x0, epsilon, *unit[3:-1]]
        values = [*unit[:3], np.zeros(size + 1), *known]
        new = [sum(c * v for c, v in zip(row, values, strict=True)) for row in maps]
        new = np.stack([*new, *(known[: size - 3] if keep else unit[3:-1])])
        noise = np.zeros(size)
        noise[:3] = [row[NOISE] for row in maps]
        mean = new[:, :-1] @ mean + new[:, -1]
        covariance = new[:, :-1] @ covariance @ new[:, :-1].T + np.outer(noise, noise)
    return mean[0], covariance[0, 0]
