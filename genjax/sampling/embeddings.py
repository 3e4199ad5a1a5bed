"""Vectors of length 1 on the sphere: interpolation, and moves by the difference of two captions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from genjax.sampling.paths import like


def unit(x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
    """Vectors scaled to length 1; a vector of zeros stays one, and its gradient is finite."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def slerp(
    a: Float[Array, "B E"], b: Float[Array, "B E"], share: Float[Array, "B"] | float
) -> Float[Array, "B E"]:
    """The point at this share of the great circle from a to b (Shoemake 1985).

    For vectors of length 1; a share of 0 gives a, and 1 gives b. Between equal vectors it is a; of
    opposite ones, whose great circle is not determined, the result has no meaning.
    """
    share = like(jnp.asarray(share, jnp.float32), a)
    cosine = (a * b).sum(-1, keepdims=True)
    across = b - cosine * a  # its length is the sine of the angle
    sine = jnp.sqrt(jnp.square(across).sum(-1, keepdims=True))
    angle = share * jnp.arctan2(sine, cosine)
    return jnp.cos(angle) * a + jnp.sin(angle) * across / jnp.maximum(sine, 1e-12)


def text_diff(
    image: Float[Array, "B E"],
    before: Float[Array, "B E"],
    after: Float[Array, "B E"],
    share: Float[Array, "B"] | float,
) -> Float[Array, "B E"]:
    """An image's vector, turned towards what one caption says and the other does not.

    The great circle leads from the image's vector to the difference of the captions' vectors,
    scaled to length 1 (Ramesh et al. 2022, section 3.3, who use shares of 0.25 to 0.5).
    """
    return slerp(image, unit(after - before), share)
