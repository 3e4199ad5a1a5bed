"""The transformer on vectors (Vaswani et al. 2017): causal self-attention, depth scanned.

What its vectors are, where they stand and what is read off at the end belongs to the network around
it, such as `token_transformer`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.config import require
from genjax.nn.layers import LayerNorm, Linear, attention, dropout
from genjax.parallel.rules import Rules, fsdp, replicate

# Stacked over depth, a kernel is [L, in, out].
RULES: Rules = ((r"(kernel|embedding)$", fsdp), (r"(scale|bias|positions)$", replicate))

normal = jax.nn.initializers.normal


class Cache(NamedTuple):
    """Keys and values of the positions so far, of every block; the rest of the S is zero."""

    key: Float[Array, "L B S N D"]
    value: Float[Array, "L B S N D"]


class Block(nnx.Module):
    """Self-attention and a two-layer network, each on the normalised sum so far (pre-norm)."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        depth: int,
        rate: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Initial weights as Radford et al. 2019, section 2.3: N(0, 0.02), into the sum less."""
        inner = {"init": normal(0.02), "dtype": dtype, "rngs": rngs}
        back = {**inner, "init": normal(0.02 / math.sqrt(2 * depth))}
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.qkv = Linear(width, 3 * width, **inner)
        self.merge = Linear(width, width, **back)
        self.up = Linear(width, hidden, **inner)
        self.down = Linear(hidden, width, **back)
        self.heads, self.rate = heads, rate

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cache: tuple[Array, Array] | None,
        position: Int[Array, ""] | int,
        key: Array | None,
        train: bool,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        """The new vectors, and keys and values [B, S, N, D]: the cache's with these, or these.

        `x` stands at `position` and after.
        """
        B, T, width = x.shape
        keys = [None] * 2 if key is None else jax.random.split(key)
        qkv = self.qkv(self.norm1(x)).reshape(B, T, 3, self.heads, width // self.heads)
        query, *seen = (qkv[:, :, i] for i in range(3))
        if cache is not None:
            at = (0, position, 0, 0)
            seen = [
                jax.lax.dynamic_update_slice(old, new, at)
                for old, new in zip(cache, seen, strict=True)
            ]
        allowed = jnp.arange(seen[0].shape[1]) <= position + jnp.arange(T)[:, None]
        h = self.merge(attention(query, *seen, allowed).reshape(B, T, width))
        x = x + dropout(h, self.rate, keys[0], train)
        h = self.down(jax.nn.gelu(self.up(self.norm2(x))))
        return x + dropout(h, self.rate, keys[1], train), tuple(seen)


class Transformer(nnx.Module):
    """A stack of blocks, and a norm."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        hidden: int = 0,
        rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          width: of the vectors, D.
          depth: blocks.
          heads: of the attention; divide the width.
          hidden: width inside a block; 4 D if 0.
          rate: of dropout, of what each block adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: heads do not divide the width.
        """
        require(heads > 0 and width % heads == 0, "heads", heads, f"a divisor of width={width}")
        require(depth > 0, "depth", depth, "at least 1")

        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def blocks(rngs: nnx.Rngs) -> Block:
            return Block(width, heads, hidden or 4 * width, depth, rate, dtype, rngs)

        self.blocks = blocks(rngs)
        self.norm = LayerNorm(width)
        self.shape = (depth, heads, width // heads)
        self.dtype = dtype

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache of `length` positions."""
        depth, heads, size = self.shape
        zeros = jnp.zeros((depth, batch, length, heads, size), self.dtype)
        return Cache(zeros, zeros)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        cache: Cache | None = None,
        position: Int[Array, ""] | int = 0,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """What each position knows of itself and those before it.

        With a cache, `x` stands at `position` and after, what came before it is in the cache, and
        the cache comes back with `x` in it.
        """
        graph, stacked = nnx.split(self.blocks)
        keys = None if key is None else jax.random.split(key, self.shape[0])

        def block(x: Array, given: tuple) -> tuple[Array, tuple | None]:
            state, key, held = given
            x, seen = nnx.merge(graph, state)(x, held, position, key, train)
            return x, None if cache is None else seen

        held = None if cache is None else tuple(cache)
        x, seen = jax.lax.scan(block, x.astype(self.dtype), (stacked, keys, held))
        return self.norm(x), None if seen is None else Cache(*seen)
