"""The likelihood of data under a diffusion or flow model, by its probability-flow ODE.

With y = x / alpha and s = sigma / alpha the ODE of every path is dy/ds = epsilon(y, s) (Song et al.
2021b, eq. 13; Karras et al. 2022, eq. 4), and log p(y_min) = log p(y_max) + integral of
div epsilon ds (Chen et al. 2018, eq. 8). It is solved over u = log s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.checks import require
from genjax.sampling.paths import Levels, Path, levels_at

PURE = -8.0  # lambda that counts as pure noise: the data are e^-16 of the variance

# (x, level) -> epsilon, as a denoiser predicts it, without memory.
Epsilon = Callable[[Float[Array, "B ..."], Levels], Float[Array, "B ..."]]


class Likelihood(NamedTuple):
    """Log-likelihoods and how far to trust them, in nats, of each example.

    Attributes:
      log_p: of x at the path's first noise level.
      error: estimated error of the solver, already corrected in log_p; the remaining one is less.
      standard_error: of the divergence's estimate; 0 if it is exact, NaN with one probe.
      latent: x at the path's last level.
    """

    log_p: Float[Array, "B"]
    error: Float[Array, "B"]
    standard_error: Float[Array, "B"]
    latent: Float[Array, "B ..."]


def divergence(
    f: Callable[[Float[Array, "B ..."]], Float[Array, "B ..."]],
    y: Float[Array, "B ..."],
    probes: Float[Array, "K B ..."] | None,
) -> tuple[Float[Array, "B ..."], Float[Array, "K B"]]:
    """f(y) and its divergence: exact, K = 1, or by each of K probes (Grathwohl et al. 2019).

    f must treat examples independently.
    """
    if probes is not None:

        def along(probe: Array) -> tuple[Array, Array]:
            value, slope = jax.jvp(f, (y,), (probe,))
            return value, (probe * slope).reshape(len(y), -1).sum(1)

        values, estimates = jax.lax.map(along, probes)
        return values[0], estimates
    size = math.prod(y.shape[1:])

    def diagonal(total: Array, index: Array) -> tuple[Array, None]:
        unit = jnp.zeros((size,), y.dtype).at[index].set(1.0).reshape(y.shape[1:])
        slope = jax.jvp(f, (y,), (jnp.broadcast_to(unit, y.shape),))[1]
        return total + slope.reshape(len(y), -1)[:, index], None

    total, _ = jax.lax.scan(diagonal, jnp.zeros(len(y)), jnp.arange(size))
    return f(y), total[None]


def log_likelihood(
    epsilon: Epsilon,
    path: Path,
    x: Float[Array, "B ..."],
    *,
    steps: int = 256,
    probes: int = 0,
    key: Array | None = None,
) -> Likelihood:
    """log p(x) by Heun's method: Richardson extrapolation from `steps` and half as many.

    Args:
      epsilon: of the model, (x_t, level) -> epsilon.
      path: of the model.
      x: examples, taken to be at the path's first level.
      steps: an even number; each step takes two calls.
      probes: random directions of +-1 for the divergence. 0 takes every axis, which is exact and
        costs as many calls as x has elements.
      key: draws the probes.

    Returns:
      See `Likelihood`. 8-bit data must be dequantised first; log p is then that of the dequantised
      density (Theis et al. 2016, section 3.1).

    Raises:
      ConfigError: `steps` is odd or below 2.
    """
    require(steps >= 2 and steps % 2 == 0, "steps", steps, "an even number, at least 2")
    first, last = (float(path.lam(t)) for t in (path.first, path.last))
    last = max(last, PURE)
    drawn = None
    if probes:
        drawn = jax.random.rademacher(key, (probes, *x.shape), jnp.float32)
    top = levels_at(path, last)
    deviation = top.sigma if path.scaling == "exploding" else math.hypot(top.alpha, top.sigma)
    deviation = float(deviation / top.alpha)

    def integral(count: int) -> tuple[Float[Array, "B ..."], Float[Array, "K B"]]:
        lam = np.linspace(first, last, count + 1)
        at = Levels(*(jnp.asarray(a, jnp.float32) for a in levels_at(path, lam)))
        step = (first - last) / count

        def slope(y: Array, level: Levels) -> tuple[Array, Array]:
            ratio = level.sigma / level.alpha

            def f(y: Array) -> Array:
                return ratio * epsilon(level.alpha * y, level)

            return divergence(f, y, drawn)

        def advance(carry: tuple, index: Array) -> tuple[tuple, None]:
            y, total = carry
            here, there = (Levels(*(a[index + k] for a in at)) for k in (0, 1))
            dy1, trace1 = slope(y, here)
            dy2, trace2 = slope(y + step * dy1, there)
            return (y + 0.5 * step * (dy1 + dy2), total + 0.5 * step * (trace1 + trace2)), None

        start = (x / jnp.float32(levels_at(path, first).alpha), jnp.zeros((probes or 1, len(x))))
        return jax.lax.scan(advance, start, jnp.arange(count))[0]

    def density(y: Array, traces: Array) -> Float[Array, "B"]:
        size = math.prod(y.shape[1:])
        squares = jnp.square(y / deviation).reshape(len(y), -1).sum(1)
        prior = -0.5 * squares - size * (0.5 * math.log(2 * math.pi) + math.log(deviation))
        # y = x / alpha at both ends: x's density is y's over alpha^size.
        return prior + traces.mean(0) - size * math.log(float(levels_at(path, first).alpha))

    (y, traces), (coarse, coarse_traces) = integral(steps), integral(steps // 2)
    log_p = density(y, traces)
    # Heun's method is of second order: half the steps have four times the error.
    error = (log_p - density(coarse, coarse_traces)) / 3
    standard_error = traces.std(0, ddof=1) / math.sqrt(probes) if probes > 1 else jnp.zeros(len(x))
    if probes == 1:
        standard_error = jnp.full(len(x), jnp.nan)  # unknown with one probe
    latent = jnp.float32(top.alpha) * y
    return Likelihood(log_p + error, error, standard_error, latent)
