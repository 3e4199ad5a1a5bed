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
    """Moves the image by `down` >= 0 rows and `right` columns, and fills with zeros."""
    _, H, W, _ = x.shape
    margin = abs(right)
    padded = jnp.pad(x, ((0, 0), (down, 0), (margin, margin), (0, 0)))
    return padded[:, :H, margin - right : margin - right + W]


class CausalConv(nnx.Module):
    """A masked convolution, computed as one product over shifted copies of the image."""

    def __init__(
        self, features_in: int, features_out: int, offsets: Offsets, dtype: Any, rngs: nnx.Rngs
    ):
        """`offsets` are the (rows above, columns to the left) of the pixels that it reads."""
        self.linear = Linear(len(offsets) * features_in, features_out, dtype=dtype, rngs=rngs)
        self.offsets = offsets

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        """Applies the layer."""
        return self.linear(jnp.concatenate([shifted(x, *o) for o in self.offsets], axis=-1))

    def part(
        self, x: Float[Array, "B H W C"], row: Array | int, column: Array | int, width: int
    ) -> Float[Array, "B 1 w F"]:
        """Computes `width` outputs of one row; `x` already has its margins of zeros."""
        size = (len(x), 1, width, x.shape[-1])
        shifts = [lax.dynamic_slice(x, (0, row - d, column - r, 0), size) for d, r in self.offsets]
        return self.linear(jnp.concatenate(shifts, axis=-1))


def _above(size: int, first: int) -> Offsets:
    reach = size // 2
    return tuple((d, r) for d in range(first, reach + 1) for r in range(-reach, reach + 1))


def _left(size: int, first: int) -> Offsets:
    return tuple((0, r) for r in range(first, size // 2 + 1))


def _gate(x: Float[Array, "... D"]) -> Float[Array, "... d"]:
    """tanh of the first half times the sigmoid of the second (eq. 2)."""
    value, gate = jnp.split(x, 2, axis=-1)
    return jnp.tanh(value) * jax.nn.sigmoid(gate)


class Layer(nnx.Module):
    """A vertical stack over the rows above, and a horizontal stack over the row (figure 2).

    The first layer reads the tokens, so its vertical stack starts at the row above and its
    horizontal stack at the column to the left. The inputs of later layers exclude the token itself
    already, so these start at the position itself.
    """

    def __init__(self, width: int, size: int, first: bool, rate: float, dtype: Any, rngs: nnx.Rngs):
        """`first`: whether the layer reads the tokens themselves."""
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
        """Returns the two stacks."""
        above, given = self.from_rows(self.vertical(above), label)
        h = dropout(self.from_columns(self.horizontal(left), given), self.rate, key, train)
        return above, h if self.first else left + h

    def from_rows(
        self, rows: Float[Array, "B H W 2*D"], label: Float[Array, "B D"]
    ) -> tuple[Float[Array, "B H W D"], Float[Array, "B H W 2*D"]]:
        """The input of the next layer's vertical stack, and what this horizontal stack adds."""
        for_above, for_left = jnp.split(self.condition(label)[:, None, None], 2, axis=-1)
        return _gate(plus(rows, for_above)), plus(self.link(rows), for_left)

    def from_columns(
        self, columns: Float[Array, "B H W 2*D"], given: Float[Array, "B H W 2*D"]
    ) -> Float[Array, "B H W D"]:
        """The residual that the horizontal stack adds to its input."""
        return self.out(_gate(plus(columns, given)))


class Cache(NamedTuple):
    """The state of each layer while an image is drawn: of the first, and of the L - 1 others.

    Attributes:
      token: tokens of the position that is being drawn.
      above: input of the vertical stack: the current row and the m = kernel_size // 2 rows above
        it, with m zeros on both sides.
      given: what the vertical stack passes to the horizontal one in that row.
      left: input of the horizontal stack in that row, with m zeros to the left.
      last: output of the last layer at the position.
    """

    token: Int[Array, "B Q"]
    above: tuple[Float[Array, "B m+1 w+2*m D"], Float[Array, "L-1 B m+1 w+2*m D"]]
    given: tuple[Float[Array, "B 1 w 2*D"], Float[Array, "L-1 B 1 w 2*D"]]
    left: tuple[Float[Array, "B 1 m+w D"], Float[Array, "L-1 B 1 m+w D"]]
    last: Float[Array, "B D"]


def _write(
    array: Float[Array, "B H W D"], new: Float[Array, "B 1 w D"], row: int, column: Array | int
) -> Float[Array, "B H W D"]:
    return lax.dynamic_update_slice(array, new, (0, row, column, 0))


def _moved_up(rows: Float[Array, "B H W D"]) -> Float[Array, "B H W D"]:
    return jnp.pad(rows[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))


class Network(nnx.Module):
    """Predicts the logits of each token given those before it, row by row, left to right.

    A position has Q tokens (residual VQ), each from its own codebook; each also sees those before
    it in the same position.
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
          vocabulary_size: number of values of a token, K.
          num_classes: number of labels; 0: unconditional.
          width: channels.
          depth: number of gated layers.
          kernel_size: of their convolutions, before masking; odd.
          dropout: rate on what each layer adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an even kernel size, or fewer than two layers.
        """
        require(
            kernel_size % 2 == 1 and kernel_size > 1, "kernel_size", kernel_size, "odd, 3 or more"
        )
        self.shape, self.K = shape, vocabulary_size
        Q, layer_options = shape[-1], (dropout, dtype)
        self.token = Embed(Q * self.K, width, dtype=dtype, rngs=rngs)
        self.label = Embed(max(num_classes, 1), width, dtype=dtype, rngs=rngs)
        self.first = Layer(width, kernel_size, True, *layer_options, rngs)

        @nnx.split_rngs(splits=depth - 1)
        @nnx.vmap(in_axes=0, out_axes=0)
        def layers(rngs: nnx.Rngs) -> Layer:
            return Layer(width, kernel_size, False, *layer_options, rngs)

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
        """Returns the logits in float32, and the cache, like `token_transformer.Network`.

        With `position`, each layer computes that position only, except that vertical stacks compute
        a whole row when it starts (Ramachandran et al. 2017, arXiv:1704.06001).
        """
        label = self.label(jnp.zeros(len(index), jnp.int32) if label is None else label)
        if position is None:
            return self._all_logits(index, label, key, train), None
        return self._next_logits(index, label, jnp.asarray(position), cache)

    def _next_logits(
        self,
        index: Int[Array, "B"],
        label: Float[Array, "B D"],
        position: Array,
        cache: Cache | None,
    ) -> tuple[Float[Array, "B K"], Cache]:
        """The logits of one token, and the cache, updated with the token before it."""
        _, w, Q = self.shape
        cache = (
            self._empty_cache(len(index))
            if cache is None
            else self._with_token(cache, index, position - 1)
        )
        column, q = position // Q % w, position % Q
        begins = position % (w * Q) == 0
        cache = lax.cond(begins, lambda c: self._start_row(c, label), lambda c: c, cache)
        cache = lax.cond(q == 0, lambda c: self._start_position(c, column), lambda c: c, cache)
        h = cache.last
        if self.within is not None:
            embedded = self.within(self._with_codebook_offset(cache.token))
            h = h + jnp.where(jnp.arange(Q)[:, None] < q, embedded, 0).sum(-2)
        return self._readout("bd,dk->bk", h, self.kernel[...][q]), cache

    def _empty_cache(self, batch: int) -> Cache:
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

    def _with_token(self, cache: Cache, index: Int[Array, "B"], position: Array) -> Cache:
        """Writes a token to the cache; a position is read only after its last token is written."""
        _, w, Q = self.shape
        m, column = self.margin, position // Q % w
        token = cache.token.at[:, position % Q].set(index)
        x = self.token(self._with_codebook_offset(token)).sum(-2)[:, None, None]
        (above, later_above), (left, later_left) = cache.above, cache.left
        return cache._replace(
            token=token,
            above=(_write(above, x, m, column + m), later_above),
            left=(_write(left, x, 0, column + m), later_left),
        )

    def _start_row(self, cache: Cache, label: Float[Array, "B D"]) -> Cache:
        """Updates the cache at the start of a row."""
        m, w = self.margin, self.shape[1]
        graph, stacked = nnx.split(self.layers)
        above = _moved_up(cache.above[0])
        x, given = self.first.from_rows(self.first.vertical.part(above, m, m, w), label)

        def layer(x: Array, params_and_above: tuple) -> tuple[Array, tuple]:
            params, above = params_and_above
            net, above = nnx.merge(graph, params), _write(_moved_up(above), x, m, m)
            x, given = net.from_rows(net.vertical.part(above, m, m, w), label)
            return x, (above, given)

        _, (later_above, later_given) = lax.scan(layer, x, (stacked, cache.above[1]))
        return cache._replace(above=(above, later_above), given=(given, later_given))

    def _start_position(self, cache: Cache, column: Array) -> Cache:
        """Updates the cache at the start of a position in the row."""
        m = self.margin
        graph, stacked = nnx.split(self.layers)

        def residual(net: Layer, left: Array, given: Array) -> Array:
            given = lax.dynamic_slice_in_dim(given, column, 1, axis=2)
            return net.from_columns(net.horizontal.part(left, 0, column + m, 1), given)

        def layer(x: Array, params_and_cache: tuple) -> tuple[Array, Array]:
            params, left, given = params_and_cache
            left = _write(left, x, 0, column + m)
            return x + residual(nnx.merge(graph, params), left, given), left

        left = cache.left[0]
        x = residual(self.first, left, cache.given[0])
        x, later_left = lax.scan(layer, x, (stacked, cache.left[1], cache.given[1]))
        return cache._replace(left=(left, later_left), last=x[:, 0, 0])

    def _all_logits(
        self, index: Int[Array, "B *S"], label: Float[Array, "B D"], key: Array | None, train: bool
    ) -> Float[Array, "B *S K"]:
        """Returns the logits of all tokens."""
        B, (height, w, Q) = len(index), self.shape
        numbered = self._with_codebook_offset(index.reshape(B, height, w, Q))
        keys = [None] * self.depth if key is None else jax.random.split(key, self.depth)
        x = self.token(numbered).sum(-2)
        stacks = self.first(x, x, label, keys[0], train)
        graph, stacked = nnx.split(self.layers)

        def layer(stacks: tuple, params_and_key: tuple) -> tuple[tuple, None]:
            params, key = params_and_key
            return nnx.merge(graph, params)(*stacks, label, key, train), None

        later_keys = None if key is None else keys[1:]
        (_, left), _ = lax.scan(layer, stacks, (stacked, later_keys))
        h = left[..., None, :]
        if self.within is not None:
            sums = jnp.cumsum(self.within(numbered), axis=-2)
            h = h + jnp.pad(sums[..., :-1, :], ((0, 0),) * 3 + ((1, 0), (0, 0)))
        return self._readout("bhwqd,qdk->bhwqk", h, self.kernel[...]).reshape(B, -1, self.K)

    def _with_codebook_offset(self, index: Int[Array, "*B Q"]) -> Int[Array, "*B Q"]:
        return index + self.K * jnp.arange(self.shape[-1])

    def _readout(self, spec: str, h: Array, kernel: Array) -> Array:
        hidden = nnx.silu(self.hidden(nnx.silu(h)))
        return contract(spec, hidden, kernel.astype(self.dtype))
