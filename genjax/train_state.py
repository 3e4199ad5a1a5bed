"""The train state that all families share; it holds only arrays."""

from __future__ import annotations

import zlib
from typing import Any

import flax.struct
import jax

Tree = Any


@flax.struct.dataclass
class TrainState:
    """The full state of a run, as arrays: no optimizer object, no function, no Python state.

    Attributes:
      step: int32 scalar; the only clock, also the position in the data.
      params: float32 parameters, one entry per network.
      opt_state: optimizer state, one entry per trained network.
      mutable: network state without gradients (batch statistics, codebooks ...).
      ema: averaged parameters, one entry per EMA profile.
      key: root PRNG key; never split, only folded with names and steps.
    """

    step: jax.Array
    params: dict[str, Tree]
    opt_state: dict[str, Any]
    mutable: dict[str, Tree]
    ema: dict[str, Tree]
    key: jax.Array


def seeded_key(seed: int) -> jax.Array:
    """The root key of a 64-bit seed; different seeds have different keys.

    For seeds from 0 to 2**32 - 1 it is `jax.random.key(seed)`, which ignores higher bits.
    """
    low, high = seed % 2**32, (seed >> 32) % 2**32
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key


def stream(key: jax.Array, name: str) -> jax.Array:
    """The key of the random stream `name`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
