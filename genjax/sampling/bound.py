"""Variational bounds on the likelihood of 8-bit data, in discrete and in continuous time.

In discrete time (Ho et al. 2020) -log p(x_0) <= L_T + sum_t L_t + L_0, with L_T the prior's term,
L_0 the decoder's and each L_t the KL between two Gaussians over x_{t-1}. In continuous time (Kingma
et al. 2021) the sum is an integral over lambda that depends on the path only through its ends.
Values are in nats per dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.checks import one_of
from genjax.sampling.paths import Levels, Path, levels, scales

LEVELS = 256  # of an 8-bit image
FIXED = ("fixed_small", "fixed_large")


def per_example(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    """Mean over all axes but the batch."""
    return x.reshape(x.shape[0], -1).mean(axis=1)


def stratified_uniform(key: Array, count: int) -> Float[Array, "B"]:
    """`count` uniform numbers, one in each interval of length 1 / count up to a common shift.

    Each is uniform on [0, 1); together they cover it evenly, which lowers the variance of a
    batch's mean over timesteps (Kingma et al. 2021, low-discrepancy sampler).
    """
    return jnp.mod(jax.random.uniform(key) + jnp.arange(count) / count, 1.0)


class Steps(NamedTuple):
    """The steps of a process in discrete time, one for each timestep, in float64.

    Attributes:
      alpha: factor of x_0 in x_t.
      sigma: factor of the noise in x_t.
      small: variance of q(x_{t-1} | x_t, x_0), beta tilde of Ho et al. 2020, eq. 7; 0 at index 0.
      large: variance that the step adds, beta.
      x0: the coefficient of x_0 in the mean of q(x_{t-1} | x_t, x_0).
    """

    alpha: Float[np.ndarray, "T"]
    sigma: Float[np.ndarray, "T"]
    small: Float[np.ndarray, "T"]
    large: Float[np.ndarray, "T"]
    x0: Float[np.ndarray, "T"]


def steps_of(path: Path) -> Steps:
    """The steps of a path in discrete time, computed without cancellation at either end."""
    lam = path.lam(np.arange(path.steps, dtype=np.float64))
    log_alpha = -0.5 * np.logaddexp(0.0, -2 * lam)
    alpha, sigma = scales("preserving", lam)
    before = np.concatenate([[0.0], log_alpha[:-1]])
    sigma_before = np.concatenate([[0.0], sigma[:-1]])
    large = -np.expm1(2 * (log_alpha - before))
    return Steps(
        alpha=alpha,
        sigma=sigma,
        small=large * np.square(sigma_before / sigma),
        large=large,
        x0=np.exp(before) * large / np.square(sigma),
    )


def model_variance(steps: Steps, kind: str) -> Float[np.ndarray, "T"]:
    """Variance of the reverse step p(x_{t-1} | x_t) (Ho et al. 2020, section 3.2).

    "fixed_small" is beta tilde, "fixed_large" is beta. At index 0, where beta tilde is 0 and no
    noise is drawn, both give beta tilde at index 1: the width of the decoder of L_0, as in the
    authors' code.

    Raises:
      ConfigError: an unknown kind.
    """
    one_of("variance", kind, FIXED)
    table = steps.small if kind == "fixed_small" else steps.large
    return np.concatenate([steps.small[:2][-1:], table[1:]])


def snr(steps: Steps) -> Float[np.ndarray, "T"]:
    """Signal-to-noise ratio alpha^2 / sigma^2 at each timestep."""
    return np.square(steps.alpha / steps.sigma)


def kl_tables(steps: Steps, variance: str) -> tuple[Float[np.ndarray, "T"], Float[np.ndarray, "T"]]:
    """(a, b) with KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) = a_t (x_0 - x0_hat)^2 + b_t.

    In nats, for one dimension, for t >= 1 (Ho et al. 2020, eq. 5 and 8). Both are 0 at index 0,
    where the bound has the decoder instead.
    """
    model, true = model_variance(steps, variance)[1:], steps.small[1:]
    slope = np.square(steps.x0[1:]) / (2 * model)
    constant = 0.5 * (np.log(model / true) + true / model - 1)
    return np.concatenate([[0], slope]), np.concatenate([[0], constant])


def decoder_nll(
    x0: Float[Array, "B ..."], mean: Float[Array, "B ..."], deviation: Any
) -> Float[Array, "B ..."]:
    """-log of a Gaussian's mass on the bin of an 8-bit value (Ho et al. 2020, eq. 13), in nats.

    Args:
      x0: values k / 127.5 - 1; the bins of the first and last level reach to infinity.
      mean: of the Gaussian.
      deviation: its standard deviation, a number or an array like x0.
    """
    half = 1.0 / (LEVELS - 1)
    upper, lower = (x0 + half - mean) / deviation, (x0 - half - mean) / deviation
    # Mirroring keeps the mass between two points: move both to the lower tail, where the logarithm
    # of the distribution function keeps its precision.
    flip = x0 < mean
    upper, lower = jnp.where(flip, upper, -lower), jnp.where(flip, lower, -upper)
    log_upper = jax.scipy.special.log_ndtr(upper)
    gap = jnp.maximum(log_upper - jax.scipy.special.log_ndtr(lower), 1e-7)
    inside = log_upper + jnp.log(-jnp.expm1(-gap))
    first = jax.scipy.special.log_ndtr((x0 + half - mean) / deviation)
    last = jax.scipy.special.log_ndtr(-(x0 - half - mean) / deviation)
    edge = 1.0 - half
    return -jnp.where(x0 < -edge, first, jnp.where(x0 > edge, last, inside))


def term(
    steps: Steps,
    variance: str,
    x0: Float[Array, "B ..."],
    x0_hat: Float[Array, "B ..."],
    index: Int[Array, "B"],
) -> Float[Array, "B"]:
    """The term of the variational bound at each index, in nats per dimension.

    At index t >= 1 the KL between the two Gaussians over x_{t-1}, at index 0 the decoder's
    -log p(x_0 | x_1) (Ho et al. 2020, eq. 5, 8 and 13).
    """
    slope, constant = (jnp.asarray(a, jnp.float32)[index] for a in kl_tables(steps, variance))
    kl = slope * per_example(jnp.square(x0 - x0_hat)) + constant
    deviation = float(np.sqrt(model_variance(steps, variance)[0]))
    return jnp.where(index == 0, per_example(decoder_nll(x0, x0_hat, deviation)), kl)


def learned_term(
    steps: Steps,
    x0: Float[Array, "B ..."],
    x0_hat: Float[Array, "B ..."],
    fraction: Float[Array, "B ..."],
    index: Int[Array, "B"],
) -> Float[Array, "B"]:
    """`term` with the learned log variance log small + fraction (log large - log small).

    Nichol & Dhariwal 2021, eq. 15. At index 0 the small variance is that of index 1.
    """
    small = jnp.asarray(np.log(model_variance(steps, "fixed_small")), jnp.float32)
    large = jnp.asarray(np.log(steps.large), jnp.float32)

    def rows(table: Float[Array, "T"]) -> Float[Array, "B ..."]:
        return table[index].reshape(-1, *(1,) * (x0.ndim - 1))

    log_variance = rows(small) + fraction * (rows(large) - rows(small))
    gap = rows(small) - log_variance  # log of the true over the model's variance
    squared = jnp.square(rows(jnp.asarray(steps.x0, jnp.float32)) * (x0 - x0_hat))
    kl = 0.5 * (jnp.expm1(gap) - gap + squared * jnp.exp(-log_variance))
    first = decoder_nll(x0, x0_hat, jnp.exp(0.5 * log_variance))
    return jnp.where(index == 0, per_example(first), per_example(kl))


def prior_term(path: Path, x0: Float[Array, "B ..."]) -> Float[Array, "B"]:
    """L_T: KL(q(x_T | x_0) || p(x_T)) in nats per dimension (Ho et al. 2020, eq. 5).

    p(x_T) is standard normal; on an exploding path its standard deviation is sigma_T.
    """
    at = levels(path, path.last)
    alpha, sigma = float(at.alpha), float(at.sigma)
    deviation = sigma if path.scaling == "exploding" else 1.0
    constant = (sigma / deviation) ** 2 - 1 - 2 * np.log(sigma / deviation)
    return 0.5 * ((alpha / deviation) ** 2 * per_example(jnp.square(x0)) + float(constant))


def in_bits(
    prior: Float[Array, "B"], middle: Float[Array, "B"], decoder: Float[Array, "B"]
) -> dict[str, Float[Array, "B"]]:
    """Converts nats to bits: `bits_per_dim`, the sum of all parts, and its decoder and prior."""
    total = prior + middle + decoder
    nats = {"": total, "_decoder": decoder, "_prior": prior}
    return {f"bits_per_dim{name}": value / np.log(2) for name, value in nats.items()}


def decoder_term(path: Path, x0: Float[Array, "B ..."], x: Float[Array, "B ..."]) -> Any:
    """-log p(x_0 | x) at the path's first level, over the 256 values (Kingma et al. 2021, app. D).

    p(x_0 | x) is proportional to q(x | x_0).
    """
    at = levels(path, path.first)
    values = jnp.arange(LEVELS) / 127.5 - 1.0
    ratio = float(at.sigma / at.alpha)

    def logits(value: Array) -> Array:
        return -0.5 * jnp.square((x / float(at.alpha) - value) / ratio)

    def add(total: Array, value: Array) -> tuple[Array, None]:
        return jnp.logaddexp(total, logits(value)), None

    total, _ = jax.lax.scan(add, jnp.full_like(x, -jnp.inf), values)
    return per_example(total - logits(x0))


def integrand(
    path: Path, at: Levels, x0: Float[Array, "B ..."], x0_hat: Float[Array, "B ..."]
) -> Float[Array, "B"]:
    """Has the bound's integral as its mean over lambda uniform between the path's ends.

    Kingma et al. 2021, eq. 17 and 18: the integral of e^(2 lambda) |x_0 - x_0_hat|^2 over lambda.
    """
    width = float(path.lam(path.first)) - max(float(path.lam(path.last)), -12.0)
    squared = per_example(jnp.square(x0 - x0_hat))
    return width * jnp.square(at.alpha / at.sigma) * squared


def proposal_probabilities(steps: Steps, variance: str) -> Float[np.ndarray, "T"]:
    """Probabilities with which to draw the timesteps of the bound; 0 at index 0.

    Nine tenths are proportional to the terms for Gaussian data of standard deviation 0.2, where the
    best x0_hat has squared error 1 / (25 + SNR). One tenth is uniform, which bounds the importance
    weights.
    """
    slope, constant = kl_tables(steps, variance)
    guess = slope / (25.0 + snr(steps)) + constant
    uniform = np.full(len(slope) - 1, 1 / (len(slope) - 1))
    return np.concatenate([[0], 0.9 * guess[1:] / guess[1:].sum() + 0.1 * uniform])


def draw_timesteps(
    steps: Steps, variance: str, count: int, batch: int, key: Array
) -> tuple[Int[Array, "K B"], Float[Array, "K B"]]:
    """Timesteps and weights with which sum_k weight_k L_{t_k} estimates sum_t L_t without bias.

    The first of the `count` timesteps is 0, with weight 1. The others are drawn by
    `proposal_probabilities`, stratified within an example and across the batch. `count` 0 gives
    every timestep once, which is exact.
    """
    T = len(steps.alpha)
    if count == 0:
        index = jnp.broadcast_to(jnp.arange(T)[:, None], (T, batch))
        return index, jnp.ones(index.shape)
    draws = count - 1
    proposal = proposal_probabilities(steps, variance)
    shift = stratified_uniform(key, batch)
    u = (jnp.arange(draws)[:, None] + shift[None, :]) / draws
    cumulative = jnp.asarray(np.cumsum(proposal), jnp.float32)
    index = jnp.clip(jnp.searchsorted(cumulative, u, side="right"), 1, T - 1)
    weight = 1.0 / (draws * jnp.asarray(proposal, jnp.float32).at[0].set(1.0)[index])
    first = jnp.zeros((1, batch), index.dtype)
    return jnp.concatenate([first, index]), jnp.concatenate([jnp.ones((1, batch)), weight])
