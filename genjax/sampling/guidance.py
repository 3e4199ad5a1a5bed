"""Denoisers that wrap denoisers: guidance, and x_0 kept within the data's range.

A denoiser is (x, level, memory) -> (Prediction, memory). `Both` gives two predictions for one
point: a good one, such as that of a network with the label, and a bad one to move away from: that
of the network without the label (Ho & Salimans 2022), or of a worse network with it (Karras et al.
2024b). All strengths may be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from genjax.checks import one_of, require
from genjax.sampling.parametrisation import Prediction, of_x0
from genjax.sampling.paths import Levels, like
from genjax.sampling.table import Denoise

Both = Callable[[Float[Array, "B ..."], Levels], tuple[Prediction, Prediction]]
KINDS = ("linear", "projected", "cfg++")


class Guidance(NamedTuple):
    """How two predictions are combined; numbers, which may be traced.

    Attributes:
      scale: w; 1 gives the good prediction. For "cfg++" it is lambda, from 0 to 1.
      low: least s = sigma / alpha with guidance (Kynkäänniemi et al. 2024); outside, scale is 1.
      high: largest s with guidance.
      rescale: phi, from 0 to 1: how far the standard deviation of each guided x_0 is set back to
        that of the good one (Lin et al. 2024, eq. 15 and 16).
      parallel: eta of "projected": factor of the difference's part along the good x_0.
      radius: r of "projected": the largest norm of the difference.
      momentum: beta of "projected": factor of the running sum of differences, usually below 0.
    """

    scale: Any = 1.0
    low: Any = 0.0
    high: Any = np.inf
    rescale: Any = 0.0
    parallel: Any = 1.0
    radius: Any = np.inf
    momentum: Any = 0.0


def check(kind: str, g: Guidance) -> None:
    """Checks the options of guidance.

    Raises:
      ConfigError: an option is out of range, or has no effect with this kind.
    """
    one_of("guidance_kind", kind, KINDS)
    require(0 <= g.low < g.high, "guidance_interval", (g.low, g.high), "0 <= low < high")
    require(0 <= g.rescale <= 1, "guidance_rescale", g.rescale, "between 0 and 1")
    require(g.radius > 0, "guidance_radius", g.radius, "more than 0")
    require(-1 < g.momentum < 1, "guidance_momentum", g.momentum, "between -1 and 1")
    if kind != "projected":
        for name in ("parallel", "radius", "momentum"):
            value, default = getattr(g, name), Guidance._field_defaults[name]
            expected = f"{default:g}, or guidance_kind='projected'"
            require(value == default, f"guidance_{name}", value, expected)
    if kind == "cfg++":
        require(0 <= g.scale <= 1, "guidance", g.scale, "between 0 and 1 with cfg++")
        require(g.rescale == 0, "guidance_rescale", g.rescale, "0 with guidance_kind='cfg++'")


def _rows(x: Float[Array, "B ..."], f: Callable) -> Float[Array, "B ..."]:
    """Reduces each example by f, shaped to broadcast."""
    return f(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def guided(both: Both, g: Guidance, kind: str = "linear") -> Denoise:
    """The denoiser that extrapolates from the bad prediction through the good one.

    "linear": x_0 = bad + w (good - bad) (Ho & Salimans 2022, eq. 6). "projected": the same, but the
    difference has momentum, a limited norm, and less of its part along x_0 (Sadat et al. 2025,
    "APG", algorithm 1). "cfg++": x_0 is guided and the noise is that of the bad prediction (Chung
    et al. 2025, algorithm 1); this pair does not reproduce x_t, on purpose.

    The memory of "projected" must start as zeros like x.
    """

    def denoise(x: Array, at: Levels, memory: Any) -> tuple[Prediction, Any]:
        good, bad = both(x, at)
        ratio = at.sigma / at.alpha
        inside = (ratio >= g.low) & (ratio <= g.high)
        if kind == "cfg++":
            w = jnp.where(inside, g.scale, 1.0)
            x0 = bad.x0 + w * (good.x0 - bad.x0)
            epsilon = jnp.where(inside, bad.epsilon, good.epsilon)
            return Prediction(x0, epsilon, good.fraction), memory
        w = jnp.where(inside, g.scale, 1.0)
        difference = good.x0 - bad.x0
        if kind == "projected":
            difference = memory = difference + g.momentum * memory
            length = jnp.sqrt(_rows(jnp.square(difference), jnp.sum))
            difference = difference * jnp.minimum(1.0, g.radius / jnp.maximum(length, 1e-20))
            unit = good.x0 / jnp.maximum(jnp.sqrt(_rows(jnp.square(good.x0), jnp.sum)), 1e-20)
            along = _rows(difference * unit, jnp.sum) * unit
            difference = difference - along + g.parallel * along
        x0 = good.x0 + (w - 1.0) * difference
        deviation = jnp.maximum(_rows(x0, jnp.std), 1e-20)
        factor = 1.0 + g.rescale * (_rows(good.x0, jnp.std) / deviation - 1.0)
        x0 = jnp.where(inside, factor * x0, x0)
        return Prediction(x0, of_x0(at, x0, x).epsilon, good.fraction), memory

    return denoise


def composed(
    good: Prediction, bad: Prediction, more: Sequence[Prediction], weights: Any
) -> Prediction:
    """The prediction for several conditions at once: good + sum_i weights_i (more_i - bad).

    Guidance of scale w then adds w (good - bad) and w weights_i (more_i - bad), which is the score
    of a product of conditions (Liu et al. 2022, eq. 11).

    Args:
      good: for the first condition.
      bad: for none.
      more: for each of the others.
      weights: of these, relative to the first.
    """
    if not more:
        return good
    x0, epsilon = good.x0, good.epsilon
    for each, weight in zip(more, weights, strict=True):
        x0 = x0 + weight * (each.x0 - bad.x0)
        epsilon = epsilon + weight * (each.epsilon - bad.epsilon)
    return good._replace(x0=x0, epsilon=epsilon)


def classifier_guided(
    denoise: Denoise, log_probability: Callable[[Array, Levels], Float[Array, "B"]], scale: Any
) -> Denoise:
    """Adds the gradient of a classifier to the score (Dhariwal & Nichol 2021, algorithm 2).

    Args:
      denoise: the unconditional denoiser.
      log_probability: (x_t, level) -> log p(label | x_t) of each example.
      scale: of the gradient.
    """

    def wrapped(x: Array, at: Levels, memory: Any) -> tuple[Prediction, Any]:
        pair, memory = denoise(x, at, memory)
        gradient = jax.grad(lambda x: log_probability(x, at).sum())(x)
        factor = scale * jnp.square(at.sigma) / jnp.where(at.alpha > 0, at.alpha, jnp.inf)
        x0 = pair.x0 + like(factor, x) * gradient  # in pure noise the gradient is not used
        return Prediction(x0, pair.epsilon - scale * at.sigma * gradient, pair.fraction), memory

    return wrapped


def clipped(denoise: Denoise) -> Denoise:
    """Clips x_0 to [-1, 1] and recomputes epsilon so that the pair reproduces x_t.

    Guided diffusion does so, and diffusers with `use_clipped_model_output=True`.
    """

    def wrapped(x: Array, at: Levels, memory: Any) -> tuple[Prediction, Any]:
        pair, memory = denoise(x, at, memory)
        return of_x0(at, jnp.clip(pair.x0, -1.0, 1.0), x)._replace(fraction=pair.fraction), memory

    return wrapped


def thresholded(denoise: Denoise, percentile: float = 99.5) -> Denoise:
    """Dynamic thresholding (Saharia et al. 2022, Imagen, section 2.3).

    Clips each x_0 to the percentile of its absolute values, at least 1, and divides by that.
    """

    def wrapped(x: Array, at: Levels, memory: Any) -> tuple[Prediction, Any]:
        pair, memory = denoise(x, at, memory)
        flat = jnp.abs(pair.x0).reshape(len(x), -1)
        limit = like(jnp.maximum(jnp.percentile(flat, percentile, axis=1), 1.0), x)
        x0 = jnp.clip(pair.x0, -limit, limit) / limit
        return of_x0(at, x0, x)._replace(fraction=pair.fraction), memory

    return wrapped
