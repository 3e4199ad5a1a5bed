"""The transformer with joint attention of Stable Diffusion 3 (MM-DiT, Esser et al. 2024).

Patches of the image and tokens of a context are two streams. Each has weights of its own; one
attention sees both. The blocks are scanned, except for the last, which has no context output.

The conventions are those of `dit`: sines and cosines of a time alternate, and kernels are stacked
over depth. `diffusers.SD3Transformer2DModel` differs in three more ways. Its last block makes
queries of the context too, and drops what they find. The modulations of its last norms, which are
two, have the scale before the shift. Its positions are those of a square in the middle of a larger
grid, in smaller steps; here they are whole numbers from 0. Beyond the peer, tokens of the context
can be hidden, images need not be square, and a label can be added to the embedding of time.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import Depth, Kernel, Positive, Rate, Width
from genjax.config import one_of, require
from genjax.networks.dit import EPS, TIME_FEATURES, VECTOR, normalised
from genjax.networks.sequence import check_split, visible
from genjax.networks.transformer import HIDDEN, REMAT, STREAM, named, normal
from genjax.nn.attention import attention
from genjax.nn.heads import QueryKeyValue
from genjax.nn.layers import (
    Embed,
    Linear,
    RMSNorm,
    activated,
    depth_to_space,
    dropout,
    plus,
    space_to_depth,
    times,
    uniform_fan_avg,
    zeros,
)
from genjax.nn.positions import sinusoidal, sinusoidal_of_grid
from genjax.parallel.layout import EXAMPLES, LENGTH, UNITS, laid
from genjax.parallel.rules import Rules, fsdp, replicate, tensor

# Stacked over depth, a kernel is [L - 1, in, out]; those of qkv and pair are [.., in, N, out / N].
RULES: Rules = (
    (r"(blocks|last)/\w+/up/kernel$", tensor(-1)),
    (r"(blocks|last)/\w+/(qkv|pair|merge|down)/kernel$", tensor(-2)),
    (r"(kernel|embedding)$", fsdp),
    (r"(scale|bias)$", replicate),
)

Streams = tuple[Float[Array, "B T D"], Float[Array, "B S D"]]


class Options(NamedTuple):
    """The options of a block; `Network` describes them.

    Attributes:
      width: of the vectors, D.
      heads: N.
      hidden: width inside a block.
      qk_norm: whether queries and keys are normalised.
      dropout: rate on what a block adds.
      remat: one of `transformer.REMAT`.
      dtype: compute type.
    """

    width: int
    heads: int
    hidden: int
    qk_norm: bool
    dropout: float
    remat: str
    dtype: Any


class Beside(NamedTuple):
    """The inputs of all blocks other than the two streams; U = T + S.

    Attributes:
      vector: the activated embedding of time, label and vector.
      segment: 1 for patches and seen tokens, 0 for hidden ones; None if none is hidden.
      mask: true within a segment.
    """

    vector: Float[Array, "B D"]
    segment: Int[Array, "B U"] | None
    mask: Bool[Array, "B 1 U U"] | None


class Stream(nnx.Module):
    """One stream's part of a block: before attention, and after it."""

    def __init__(self, o: Options, ends: bool, rngs: nnx.Rngs):
        """Makes the parameters; a stream that `ends` here has only keys and values."""
        D, N, H = o.width, o.heads, o.width // o.heads
        linear = partial(Linear, dtype=o.dtype, rngs=rngs)
        heads = partial(QueryKeyValue, init=uniform_fan_avg, dtype=o.dtype, rngs=rngs)
        self.modulation = linear(D, (2 if ends else 6) * D, init=zeros)
        self.key_norm = RMSNorm(H, eps=EPS) if o.qk_norm else None
        self.query_norm = RMSNorm(H, eps=EPS) if o.qk_norm and not ends else None
        if ends:
            self.pair = heads(D, 0, N, H)
        else:
            self.qkv, self.merge = heads(D, N, N, H), linear(D, D)
            self.up, self.down = linear(D, o.hidden), linear(o.hidden, D)
        self.options, self.ends = o, ends

    def modulations(self, vector: Float[Array, "B D"]) -> list[Float[Array, "B D"]]:
        """Shift and scale before attention; then its gate, and the three of the last layers."""
        joined = named(laid(self.modulation(vector), *VECTOR))
        return jnp.split(joined, 2 if self.ends else 6, axis=-1)

    def look(self, x: Float[Array, "B T D"], by: list[Array]) -> Float[Array, "B T N F"]:
        """Queries, keys and values, by one product."""
        layer, part = self.pair if self.ends else self.qkv, REMAT[self.options.remat][1]
        return named(part(lambda x, by: layer(normalised(None, x, *by)))(x, by[:2]))

    def split(self, heads: Float[Array, "B T N F"]) -> tuple[Float[Array, "B T N H"], ...]:
        """Queries, keys and values, normalised."""
        if self.ends:
            key, value = self.pair.turned_and_value(heads)
            key = key if self.key_norm is None else self.key_norm(key)
            return key, key, value  # the kernels need as many queries as keys; they give nothing
        turned, value = self.qkv.turned_and_value(heads)
        query, key = self.qkv.query_and_key(turned)
        if self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        return query, key, value

    def add(
        self,
        x: Float[Array, "B T D"],
        h: Float[Array, "B T D"],
        by: list[Array],
        key: Array | None,
        train: bool,
    ) -> Float[Array, "B T D"]:
        """x with what attention found and what two layers make of it; x itself if it ends here."""
        if self.ends:
            return x
        o, part = self.options, REMAT[self.options.remat][1]
        keys = [None] * 2 if key is None else jax.random.split(key)
        gates = by[2], by[5]

        def gated(x: Array, h: Array, i: int) -> Array:
            h = dropout(named(h), o.dropout, keys[i], train)
            return laid(x + times(h, gates[i][:, None]), *STREAM)

        x = gated(x, self.merge(laid(h, *HIDDEN)), 0)
        h = part(lambda x, by: laid(self.up(normalised(None, x, *by)), *HIDDEN))(x, by[3:5])
        h = part(lambda h: self.down(jax.nn.gelu(h.astype(jnp.float32))))(named(h))
        return gated(x, h, 1)


class Block(nnx.Module):
    """Two streams that one attention joins (figure 2b of the paper)."""

    def __init__(self, o: Options, last: bool, rngs: nnx.Rngs):
        """Makes the parameters; a block starts as the identity. The `last` ends the context."""
        self.image, self.context = Stream(o, False, rngs), Stream(o, last, rngs)
        self.options = o

    def __call__(self, streams: Streams, beside: Beside, key: Array | None, train: bool) -> Streams:
        """Applies the block."""
        sides, part = (self.image, self.context), REMAT[self.options.remat][1]
        keys = [None] * 2 if key is None else jax.random.split(key)
        by = [side.modulations(beside.vector) for side in sides]
        heads = [side.look(x, m) for side, x, m in zip(sides, streams, by, strict=True)]
        found = part(self._joint)(*heads, beside.segment, beside.mask)
        return tuple(
            side.add(x, h, m, k, train)
            for side, x, h, m, k in zip(sides, streams, found, by, keys, strict=True)
        )

    def _joint(
        self,
        image: Float[Array, "B T N F"],
        context: Float[Array, "B S N F"],
        segment: Int[Array, "B U"] | None,
        mask: Bool[Array, "B 1 U U"] | None,
    ) -> Streams:
        """One attention over both: each sees all patches and all seen tokens.

        Hidden tokens are a segment of their own, so that one kernel can compute it.
        """
        pairs = zip(self.image.split(image), self.context.split(context), strict=True)
        query, key, value = (_joined(*pair) for pair in pairs)
        found = attention(query, key, value, mask, segment=segment, implied=True)
        found = found.reshape(*found.shape[:2], -1)
        return tuple(jnp.split(found, [image.shape[1]], axis=1))


def _joined(
    image: Float[Array, "B T N H"], context: Float[Array, "B S N H"]
) -> Float[Array, "B U N H"]:
    """Both along the length, all positions of a head on one device, as attention needs them."""
    parts = (laid(x, EXAMPLES, None, (UNITS, LENGTH), None) for x in (image, context))
    return jnp.concatenate([*parts], axis=1)


def _check(
    shape: tuple[int, int, int], num_classes: int, config: dict[str, Any], o: Options
) -> None:
    """Raises ConfigError if a network with these options cannot be built."""
    H, W, _ = shape
    for name in ("patch_size", "width", "depth", "heads"):
        require(config[name] > 0, name, config[name], "at least 1")
    p = config["patch_size"]
    require(H % p == W % p == 0, "patch_size", p, f"a divisor of the input's {H} x {W}")
    require(o.width % o.heads == 0, "heads", o.heads, f"a divisor of width={o.width}")
    require(o.hidden > 0, "mlp_ratio", config["mlp_ratio"], f"at least 1 / width = 1 / {o.width}")
    require(0 <= o.dropout < 1, "dropout", o.dropout, "at least 0 and below 1")
    joined = "at least 1: the network joins an image with a context, such as the condition of a "
    joined += "text. Name one among the conditions, or use the network 'dit'"
    require(config["context_width"] > 0, "context_width", config["context_width"], joined)
    width = config["vector_width"]
    require(width >= 0, "vector_width", width, "at least 1, or 0 for none")
    require(num_classes >= 0, "num_classes", num_classes, "at least 1, or 0 for none")
    one_of("remat", o.remat, tuple(REMAT))


class Network(nnx.Module):
    """Predicts an image or latent from a noisy one, its timestep and a context."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        num_classes: int = 0,
        *,
        context_width: int,
        vector_width: int = 0,
        patch_size: Kernel,
        width: Width,
        depth: Depth,
        heads: Width,
        mlp_ratio: Positive = 4.0,
        qk_norm: bool = False,
        dropout: Rate = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; its first output is zero.

        Args:
          shape: of the input, [H, W, C].
          out_channels: channels of the output; 2 C if variances are learned.
          num_classes: number of labels; one more embedding means "no label". 0: no label.
          context_width: width of the tokens of `context`.
          vector_width: length of `vector`, a text's pooled vector in the paper; 0: none.
          patch_size: height and width of the patches that become vectors.
          width: of the vectors of both streams, D. The paper has 64 L, with L heads.
          depth: number of blocks, L.
          heads: number of attention heads.
          mlp_ratio: width inside a block, divided by D.
          qk_norm: whether each head's queries and keys are divided by their root mean square
            (section 5.3.2 of the paper).
          dropout: rate on what a block adds.
          remat: what the backward pass recomputes, see `transformer.Options`.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: sizes do not fit each other, or an option is unknown.
        """
        config = {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
        config |= {"mlp_ratio": mlp_ratio}
        config |= {"context_width": context_width, "vector_width": vector_width}
        o = Options(width, heads, int(width * mlp_ratio), qk_norm, dropout, remat, dtype)
        _check(shape, num_classes, config, o)
        self.options, self.depth = o, depth
        self.patch_size, self.num_classes = patch_size, num_classes
        self.context_width, self.vector_width = context_width, vector_width
        self.grid = (shape[0] // patch_size, shape[1] // patch_size)
        self._positions()  # raises if the width does not fit them

        linear, small = partial(Linear, dtype=dtype, rngs=rngs), {"init": normal(0.02)}
        self.patch = linear(patch_size**2 * shape[2], width)
        self.token = linear(context_width, width)
        self.time1 = linear(TIME_FEATURES, width, **small)
        self.time2 = linear(width, width, **small)
        self.label = Embed(num_classes + 1, width, **small, rngs=rngs) if num_classes else None
        self.vector1 = linear(vector_width, width, **small) if vector_width else None
        self.vector2 = linear(width, width, **small) if vector_width else None

        @nnx.split_rngs(splits=depth - 1)
        @nnx.vmap(in_axes=0, out_axes=0)
        def blocks(rngs: nnx.Rngs) -> Block:
            return Block(o, False, rngs)

        self.blocks = blocks(rngs) if depth > 1 else None
        self.last = Block(o, True, rngs)
        self.modulation = linear(width, 2 * width, init=zeros)
        self.head = linear(width, patch_size**2 * out_channels, init=zeros)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, "B"],
        label: Int[Array, "B"] | None = None,
        *,
        vector: Float[Array, "B V"] | None = None,
        context: Float[Array, "B S E"] | None = None,
        context_mask: Bool[Array, "B S"] | None = None,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W F"]:
        """Applies the network.

        Args:
          x: noisy images.
          t: timesteps, 0 ... 1000.
          label: classes; `num_classes` is the null class. None if the network has no classes.
          vector: numbers; what two layers make of them is added to the embedding of time. None if
            the network has no vector.
          context: tokens of a text encoder, E = context_width. They get no positions here.
          context_mask: true for the tokens that are seen; None for all. Patches see each other
            also if an example sees none.
          key: for dropout; needed in training if the rate is above 0.
          train: whether dropout is on.

        Returns:
          The prediction, float32.

        Raises:
          ConfigError: a mesh cannot split the patches.
          ValueError: a label, vector or context is missing, or the network was built without it.
        """
        o, N = self.options, self.grid[0] * self.grid[1]
        for name, value, size, of in (
            ("label", label, self.num_classes, "num_classes"),
            ("vector", vector, self.vector_width, "vector_width"),
            ("context", context, self.context_width, "context_width"),
        ):
            if (value is None) == (size > 0):
                problem = "none was given" if value is None else f"shape {value.shape} was given"
                raise ValueError(f"{name}: the network has {of}={size}, and {problem}")
        if train:
            check_split(N, o.heads)
        h = self.patch(space_to_depth(x.astype(o.dtype), self.patch_size))
        h = plus(h, self._positions()).reshape(len(x), N, o.width)
        streams = laid(h, *STREAM), laid(self.token(context), *STREAM)
        segment = mask = None
        if context_mask is not None:
            segment = jnp.pad(context_mask.astype(jnp.int32), ((0, 0), (N, 0)), constant_values=1)
            mask = visible(segment.shape[1], False, segment)
        by = activated(nnx.silu, self._embedding(t, label, vector))
        h = self._run(streams, Beside(by, segment, mask), key, train)
        shift, scale = jnp.split(laid(self.modulation(by), *VECTOR), 2, axis=-1)
        h = laid(self.head(normalised(None, h, shift, scale)), *STREAM)
        h = h.reshape(len(x), *self.grid, -1)
        return depth_to_space(h, self.patch_size).astype(jnp.float32)

    def _positions(self) -> Float[Array, "H W D"]:
        return sinusoidal_of_grid(*self.grid, self.options.width)

    def _embedding(
        self,
        t: Float[Array, "B"],
        label: Int[Array, "B"] | None,
        vector: Float[Array, "B V"] | None,
    ) -> Float[Array, "B D"]:
        """The sum of the embeddings of time, label and vector."""

        def two(first: Linear, second: Linear, x: Array) -> Array:
            h = laid(first(x), *VECTOR)
            return laid(second(activated(nnx.silu, h)), *VECTOR)

        h = two(self.time1, self.time2, sinusoidal(t, TIME_FEATURES))
        h = h if label is None else h + self.label(label).astype(h.dtype)
        return h if vector is None else h + two(self.vector1, self.vector2, vector)

    def _run(
        self, streams: Streams, beside: Beside, key: Array | None, train: bool
    ) -> Float[Array, "B T D"]:
        """Applies the blocks one after the other; returns the image's stream."""
        whole = REMAT[self.options.remat][0]
        keys = None if key is None else jax.random.split(key, self.depth)
        if self.blocks is not None:
            graph, params = nnx.split(self.blocks)

            def block(streams: Streams, params_and_key: tuple) -> tuple[Streams, None]:
                params, key = params_and_key
                return nnx.merge(graph, params)(streams, beside, key, train), None

            first = None if keys is None else keys[:-1]
            streams, _ = lax.scan(whole(block), streams, (params, first))
        graph, params = nnx.split(self.last)

        def last(streams: Streams, params: Any, key: Array | None) -> Float[Array, "B T D"]:
            return nnx.merge(graph, params)(streams, beside, key, train)[0]

        return whole(last)(streams, params, None if keys is None else keys[-1])
