"""Where a vector stands: rotary positions with their scaling, and sinusoidal ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from genjax.config import ConfigError, require


class Rotation(NamedTuple):
    """The angles by which the pairs of a head are turned, as their cosines and sines."""

    cos: Float[Array, "B T 1 h"]
    sin: Float[Array, "B T 1 h"]


def frequencies(size: int, base: float = 10_000.0, scaling: tuple = ()) -> Float[np.ndarray, "h"]:
    """Radians a position of each of the h = size / 2 pairs of a head (Su et al. 2021, eq. 15).

    Args:
      size: of a head, H; even.
      base: the first pair turns by 1 radian a position, the last by nearly 1 / base.
      scaling: () for none. `("linear", factor)` divides all of them (Chen et al. 2023, eq. 4).
        `("llama3", factor, low, high, original)` divides those that turn fewer than `low` times
        within `original` positions, keeps those that turn more than `high` times, and goes over
        from the one to the other in between (Llama Team 2024, arXiv:2407.21783).

    Raises:
      ConfigError: an odd size, or a scaling that is none of these.
    """
    require(size % 2 == 0, "head_size", size, "an even number, as rotary positions turn pairs")
    require(0 < base < math.inf, "rope_base", base, "a number above 0")
    plain = base ** (-np.arange(0, size, 2) / size)
    numbers = all(isinstance(n, int | float) and 0 < n < math.inf for n in scaling[1:])
    match tuple(scaling):
        case ():
            return plain
        case ("linear", factor) if numbers:
            return plain / factor
        case ("llama3", factor, low, high, original) if numbers and high > low:
            turns = original * plain / (2 * math.pi)
            kept = np.clip((turns - low) / (high - low), 0, 1)
            return plain * (kept + (1 - kept) / factor)
    raise ConfigError(
        f"rope_scaling={scaling!r}: expected (), ('linear', factor) or "
        "('llama3', factor, low, high, original) with high > low, and all numbers above 0."
    )


def rotation(place: Int[Array, "B T"], frequencies: Float[np.ndarray, "h"]) -> Rotation:
    """The rotation of the vectors at `place`, float32."""
    angle = (place.astype(jnp.float32)[..., None] * frequencies.astype(np.float32))[:, :, None]
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "B T N H"], by: Rotation) -> Float[Array, "B T N H"]:
    """Turns element i of each head with element i + H / 2 (Su et al. 2021, eq. 34), in x's dtype.

    The pairs are those of Llama's published weights; the paper has neighbours for pairs.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * by.cos - second * by.sin, second * by.cos + first * by.sin)
    return jnp.stack(turned, axis=-2).reshape(x.shape).astype(x.dtype)


def sinusoidal(place: Int[Array, "*P"], features: int) -> Float[Array, "*P D"]:
    """Sines at the even elements, cosines at the odd ones (Vaswani et al. 2017, section 3.5)."""
    pair = jnp.arange(features) // 2
    angle = place.astype(jnp.float32)[..., None] * 10_000.0 ** (-2 * pair / features)
    return jnp.where(jnp.arange(features) % 2, jnp.cos(angle), jnp.sin(angle))
