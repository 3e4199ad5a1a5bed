"""Denoisers that wrap denoisers: guidance, and x_0 kept within the data's range.

A denoiser is (x, level, memory) -> (Prediction, memory). `Both` gives two predictions of one point:
the good one, such as that of a network that is told the label, and the one to keep away from: that
of the network told nothing (Ho & Salimans 2022), or of a worse network told the same (Karras et al.
2024b). All strengths may be traced.
"""

from __future__ import annotations

from collections.abc import Callable
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
    """How two predictions become one; numbers, which may be traced.

    Attributes:
      scale: w; 1 is the good prediction. Of "cfg++" lambda, from 0 to 1.
      low: s = sigma / alpha from which guidance is used (Kynkäänniemi et al. 2024); 1 below.
      high: s up to which.
      rescale: phi, how much of the standard deviation of each guided x_0 is set back to that of the
        good one (Lin et al. 2024, eq. 15 and 16).
      parallel: eta of "projected": how much of the difference along the good x_0 is left.
      radius: r of "projected": the longest difference.
      momentum: beta of "projected": of the running sum of differences, usually below 0.
    """

    scale: Any = 1.0
    low: Any = 0.0
    high: Any = np.inf
    rescale: Any = 0.0
    parallel: Any = 1.0
    radius: Any = np.inf
    momentum: Any = 0.0


def check(kind: str, g: Guidance) -> None:
    """Refuses what cannot be followed.

    Raises:
      ConfigError: says which option, and what it may be.
    """
    one_of("guidance_kind", kind, KINDS)
    require(0 <= g.low < g.high, "guidance_interval", (g.low, g.high), "0 <= low < high")
    require(0 <= g.rescale <= 1, "guidance_rescale", g.rescale, "between 0 and 1")
    require(g.radius > 0, "guidance_radius", g.radius, "more than 0")
    require(-1 < g.momentum < 1, "guidance_momentum", g.momentum, "between -1 and 1")
    if kind != "projected":
        for name in ("parallel", "radius", "momentum"):
            value, none = getattr(g, name), Guidance._field_defaults[name]
            expected = f"{none:g}, or guidance_kind='projected'"
            require(value == none, f"guidance_{name}", value, expected)
    if kind == "cfg++":
        require(0 <= g.scale <= 1, "guidance", g.scale, "between 0 and 1 with cfg++")
        require(g.rescale == 0, "guidance_rescale", g.rescale, "0 with guidance_kind='cfg++'")


def _rows(x: Float[Array, "B ..."], f: Callable) -> Float[Array, "B ..."]:
    """f over each example, shaped to broadcast."""
    return f(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def guided(both: Both, g: Guidance, kind: str = "linear") -> Denoise:
    """The denoiser that goes beyond the good prediction, away from the other.

    "linear": x_0 = bad + w (good - bad) (Ho & Salimans 2022, eq. 6). "projected": the same with a
    difference that is remembered, shortened and turned away from x_0 (Sadat et al. 2025, "APG",
    algorithm 1). "cfg++": x_0 is guided and the noise is that of the bad prediction (Chung et al.
    2025, algorithm 1): a pair that does not explain x_t, on purpose.

    Its memory, of "projected", begins as zeros like x.
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


def classifier_guided(
    denoise: Denoise, log_probability: Callable[[Array, Levels], Float[Array, "B"]], scale: Any
) -> Denoise:
    """Adds the slope of a classifier to the score (Dhariwal & Nichol 2021, algorithm 2).

    Args:
      denoise: of the data without labels.
      log_probability: (x_t, level) -> log p(label | x_t) of each example.
      scale: of the slope.
    """

    def wrapped(x: Array, at: Levels, memory: Any) -> tuple[Prediction, Any]:
        pair, memory = denoise(x, at, memory)
        slope = jax.grad(lambda x: log_probability(x, at).sum())(x)
        by = scale * jnp.square(at.sigma) / jnp.where(at.alpha > 0, at.alpha, jnp.inf)
        x0 = pair.x0 + like(by, x) * slope  # in pure noise there is no slope
        return Prediction(x0, pair.epsilon - scale * at.sigma * slope, pair.fraction), memory

    return wrapped


def clipped(denoise: Denoise) -> Denoise:
    """Keeps x_0 in [-1, 1] and works epsilon out again, so that the pair explains x_t.

    This is what guided diffusion does, and diffusers with `use_clipped_model_output=True`.
    """

    def wrapped(x: Array, at: Levels, memory: Any) -> tuple[Prediction, Any]:
        pair, memory = denoise(x, at, memory)
        return of_x0(at, jnp.clip(pair.x0, -1.0, 1.0), x)._replace(fraction=pair.fraction), memory

    return wrapped


def thresholded(denoise: Denoise, percentile: float = 99.5) -> Denoise:
    """Dynamic thresholding: x_0 within the percentile of its own size, at least 1, over that.

    Saharia et al. 2022 (Imagen), section 2.3.
    """

    def wrapped(x: Array, at: Levels, memory: Any) -> tuple[Prediction, Any]:
        pair, memory = denoise(x, at, memory)
        flat = jnp.abs(pair.x0).reshape(len(x), -1)
        most = like(jnp.maximum(jnp.percentile(flat, percentile, axis=1), 1.0), x)
        x0 = jnp.clip(pair.x0, -most, most) / most
        return of_x0(at, x0, x)._replace(fraction=pair.fraction), memory

    return wrapped
