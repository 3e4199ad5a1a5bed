"""What a transformer keeps of the positions so far, and how new ones are put into it."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from genjax.networks.sequence import places


class Cache(NamedTuple):
    """What a transformer keeps of the positions so far; the rest of the S is zero.

    Keys and values in bfloat16 are kept as the integers that their bits are: to write one position
    or to move one row, a CPU would make all of a bfloat16 array float32, and back.

    Attributes:
      key: of every block, one after the other; of unstacked parameters a tuple, block by block.
      value: likewise.
      segment: of each position.
      place: of the next position in its segment.
      length: positions held.
    """

    key: Shaped[Array, "LK B S H"] | tuple[Shaped[Array, "K B S H"], ...]
    value: Shaped[Array, "LK B S H"] | tuple[Shaped[Array, "K B S H"], ...]
    segment: Int[Array, "1 B S"]
    place: Int[Array, "1 B"]
    length: Int[Array, ""]


def bits(x: Array) -> Array:
    """Integers, of bfloat16; anything else as it is."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def write(held: Array, new: Float[Array, "K B T H"], layer: Array | None, at: Array | int) -> Array:
    """Keys or values [L, K, B, S, H] with new ones at `at` of a layer; or [K, B, S, H], of one."""
    new = bits(new)
    if layer is None:
        return lax.dynamic_update_slice_in_dim(held, new, at, axis=2)
    return lax.dynamic_update_slice(held, new[None], (layer, 0, 0, at, 0))


def placed(
    T: int, segment: Int[Array, "B T"] | None, cache: Cache | None
) -> Int[Array, "B T"] | Int[Array, "1 T"]:
    """The places of T new positions in their segments."""
    if cache is not None:
        return cache.place[0][:, None] + jnp.arange(T)
    return jnp.arange(T)[None] if segment is None else places(segment)


def held_segments(
    B: int, T: int, segment: Int[Array, "B T"] | None, cache: Cache | None, capacity: int
) -> Int[Array, "1 B S"] | None:
    """The segments of a cache's positions once T new ones are in it."""
    if cache is not None:
        last = lax.dynamic_slice_in_dim(cache.segment, cache.length - 1, 1, axis=2)
        new = jnp.broadcast_to(last, (1, B, T))
        return lax.dynamic_update_slice_in_dim(cache.segment, new, cache.length, axis=2)
    own = jnp.ones((B, T), jnp.int32) if segment is None else segment
    return jnp.pad(own, ((0, 0), (0, capacity - T)))[None] if capacity else None
