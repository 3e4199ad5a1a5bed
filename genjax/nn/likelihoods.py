"""Log-densities for latent-variable models, in nats per element."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

LOG_2PI = math.log(2 * math.pi)
REACH = 10.0  # centres of pixel distributions are clipped to +-REACH; pixels are in [-1, 1]


def bounded(log_scale: Float[Array, "*N"], limit: float) -> Float[Array, "*N"]:
    """Bounds the log of a scale, as a network predicts it, to -limit ... limit smoothly."""
    return limit * jnp.tanh(log_scale / limit)


@jax.custom_jvp
def softplus(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """log(1 + exp(x)), whose derivative is sigmoid(x): 0 at -inf, infinite at inf.

    `jax.nn.softplus` takes two and a half times as long on the CPU: it uses a general logaddexp,
    and its gradient another exponential.
    """
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return softplus(x), jax.nn.sigmoid(x) * dx


def bernoulli(x: Float[Array, "*N"], logit: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """log p(x) of x in {0, 1} with p(1) = sigmoid(logit); not valid for x between 0 and 1."""
    return -softplus((1 - 2 * x) * logit)


def gaussian(
    x: Float[Array, "*N"], mean: Float[Array, "*N"], log_scale: Float[Array, "*N"]
) -> Float[Array, "*N"]:
    """log N(x; mean, exp(log_scale)^2)."""
    z = (x - mean) * jnp.exp(-log_scale)
    return -0.5 * (jnp.square(z) + LOG_2PI) - log_scale


def discretised_logistic(
    x: Float[Array, "*N"], mean: Float[Array, "*N"], log_scale: Float[Array, "*N"]
) -> Float[Array, "*N"]:
    """log of a logistic distribution's mass on the bin of an 8-bit value scaled to [-1, 1].

    The bins are 2 / 255 wide; the first and the last reach to infinity (Kingma et al. 2016,
    appendix C.1; Salimans et al. 2017, eq. 2). With a = (x + 1/255 - mean) / s and b the same at
    the lower edge, sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which is
    precise in both tails. The mean is clipped to +-REACH.
    """
    half, scale, mean = 1 / 255, jnp.exp(-log_scale), jnp.clip(mean, -REACH, REACH)
    upper, lower = (x + half - mean) * scale, (x - half - mean) * scale
    inside = (
        jax.nn.log_sigmoid(upper)
        + jax.nn.log_sigmoid(-lower)
        + jnp.log(-jnp.expm1(-2 * half * scale))
    )
    edge = jnp.where(x < 0, jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower))
    return jnp.where(jnp.abs(x) > 1 - half, edge, inside)


def gaussian_kl(mean: Float[Array, "*N"], log_scale: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """KL(N(mean, exp(log_scale)^2) || N(0, 1)) (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (jnp.square(mean) + jnp.exp(2 * log_scale) - 1) - log_scale


def _laplace_tail(t: Float[Array, "*N"]) -> Float[Array, "*N"]:
    outside = -math.log(2) - jnp.maximum(t, 0.0)
    return jnp.where(t > 0, outside, jnp.log1p(-0.5 * jnp.exp(jnp.minimum(t, 0.0))))


# log P(X > t) for symmetric distributions of scale one.
TAILS: dict[str, Callable[[Array], Array]] = {
    "laplace": _laplace_tail,
    "gaussian": lambda t: log_ndtr(-t),
}


def discretised(
    likelihood: str,
    x: Float[Array, "*N"],
    mean: Float[Array, "*N"],
    log_scale: Float[Array, "*N"],
) -> Float[Array, "*N"]:
    """log of a distribution's mass on the bin of an 8-bit value scaled to [-1, 1].

    The bins are those of `discretised_logistic`: 2 / 255 wide; the first and the last reach to
    infinity. As the distributions are symmetric, every bin is mirrored to above the mean, where the
    difference of the tails at its edges is precise: to about 1e-5 at scales below one, which pixels
    have, and to 1e-3 at exp(6), because of rounding.

    Args:
      likelihood: a name in `TAILS`.
      x: the values.
      mean: the distribution's centre, clipped to +-REACH.
      log_scale: log of the Laplace distribution's b, or of the Gaussian's sigma.
    """
    tail, half, scale = TAILS[likelihood], 1 / 255, jnp.exp(-log_scale)
    mean = jnp.clip(mean, -REACH, REACH)
    near, far = ((jnp.abs(x - mean) + edge) * scale for edge in (-half, half))
    inside = tail(near) + jnp.log(-jnp.expm1(tail(far) - tail(near)))
    edge = tail((jnp.where(x < 0, mean - x, x - mean) - half) * scale)
    return jnp.where(jnp.abs(x) > 1 - half, edge, inside)
