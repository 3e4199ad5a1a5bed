"""The transformer on vectors (Vaswani et al. 2017): self-attention, depth scanned.

What its vectors are and what is read off at the end belongs to the network around it, such as
`decoder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import (
    Depth,
    OtherWidth,
    Positive,
    Rate,
    Weight,
    Width,
    check_options,
    one_of,
    require,
)
from genjax.networks.kv_cache import Cache, bits, held_segments, placed, write
from genjax.networks.sequence import one_segment, visible, visible_of
from genjax.nn.attention import attention
from genjax.nn.layers import LayerNorm, Linear, RMSNorm, dropout
from genjax.nn.positions import Rotation, frequencies, rotate, rotation
from genjax.parallel.rules import Rules, fsdp, replicate, tensor

# Stacked over depth, a kernel is [L, in, out].
RULES: Rules = (
    (r"blocks/(qkv|up|gate)/kernel$", tensor(-1)),
    (r"blocks/(merge|down)/kernel$", tensor(-2)),
    (r"(kernel|embedding)$", fsdp),
    (r"(scale|bias|positions)$", replicate),
)

normal = jax.nn.initializers.normal

NORMS = ("layer", "rms")
ACTIVATIONS = {
    "gelu": jax.nn.gelu,  # by its tanh formula
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
GATED = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}  # Shazeer 2020


def _kept(function: Callable) -> Callable:
    return function


_again = partial(jax.checkpoint, prevent_cse=False)
named = partial(checkpoint_name, name="product")  # of a block's input and its parameters
_products = jax.checkpoint_policies.save_only_these_names("product")
# How the backward pass comes by what is inside a block, and inside a part of one: a norm and its
# product, the attention, an activation and its product.
REMAT = {
    "none": (_kept, _again),
    "dots": (partial(_again, policy=_products), _kept),
    "full": (_again, _kept),
}


class Options(NamedTuple):
    """What a transformer is made of.

    Attributes:
      width: of the vectors, D.
      depth: blocks, L.
      heads: of queries, N.
      kv_heads: of keys and values, K, which divides N (Ainslie et al. 2023); N if 0.
      head_size: H; D / N if 0.
      hidden: width inside a block; 4 D if 0.
      activation: of ACTIVATIONS, or of GATED.
      norm: "layer" or "rms".
      norm_eps: what the norms add to the variance or the mean square.
      norm_first: norms ahead of what they feed and one at the end (Radford et al. 2019); else one
        behind each sum, and none at the end (Vaswani et al. 2017).
      rotary: whether queries and keys are turned by their places.
      rope_base: see `positions.frequencies`.
      rope_scaling: see there.
      bias: of all linear layers and layer norms.
      dropout: probability, of what each block adds.
      attention_dropout: probability, of the attention's weights.
      causal: whether a position sees itself and those before it alone.
      init_std: standard deviation of the initial weights, of those into the sum over sqrt(2 L)
        (Radford et al. 2019, section 2.3); sqrt(2 / 5D) if 0 (Nguyen & Salazar 2019, "SmallInit").
      remat: what the backward pass computes again: "none", nothing but norms, activations and the
        attention's weights, which cost more to keep; "dots", all but the products with parameters;
        "full", all inside a block.
      dtype: compute type.
    """

    width: Width
    depth: Depth
    heads: Width
    kv_heads: OtherWidth = 0
    head_size: OtherWidth = 0
    hidden: OtherWidth = 0
    activation: str = "gelu"
    norm: str = "layer"
    norm_eps: Positive = 1e-5
    norm_first: bool = True
    rotary: bool = False
    rope_base: Positive = 10_000.0
    rope_scaling: tuple = ()
    bias: bool = True
    dropout: Rate = 0.0
    attention_dropout: Rate = 0.0
    causal: bool = True
    init_std: Weight = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def filled(self) -> Options:
        """With a number in the place of each 0 that stands for another option's.

        Raises:
          ConfigError: an option that cannot be, or not with the others.
        """
        check_options(Options, self._asdict(), "model")
        if not self.head_size:
            fits = self.width % self.heads == 0
            require(fits, "heads", self.heads, f"a divisor of width={self.width}")
        kv_heads = self.kv_heads or self.heads
        fits = kv_heads > 0 and self.heads % kv_heads == 0
        require(fits, "kv_heads", kv_heads, f"a divisor of heads={self.heads}")
        one_of("activation", self.activation, (*ACTIVATIONS, *GATED))
        one_of("norm", self.norm, NORMS)
        one_of("remat", self.remat, tuple(REMAT))
        head_size = self.head_size or self.width // self.heads
        if self.rotary:
            frequencies(head_size, self.rope_base, self.rope_scaling)
        return self._replace(
            kv_heads=kv_heads,
            head_size=head_size,
            hidden=self.hidden or 4 * self.width,
            init_std=self.init_std or math.sqrt(2 / (5 * self.width)),
            rope_scaling=tuple(self.rope_scaling),
        )


def norm(o: Options) -> LayerNorm | RMSNorm:
    """The kind of norm that all of a transformer's are of."""
    if o.norm == "rms":
        return RMSNorm(o.width, eps=o.norm_eps)
    return LayerNorm(o.width, eps=o.norm_eps, use_bias=o.bias)


class Block(nnx.Module):
    """Self-attention and a two-layer network, each added to the sum so far."""

    def __init__(self, o: Options, rngs: nnx.Rngs):
        """Makes the parameters, of filled options."""
        inner = {"init": normal(o.init_std), "dtype": o.dtype, "rngs": rngs}
        back = {**inner, "init": normal(o.init_std / math.sqrt(2 * o.depth)), "use_bias": o.bias}
        self.norm1, self.norm2 = norm(o), norm(o)
        features = (o.heads + 2 * o.kv_heads) * o.head_size
        self.qkv = Linear(o.width, features, use_bias=o.bias, **inner)
        self.merge = Linear(o.heads * o.head_size, o.width, **back)
        self.up = Linear(o.width, o.hidden, use_bias=o.bias, **inner)
        gated = o.activation in GATED
        self.gate = Linear(o.width, o.hidden, use_bias=o.bias, **inner) if gated else None
        self.down = Linear(o.hidden, o.width, **back)
        self.options = o

    def look(
        self, x: Float[Array, "B T D"], turn: Rotation | None
    ) -> tuple[Float[Array, "B T N H"], tuple[Array, Array]]:
        """Queries, and keys and values [K, B, T, H]."""
        o, (B, T, _) = self.options, x.shape
        part = REMAT[o.remat][1]
        heads = part(lambda x: self.qkv(self.norm1(x) if o.norm_first else x))(x)
        heads = named(heads).reshape(B, T, -1, o.head_size)
        # Split, whose gradient is put together; that of slices is a sum of padded ones.
        turned, value = jnp.split(heads, [o.heads + o.kv_heads], axis=2)
        if turn is not None:
            turned = rotate(turned, turn)
        query, key = jnp.split(turned, [o.heads], axis=2)
        return query, (key.transpose(2, 0, 1, 3), value.transpose(2, 0, 1, 3))

    def add(
        self,
        x: Float[Array, "B T D"],
        query: Float[Array, "B T N H"],
        seen: tuple[Float[Array, "K B S H"], Float[Array, "K B S H"]],
        mask: Bool[Array, "B 1 T S"] | None,
        whole: bool,
        key: Array | None,
        train: bool,
    ) -> Float[Array, "B T D"]:
        """The new vectors, given what there is to be seen; `whole` is attention's `causal`."""
        o, (B, T, _) = self.options, x.shape
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        seen = [array.transpose(1, 2, 0, 3) for array in seen]
        part = REMAT[o.remat][1]
        mix = partial(attention, causal=whole, rate=o.attention_dropout, train=train)
        h = part(mix)(query, *seen, mask, draws=keys[0]).reshape(B, T, -1)
        x = x + dropout(named(self.merge(h)), o.dropout, keys[1], train)
        x = x if o.norm_first else part(self.norm1)(x)
        h = part(self._narrow)(*map(named, part(self._widen)(x)))
        x = x + dropout(h, o.dropout, keys[2], train)
        return x if o.norm_first else part(self.norm2)(x)

    def _widen(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T F"], ...]:
        h = self.norm2(x) if self.options.norm_first else x
        return (self.up(h),) if self.gate is None else (self.up(h), self.gate(h))

    def _narrow(self, up: Array, gate: Array | None = None) -> Float[Array, "B T D"]:
        """In float32 up to the product: rounded to bfloat16 after each step it takes longer."""
        up, name = up.astype(jnp.float32), self.options.activation
        if gate is None:
            return self.down(ACTIVATIONS[name](up))
        return self.down(GATED[name](gate.astype(jnp.float32)) * up)


class Transformer(nnx.Module):
    """A stack of blocks, and a norm where they have theirs first."""

    def __init__(self, *, rngs: nnx.Rngs, **options: Any):
        """Builds the network.

        Args:
          rngs: for the initial parameters.
          **options: see `Options`.

        Raises:
          ConfigError: an option that cannot be, or not with the others.
        """
        o = Options(**options).filled()

        @nnx.split_rngs(splits=o.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def blocks(rngs: nnx.Rngs) -> Block:
            return Block(o, rngs)

        self.blocks = blocks(rngs)
        self.norm = norm(o) if o.norm_first else None
        self.options = o

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        segment: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
        capacity: int = 0,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """What each position knows of those of its segment; `sequence` says what the options mean.

        With parameters from `unstacked` the blocks are gone through one by one instead of scanned,
        and the cache is one of tuples.

        Raises:
          ConfigError: more positions than the capacity.
          ValueError: a segment as well as a cache.
        """
        o, (B, T, _) = self.options, x.shape
        one_segment(segment, cache)
        require(not capacity or capacity >= T, "capacity", capacity, f"at least {T}, the positions")
        place, turn = placed(T, segment, cache), None
        if o.rotary:
            turn = rotation(place, frequencies(o.head_size, o.rope_base, o.rope_scaling))
        segments = held_segments(B, T, segment, cache, capacity)
        if cache is None:
            held = self._empty(B, capacity) if capacity else None
            look = _Look(turn, visible(T, o.causal, segment), 0, False)
        else:
            held = (cache.key, cache.value)
            look = _Look(turn, visible_of(segments, T, cache.length), cache.length, True)
        keys = None if key is None else jax.random.split(key, o.depth)
        x, held = self._run(x.astype(o.dtype), look, held, keys, train)
        x = x if self.norm is None else self.norm(x)
        if held is None:
            return x, None
        following = jnp.broadcast_to(place[:, -1] + 1, (1, B))
        return x, Cache(*held, segments, following, look.at + jnp.int32(T))

    def _layers(self) -> tuple[Any, Any, list | None]:
        """How a block is made of its parameters; these, stacked; or a list of each block's own."""
        graph, params = nnx.split(self.blocks)
        leaves, tree = jax.tree.flatten(params, is_leaf=lambda leaf: isinstance(leaf, tuple))
        if not isinstance(leaves[0], tuple):
            return graph, params, None
        return graph, None, [tree.unflatten(own) for own in zip(*leaves, strict=True)]

    def _empty(self, batch: int, capacity: int) -> tuple:
        o = self.options
        stacked = self._layers()[2] is None
        shape = (o.kv_heads * (o.depth if stacked else 1), batch, capacity, o.head_size)
        zeros = bits(jnp.zeros(shape, o.dtype))
        return (zeros, zeros) if stacked else ((zeros,) * o.depth,) * 2

    def _run(
        self, x: Array, look: _Look, held: tuple | None, keys: Array | None, train: bool
    ) -> tuple[Float[Array, "B T D"], tuple | None]:
        """The blocks one after the other, and keys and values with those of `x` in them.

        They are carried from block to block, where XLA writes into them in place: as what a scan
        goes over they would be copied once a step.
        """
        graph, params, own = self._layers()

        def block(carry: tuple, given: tuple) -> tuple[tuple, None]:
            (x, held), (params, key, layer) = carry, given
            net = nnx.merge(graph, params)
            query, seen = net.look(x, look.turn)
            if held is not None:
                held = tuple(write(h, n, layer, look.at) for h, n in zip(held, seen, strict=True))
            if look.back:
                seen = (
                    held
                    if layer is None
                    else tuple(lax.dynamic_index_in_dim(h, layer, keepdims=False) for h in held)
                )
                seen = tuple(lax.bitcast_convert_type(h, self.options.dtype) for h in seen)
            whole = self.options.causal and not look.back
            return (net.add(x, query, seen, look.mask, whole, key, train), held), None

        depth, K = self.options.depth, self.options.kv_heads
        if own is None:
            block = REMAT[self.options.remat][0](block)
            if held is not None:
                held = tuple(h.reshape(depth, K, *h.shape[1:]) for h in held)
            (x, held), _ = lax.scan(block, (x, held), (params, keys, jnp.arange(depth)))
            return x, None if held is None else tuple(h.reshape(-1, *h.shape[2:]) for h in held)
        each = [None] * depth if held is None else list(zip(*held, strict=True))
        for i in range(depth):
            key = None if keys is None else keys[i]
            (x, each[i]), _ = block((x, each[i]), (own[i], key, None))
        return x, None if held is None else tuple(zip(*each, strict=True))


class _Look(NamedTuple):
    """What all blocks know of the positions: rotation, mask, the first one's index in the cache."""

    turn: Rotation | None
    mask: Bool[Array, "B 1 T S"] | None
    at: Int[Array, ""] | int
    back: bool  # whether there is something to be seen in the cache


def unstacked(params: Any) -> Any:
    """Parameters (nested dicts) with a tuple of L arrays for each array stacked over L blocks.

    A network takes either. A step of one token uses every weight once, and the CPU copies a block's
    weights out of the stack before it multiplies with them: twice the time. Unstack them once,
    outside of the loop over tokens. Networks without stacked blocks come back as they are.
    """

    def of(tree: Any, stacked: bool) -> Any:
        if isinstance(tree, dict):
            return {name: of(own, stacked or name == "blocks") for name, own in tree.items()}
        return tuple(tree[i] for i in range(len(tree))) if stacked else tree

    return of(params, False)
