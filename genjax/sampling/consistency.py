"""Noise levels, targets and few-step sampling of consistency models and mean flows.

With y = x / alpha and s = sigma / alpha, y = x_0 + s epsilon on every path, and its ODE is
dy/ds = epsilon. A consistency function maps any point of a trajectory to its point at the least
noise, s_min (Song et al. 2023, definition 1). All levels here are values of s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.sampling import noise
from genjax.sampling.paths import CLIP, Levels, Path, levels_at, like, scales
from genjax.sampling.table import NOISE, PAIRS, SECOND, Table

CURRICULA = ("doubling", "square_root")
RHO = 7.0  # of Karras et al. 2022, eq. 5
SHARPNESS, BEND = 8.0, 1.0  # k and b of n(t) (Geng et al. 2024)
HUNDREDTHS = 100.0
_CELLS = 4096


def ends(path: Path) -> tuple[float, float]:
    """The least and the largest s of a path; the largest is at most e^CLIP = 164."""
    first, last = float(path.lam(path.first)), max(float(path.lam(path.last)), -CLIP)
    return math.exp(-first), math.exp(-last)


def levels_of(path: Path, s: Float[Array, "B"]) -> Levels:
    """The levels at s, in float32; the network's time input is interpolated in log s."""
    least, most = ends(path)
    table = np.linspace(-math.log(most), -math.log(least), _CELLS + 1)
    lam = -jnp.log(s)
    time_input = jnp.interp(lam, table, levels_at(path, table).time_input)
    return Levels(time_input, *scales(path.scaling, lam))


# ---- pairs of levels -----------------------------------------------------------------------------


def intervals(curriculum: str, step: Any, length: int, fewest: int, most: int) -> Int[Array, ""]:
    """N(k) - 1: the number of steps that the noise levels are divided into at training step k.

    "doubling" goes from s_0 = `fewest` to s_1 = `most` in equal stretches of K = `length` steps
    (Song & Dhariwal 2024, table 1); "square_root" grows with the root of k (Song et al. 2023,
    appendix C).
    """
    k = jnp.asarray(step)
    if curriculum == "doubling":
        times = math.log2(most // fewest)
        stretch = max(int(length / (times + 1)), 1)
        doubled = jnp.left_shift(fewest, jnp.minimum(k // stretch, math.ceil(times) + 1))
        return jnp.minimum(doubled, most)
    share = jnp.minimum(k / length, 1.0)
    root = jnp.sqrt(share * ((most + 1) ** 2 - fewest**2) + fewest**2)
    return jnp.maximum(jnp.ceil(root - 1), 1).astype(jnp.int32)


def karras(share: Any, least: float, most: float) -> Any:
    """s at a share, from 0 to 1, of the way from `least` to `most` (Karras et al. 2022, eq. 5)."""
    low, high = least ** (1 / RHO), most ** (1 / RHO)
    return (low + share * (high - low)) ** RHO


def lognormal(
    u: Float[Array, "B"], mean: float, std: float, least: float, most: float
) -> Float[Array, "B"]:
    """Quantiles of a lognormal distribution cut off at both ends."""
    cdf, quantile = jax.scipy.special.ndtr, jax.scipy.special.ndtri
    low, high = (cdf(jnp.float32((math.log(s) - mean) / std)) for s in (least, most))
    z = quantile(jnp.clip(low + u * (high - low), 1e-7, 1 - 1e-7))
    return jnp.clip(jnp.exp(mean + std * z), least, most)


def steps_of(
    s: Float[Array, "B"], count: Array, least: float, most: float
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """The (upper, lower) ends of the steps that levels lie in, on a grid of `count` steps.

    If the levels are drawn from a lognormal distribution, each step is drawn with its mass: the
    discretised distribution of Song & Dhariwal 2024, table 1.
    """
    share = (s ** (1 / RHO) - least ** (1 / RHO)) / (most ** (1 / RHO) - least ** (1 / RHO))
    index = jnp.clip(jnp.floor(share * count), 0, count - 1)
    return karras((index + 1) / count, least, most), karras(index / count, least, most)


def nearer(s: Float[Array, "B"], count: Array, least: float) -> Float[Array, "B"]:
    """r of the pair with s: r / s = max(0, 1 - n(s) / N), n(s) = 1 + 8 sigmoid(-s).

    The mapping of Geng et al. 2024 (ECT) with N for their q^a. In the ratio, s and r are counted
    from the least noise; n(s) takes s itself, as theirs does.
    """
    n = 1.0 + SHARPNESS * jax.nn.sigmoid(-BEND * s)
    return least + (s - least) * jnp.maximum(1.0 - n / count, 0.0)


def pseudo_huber(difference: Float[Array, "B ..."], factor: float) -> Float[Array, "B"]:
    """sqrt(|d|^2 + c^2) - c with c = `factor` sqrt(D) (Song & Dhariwal 2024, section 3.3)."""
    c = factor * math.sqrt(math.prod(difference.shape[1:]))
    square = jnp.square(difference).sum(tuple(range(1, difference.ndim)))
    return square / (jnp.sqrt(square + c**2) + c)  # without the cancellation


# ---- mean flows ----------------------------------------------------------------------------------


def time_inputs(t: Float[Array, "B"], r: Float[Array, "B"]) -> Float[Array, "B 2"]:
    """The time input of a mean flow's network: 100 t and 100 (t - r).

    Its derivative is part of the target. With the factor 1000 of diffusion models, the fastest
    sinusoids would make the derivative large.
    """
    return HUNDREDTHS * jnp.stack([t, t - r], axis=-1)


def identity(
    velocity: Callable[[Array, Array, Array], tuple[Array, Any]],
    z: Float[Array, "B ..."],
    r: Float[Array, "B"],
    t: Float[Array, "B"],
    v: Float[Array, "B ..."],
) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."], Any]:
    """The average velocity between r and t, and its target by the mean-flow identity.

    u = v - (t - r) du/dt. The total derivative along the flow is a forward-mode product with the
    tangent (v, 0, 1) (Geng et al. 2025, eq. 6 to 10).

    Args:
      velocity: (z, r, t) -> (u, auxiliary output).
      z: points at t.
      r: the earlier times.
      t: the later times.
      v: the instantaneous velocity at z.

    Returns:
      u, the target of u, and the auxiliary output of `velocity`.
    """
    tangents = (v, jnp.zeros_like(r), jnp.ones_like(t))
    u, slope, auxiliary = jax.jvp(velocity, (z, r, t), tangents, has_aux=True)
    return u, jax.lax.stop_gradient(v - like(t - r, z) * slope), auxiliary


# ---- sampling ------------------------------------------------------------------------------------


def multistep(path: Path, s: Float[np.ndarray, "N"], least: float) -> Table:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1), for `solve`.

    Each call maps x_t to a sample, which is x0 of its pair. After all calls but the last, noise is
    added again: y = sample + sqrt(s^2 - s_min^2) z. Epsilon is not used.

    Args:
      path: of the model.
      s: the decreasing levels of the calls.
      least: s_min.
    """
    s = np.asarray(s, np.float64)
    at = levels_at(path, -np.log(s))
    point = np.zeros((len(s), PAIRS + 2))
    point[:, PAIRS] = np.append(at.alpha[1:], 1.0)
    point[:-1, NOISE] = at.alpha[1:] * np.sqrt(np.maximum(s[1:] ** 2 - least**2, 0.0))
    second = np.zeros_like(point)
    second[:, SECOND] = 1.0
    position, depth = noise.positions(np.append(s, 0.0))
    start = at.sigma[0] if path.scaling != "preserving" else 1.0
    return Table(
        *(at, point, point, second, np.ones(len(s), bool), position, np.zeros(len(s))),
        start=np.float64(start),
        depth=np.int32(depth),
    )
