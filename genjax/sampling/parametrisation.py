"""Parametrisations of a network's output, and its input.

Each parametrisation converts to a consistent pair (x_0, epsilon) with x_t = alpha x_0 + sigma
epsilon, and back:

  epsilon    the noise (Ho et al. 2020)
  x0         the data
  v          alpha epsilon - sigma x_0 (Salimans & Ho 2022, section 4)
  velocity   epsilon - x_0, the slope of a straight path (Liu et al. 2023, eq. 1, time reversed)
  edm        F of x_0 = c_skip x + c_out F(c_in x) (Karras et al. 2022, eq. 7 and table 1)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.checks import ConfigError, one_of
from genjax.sampling.paths import Levels, Path, levels, like

KINDS = ("epsilon", "x0", "v", "velocity", "edm")


class Prediction(NamedTuple):
    """A denoiser's prediction at x_t = alpha x0 + sigma epsilon.

    Attributes:
      x0: the data.
      epsilon: the noise.
      fraction: where the variance of a reverse step is between the small and the large one, from
        0 to 1 on a logarithmic scale (Nichol & Dhariwal 2021, eq. 15); None if it is not learned.
    """

    x0: Float[Array, "B ..."]
    epsilon: Float[Array, "B ..."]
    fraction: Float[Array, "B ..."] | None = None


class Preconditioning(NamedTuple):
    """EDM's factors at a noise level, for any scaling of the path.

    Attributes:
      skip: c_skip, the factor of x_t in x_0.
      out: c_out, the factor of the network's output in x_0.
      into: c_in, the factor of x_t in the network's input.
      weight: of the squared error of x_0; gives the output's error the same weight at all levels.
    """

    skip: Any
    out: Any
    into: Any
    weight: Any


def preconditioning(at: Levels, sigma_data: float) -> Preconditioning:
    """Karras et al. 2022, table 1, written for x_t / alpha, whose noise is sigma / alpha."""
    total = jnp.square(at.alpha * sigma_data) + jnp.square(at.sigma)
    return Preconditioning(
        skip=at.alpha * sigma_data**2 / total,
        out=at.sigma * sigma_data * jax.lax.rsqrt(jnp.asarray(total, jnp.float32)),
        into=jax.lax.rsqrt(jnp.asarray(total, jnp.float32)),
        weight=total / jnp.square(at.sigma * sigma_data),
    )


def check(kind: str, path: Path) -> None:
    """Refuses a parametrisation that does not determine x_0 everywhere on a path.

    Raises:
      ConfigError: an unknown kind, or epsilon on a path that ends in pure noise.
    """
    one_of("diffusion.prediction", kind, KINDS)
    ends_in_noise = float(levels(path, path.last).alpha) == 0
    if kind == "epsilon" and ends_in_noise:
        raise ConfigError(
            "diffusion.prediction='epsilon': the path ends in pure noise, where x_t is epsilon: "
            "the output says nothing about the data there, and (x - sigma epsilon) / alpha is "
            "0 / 0. Use v, velocity, x0 or edm."
        )


def network_input(
    kind: str, path: Path, at: Levels, x: Float[Array, "B ..."], sigma_data: float
) -> Float[Array, "B ..."]:
    """x_t as the network's input: scaled to unit variance with "edm" and on an exploding path."""
    if kind != "edm" and path.scaling != "exploding":
        return x
    return like(preconditioning(at, sigma_data).into, x) * x


def target(
    kind: str,
    at: Levels,
    x0: Float[Array, "B ..."],
    noise: Float[Array, "B ..."],
    sigma_data: float = 0.5,
) -> Float[Array, "B ..."]:
    """The regression target of a network of this kind."""
    alpha, sigma = like(at.alpha, x0), like(at.sigma, x0)
    if kind == "epsilon":
        return noise
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * noise - sigma * x0
    if kind == "velocity":
        return noise - x0
    # (x_0 - c_skip x) / c_out, without cancellation: sigma / c_out = sqrt(total) / sigma_data.
    total = jnp.square(alpha * sigma_data) + jnp.square(sigma)
    scaled = sigma * x0 - alpha * sigma_data**2 * noise
    return scaled * jax.lax.rsqrt(jnp.asarray(total, jnp.float32)) / sigma_data


def interpret(
    kind: str,
    at: Levels,
    output: Float[Array, "B ..."],
    x: Float[Array, "B ..."],
    sigma_data: float = 0.5,
) -> Prediction:
    """The pair that an output at x_t implies: the inverse of `target`."""
    alpha, sigma = like(at.alpha, x), like(at.sigma, x)
    if kind == "epsilon":
        return Prediction((x - sigma * output) / alpha, output)
    if kind == "x0":
        return Prediction(output, (x - alpha * output) / sigma)
    if kind == "v":
        norm = jnp.square(alpha) + jnp.square(sigma)
        return Prediction((alpha * x - sigma * output) / norm, (alpha * output + sigma * x) / norm)
    if kind == "velocity":
        norm = alpha + sigma
        return Prediction((x - sigma * output) / norm, (x + alpha * output) / norm)
    total = jnp.square(alpha * sigma_data) + jnp.square(sigma)
    root = jax.lax.rsqrt(jnp.asarray(total, jnp.float32))
    x0 = alpha * sigma_data**2 / total * x + sigma * sigma_data * root * output
    return Prediction(x0, sigma / total * x - alpha * sigma_data * root * output)


def of_x0(at: Levels, x0: Float[Array, "B ..."], x: Float[Array, "B ..."]) -> Prediction:
    """The pair with this x_0, for example a clipped one."""
    return interpret("x0", at, x0, x)
