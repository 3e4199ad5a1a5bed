"""The diffusion transformer (DiT, Peebles & Xie 2023), depth scanned.

It follows the conventions of the paper's code, so that published weights fit: time embeddings of
256 features with frequencies 10,000^(-i / 128), layer norms with eps=1e-6, the tanh formula of
GELU. Three things differ. The sines and cosines of a time alternate, which permutes the rows of
`time1/kernel`: row 2 i is the paper's row 128 + i, row 2 i + 1 is its row i. Kernels are stacked
over depth: [L, in, out]. Images need not be square.

`diffusers.DiTTransformer2DModel` differs from the paper's code in the defaults of two numbers: its
frequencies are 10,000^(-i / 127), and the second norm of a block has eps=1e-5.
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
from genjax.networks.sequence import check_split
from genjax.networks.transformer import HIDDEN, REMAT, STREAM, named, normal
from genjax.nn.attention import across, attention
from genjax.nn.heads import QueryKeyValue
from genjax.nn.layers import (
    Embed,
    LayerNorm,
    Linear,
    activated,
    depth_to_space,
    dropout,
    plus,
    space_to_depth,
    standardised,
    times,
    uniform_fan_avg,
    zeros,
)
from genjax.nn.positions import (
    Rotation,
    rotate,
    rotation_of_grid,
    sinusoidal,
    sinusoidal_of_grid,
)
from genjax.parallel.layout import EXAMPLES, laid
from genjax.parallel.rules import Rules, fsdp, replicate, tensor

# Stacked over depth, a kernel is [L, in, out]; those of qkv and pair are [L, in, N, out / N].
RULES: Rules = (
    (r"blocks/(query|up)/kernel$", tensor(-1)),
    (r"blocks/(qkv|pair|merge|merge_cross|down)/kernel$", tensor(-2)),
    (r"(kernel|embedding)$", fsdp),
    (r"(scale|bias)$", replicate),
)

# How the mesh splits an embedding [B, D] of time or label.
VECTOR = (EXAMPLES, None)

POSITIONS = ("sincos", "rotary")
CONDITIONS = ("adaln", "in_context", "cross_attention")
TIME_FEATURES, EPS = 256, 1e-6


class Options(NamedTuple):
    """The options of a block; `Network` describes them.

    Attributes:
      width: of the vectors, D.
      heads: N.
      hidden: width inside a block.
      condition: one of CONDITIONS.
      cross: whether a block has cross-attention to tokens other than the image's.
      dropout: rate on what a block adds.
      remat: one of `transformer.REMAT`.
      dtype: compute type.
    """

    width: int
    heads: int
    hidden: int
    condition: str
    cross: bool
    dropout: float
    remat: str
    dtype: Any


class Beside(NamedTuple):
    """The inputs of all blocks other than the vectors of the image.

    Attributes:
      vector: the activated embedding of time and label; only with condition "adaln".
      turn: rotary positions.
      tokens: the tokens that cross-attention sees.
      mask: true for the tokens that are seen; None for all.
    """

    vector: Float[Array, "B D"] | None
    turn: Rotation | None
    tokens: Float[Array, "B S D"] | None
    mask: Bool[Array, "B S"] | None


def normalised(
    norm: LayerNorm | None,
    x: Float[Array, "B T D"],
    shift: Float[Array, "B D"] | None = None,
    scale: Float[Array, "B D"] | None = None,
) -> Float[Array, "B T D"]:
    """norm(x); if there is no norm, standardised(x) * (1 + scale) + shift (adaLN)."""
    if norm is not None:
        return norm(x)
    scale, shift = (y.astype(jnp.float32)[:, None] for y in (scale, shift))
    return (standardised(x, EPS) * (1 + scale) + shift).astype(x.dtype)


class Block(nnx.Module):
    """Self-attention, optional cross-attention, and a two-layer network."""

    def __init__(self, o: Options, rngs: nnx.Rngs):
        """Makes the parameters; with adaLN-zero a block starts as the identity."""
        D, adaptive = o.width, o.condition == "adaln"
        linear = partial(Linear, dtype=o.dtype, rngs=rngs)
        self.modulation = linear(D, 6 * D, init=zeros) if adaptive else None
        self.norm1, self.norm2 = (None if adaptive else LayerNorm(D, eps=EPS) for _ in range(2))
        N, H = o.heads, D // o.heads
        heads = partial(QueryKeyValue, init=uniform_fan_avg, dtype=o.dtype, rngs=rngs)
        self.qkv, self.merge = heads(D, N, N, H), linear(D, D)
        self.up, self.down = linear(D, o.hidden), linear(o.hidden, D)
        if o.cross:
            # If it sees the context only, it starts at zero (Chen et al. 2023, PixArt).
            init = {} if o.condition == "cross_attention" else {"init": zeros}
            self.norm_cross = LayerNorm(D, eps=EPS)
            self.query, self.pair = linear(D, D), heads(D, 0, N, H)
            self.merge_cross = linear(D, D, **init)
        self.options = o

    def __call__(
        self, x: Float[Array, "B T D"], beside: Beside, key: Array | None, train: bool
    ) -> Float[Array, "B T D"]:
        """Applies the block."""
        o, part = self.options, REMAT[self.options.remat][1]
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        modulation1 = modulation2 = gate1 = gate2 = None
        if self.modulation is not None:
            six = named(laid(self.modulation(beside.vector), *VECTOR))
            six = jnp.split(six, 6, axis=-1)
            modulation1, gate1, modulation2, gate2 = six[0:2], six[2], six[3:5], six[5]

        def add(x: Array, h: Array, gate: Array | None, key: Array | None) -> Array:
            h = dropout(h, o.dropout, key, train)
            return laid(x + (h if gate is None else times(h, gate[:, None])), *STREAM)

        h = part(lambda x, m: self.qkv(normalised(self.norm1, x, *m)))(x, modulation1 or ())
        h = part(partial(self._self_attention, turn=beside.turn))(named(h))
        x = add(x, named(self.merge(laid(h, *HIDDEN))), gate1, keys[0])
        if o.cross:
            query = part(lambda x: laid(self.query(self.norm_cross(x)), *HIDDEN))(x)
            pair = self.pair(beside.tokens)
            h = part(partial(self._cross_attention, mask=beside.mask))(named(query), named(pair))
            x = add(x, named(self.merge_cross(laid(h, *HIDDEN))), None, keys[1])
        h = part(lambda x, m: laid(self.up(normalised(self.norm2, x, *m)), *HIDDEN))(
            x, modulation2 or ()
        )
        h = part(lambda h: self.down(jax.nn.gelu(h.astype(jnp.float32))))(named(h))
        return add(x, named(h), gate2, keys[2])

    def _self_attention(
        self, heads: Float[Array, "B T N F"], turn: Rotation | None
    ) -> Float[Array, "B T D"]:
        turned, value = self.qkv.turned_and_value(heads)
        query, key = self.qkv.query_and_key(turned if turn is None else rotate(turned, turn))
        return attention(query, key, value).reshape(*heads.shape[:2], -1)

    def _cross_attention(
        self,
        query: Float[Array, "B T D"],
        pair: Float[Array, "B S N F"],
        mask: Bool[Array, "B S"] | None,
    ) -> Float[Array, "B T D"]:
        """Attention to the tokens; zero for an example whose mask hides all of them."""
        heads = query.reshape(*query.shape[:2], self.options.heads, -1)
        mixed = across(heads, *self.pair.turned_and_value(pair), mask)
        return mixed.reshape(query.shape)


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
    for name in ("context_width", "vector_width"):
        require(config[name] >= 0, name, config[name], "at least 1, or 0 for none")
    require(num_classes >= 0, "num_classes", num_classes, "at least 1, or 0 for none")
    one_of("positions", config["positions"], POSITIONS)
    one_of("condition", o.condition, CONDITIONS)
    one_of("remat", o.remat, tuple(REMAT))


class Network(nnx.Module):
    """Predicts an image or latent from a noisy one, its timestep and optional conditions."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        num_classes: int = 0,
        *,
        context_width: int = 0,
        vector_width: int = 0,
        patch_size: Kernel,
        width: Width,
        depth: Depth,
        heads: Width,
        mlp_ratio: Positive = 4.0,
        positions: str = "sincos",
        condition: str = "adaln",
        dropout: Rate = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; its first output is zero.

        Args:
          shape: of the input, [H, W, C].
          out_channels: channels of the output; 2 C if variances are learned.
          num_classes: number of labels; one more embedding means "no label". 0: unconditional.
          context_width: width of the tokens of `context`; 0: the network takes no context.
          vector_width: length of `vector`; 0: the network takes no vector.
          patch_size: height and width of the patches that become vectors.
          width: of the vectors, D.
          depth: number of blocks, L.
          heads: number of attention heads.
          mlp_ratio: width inside a block, divided by D.
          positions: "sincos" is added to the vectors; "rotary" rotates queries and keys.
          condition: how time, label and vector reach the blocks (section 3.2 of the paper). "adaln"
            shifts, scales and gates each layer of a block, by vectors that start at zero;
            "in_context" appends them to the tokens of the image, without positions;
            "cross_attention" makes them tokens that each block attends to, before the context's.
          dropout: rate on what a block adds.
          remat: what the backward pass recomputes, see `transformer.Options`.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: sizes do not fit each other, or an option is unknown.
        """
        config = {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
        config |= {"mlp_ratio": mlp_ratio, "positions": positions}
        config |= {"context_width": context_width, "vector_width": vector_width}
        cross, hidden = condition == "cross_attention" or context_width > 0, int(width * mlp_ratio)
        o = Options(width, heads, hidden, condition, cross, dropout, remat, dtype)
        _check(shape, num_classes, config, o)
        self.options, self.depth, self.positions = o, depth, positions
        self.patch_size, self.num_classes = patch_size, num_classes
        self.context_width, self.vector_width = context_width, vector_width
        self.grid = (shape[0] // patch_size, shape[1] // patch_size)
        self._position_encoding()  # raises if the width does not fit it

        linear, small = partial(Linear, dtype=dtype, rngs=rngs), {"init": normal(0.02)}
        self.patch = linear(patch_size**2 * shape[2], width)
        self.time1 = linear(TIME_FEATURES, width, **small)
        self.time2 = linear(width, width, **small)
        self.label = Embed(num_classes + 1, width, **small, rngs=rngs) if num_classes else None
        self.vector = linear(vector_width, width, init=zeros) if vector_width else None
        self.context1 = linear(context_width, width) if context_width else None
        self.context2 = linear(width, width) if context_width else None

        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def blocks(rngs: nnx.Rngs) -> Block:
            return Block(o, rngs)

        self.blocks = blocks(rngs)
        adaptive = condition == "adaln"
        self.modulation = linear(width, 2 * width, init=zeros) if adaptive else None
        self.norm = None if adaptive else LayerNorm(width, eps=EPS)
        self.head = linear(width, patch_size**2 * out_channels, init=zeros)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Float[Array, "B"],
        label: Int[Array, "B"] | None = None,
        *,
        vector: Float[Array, "B D"] | None = None,
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
          vector: numbers; a linear map of them, which starts at zero, is added to the embedding of
            time. None if the network has no vector.
          context: tokens of a text encoder, E = context_width, which every block sees. None if the
            network has no context.
          context_mask: true for the tokens that are seen; None for all. If an example sees none,
            its cross-attention gives zeros.
          key: for dropout; needed in training if the rate is above 0.
          train: whether dropout is on.

        Returns:
          The prediction, float32.

        Raises:
          ConfigError: a mesh cannot split the tokens.
          ValueError: a label, vector or context is missing, or the network was built without it.
        """
        o, N = self.options, self.grid[0] * self.grid[1]
        h = self.patch(space_to_depth(x.astype(o.dtype), self.patch_size))
        table, turn = self._position_encoding()
        h = h if table is None else plus(h, table)
        h = h.reshape(len(x), N, o.width)
        embeddings = self._embeddings(t, label, vector)
        tokens, mask = self._context(context, context_mask)
        vector = None
        if o.condition == "adaln":
            vector = activated(nnx.silu, sum(embeddings[1:], embeddings[0]))
        elif o.condition == "in_context":
            h = jnp.concatenate([h, jnp.stack(embeddings, 1)], axis=1)
            pads = ((0, 0), (0, len(embeddings)), (0, 0), (0, 0))
            if turn is not None:
                turn = Rotation(jnp.pad(turn.cos, pads, constant_values=1), jnp.pad(turn.sin, pads))
        else:
            stacked = jnp.stack(embeddings, 1)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (stacked.shape[1], 0)), constant_values=True)
            tokens = stacked if tokens is None else jnp.concatenate([stacked, tokens], axis=1)
        if train:
            check_split(h.shape[1], o.heads)
        h = self._run(laid(h, *STREAM), Beside(vector, turn, tokens, mask), key, train)[:, :N]
        modulation = ()
        if vector is not None:
            modulation = jnp.split(laid(self.modulation(vector), *VECTOR), 2, axis=-1)
        h = laid(self.head(normalised(self.norm, h, *modulation)), *STREAM)
        h = h.reshape(len(x), *self.grid, -1)
        return depth_to_space(h, self.patch_size).astype(jnp.float32)

    def _position_encoding(self) -> tuple[Float[Array, "H W D"] | None, Rotation | None]:
        """The table added to the vectors, and the rotation of queries and keys."""
        if self.positions == "sincos":
            return sinusoidal_of_grid(*self.grid, self.options.width), None
        return None, rotation_of_grid(*self.grid, self.options.width // self.options.heads)

    def _embeddings(
        self,
        t: Float[Array, "B"],
        label: Int[Array, "B"] | None,
        vector: Float[Array, "B D"] | None,
    ) -> list[Array]:
        """The embeddings [B, D] of the time, and of the label if there is one."""
        if (label is None) == (self.num_classes > 0):
            problem = "none was given" if label is None else "one was given"
            raise ValueError(
                f"label: the network has num_classes={self.num_classes}, and {problem}"
            )
        time = laid(self.time1(sinusoidal(t, TIME_FEATURES)), *VECTOR)
        time = laid(self.time2(activated(nnx.silu, time)), *VECTOR)
        if (vector is None) == (self.vector_width > 0):
            problem = "none was given" if vector is None else f"shape {vector.shape} was given"
            raise ValueError(
                f"vector: the network has vector_width={self.vector_width}, and {problem}"
            )
        time = time if vector is None else time + self.vector(vector)
        return [time] if label is None else [time, self.label(label).astype(time.dtype)]

    def _context(
        self, context: Array | None, mask: Array | None
    ) -> tuple[Float[Array, "B S D"] | None, Bool[Array, "B S"] | None]:
        """The context after two layers, as in PixArt (Chen et al. 2023), and its mask."""
        if (context is None) == (self.context_width > 0) or (context is None and mask is not None):
            shapes = (None if y is None else y.shape for y in (context, mask))
            raise ValueError(
                "context, context_mask: got shapes {}, {}; the network has context_width={}".format(
                    *shapes, self.context_width
                )
            )
        if context is None:
            return None, None
        return self.context2(activated(nnx.gelu, self.context1(context))), mask

    def _run(
        self, x: Float[Array, "B T D"], beside: Beside, key: Array | None, train: bool
    ) -> Float[Array, "B T D"]:
        """Applies the blocks one after the other."""
        graph, params = nnx.split(self.blocks)

        def block(x: Array, params_and_key: tuple) -> tuple[Array, None]:
            params, key = params_and_key
            return nnx.merge(graph, params)(x, beside, key, train), None

        keys = None if key is None else jax.random.split(key, self.depth)
        block = REMAT[self.options.remat][0](block)
        return lax.scan(block, x, (params, keys))[0]
