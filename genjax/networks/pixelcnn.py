"""Gated PixelCNN over the tokens of an image (van den Oord et al. 2016, arXiv:1606.05328)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
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

    def part(
        self, x: Float[Array, "B H W C"], row: Array | int, column: Array | int, width: int
    ) -> Float[Array, "B 1 w F"]:
        """A part of a row of the result, of an image that has its margins already."""
        size = (len(x), 1, width, x.shape[-1])
        read = [lax.dynamic_slice(x, (0, row - d, column - r, 0), size) for d, r in self.offsets]
        return self.linear(jnp.concatenate(read, axis=-1))


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
        rows = self.vertical(above)
        h = dropout(self.mix(self.horizontal(left), rows, label), self.rate, key, train)
        return self.pass_on(rows, label), h if self.first else left + h

    def pass_on(
        self, rows: Float[Array, "B H W 2*D"], label: Float[Array, "B D"]
    ) -> Float[Array, "B H W D"]:
        """What the next layer's vertical stack reads, given what this one's found."""
        return _gate(plus(rows, self._conditions(label)[0]))

    def mix(
        self, columns: Float[Array, "B H W 2*D"], rows: Float[Array, "B H W 2*D"], label: Array
    ) -> Float[Array, "B H W D"]:
        """What the layer adds to the horizontal stack, given what both have found."""
        h = columns + self.link(rows)
        return self.out(_gate(plus(h, self._conditions(label)[1])))

    def _conditions(self, label: Float[Array, "B D"]) -> list[Float[Array, "B 1 1 2*D"]]:
        return jnp.split(self.condition(label)[:, None, None], 2, axis=-1)


class Cache(NamedTuple):
    """What each layer keeps while an image is drawn: of the first one, and of the L - 1 others.

    Attributes:
      token: of the position that is being drawn.
      above: what the vertical stack reads, with m = kernel_size // 2 zeros on each side but below.
      rows: what it has found for the row that is being drawn.
      left: what the horizontal stack reads of that row, with m zeros on each side.
    """

    token: Int[Array, "B Q"]
    above: tuple[Float[Array, "B h+m w+2*m D"], Float[Array, "L-1 B h+m w+2*m D"]]
    rows: tuple[Float[Array, "B 1 w 2*D"], Float[Array, "L-1 B 1 w 2*D"]]
    left: tuple[Float[Array, "B 1 w+2*m D"], Float[Array, "L-1 B 1 w+2*m D"]]


def _write(
    held: Float[Array, "B H W D"],
    new: Float[Array, "B 1 w D"],
    row: Array | int,
    column: Array | int,
) -> Float[Array, "B H W D"]:
    return lax.dynamic_update_slice(held, new, (0, row, column, 0))


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
        self.depth, self.width, self.margin = depth, width, kernel_size // 2
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
        cache: Cache | None = None,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B *S K"], Any]:
        """Logits in float32, and the cache: as `token_transformer.Network` has them.

        With them every layer computes its part of one position alone, and its vertical stack that
        of a row when the row begins (Ramachandran et al. 2017).
        """
        label = self.label(jnp.zeros(len(index), jnp.int32) if label is None else label)
        if position is None:
            return self._all(index, label, key, train), None
        return self._next(index, label, jnp.asarray(position), cache)

    def _next(
        self,
        index: Int[Array, "B"],
        label: Float[Array, "B D"],
        position: Array,
        cache: Cache | None,
    ) -> tuple[Float[Array, "B K"], Cache]:
        """The logits of a position, and the cache with the token before it in it."""
        _, w, Q = self.shape
        cache = self._empty(len(index)) if cache is None else self._with(cache, index, position - 1)
        (row, column), q = jnp.divmod(position // Q, w), position % Q
        begins = position % (w * Q) == 0
        cache = lax.cond(begins, lambda c: self._row(c, label, row), lambda c: c, cache)
        left, cache = self._column(cache, label, column)
        if self.within is not None:
            seen = self.within(self._numbered(cache.token))
            left = left + jnp.where(jnp.arange(Q)[:, None] < q, seen, 0).sum(-2)
        return self._read("bd,dk->bk", left, self.kernel[...][q]), cache

    def _empty(self, batch: int) -> Cache:
        (h, w, Q), m, D = self.shape, self.margin, self.width

        def of_layers(*shape: int) -> tuple[Array, Array]:
            shapes = ((batch, *shape), (self.depth - 1, batch, *shape))
            return tuple(jnp.zeros(shape, self.dtype) for shape in shapes)

        return Cache(
            jnp.zeros((batch, Q), jnp.int32),
            of_layers(h + m, w + 2 * m, D),
            of_layers(1, w, 2 * D),
            of_layers(1, w + 2 * m, D),
        )

    def _with(self, cache: Cache, index: Int[Array, "B"], position: Array) -> Cache:
        """A position's vector counts for nothing before the last of its tokens is there."""
        _, w, Q = self.shape
        row, column = jnp.divmod(position // Q, w)
        token = cache.token.at[:, position % Q].set(index)
        x = self.token(self._numbered(token)).sum(-2)[:, None, None]
        above, left = cache.above, cache.left
        return cache._replace(
            token=token,
            above=(_write(above[0], x, row + self.margin, column + self.margin), above[1]),
            left=(_write(left[0], x, 0, column + self.margin), left[1]),
        )

    def _row(self, cache: Cache, label: Float[Array, "B D"], row: Array) -> Cache:
        """What the vertical stacks find for a row."""
        (first, rest), m, w = cache.above, self.margin, self.shape[1]
        graph, stacked = nnx.split(self.layers)

        def layer(x: Array, given: tuple) -> tuple[Array, tuple]:
            net, above = nnx.merge(graph, given[0]), _write(given[1], x, row + m, m)
            rows = net.vertical.part(above, row + m, m, w)
            return net.pass_on(rows, label), (above, rows)

        rows = self.first.vertical.part(first, row + m, m, w)
        _, (rest, others) = lax.scan(layer, self.first.pass_on(rows, label), (stacked, rest))
        return cache._replace(above=(first, rest), rows=(rows, others))

    def _column(
        self, cache: Cache, label: Float[Array, "B D"], column: Array
    ) -> tuple[Float[Array, "B D"], Cache]:
        """What the last horizontal stack finds for a column of the row."""
        (first, rest), m = cache.left, self.margin
        graph, stacked = nnx.split(self.layers)

        def mixed(net: Layer, left: Array, rows: Array) -> Array:
            row = lax.dynamic_slice_in_dim(rows, column, 1, axis=2)
            return net.mix(net.horizontal.part(left, 0, column + m, 1), row, label)

        def layer(x: Array, given: tuple) -> tuple[Array, Array]:
            state, left, rows = given
            left = _write(left, x, 0, column + m)
            return x + mixed(nnx.merge(graph, state), left, rows), left

        x = mixed(self.first, first, cache.rows[0])
        x, rest = lax.scan(layer, x, (stacked, rest, cache.rows[1]))
        return x[:, 0, 0], cache._replace(left=(first, rest))

    def _all(
        self, index: Int[Array, "B *S"], label: Float[Array, "B D"], key: Array | None, train: bool
    ) -> Float[Array, "B *S K"]:
        """The logits of all tokens."""
        B, (h, w, Q) = len(index), self.shape
        numbered = self._numbered(index.reshape(B, h, w, Q))
        keys = [None] * self.depth if key is None else jax.random.split(key, self.depth)
        x = self.token(numbered).sum(-2)
        stacks = self.first(x, x, label, keys[0], train)
        graph, stacked = nnx.split(self.layers)

        def layer(stacks: tuple, given: tuple) -> tuple[tuple, None]:
            state, key = given
            return nnx.merge(graph, state)(*stacks, label, key, train), None

        rest = None if key is None else keys[1:]
        (_, left), _ = lax.scan(layer, stacks, (stacked, rest))
        left = left[..., None, :]
        if self.within is not None:
            seen = jnp.cumsum(self.within(numbered), axis=-2)
            left = left + jnp.pad(seen[..., :-1, :], ((0, 0),) * 3 + ((1, 0), (0, 0)))
        return self._read("bhwqd,qdk->bhwqk", left, self.kernel[...]).reshape(B, -1, self.K)

    def _numbered(self, index: Int[Array, "*B Q"]) -> Int[Array, "*B Q"]:
        return index + self.K * jnp.arange(self.shape[-1])

    def _read(self, spec: str, left: Array, kernel: Array) -> Array:
        hidden = nnx.silu(self.hidden(nnx.silu(left)))
        return jnp.einsum(
            spec, hidden, kernel.astype(self.dtype), preferred_element_type=jnp.float32
        )
