"""The diffusion transformer (DiT, Peebles & Xie 2023), depth scanned.

Its conventions are those of the paper's code, so that published weights fit: time embeddings of 256
features with frequencies 10,000^(-i / 128), layer norms with 1e-6, GELU by its tanh formula. Three
things differ. The sines and cosines of a time alternate, which permutes the rows of `time1/kernel`:
row 2 i has the paper's row 128 + i, row 2 i + 1 has row i. Stacked over depth, a kernel is
[L, in, out]. And pictures need not be square.

`diffusers.DiTTransformer2DModel` departs from the paper's code in two numbers, unless told
otherwise: its frequencies are 10,000^(-i / 127), and the second norm of a block adds 1e-5.
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
from genjax.networks.transformer import REMAT, named, normal
from genjax.nn.attention import across, attention
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
    zeros,
)
from genjax.nn.positions import (
    Rotation,
    rotate,
    rotation_of_grid,
    sinusoidal,
    sinusoidal_of_grid,
)
from genjax.parallel.rules import Rules, fsdp, replicate, tensor

# Stacked over depth, a kernel is [L, in, out].
RULES: Rules = (
    (r"blocks/(qkv|query|pair|up)/kernel$", tensor(-1)),
    (r"blocks/(merge|merge_cross|down)/kernel$", tensor(-2)),
    (r"(kernel|embedding)$", fsdp),
    (r"(scale|bias)$", replicate),
)

POSITIONS = ("sincos", "rotary")
CONDITIONS = ("adaln", "in_context", "cross_attention")
TIME_FEATURES, EPS = 256, 1e-6


class Options(NamedTuple):
    """What a block is made of: `Network` says what the fields mean.

    Attributes:
      width: of the vectors, D.
      heads: N.
      hidden: width inside a block.
      condition: of CONDITIONS.
      cross: whether a block looks at tokens beside the image's.
      dropout: probability, of what a block adds.
      remat: of `transformer.REMAT`.
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
    """What all blocks are given beside the vectors of the image.

    Attributes:
      vector: of time and label, activated; with condition "adaln" alone.
      turn: rotary positions.
      tokens: that a cross-attention sees.
      mask: which of them; None for all.
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
    """norm(x); without a norm, x standardised, times 1 + scale, plus shift (adaLN)."""
    if norm is not None:
        return norm(x)
    scale, shift = (y.astype(jnp.float32)[:, None] for y in (scale, shift))
    return (standardised(x, EPS) * (1 + scale) + shift).astype(x.dtype)


class Block(nnx.Module):
    """Self-attention, cross-attention if it is asked for, and a two-layer network."""

    def __init__(self, o: Options, rngs: nnx.Rngs):
        """Makes the parameters; adaLN-zero lets a block begin as the identity."""
        D, adaptive = o.width, o.condition == "adaln"
        linear = partial(Linear, dtype=o.dtype, rngs=rngs)
        self.modulation = linear(D, 6 * D, init=zeros) if adaptive else None
        self.norm1, self.norm2 = (None if adaptive else LayerNorm(D, eps=EPS) for _ in range(2))
        self.qkv, self.merge = linear(D, 3 * D), linear(D, D)
        self.up, self.down = linear(D, o.hidden), linear(o.hidden, D)
        if o.cross:
            # Where it brings no more than a text, it begins at zero (Chen et al. 2023, PixArt).
            begin = {} if o.condition == "cross_attention" else {"init": zeros}
            self.norm_cross = LayerNorm(D, eps=EPS)
            self.query, self.pair = linear(D, D), linear(D, 2 * D)
            self.merge_cross = linear(D, D, **begin)
        self.options = o

    def __call__(
        self, x: Float[Array, "B T D"], beside: Beside, key: Array | None, train: bool
    ) -> Float[Array, "B T D"]:
        """Applies the block."""
        o, part = self.options, REMAT[self.options.remat][1]
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        first = second = gate1 = gate2 = None
        if self.modulation is not None:
            six = jnp.split(named(self.modulation(beside.vector)), 6, axis=-1)
            first, gate1, second, gate2 = six[0:2], six[2], six[3:5], six[5]

        def add(x: Array, h: Array, gate: Array | None, key: Array | None) -> Array:
            h = dropout(h, o.dropout, key, train)
            return x + (h if gate is None else times(h, gate[:, None]))

        h = part(lambda x, by: self.qkv(normalised(self.norm1, x, *by)))(x, first or ())
        h = part(partial(self._look, turn=beside.turn))(named(h))
        x = add(x, named(self.merge(h)), gate1, keys[0])
        if o.cross:
            query = part(lambda x: self.query(self.norm_cross(x)))(x)
            pair = self.pair(beside.tokens)
            h = part(partial(self._look_across, mask=beside.mask))(named(query), named(pair))
            x = add(x, named(self.merge_cross(h)), None, keys[1])
        h = part(lambda x, by: self.up(normalised(self.norm2, x, *by)))(x, second or ())
        h = part(lambda h: self.down(jax.nn.gelu(h.astype(jnp.float32))))(named(h))
        return add(x, named(h), gate2, keys[2])

    def _heads(self, x: Float[Array, "B T F"]) -> Float[Array, "B T M H"]:
        return x.reshape(*x.shape[:2], -1, self.options.width // self.options.heads)

    def _look(self, qkv: Float[Array, "B T F"], turn: Rotation | None) -> Float[Array, "B T D"]:
        N = self.options.heads
        turned, value = jnp.split(self._heads(qkv), [2 * N], axis=2)
        turned = turned if turn is None else rotate(turned, turn)
        mixed = attention(*jnp.split(turned, 2, axis=2), value)
        return mixed.reshape(*qkv.shape[:2], -1)

    def _look_across(
        self,
        query: Float[Array, "B T D"],
        pair: Float[Array, "B S F"],
        mask: Bool[Array, "B S"] | None,
    ) -> Float[Array, "B T D"]:
        """What the tokens bring; zero to an example that may see none of them."""
        mixed = across(self._heads(query), *jnp.split(self._heads(pair), 2, axis=2), mask)
        return mixed.reshape(query.shape)


def _check(
    shape: tuple[int, int, int], num_classes: int, given: dict[str, Any], o: Options
) -> None:
    """Raises ConfigError if a network of these sizes cannot be built."""
    H, W, _ = shape
    for name in ("patch_size", "width", "depth", "heads"):
        require(given[name] > 0, name, given[name], "at least 1")
    p = given["patch_size"]
    require(H % p == W % p == 0, "patch_size", p, f"a divisor of the input's {H} x {W}")
    require(o.width % o.heads == 0, "heads", o.heads, f"a divisor of width={o.width}")
    require(o.hidden > 0, "mlp_ratio", given["mlp_ratio"], f"at least 1 / width = 1 / {o.width}")
    require(0 <= o.dropout < 1, "dropout", o.dropout, "at least 0 and below 1")
    for name in ("context_width", "vector_width"):
        require(given[name] >= 0, name, given[name], "at least 1, or 0 for none")
    require(num_classes >= 0, "num_classes", num_classes, "at least 1, or 0 for none")
    one_of("positions", given["positions"], POSITIONS)
    one_of("condition", o.condition, CONDITIONS)
    one_of("remat", o.remat, tuple(REMAT))


class Network(nnx.Module):
    """Predicts an image, or a latent, from a noisy one, its timestep and what else it is told."""

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
        """Builds the network; the output begins at zero.

        Args:
          shape: of the input, [H, W, C].
          out_channels: channels of the output; 2 C where variances are learned.
          num_classes: labels; one more embedding stands for "no label". 0: unconditional.
          context_width: of the tokens of a `context`; 0 for none.
          vector_width: of a `vector`, D; 0 for none.
          patch_size: height and width of the patches that become vectors.
          width: of the vectors, D.
          depth: blocks, L.
          heads: of attention.
          mlp_ratio: width inside a block over D.
          positions: "sincos" adds them to the vectors; "rotary" turns queries and keys.
          condition: how time, label and vector reach the blocks (section 3.2 of the paper). "adaln"
            shifts, scales and gates what a block does, by vectors that begin at zero; "in_context"
            puts them among the tokens of the image, without a place; "cross_attention" lets a block
            look at them, and at the context with them.
          dropout: probability, of what a block adds.
          remat: what the backward pass computes again, see `transformer.Options`.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: sizes that do not fit each other, or a choice that does not exist.
        """
        given = {"patch_size": patch_size, "width": width, "depth": depth, "heads": heads}
        given |= {"mlp_ratio": mlp_ratio, "positions": positions}
        given |= {"context_width": context_width, "vector_width": vector_width}
        cross, hidden = condition == "cross_attention" or context_width > 0, int(width * mlp_ratio)
        o = Options(width, heads, hidden, condition, cross, dropout, remat, dtype)
        _check(shape, num_classes, given, o)
        self.options, self.depth, self.positions = o, depth, positions
        self.patch_size, self.num_classes = patch_size, num_classes
        self.context_width, self.vector_width = context_width, vector_width
        self.grid = (shape[0] // patch_size, shape[1] // patch_size)
        self._place()  # raises where the width does not fit them

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
          vector: numbers, which a map that begins at zero adds to the embedding of time. None if
            the network has no vector.
          context: tokens of a text encoder, E = context_width, which every block sees. None if the
            network has no context.
          context_mask: true for the tokens that are seen, all of them without it. An example may
            have none: the cross-attention brings zeros then.
          key: for dropout; needed in training if there is any.
          train: whether dropout is on.

        Returns:
          The prediction, float32.

        Raises:
          ValueError: a label, vector or context that the network has no use for, or the lack of
            one.
        """
        o, N = self.options, self.grid[0] * self.grid[1]
        h = self.patch(space_to_depth(x.astype(o.dtype), self.patch_size))
        table, turn = self._place()
        h = h if table is None else plus(h, table)
        h = h.reshape(len(x), N, o.width)
        known = self._known(t, label, vector)
        seen, mask = self._context(context, context_mask)
        vector = None
        if o.condition == "adaln":
            vector = activated(nnx.silu, sum(known[1:], known[0]))
        elif o.condition == "in_context":
            h = jnp.concatenate([h, jnp.stack(known, 1)], axis=1)
            ahead = ((0, 0), (0, len(known)), (0, 0), (0, 0))
            if turn is not None:
                turn = Rotation(
                    jnp.pad(turn.cos, ahead, constant_values=1), jnp.pad(turn.sin, ahead)
                )
        else:
            known = jnp.stack(known, 1)
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (known.shape[1], 0)), constant_values=True)
            seen = known if seen is None else jnp.concatenate([known, seen], axis=1)
        h = self._run(h, Beside(vector, turn, seen, mask), key, train)[:, :N]
        by = () if vector is None else jnp.split(self.modulation(vector), 2, axis=-1)
        h = self.head(normalised(self.norm, h, *by)).reshape(len(x), *self.grid, -1)
        return depth_to_space(h, self.patch_size).astype(jnp.float32)

    def _place(self) -> tuple[Float[Array, "H W D"] | None, Rotation | None]:
        """What is added to the vectors, and how queries and keys are turned."""
        if self.positions == "sincos":
            return sinusoidal_of_grid(*self.grid, self.options.width), None
        return None, rotation_of_grid(*self.grid, self.options.width // self.options.heads)

    def _known(
        self,
        t: Float[Array, "B"],
        label: Int[Array, "B"] | None,
        vector: Float[Array, "B D"] | None,
    ) -> list[Array]:
        """The vectors [B, D] of the time, and of the label if there is one."""
        if (label is None) == (self.num_classes > 0):
            lack = "none was given" if label is None else "one was given"
            raise ValueError(f"label: the network has num_classes={self.num_classes}, and {lack}")
        time = self.time1(sinusoidal(t, TIME_FEATURES))
        time = self.time2(activated(nnx.silu, time))
        if (vector is None) == (self.vector_width > 0):
            lack = "none was given" if vector is None else f"one of {vector.shape} was given"
            raise ValueError(
                f"vector: the network has vector_width={self.vector_width}, and {lack}"
            )
        time = time if vector is None else time + self.vector(vector)
        return [time] if label is None else [time, self.label(label).astype(time.dtype)]

    def _context(
        self, context: Array | None, mask: Array | None
    ) -> tuple[Float[Array, "B S D"] | None, Bool[Array, "B S"] | None]:
        """The context's tokens by two layers, as in PixArt (Chen et al. 2023), and their mask."""
        if (context is None) == (self.context_width > 0) or (context is None and mask is not None):
            found = (None if y is None else y.shape for y in (context, mask))
            raise ValueError(
                "context, context_mask: of shapes {}, {}; the network has context_width={}".format(
                    *found, self.context_width
                )
            )
        if context is None:
            return None, None
        return self.context2(activated(nnx.gelu, self.context1(context))), mask

    def _run(
        self, x: Float[Array, "B T D"], beside: Beside, key: Array | None, train: bool
    ) -> Float[Array, "B T D"]:
        """The blocks one after the other."""
        graph, params = nnx.split(self.blocks)

        def block(x: Array, given: tuple) -> tuple[Array, None]:
            params, key = given
            return nnx.merge(graph, params)(x, beside, key, train), None

        keys = None if key is None else jax.random.split(key, self.depth)
        block = REMAT[self.options.remat][0](block)
        return lax.scan(block, x, (params, keys))[0]
