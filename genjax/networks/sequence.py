"""The parts that sequence networks share: their interface, embedding, head and segments.

A sequence network is called as

  network(x, *, segment=None, cache=None, capacity=0, key=None, train=False) -> (logits, cache)

- x: tokens [B, T], or frames of zeros and ones [B, T, V].
- logits: of the next token or frame, float32 [B, T, V].
- segment: int32 [B, T]. No position sees another segment; positions count from the start of their
  segment, and recurrent states are reset there. Packed documents are segments 1, 2, 3 ...; padding
  on the left is segment 0 before segment 1.
- capacity: if > 0, the network returns a cache of this many positions that contains x, and the
  logits of what follows the last position only, [B, 1, V].
- cache: x are the positions after those in the cache, in the segment of the last one; the network
  returns the cache with x added. Positions beyond the capacity overwrite earlier entries. Every
  array in a cache that has two or more axes has the batch on its second.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import require
from genjax.nn.layers import Embed, Initializer, Linear, contract
from genjax.nn.plain_attention import causal_mask
from genjax.parallel.layout import LENGTH, UNITS, ways

small = jax.nn.initializers.normal(0.02)  # Radford et al. 2019


def embedding(
    vocabulary_size: int,
    width: int,
    frames: bool,
    *,
    init: Initializer = small,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Embed | Linear:
    """Maps tokens [B, T] by a table, or frames [B, T, V] by a linear layer, to [B, T, D]."""
    layer = Linear if frames else Embed
    return layer(vocabulary_size, width, init=init, dtype=dtype, rngs=rngs)


class Head(nnx.Module):
    """Maps vectors to logits in float32."""

    def __init__(
        self,
        width: int,
        vocabulary_size: int,
        *,
        tied: bool,
        use_bias: bool,
        init: Initializer = small,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters `kernel` [D, V], unless `tied`, and `bias` [V]."""
        shape = (width, vocabulary_size)
        self.kernel = None if tied else nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((vocabulary_size,))) if use_bias else None

    def __call__(self, h: Float[Array, "B T D"], embed: Embed | Linear) -> Float[Array, "B T V"]:
        """Applies the layer; a tied head uses the weights of `embed` (Press & Wolf 2017)."""
        if self.kernel is not None:
            logits = contract("btd,dv->btv", h, self.kernel[...].astype(h.dtype))
        else:
            table = embed.embedding if isinstance(embed, Embed) else embed.kernel
            logits = contract("btd,vd->btv", h, table[...].astype(h.dtype))
        return logits if self.bias is None else logits + self.bias[...]


def one_segment(segment: Any, cache: Any) -> None:
    """Raises ValueError if both are given: what follows a cache is in its last segment."""
    if segment is not None and cache is not None:
        raise ValueError("segment and cache: expected at most one of them; pass segment=None")


def check_split(positions: int, heads: int) -> None:
    """Checks that a mesh which splits the length can do so.

    Raises:
      ConfigError: it has an axis `sequence` that does not divide the positions, or that does not
        divide the heads together with `tensor`.
    """
    length, parts = ways(LENGTH), ways(UNITS, LENGTH)
    if length > 1:
        expected = f"a multiple of config.mesh.sequence={length}, which splits them"
        require(positions % length == 0, "positions", positions, expected)
        expected = f"a multiple of config.mesh.sequence x tensor = {parts}, which split them"
        require(heads % parts == 0, "heads", heads, expected)


def begins(segment: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Whether a segment begins at each position."""
    changes = segment[:, 1:] != segment[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)


def places(segment: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The index of each position within its segment, from 0."""
    index = jnp.arange(segment.shape[1])
    return index - lax.cummax(jnp.where(begins(segment), index, 0), axis=1)


def visible(
    T: int, causal: bool, segment: Int[Array, "B T"] | None, window: int = 0
) -> Bool[Array, "B 1 T T"] | Bool[Array, "1 1 T T"] | None:
    """Which positions see which: those of the same segment, and only earlier ones if causal.

    With a `window` a causal position sees only so many, the last of them itself. Padding sees
    padding, because it is a segment like the others; so each position sees itself.
    """
    mask = causal_mask(T, T, window)[None, None] if causal else None
    if segment is None:
        return mask
    same = (segment[:, :, None] == segment[:, None, :])[:, None]
    return same if mask is None else same & mask


def visible_of(
    segments: Int[Array, "1 B S"], T: int, at: Int[Array, ""], window: int = 0
) -> Bool[Array, "B 1 T S"]:
    """Which cache positions T new ones from index `at` on see, as `visible` if causal."""
    last = lax.dynamic_slice_in_dim(segments[0], at, 1, axis=1)
    index, own = jnp.arange(segments.shape[2]), at + jnp.arange(T)[:, None]
    before = index <= own
    before = before & (index > own - window) if window else before
    return ((segments[0] == last)[:, None] & before)[:, None]
