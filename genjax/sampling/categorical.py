"""Draws from categorical distributions that are accurate for rare values too.

The argmax of logits plus Gumbel noise is a draw from their softmax. Noise made of a float32 uniform
number of 23 bits is never above 16: values rarer than 1e-7 next to a common one are never drawn,
and draws look like those of a lower temperature (Zheng et al. 2024, section 5). Here each number is
made of 64 bits, and both its tails are exact to float32's relative precision.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32


def fraction(bits: UInt32[Array, "2 *N"]) -> Float[Array, "*N"]:
    """Turns 64 bits, the high 32 first, into a float32 number from 2^-65 to 1."""
    high, low = bits[0].astype(jnp.float32), bits[1].astype(jnp.float32)
    return high * 2.0**-32 + (low + 0.5) * 2.0**-64


def uniform(key: Array, shape: tuple[int, ...]) -> Float[Array, "*N"]:
    """Uniform numbers in (0, 1]; small ones are as finely spaced as float32 allows."""
    return fraction(jax.random.bits(key, (2, *shape), jnp.uint32))


def log_exponential(bits: UInt32[Array, "2 *N"]) -> Float[Array, "*N"]:
    """The logarithm of the exponential variable -log(1 - u), with u = fraction(bits).

    For u above one half, 1 - u is computed directly, as the fraction of the complemented bits.
    """
    small = bits[0] < jnp.uint32(2**31)
    u = fraction(jnp.where(small, bits, ~bits))
    return jnp.log(jnp.where(small, -jnp.log1p(-u), -jnp.log(u)))


def race(logits: Float[Array, "*N K"], bits: UInt32[Array, "2 *N K"]) -> Int[Array, "*N"]:
    """Draws from the softmax of logits, with these random bits.

    Of exponential variables with rates p_k, the k-th is the smallest with probability p_k.
    """
    return jnp.argmax(logits.astype(jnp.float32) - log_exponential(bits), -1).astype(jnp.int32)


def categorical(key: Array, logits: Float[Array, "*N K"]) -> Int[Array, "*N"]:
    """A draw from the softmax of logits along the last axis."""
    return race(logits, jax.random.bits(key, (2, *logits.shape), jnp.uint32))


def gumbel(key: Array, shape: tuple[int, ...]) -> Float[Array, "*N"]:
    """Standard Gumbel variables, exact in both tails."""
    return -log_exponential(jax.random.bits(key, (2, *shape), jnp.uint32))


def inverted(key: Array, logits: Float[Array, "*N K"]) -> Int[Array, "*N"]:
    """A draw from the softmax by its distribution function, from one uniform number.

    For many draws of thousands of values, of which it takes one exponential each, in place of a
    noise of two logarithms. Values rarer than 1e-7 are hardly ever drawn. A value of logit -inf is
    never drawn.
    """
    K = logits.shape[-1]
    size = math.isqrt(K - 1) + 1  # first the block, then the value in it
    rates = jnp.exp(logits.astype(jnp.float32) - logits.max(-1, keepdims=True))
    rates = jnp.pad(rates, [(0, 0)] * (logits.ndim - 1) + [(0, -K % size)])
    blocks = rates.reshape(*logits.shape[:-1], -1, size)
    sums = jnp.cumsum(blocks.sum(-1), -1)
    place = jax.random.uniform(key, logits.shape[:-1]) * sums[..., -1]
    block, rest = _containing(sums, place)
    inner = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
    value, _ = _containing(jnp.cumsum(inner, -1), rest)
    return block * size + value


def _containing(
    sums: Float[Array, "*N K"], place: Float[Array, "*N"]
) -> tuple[Int[Array, "*N"], Float[Array, "*N"]]:
    """The index of the first cumulative sum above `place`, and how far into it that is."""
    place = jnp.clip(place, 0.0, jnp.nextafter(sums[..., -1], jnp.float32(0)))
    index = (sums <= place[..., None]).sum(-1, dtype=jnp.int32)
    before = jnp.take_along_axis(sums, jnp.maximum(index - 1, 0)[..., None], -1)[..., 0]
    return index, place - jnp.where(index > 0, before, 0.0)
