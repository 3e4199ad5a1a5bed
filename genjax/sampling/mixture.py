"""A mixture of Gaussians, for which everything that a diffusion model learns is known exactly.

x_0 comes from component k, N(mu_k, s^2 I), with probability w_k. At a level, x_t comes from the
mixture with centres alpha mu_k and variance V = alpha^2 s^2 + sigma^2, so that density, score, x_0
and epsilon are closed forms on every path. Each component has a label; components may share one.
NumPy arrays are computed in float64, JAX's in float32.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.checks import require
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels, like

DATA = Levels(0.0, 1.0, 0.0)


class Mixture(NamedTuple):
    """An isotropic mixture of K Gaussians in D dimensions.

    Attributes:
      centres: mu.
      deviation: s.
      weights: w, which sum to 1.
      labels: of each component, from 0.
    """

    centres: Float[np.ndarray, "K D"]
    deviation: float
    weights: Float[np.ndarray, "K"]
    labels: Int[np.ndarray, "K"]

    @property
    def num_labels(self) -> int:
        """The number of labels; a label of this number or above means the whole mixture."""
        return int(self.labels.max()) + 1


def ring(
    count: int = 8, radius: float = math.sqrt(0.5), deviation: float = 0.05, groups: int = 0
) -> Mixture:
    """`count` equal Gaussians on a circle; by default the data's deviation is 0.5 along each axis.

    Args:
      count: K.
      radius: of the circle.
      deviation: s.
      groups: number of labels, assigned in turn around the circle; 0 gives each component its own.

    Raises:
      ConfigError: fewer than one component, deviation of 0, more groups than components.
    """
    require(count >= 1, "count", count, "at least 1")
    require(deviation > 0, "deviation", deviation, "more than 0")
    require(0 <= groups <= count, "groups", groups, f"between 0 and {count}")
    angle = 2 * np.pi * np.arange(count) / count
    centres = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    labels = np.arange(count) % (groups or count)
    return Mixture(centres, deviation, np.full(count, 1 / count), labels)


def _terms(
    m: Mixture, x: Float[Array, "B D"], at: Levels, label: Int[Array, "B"] | None
) -> tuple[Any, Any, Any, Any]:
    """(log of w_k N(x; alpha mu_k, V) up to a constant, [B K]; V, alpha, sigma broadcast to x)."""
    xp = jnp if isinstance(x, jax.Array) else np
    alpha, sigma = like(at.alpha, x), like(at.sigma, x)
    variance = alpha**2 * m.deviation**2 + sigma**2
    centres = xp.asarray(m.centres, x.dtype)
    away = x[:, None, :] - xp.reshape(alpha, (-1, 1, 1)) * centres
    terms = -0.5 * (away**2).sum(-1) / variance + xp.asarray(np.log(m.weights), x.dtype)
    if label is not None:
        same_label = m.labels == xp.asarray(label)[:, None]
        unlabelled = xp.asarray(label)[:, None] >= m.num_labels
        shares = np.bincount(m.labels, m.weights, m.num_labels)[m.labels]  # w_k given its label
        scale = xp.where(unlabelled, 0.0, xp.asarray(np.log(shares), x.dtype))
        terms = xp.where(same_label | unlabelled, terms - scale, -xp.inf)
    return terms, variance, alpha, sigma


def log_density(
    m: Mixture, x: Float[Array, "B D"], at: Levels = DATA, label: Int[Array, "B"] | None = None
) -> Float[Array, "B"]:
    """log p(x_t), or log p(x_t | label); `at` is one level for all examples, or one for each."""
    xp = jnp if isinstance(x, jax.Array) else np
    terms, variance, *_ = _terms(m, x, at, label)
    top = terms.max(1, keepdims=True)
    total = xp.log(xp.exp(terms - top).sum(1)) + top[:, 0]
    return total - 0.5 * x.shape[1] * xp.reshape(xp.log(2 * np.pi * variance), (-1,))


def posterior(
    m: Mixture, x: Float[Array, "B D"], at: Levels = DATA, label: Int[Array, "B"] | None = None
) -> Float[Array, "B K"]:
    """The probability of each component given x_t."""
    xp = jnp if isinstance(x, jax.Array) else np
    terms = _terms(m, x, at, label)[0]
    share = xp.exp(terms - terms.max(1, keepdims=True))
    return share / share.sum(1, keepdims=True)


def predict(
    m: Mixture, x: Float[Array, "B D"], at: Levels, label: Int[Array, "B"] | None = None
) -> Prediction:
    """E[x_0 | x_t] and E[epsilon | x_t], or given the label too, as a perfect denoiser predicts."""
    xp = jnp if isinstance(x, jax.Array) else np
    _, variance, alpha, sigma = _terms(m, x, at, None)
    centre = posterior(m, x, at, label) @ xp.asarray(m.centres, x.dtype)
    x0 = alpha * m.deviation**2 / variance * x + sigma**2 / variance * centre
    return Prediction(x0, sigma / variance * (x - alpha * centre))


def score(
    m: Mixture, x: Float[Array, "B D"], at: Levels = DATA, label: Int[Array, "B"] | None = None
) -> Float[Array, "B D"]:
    """The gradient of `log_density` in x_t."""
    xp = jnp if isinstance(x, jax.Array) else np
    _, variance, alpha, _ = _terms(m, x, at, None)
    return (alpha * posterior(m, x, at, label) @ xp.asarray(m.centres, x.dtype) - x) / variance


def log_label(
    m: Mixture, x: Float[Array, "B D"], at: Levels, label: Int[Array, "B"]
) -> Float[Array, "B"]:
    """log p(label | x_t), as a perfect classifier of noisy data predicts."""
    xp = jnp if isinstance(x, jax.Array) else np
    prior = np.log(np.bincount(m.labels, m.weights, m.num_labels))
    joint = log_density(m, x, at, label) + xp.asarray(prior, x.dtype)[label]
    return joint - log_density(m, x, at)


def draw(
    m: Mixture, key: Array, num: int, label: Int[Array, "B"] | None = None
) -> Float[Array, "B D"]:
    """`num` draws of x_0, or one for each label."""
    key_component, key_noise = jax.random.split(key)
    zeros = jnp.zeros((num, m.centres.shape[1]))
    share = jnp.log(posterior(m, zeros, Levels(0.0, 0.0, 1.0), label))  # pure noise: the prior
    component = jax.random.categorical(key_component, share)
    noise = jax.random.normal(key_noise, zeros.shape)
    return jnp.asarray(m.centres, jnp.float32)[component] + m.deviation * noise


def nearest(m: Mixture, x: Float[Array, "B D"]) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The nearest component of each point, and the distance to its centre."""
    xp = jnp if isinstance(x, jax.Array) else np
    distance = xp.sqrt(((x[:, None, :] - xp.asarray(m.centres, x.dtype)) ** 2).sum(-1))
    return distance.argmin(1), distance.min(1)
