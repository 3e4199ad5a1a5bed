"""The variational bound of a discrete-time diffusion process, term by term (Ho et al. 2020).

-log p(x_0) <= L_T + sum_t L_t + L_0, with L_T the prior's term, L_0 the decoder's and each L_t
the KL between two Gaussians over x_{t-1}. Everything is in nats per dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.sampling import diffusion
from genjax.sampling.diffusion import Schedule

LEVELS = 256  # of an 8-bit image


def per_example(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    """Mean over everything but the batch."""
    return x.reshape(x.shape[0], -1).mean(axis=1)


def stratified_uniform(key: Array, count: int) -> Float[Array, "B"]:
    """`count` uniform numbers, one in each interval of length 1 / count up to a common shift.

    Each is uniform on [0, 1); together they cover it evenly, which lowers the variance of a
    batch's mean over timesteps (Kingma et al. 2021, low-discrepancy sampler).
    """
    return jnp.mod(jax.random.uniform(key) + jnp.arange(count) / count, 1.0)


def kl_tables(
    schedule: Schedule, variance: str
) -> tuple[Float[np.ndarray, "T"], Float[np.ndarray, "T"]]:
    """(a, b) with KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) = a_t (x_0 - x0_hat)^2 + b_t.

    In nats, for one dimension, for t >= 1 (Ho et al. 2020, eq. 5 and 8). Both are 0 at index 0,
    where the bound has the decoder instead.
    """
    model = diffusion.model_variance(schedule, variance).astype(np.float64)[1:]
    true = schedule.posterior_variance.astype(np.float64)[1:]
    slope = schedule.posterior_x0.astype(np.float64)[1:] ** 2 / (2 * model)
    constant = 0.5 * (np.log(model / true) + true / model - 1)
    return np.concatenate([[0], slope]), np.concatenate([[0], constant])


def decoder_nll(
    x0: Float[Array, "B ..."], mean: Float[Array, "B ..."], deviation: float
) -> Float[Array, "B ..."]:
    """-log of a Gaussian's mass on the bin of an 8-bit value (Ho et al. 2020, eq. 13), in nats.

    Args:
      x0: values k / 127.5 - 1; the bins of the first and last level reach to infinity.
      mean: of the Gaussian.
      deviation: its standard deviation.
    """
    half = 1.0 / (LEVELS - 1)
    upper, lower = (x0 + half - mean) / deviation, (x0 - half - mean) / deviation
    # The mass between two points is the same mirrored: take both in the lower tail, where the
    # logarithm of the distribution function keeps its precision.
    flip = x0 < mean
    upper, lower = jnp.where(flip, upper, -lower), jnp.where(flip, lower, -upper)
    top = jax.scipy.special.log_ndtr(upper)
    gap = jnp.maximum(top - jax.scipy.special.log_ndtr(lower), 1e-7)
    inside = top + jnp.log(-jnp.expm1(-gap))
    first = jax.scipy.special.log_ndtr((x0 + half - mean) / deviation)
    last = jax.scipy.special.log_ndtr(-(x0 - half - mean) / deviation)
    edge = 1.0 - half
    return -jnp.where(x0 < -edge, first, jnp.where(x0 > edge, last, inside))


def term(
    schedule: Schedule,
    variance: str,
    x0: Float[Array, "B ..."],
    x0_hat: Float[Array, "B ..."],
    index: Int[Array, "B"],
) -> Float[Array, "B"]:
    """The term of the variational bound at each index, in nats per dimension.

    At index t >= 1 the KL between the two Gaussians over x_{t-1}, at index 0 the decoder's
    -log p(x_0 | x_1) (Ho et al. 2020, eq. 5, 8 and 13).
    """
    slope, constant = (jnp.asarray(a, jnp.float32)[index] for a in kl_tables(schedule, variance))
    kl = slope * per_example(jnp.square(x0 - x0_hat)) + constant
    deviation = float(np.sqrt(diffusion.model_variance(schedule, variance)[0]))
    return jnp.where(index == 0, per_example(decoder_nll(x0, x0_hat, deviation)), kl)


def prior_term(schedule: Schedule, x0: Float[Array, "B ..."]) -> Float[Array, "B"]:
    """L_T: KL(q(x_T | x_0) || N(0, 1)) in nats per dimension (Ho et al. 2020, eq. 5)."""
    alpha_bar = float(np.exp(schedule.log_alpha_bar[-1]))
    constant = float(-alpha_bar - np.log1p(-alpha_bar))
    return 0.5 * (alpha_bar * per_example(jnp.square(x0)) + constant)


def proposal_probabilities(schedule: Schedule, variance: str) -> Float[np.ndarray, "T"]:
    """Probabilities with which to draw the timesteps of the bound; 0 at index 0.

    Nine tenths go by what each term would be for Gaussian data of standard deviation 0.2, whose
    best x0_hat errs by 1 / (25 + SNR); a tenth is uniform, which bounds the importance weights.
    """
    slope, constant = kl_tables(schedule, variance)
    guess = slope / (25.0 + diffusion.snr(schedule)) + constant
    uniform = np.full(len(slope) - 1, 1 / (len(slope) - 1))
    return np.concatenate([[0], 0.9 * guess[1:] / guess[1:].sum() + 0.1 * uniform])


def draw_timesteps(
    schedule: Schedule, variance: str, count: int, batch: int, key: Array
) -> tuple[Int[Array, "K B"], Float[Array, "K B"]]:
    """Timesteps and weights with which sum_k weight_k L_{t_k} estimates sum_t L_t without bias.

    The first of the `count` timesteps is 0, with weight 1. The others are drawn by
    `proposal_probabilities`, stratified within an example and across the batch. `count` 0 gives
    every timestep once, which is exact.
    """
    T = len(schedule.timesteps)
    if count == 0:
        index = jnp.broadcast_to(jnp.arange(T)[:, None], (T, batch))
        return index, jnp.ones(index.shape)
    draws = count - 1
    proposal = proposal_probabilities(schedule, variance)
    shift = stratified_uniform(key, batch)
    u = (jnp.arange(draws)[:, None] + shift[None, :]) / draws
    cumulative = jnp.asarray(np.cumsum(proposal), jnp.float32)
    index = jnp.clip(jnp.searchsorted(cumulative, u, side="right"), 1, T - 1)
    weight = 1.0 / (draws * jnp.asarray(proposal, jnp.float32).at[0].set(1.0)[index])
    first = jnp.zeros((1, batch), index.dtype)
    return jnp.concatenate([first, index]), jnp.concatenate([jnp.ones((1, batch)), weight])
