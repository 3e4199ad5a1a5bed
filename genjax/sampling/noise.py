"""Noise of samplers that depends only on a sample's key and on the noise levels of a step.

Each sample has a Brownian motion along the noise levels. A step's noise is its increment over the
step, so samplers with steps of different lengths draw the same noise at different resolutions, and
their samples resemble each other. The motion is built by halving intervals (Levy's construction),
as deep as the grid needs, and has the exact distribution at every position.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MOST = 20  # binary digits of a position


def normals(keys: Array, index: Array | int, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal numbers for each key [B]; `index` selects one of a key's draws."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def positions(ratio: Float[np.ndarray, "N"]) -> tuple[Int[np.ndarray, "N"], int]:
    """Positions of non-increasing noise levels s = sigma / alpha on a motion of 2^depth steps.

    A position is sqrt(s) / (1 + sqrt(s)) in binary, with as few digits as keep levels distinct.

    Returns:
      Integer positions, equal where levels are equal, and their number of digits, depth.
    """
    root = np.sqrt(np.asarray(ratio, np.float64))
    share = np.where(np.isinf(root), 1.0, root / (1 + np.where(np.isinf(root), 0.0, root)))
    level = np.concatenate([[0], np.cumsum(np.diff(share) < 0)])
    distinct = share[np.unique(level, return_index=True)[1]]
    for depth in range(math.ceil(math.log2(max(len(distinct), 2))), MOST + 1):
        rounded = np.round(distinct * 2**depth).astype(np.int64)
        if np.all(np.diff(rounded) < 0):
            break
    else:  # levels closer than the digits resolve get adjacent positions, from the data's end
        offset = np.arange(len(rounded))[::-1]
        rounded = np.maximum.accumulate((rounded - offset)[::-1])[::-1] + offset
        rounded = np.minimum(rounded, 2**depth - np.arange(len(rounded)))
    return rounded[level].astype(np.int32), depth


def brownian(
    keys: Array, position: Int[Array, ""], depth: Int[Array, ""] | int, shape: tuple[int, ...]
) -> Float[Array, "B ..."]:
    """The Brownian motion of each key at a position, of variance position / 2^depth.

    The same key gives the same motion for every depth.
    """
    depth = jnp.asarray(depth, jnp.int32)
    share = position.astype(jnp.float32) / jnp.left_shift(1, depth).astype(jnp.float32)

    def finer(level: Array, value: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        length = jnp.left_shift(1, depth - level)  # of the interval that is halved
        number = position // length
        inside = (position - number * length).astype(jnp.float32) / length.astype(jnp.float32)
        tent = 1.0 - jnp.abs(2.0 * inside - 1.0)
        normal = normals(keys, 2 + jnp.left_shift(1, level) + number, shape)
        return value + tent * 0.5 * jnp.exp2(-0.5 * level.astype(jnp.float32)) * normal

    return jax.lax.fori_loop(0, depth, finer, share * normals(keys, 1, shape))


def increment(
    before: Float[Array, "B ..."],
    after: Float[Array, "B ..."],
    start: Int[Array, ""],
    end: Int[Array, ""],
    depth: Int[Array, ""] | int,
) -> Float[Array, "B ..."]:
    """Standard normal noise: the motion's increment over its deviation; 0 for equal positions."""
    steps = (start - end).astype(jnp.float32)
    scale = jnp.exp2(0.5 * jnp.asarray(depth, jnp.float32)) * jax.lax.rsqrt(jnp.maximum(steps, 1.0))
    return (before - after) * scale
