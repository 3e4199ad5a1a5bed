"""Draws from categorical distributions whose rare values come as often as they should.

The maximum of logits and Gumbel noise is a draw from their softmax. Noise out of a float32 uniform
number of 23 bits is never above 16: values rarer than 1e-7 beside a common one never come, and what
is drawn is as if from a lower temperature (Zheng et al. 2024, section 5). Here 64 bits are behind
each number, and both its tails are exact to float32's relative precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


def fraction(bits: UInt32[Array, "2 *N"]) -> Float[Array, "*N"]:
    """The number in (0, 1] of 64 bits, the high 32 first, rounded to float32: from 2^-65 on."""
    high, low = bits[0].astype(jnp.float32), bits[1].astype(jnp.float32)
    return high * 2.0**-32 + (low + 0.5) * 2.0**-64


def uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "*N"]:
    """Uniform numbers in (0, 1], small ones as finely spread as float32 has them."""
    return fraction(jax.random.bits(key, (2, *shape), jnp.uint32))


def log_exponential(bits: UInt32[Array, "2 *N"]) -> Float[Array, "*N"]:
    """The logarithm of the exponential variable -log(1 - u), with u the fraction of the bits.

    Above one half it is taken of 1 - u itself, which is the fraction of the bits' complement.
    """
    small = bits[0] < jnp.uint32(2**31)
    u = fraction(jnp.where(small, bits, ~bits))
    return jnp.log(jnp.where(small, -jnp.log1p(-u), -jnp.log(u)))


def race(logits: Float[Array, "*N K"], bits: UInt32[Array, "2 *N K"]) -> Int[Array, "*N"]:
    """The draw from the softmax of logits that random bits make.

    Exponential variables of rates p_k: the first to come is k with probability p_k.
    """
    return jnp.argmax(logits.astype(jnp.float32) - log_exponential(bits), -1).astype(jnp.int32)


def categorical(key: Array, logits: Float[Array, "*N K"]) -> Int[Array, "*N"]:
    """A draw from the softmax of logits along the last axis."""
    return race(logits, jax.random.bits(key, (2, *logits.shape), jnp.uint32))


def gumbel(key: Array, shape: tuple[int, ...]) -> Float[Array, "*N"]:
    """Standard Gumbel variables, exact in both tails."""
    return -log_exponential(jax.random.bits(key, (2, *shape), jnp.uint32))
