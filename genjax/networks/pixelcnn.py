"""Gated PixelCNN over the tokens of an image (van den Oord et al. 2016, arXiv:1606.05328)."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from genjax.checks import Kernel, Range, Rate, Width, require
from genjax.nn.layers import Embed, Linear, contract, dropout, plus
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
        further, given = self.from_rows(self.vertical(above), label)
        h = dropout(self.from_columns(self.horizontal(left), given), self.rate, key, train)
        return further, h if self.first else left + h

    def from_rows(
        self, rows: Float[Array, "B H W 2*D"], label: Float[Array, "B D"]
    ) -> tuple[Float[Array, "B H W D"], Float[Array, "B H W 2*D"]]:
        """What the next vertical stack reads, and what the horizontal one is given."""
        for_above, for_left = jnp.split(self.condition(label)[:, None, None], 2, axis=-1)
        return _gate(plus(rows, for_above)), plus(self.link(rows), for_left)

    def from_columns(
        self, columns: Float[Array, "B H W 2*D"], given: Float[Array, "B H W 2*D"]
    ) -> Float[Array, "B H W D"]:
        """What the horizontal stack adds to itself."""
        return self.out(_gate(plus(columns, given)))


class Cache(NamedTuple):
    """What each layer keeps while an image is drawn: of the first one, and of the L - 1 others.

    Attributes:
      token: of the position that is being drawn.
      above: what the vertical stack reads: the row and the m = kernel_size // 2 above it, with m
        zeros on both sides.
      given: what the vertical stack gives to the horizontal one in that row.
      left: what the horizontal stack reads of that row, with m zeros to the left.
      last: what the last layer has found for the position.
    """

    token: Int[Array, "B Q"]
    above: tuple[Float[Array, "B m+1 w+2*m D"], Float[Array, "L-1 B m+1 w+2*m D"]]
    given: tuple[Float[Array, "B 1 w 2*D"], Float[Array, "L-1 B 1 w 2*D"]]
    left: tuple[Float[Array, "B 1 m+w D"], Float[Array, "L-1 B 1 m+w D"]]
    last: Float[Array, "B D"]


def _write(
    held: Float[Array, "B H W D"], new: Float[Array, "B 1 w D"], row: int, column: Array | int
) -> Float[Array, "B H W D"]:
    return lax.dynamic_update_slice(held, new, (0, row, column, 0))


def _moved_up(held: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    return jnp.pad(held[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))


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
        width: Width = 64,
        depth: Annotated[int, Range(2, 100)] = 8,
        kernel_size: Kernel = 3,
        dropout: Rate = 0.0,
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

        With a position each layer computes what belongs to it alone, and its vertical stack a row
        when that begins (Ramachandran et al. 2017, arXiv:1704.06001).
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
        column, q = position // Q % w, position % Q
        begins = position % (w * Q) == 0
        cache = lax.cond(begins, lambda c: self._row(c, label), lambda c: c, cache)
        cache = lax.cond(q == 0, lambda c: self._column(c, column), lambda c: c, cache)
        left = cache.last
        if self.within is not None:
            seen = self.within(self._numbered(cache.token))
            left = left + jnp.where(jnp.arange(Q)[:, None] < q, seen, 0).sum(-2)
        return self._read("bd,dk->bk", left, self.kernel[...][q]), cache

    def _empty(self, batch: int) -> Cache:
        (_, w, Q), m, D = self.shape, self.margin, self.width

        def of_layers(*shape: int) -> tuple[Array, Array]:
            shapes = ((batch, *shape), (self.depth - 1, batch, *shape))
            return tuple(jnp.zeros(shape, self.dtype) for shape in shapes)

        return Cache(
            jnp.zeros((batch, Q), jnp.int32),
            of_layers(m + 1, w + 2 * m, D),
            of_layers(1, w, 2 * D),
            of_layers(1, m + w, D),
            jnp.zeros((batch, D), self.dtype),
        )

    def _with(self, cache: Cache, index: Int[Array, "B"], position: Array) -> Cache:
        """A position's vector counts for nothing before the last of its tokens is there."""
        _, w, Q = self.shape
        m, column = self.margin, position // Q % w
        token = cache.token.at[:, position % Q].set(index)
        x = self.token(self._numbered(token)).sum(-2)[:, None, None]
        (above, others), (left, further) = cache.above, cache.left
        return cache._replace(
            token=token,
            above=(_write(above, x, m, column + m), others),
            left=(_write(left, x, 0, column + m), further),
        )

    def _row(self, cache: Cache, label: Float[Array, "B D"]) -> Cache:
        """The cache of the next row."""
        m, w = self.margin, self.shape[1]
        graph, stacked = nnx.split(self.layers)
        above = _moved_up(cache.above[0])
        x, given = self.first.from_rows(self.first.vertical.part(above, m, m, w), label)

        def layer(x: Array, held: tuple) -> tuple[Array, tuple]:
            net, above = nnx.merge(graph, held[0]), _write(_moved_up(held[1]), x, m, m)
            x, given = net.from_rows(net.vertical.part(above, m, m, w), label)
            return x, (above, given)

        _, (others, further) = lax.scan(layer, x, (stacked, cache.above[1]))
        return cache._replace(above=(above, others), given=(given, further))

    def _column(self, cache: Cache, column: Array) -> Cache:
        """The cache of the next position in the row."""
        m = self.margin
        graph, stacked = nnx.split(self.layers)

        def added(net: Layer, left: Array, given: Array) -> Array:
            given = lax.dynamic_slice_in_dim(given, column, 1, axis=2)
            return net.from_columns(net.horizontal.part(left, 0, column + m, 1), given)

        def layer(x: Array, held: tuple) -> tuple[Array, Array]:
            state, left, given = held
            left = _write(left, x, 0, column + m)
            return x + added(nnx.merge(graph, state), left, given), left

        left = cache.left[0]
        x = added(self.first, left, cache.given[0])
        x, others = lax.scan(layer, x, (stacked, cache.left[1], cache.given[1]))
        return cache._replace(left=(left, others), last=x[:, 0, 0])

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
        return contract(spec, hidden, kernel.astype(self.dtype))
