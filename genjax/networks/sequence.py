"""What the networks over sequences share: what goes in, what is read off, where segments begin.

A sequence network is called as

  network(x, *, segment=None, cache=None, capacity=0, key=None, train=False) -> (logits, cache)

with x tokens [B, T], or frames of zeros and ones [B, T, V], and logits float32 [B, T, V] of what
comes next. `segment` int32 [B, T] keeps neighbours apart: no position sees another segment, places
count from a segment's start and recurrent states begin anew there. Documents laid side by side are
segments 1, 2, 3 ..., padding on the left is segment 0 before segment 1. `capacity` > 0 asks for a
cache of so many positions with x in it, and for the logits of what follows x alone, [B, 1, V]; with
a `cache`, x are the positions that follow those in it, of the same segment as the last one, and it
comes back with them in it. What does not fit into the capacity overwrites what is there. Every
array of two axes or more in a cache has the batch on its second.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from genjax.nn.layers import Embed, Initializer, Linear, contract

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
    """Tokens [B, T] -> vectors [B, T, D], by a table; or frames [B, T, V] by a linear layer."""
    layer = Linear if frames else Embed
    return layer(vocabulary_size, width, init=init, dtype=dtype, rngs=rngs)


class Head(nnx.Module):
    """Logits in float32."""

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
        """Applies the layer; a tied one has the table of `embed` (Press & Wolf 2017)."""
        if self.kernel is not None:
            logits = contract("btd,dv->btv", h, self.kernel[...].astype(h.dtype))
        else:
            table = embed.embedding if isinstance(embed, Embed) else embed.kernel
            logits = contract("btd,vd->btv", h, table[...].astype(h.dtype))
        return logits if self.bias is None else logits + self.bias[...]


def one_segment(segment: Any, cache: Any) -> None:
    """Raises ValueError where there are both: what follows a cache is of its last segment."""
    if segment is not None and cache is not None:
        raise ValueError("segment and cache: expected at most one of them; pass segment=None")


def begins(segment: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Whether a segment begins at a position."""
    changes = segment[:, 1:] != segment[:, :-1]
    return jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)


def places(segment: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The place of each position in its segment, from 0 on."""
    index = jnp.arange(segment.shape[1])
    return index - lax.cummax(jnp.where(begins(segment), index, 0), axis=1)


def visible(
    T: int, causal: bool, segment: Int[Array, "B T"] | None
) -> Bool[Array, "B 1 T T"] | Bool[Array, "1 1 T T"] | None:
    """Which positions see which: of the same segment, and not what comes after them if causal.

    Padding sees padding, as its segment is one like the others; so each sees itself at least.
    """
    mask = jnp.tril(jnp.ones((1, 1, T, T), bool)) if causal else None
    if segment is None:
        return mask
    same = (segment[:, :, None] == segment[:, None, :])[:, None]
    return same if mask is None else same & mask


def visible_of(segments: Int[Array, "1 B S"], T: int, at: Int[Array, ""]) -> Bool[Array, "B 1 T S"]:
    """Which positions of a cache T new ones see that begin at `at`; one segment, causal."""
    last = lax.dynamic_slice_in_dim(segments[0], at, 1, axis=1)
    before = jnp.arange(segments.shape[2]) <= at + jnp.arange(T)[:, None]
    return ((segments[0] == last)[:, None] & before)[:, None]
