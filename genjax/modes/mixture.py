"""--mode=solvers without a run: solvers on a mixture of Gaussians with known trajectories."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from genjax.config import ConfigError, one_of, require
from genjax.evals.distances import frechet_distance
from genjax.files import place, write_atomic
from genjax.flags import WEIGHTS
from genjax.modes.measured import count_of
from genjax.modes.solvers import (
    CALLS,
    Choice,
    choices,
    numbers,
    samplers_of,
)
from genjax.sampling import grids, mixture, noise, paths, solvers
from genjax.sampling.mixture import Mixture
from genjax.sampling.paths import Path, levels_at
from genjax.sampling.table import Table, alike, solve
from genjax.train_state import seeded_key
from genjax.training import sweep
from genjax.training.sweep import Sweep

NUM = 4096
FINE = 1000  # Runge-Kutta steps of the exact trajectory
ENDS = (-12.0, 12.0)  # first and last lambda of these steps; the mixture is smooth outside


def trajectory(
    m: Mixture, path: Path, start: Float[np.ndarray, "B D"], steps: int = FINE
) -> Float[np.ndarray, "B D"]:
    """The end points x_0 of the probability-flow ODE from the path's noisy end, in float64.

    In y = x / alpha and u = log(sigma / alpha) the ODE is dy/du = e^u epsilon (Song et al. 2021b,
    eq. 13). It is solved by the fourth-order Runge-Kutta method.
    """
    lam = max(float(path.lam(path.last)), ENDS[0])
    first = paths.levels(path, path.last)
    at = levels_at(path, lam)
    pair = mixture.predict(m, np.asarray(start, np.float64), first)
    y = (at.alpha * pair.x0 + at.sigma * pair.epsilon) / at.alpha
    step = (lam - ENDS[1]) / steps

    def slope(y: np.ndarray, lam: float) -> np.ndarray:
        level = levels_at(path, lam)
        epsilon = mixture.predict(m, level.alpha * y, level).epsilon
        return np.exp(-lam) * epsilon

    for i in range(steps):
        begin = lam - i * step
        a = slope(y, begin)
        b = slope(y + 0.5 * step * a, begin - 0.5 * step)
        c = slope(y + 0.5 * step * b, begin - 0.5 * step)
        y = y + step / 6 * (a + 2 * b + 2 * c + slope(y + step * c, begin - step))
    level = levels_at(path, ENDS[1])
    return mixture.predict(m, level.alpha * y, level).x0


def distance(m: Mixture, x: Float[np.ndarray, "B D"]) -> float:
    """The mean over components of the Fréchet distance to the points nearest to each.

    Distances are in units of the component's variance. A component with fewer than three points
    counts as if all of them were at its centre.
    """
    nearest, _ = mixture.nearest(m, x)
    size, total = x.shape[1], 0.0
    for k, centre in enumerate(m.centres):
        points = (x[nearest == k] - centre) / m.deviation
        few = len(points) < 3
        cov = np.zeros((size, size)) if few else np.cov(points, rowvar=False)
        mean = np.zeros(size) if few else points.mean(0)
        total += frechet_distance(mean, cov, np.zeros(size), np.eye(size))
    return total / len(m.centres)


def solvers_of_mixture(flags: argparse.Namespace) -> int:
    """Measures solvers on eight Gaussians on a circle, whose score is exact.

    Writes the table, the charts and a page of both to --output, or to ./solvers.

    Raises:
      ConfigError: a flag needs a run, or has an invalid value.
    """
    name = _path_of(flags)
    path, m, num = paths.make(name), mixture.ring(), count_of(flags, NUM)
    names, calls = samplers_of(flags.samplers), numbers("--calls", flags.calls, int, CALLS, 1)
    spacings = flags.spacings.split(",") if flags.spacings else ["lambda"]

    def table(solver: str, spacing: str, steps: int) -> Table:
        grid = grids.grid(path, grids.times(path, steps, spacing))
        return solvers.SOLVERS[solver].table(path, grid)

    chosen = choices(names, spacings, calls, table)
    tables = alike([choice.table for choice in chosen])
    keys = jax.random.split(jax.random.fold_in(seeded_key(flags.seed or 0), 0), num)

    @partial(jax.jit, static_argnames="stochastic")
    def draw(table: Table, stochastic: bool) -> jax.Array:
        def denoise(x, at, memory):
            return mixture.predict(m, x, at), memory

        return solve(denoise, table, keys, (2,), stochastic=stochastic)

    unit = np.asarray(noise.normals(keys, 0, (2,)), np.float64)
    ends: dict[float, np.ndarray] = {}

    def measured(choice: Choice, table: Table) -> dict[str, Any]:
        stochastic = choice.table.stochastic
        x = np.asarray(draw(table, stochastic), np.float64)
        row = choice.row
        if not stochastic:
            deviation = round(float(table.start), 9)
            if deviation not in ends:
                ends[deviation] = trajectory(m, path, deviation * unit)
            row["error"] = float(np.sqrt(np.mean(np.square(x - ends[deviation]))))
        return row | {"distance": distance(m, x)}

    exact = distance(
        m, np.asarray(mixture.draw(m, jax.random.fold_in(keys[0], 1), num), np.float64)
    )
    blank = Sweep(
        "Solvers on eight Gaussians with their exact score",
        f"{num} samples for each, on the path {name!r}; each component has a standard deviation of "
        f"{m.deviation:g}. The error is the RMS difference to the exact trajectory; solvers that "
        "draw noise have none. The distance is the Fréchet distance between each component and "
        f"the samples nearest to it, in units of its variance; for {num} exact draws it is "
        f"{exact:.3g}.",
        ("solver", "spacing") if len(spacings) > 1 else ("solver",),
        ("calls", "network calls"),
        {"error": "error, RMS", "distance": "Fréchet distance of the components"},
        ("solver", "spacing", "steps", "calls", "error", "distance"),
    )
    folder = place(flags.output or "solvers", "--output")
    rows = [partial(measured, *pair) for pair in zip(chosen, tables, strict=True)]
    whole = sweep.measure(blank, folder, "solvers", rows, not jax.process_index())
    if not jax.process_index():
        write_atomic(folder / "solvers.html", sweep.page(whole).encode())
        print(f"exact draws have a distance of {exact:.3g}; wrote {folder / 'solvers.html'}")
    return 0


def _path_of(flags: argparse.Namespace) -> str:
    """The name given by --path, or "cosine"."""
    for name, texts in flags.options.items():
        if name != "path" or len(texts) > 1:
            raise ConfigError(
                f"--{name}={texts[0]}: --mode=solvers without a run takes one --path, --samplers, "
                "--calls, --spacings, --num, --seed and --output. Options of a method need a "
                "run: give --workdir."
            )
    for name in (*WEIGHTS, "checkpoint"):
        require(not getattr(flags, name), f"--{name}", getattr(flags, name), "a --workdir too")
    path = flags.options.get("path", ["cosine"])[0]
    one_of("--path", path, paths.NAMES)
    if flags.overrides:
        raise ConfigError(
            f"--config.{next(iter(flags.overrides))}: there is no config without a run. Give "
            "--workdir, or leave out this flag."
        )
    return path
