"""The key-value cache of a transformer, and how new positions are written into it."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from genjax.networks.sequence import places


class Cache(NamedTuple):
    """Keys and values of the positions so far, zero in the rest of the S positions.

    Keys and values in bfloat16 are stored as the integers of their bits: to write one position or
    move one row of a bfloat16 array, a CPU would convert the whole array to float32 and back.

    Attributes:
      key: keys of all blocks, one block after the other; with unstacked parameters a tuple with
        one array per block.
      value: values, likewise.
      segment: the segment of each position.
      place: index of the next position within its segment.
      length: number of positions in the cache.
    """

    key: Shaped[Array, "LK B S H"] | tuple[Shaped[Array, "K B S H"], ...]
    value: Shaped[Array, "LK B S H"] | tuple[Shaped[Array, "K B S H"], ...]
    segment: Int[Array, "1 B S"]
    place: Int[Array, "1 B"]
    length: Int[Array, ""]


def bits(x: Array) -> Array:
    """Reinterprets bfloat16 as integers; returns other arrays unchanged."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def numbers(x: Array, dtype: jnp.dtype) -> Array:
    """The inverse of `bits`. Gradients pass only through arrays that are numbers already."""
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, dtype)


def write(held: Array, new: Float[Array, "K B T H"], layer: Array | None, at: Array | int) -> Array:
    """Writes `new` at position `at` of `layer` in [L, K, B, S, H], or of [K, B, S, H] if None."""
    new = bits(new)
    if layer is None:
        return lax.dynamic_update_slice_in_dim(held, new, at, axis=2)
    return lax.dynamic_update_slice(held, new[None], (layer, 0, 0, at, 0))


def placed(
    T: int, segment: Int[Array, "B T"] | None, cache: Cache | None
) -> Int[Array, "B T"] | Int[Array, "1 T"]:
    """The indices of T new positions within their segments."""
    if cache is not None:
        return cache.place[0][:, None] + jnp.arange(T)
    return jnp.arange(T)[None] if segment is None else places(segment)


def held_segments(
    B: int, T: int, segment: Int[Array, "B T"] | None, cache: Cache | None, capacity: int
) -> Int[Array, "1 B S"] | None:
    """The segments of a cache's positions after T new positions are written."""
    if cache is not None:
        last = lax.dynamic_slice_in_dim(cache.segment, cache.length - 1, 1, axis=2)
        new = jnp.broadcast_to(last, (1, B, T))
        return lax.dynamic_update_slice_in_dim(cache.segment, new, cache.length, axis=2)
    segments = jnp.ones((B, T), jnp.int32) if segment is None else segment
    return jnp.pad(segments, ((0, 0), (0, capacity - T)))[None] if capacity else None
