"""Losses of pairs of answers, one preferred to the other: pure functions of log-probabilities.

Each argument has one number per pair, in nats; "margin" is a difference of two log ratios,
log(p / reference) of the chosen answer less that of the rejected one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float


def dpo(margin: Float[Array, "B"], beta: float, smoothing: float = 0.0) -> Float[Array, "B"]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7).

    `smoothing` is the probability that a label is wrong (Mitchell 2023, "conservative DPO").
    """
    right, wrong = log_sigmoid(beta * margin), log_sigmoid(-beta * margin)
    return -(1 - smoothing) * right - smoothing * wrong


def ipo(margin: Float[Array, "B"], beta: float) -> Float[Array, "B"]:
    """Identity preference optimisation (Azar et al. 2024, eq. 17), `beta` being its tau."""
    return jnp.square(margin - 1 / (2 * beta))


def kto(
    chosen: Float[Array, "B"],
    rejected: Float[Array, "B"],
    divergence: Float[Array, ""],
    beta: float,
    desirable: float = 1.0,
    undesirable: float = 1.0,
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Kahneman-Tversky optimisation of good and bad answers (Ethayarajh et al. 2024, section 4).

    Args:
      chosen: log(p / reference) of the good answers.
      rejected: of the bad ones.
      divergence: the reference point z0, at least 0 and without a gradient.
      beta: how fast the value saturates.
      desirable: weight of the good answers.
      undesirable: of the bad ones.
    """
    good = desirable * jax.nn.sigmoid(-beta * (chosen - divergence))
    bad = undesirable * jax.nn.sigmoid(-beta * (divergence - rejected))
    return good, bad


def orpo(chosen: Float[Array, "B"], rejected: Float[Array, "B"], beta: float) -> Float[Array, "B"]:
    """The odds-ratio term (Hong et al. 2024, eq. 7), to add to the nll of the chosen answer.

    Args:
      chosen: mean log p per token of the chosen answers, below 0.
      rejected: of the rejected ones.
      beta: weight of the term, lambda.
    """
    log_odds = chosen - rejected - log1mexp(chosen) + log1mexp(rejected)
    return -beta * log_sigmoid(log_odds)


def log1mexp(x: Float[Array, "B"]) -> Float[Array, "B"]:
    """log(1 - exp(x)) for x < 0, exact near 0; a probability of 1 counts as just below."""
    x = jnp.minimum(x, -1e-7)
    near = x > -0.693
    close = jnp.log(-jnp.expm1(jnp.where(near, x, -0.5)))
    return jnp.where(near, close, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def bradley_terry(
    chosen: Float[Array, "B"], rejected: Float[Array, "B"], centring: float = 0.0
) -> Float[Array, "B"]:
    """Minus log p that the chosen answer wins (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).

    Only differences of rewards count; `centring` is the weight of the squared sum of a pair's
    rewards, which keeps them near zero (Eisenstein et al. 2023).
    """
    return -log_sigmoid(chosen - rejected) + centring * jnp.square(chosen + rejected)
