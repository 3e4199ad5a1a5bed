"""Gated PixelCNN over the tokens of an image (van den Oord et al. 2016, arXiv:1606.05328)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.config import require
from genjax.nn.layers import Embed, Linear, dropout, plus
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"(kernel|embedding)$", fsdp), (r"bias$", replicate))

Offsets = tuple[tuple[int, int], ...]


def shifted(x: Float[Array, "B H W C"], down: int, right: int) -> Float[Array, "B H W C"]:
    """The image moved by `down` >= 0 rows and `right` columns, zeros where there was none."""
    _, H, W, _ = x.shape
    margin = abs(right)
    padded = jnp.pad(x, ((0, 0), (down, 0), (margin, margin), (0, 0)))
    return padded[:, :H, margin - right : margin - right + W]


class CausalConv(nnx.Module):
    """A convolution that reads (down, right) moved images, as one product."""

    def __init__(
        self, features_in: int, features_out: int, offsets: Offsets, dtype: Any, rngs: nnx.Rngs
    ):
        """`offsets` are the (rows above, columns to the left) that are read."""
        self.linear = Linear(len(offsets) * features_in, features_out, dtype=dtype, rngs=rngs)
        self.offsets = offsets

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        """Applies the layer."""
        return self.linear(jnp.concatenate([shifted(x, *o) for o in self.offsets], axis=-1))


def _above(size: int, first: int) -> Offsets:
    reach = size // 2
    return tuple((d, r) for d in range(first, reach + 1) for r in range(-reach, reach + 1))


def _left(size: int, first: int) -> Offsets:
    return tuple((0, r) for r in range(first, size // 2 + 1))


def _gate(x: Float[Array, "... D"]) -> Float[Array, "... d"]:
    """tanh of one half times the sigmoid of the other (eq. 2)."""
    value, gate = jnp.split(x, 2, axis=-1)
    return jnp.tanh(value) * jax.nn.sigmoid(gate)


class Layer(nnx.Module):
    """A vertical stack that sees the rows above, a horizontal one that sees the row (figure 2).

    The first layer reads the tokens: its vertical stack begins in the row above, its horizontal
    one in the column to the left. What later layers read has left the token itself out already.
    """

    def __init__(self, width: int, size: int, first: bool, rate: float, dtype: Any, rngs: nnx.Rngs):
        """`first` says whether the layer reads the tokens themselves."""
        start = int(first)
        self.vertical = CausalConv(width, 2 * width, _above(size, start), dtype, rngs)
        self.horizontal = CausalConv(width, 2 * width, _left(size, start), dtype, rngs)
        self.link = Linear(2 * width, 2 * width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs)
        self.condition = Linear(width, 4 * width, use_bias=False, dtype=dtype, rngs=rngs)
        self.first, self.rate = first, rate

    def __call__(
        self,
        above: Float[Array, "B H W D"],
        left: Float[Array, "B H W D"],
        label: Float[Array, "B D"],
        key: Array | None,
        train: bool,
    ) -> tuple[Float[Array, "B H W D"], Float[Array, "B H W D"]]:
        """The two stacks."""
        for_above, for_left = jnp.split(self.condition(label)[:, None, None], 2, axis=-1)
        rows = self.vertical(above)
        h = self.horizontal(left) + self.link(rows)
        h = dropout(self.out(_gate(plus(h, for_left))), self.rate, key, train)
        return _gate(plus(rows, for_above)), h if self.first else left + h


class Network(nnx.Module):
    """The logits of each token given those before it: left to right, top to bottom, by depth.

    A position has Q tokens (residual VQ), each of a codebook of its own; each sees those before it
    in its position as well.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        vocabulary_size: int,
        num_classes: int = 0,
        *,
        width: int = 64,
        depth: int = 8,
        kernel_size: int = 3,
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the tokens of an image [h, w, Q].
          vocabulary_size: values of a token, K.
          num_classes: labels to be conditioned on; 0 for none.
          width: channels.
          depth: gated layers.
          kernel_size: of their convolutions before half of it is left out; odd.
          dropout: probability, of what each layer adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an even kernel size, or less than two layers.
        """
        require(
            kernel_size % 2 == 1 and kernel_size > 1, "kernel_size", kernel_size, "odd, 3 or more"
        )
        require(depth > 1, "depth", depth, "at least 2")
        self.shape, self.K = shape, vocabulary_size
        Q, given = shape[-1], (dropout, dtype)
        self.token = Embed(Q * self.K, width, dtype=dtype, rngs=rngs)
        self.label = Embed(max(num_classes, 1), width, dtype=dtype, rngs=rngs)
        self.first = Layer(width, kernel_size, True, *given, rngs)

        @nnx.split_rngs(splits=depth - 1)
        @nnx.vmap(in_axes=0, out_axes=0)
        def layers(rngs: nnx.Rngs) -> Layer:
            return Layer(width, kernel_size, False, *given, rngs)

        self.layers = layers(rngs)
        self.depth = depth
        self.within = Embed(Q * self.K, width, dtype=dtype, rngs=rngs) if Q > 1 else None
        self.hidden = Linear(width, 4 * width, dtype=dtype, rngs=rngs)
        init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)
        self.kernel = nnx.Param(init(rngs.params(), (Q, 4 * width, self.K), jnp.float32))
        self.dtype = dtype

    def __call__(
        self,
        index: Int[Array, "B *S"],
        label: Int[Array, "B"] | None = None,
        *,
        position: Int[Array, ""] | int | None = None,
        cache: Int[Array, "B S"] | None = None,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B *S K"], Any]:
        """Logits in float32, and the cache: as `token_transformer.Network` has them.

        The cache is the tokens so far: each step goes over the whole image again.
        """
        if position is None:
            return self._logits(index, label, key, train), None
        if cache is None:
            cache = jnp.zeros((len(index), math.prod(self.shape)), index.dtype)
        else:
            cache = cache.at[:, position - 1].set(index)
        return self._logits(cache, label, None, False)[:, position], cache

    def _logits(self, index, label, key, train) -> Float[Array, "B S K"]:
        B, (h, w, Q) = len(index), self.shape
        numbered = index.reshape(B, h, w, Q) + self.K * jnp.arange(Q)
        label = self.label(jnp.zeros(B, jnp.int32) if label is None else label)
        keys = [None] * self.depth if key is None else jax.random.split(key, self.depth)
        x = self.token(numbered).sum(-2)
        stacks = self.first(x, x, label, keys[0], train)
        graph, stacked = nnx.split(self.layers)

        def layer(stacks: tuple, given: tuple) -> tuple[tuple, None]:
            state, key = given
            return nnx.merge(graph, state)(*stacks, label, key, train), None

        rest = None if key is None else keys[1:]
        (_, left), _ = jax.lax.scan(layer, stacks, (stacked, rest))
        left = left[..., None, :]
        if self.within is not None:
            seen = jnp.cumsum(self.within(numbered), axis=-2)
            left = left + jnp.pad(seen[..., :-1, :], ((0, 0),) * 3 + ((1, 0), (0, 0)))
        hidden = nnx.silu(self.hidden(nnx.silu(left)))
        logits = jnp.einsum(
            "bhwqd,qdk->bhwqk",
            hidden,
            self.kernel[...].astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        return logits.reshape(B, -1, self.K)
