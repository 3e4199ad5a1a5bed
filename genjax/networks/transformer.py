"""A transformer over vectors (Vaswani et al. 2017), with a scan over its blocks.

The embedding of the input and the output head belong to the network around it, such as `decoder`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import (
    Depth,
    OtherWidth,
    Positive,
    Range,
    Rate,
    Share,
    Weight,
    Width,
    check_options,
    one_of,
    require,
)
from genjax.networks.kv_cache import Cache, bits, held_segments, numbers, placed, write
from genjax.networks.sequence import check_split, one_segment, visible, visible_of
from genjax.nn.attention import attention
from genjax.nn.heads import QueryKeyValue
from genjax.nn.layers import LayerNorm, Linear, RMSNorm, dropout
from genjax.nn.positions import Rotation, frequencies, rotate, rotation
from genjax.parallel.layout import EXAMPLES, LENGTH, UNITS, laid
from genjax.parallel.rules import Rules, fsdp, replicate, table, tensor

# How the mesh splits what goes from block to block, and what is inside one: [B, T, D], [B, T, F].
STREAM, HIDDEN = (EXAMPLES, LENGTH, None), (EXAMPLES, LENGTH, UNITS)

# Stacked over depth, a kernel is [L, in, out], and that of qkv [L, in, K, out / K].
RULES: Rules = (
    (r"blocks/(up|gate)/kernel$", tensor(-1)),
    (r"blocks/(qkv|merge|down)/kernel$", tensor(-2)),
    (r"embedding$", table),
    (r"kernel$", fsdp),
    (r"(scale|bias|positions)$", replicate),
)

normal = jax.nn.initializers.normal

NORMS = ("layer", "rms")
ACTIVATIONS = {
    "gelu": jax.nn.gelu,  # the tanh formula
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016, section 2
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
GATED = {  # Shazeer 2020
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
    "geglu_exact": ACTIVATIONS["gelu_exact"],
}
# What the two-layer network of a block sees: the sum with the attention; or what the attention
# sees, normalised by a norm of its own (Wang & Komatsuzaki 2021) or by the attention's.
RESIDUALS = ("sequential", "parallel", "parallel_shared")
BIASES = {  # `bias_of` -> the linear layers of a block that have a bias
    "all": ("qkv", "merge", "up", "gate", "down"),
    "attention": ("qkv", "merge"),
    "qkv": ("qkv",),
    "mlp": ("up", "gate", "down"),
}
RotaryShare = Annotated[float, Range(0, 1, above=True)]


def _unchanged(function: Callable) -> Callable:
    return function


_recomputed = partial(jax.checkpoint, prevent_cse=False)
named = partial(checkpoint_name, name="product")  # marks products of activations and parameters
_save_products = jax.checkpoint_policies.save_only_these_names("product")
# How to treat a block, and each of its parts, in the backward pass. The parts are: a norm and its
# product, the attention, an activation and its product.
REMAT = {
    "none": (_unchanged, _recomputed),
    "dots": (partial(_recomputed, policy=_save_products), _unchanged),
    "full": (_recomputed, _unchanged),
}


class Options(NamedTuple):
    """The options of a transformer.

    Attributes:
      width: of the vectors, D.
      depth: number of blocks, L.
      heads: number of query heads, N.
      kv_heads: number of key and value heads, K, which divides N (Ainslie et al. 2023); N if 0.
      head_size: H; D / N if 0.
      hidden: width inside a block; 4 D if 0.
      activation: one of ACTIVATIONS or GATED.
      norm: "layer" or "rms".
      norm_eps: added to the variance or the mean square in norms.
      norm_offset: added to the scale of norms (Gemma's is 1).
      qk_norm: whether each head's queries and keys are normalised (Dehghani et al. 2023).
      norm_first: True: a norm before each layer and one at the end (Radford et al. 2019); False: a
        norm after each sum and none at the end (Vaswani et al. 2017).
      residual: one of RESIDUALS; parallel ones need `norm_first`.
      rotary: whether queries and keys have rotary positions.
      rotary_share: the share of a head's elements that rotary positions turn, its first ones.
      rope_base: see `positions.frequencies`.
      rope_scaling: see `positions.frequencies`.
      bias: whether linear layers and layer norms have a bias.
      bias_of: which linear layers then have one, a key of BIASES.
      dropout: rate on what each block adds.
      attention_dropout: rate on the attention weights.
      causal: whether a position sees only itself and those before it.
      window: the most positions that a causal one sees, itself included (Beltagy et al. 2020); 0:
        all of them.
      init_std: standard deviation of the initial weights, divided by sqrt(2 L) for those of layers
        that add to the sum (Radford et al. 2019, section 2.3); sqrt(2 / 5D) if 0 (Nguyen & Salazar
        2019, "SmallInit").
      remat: what the backward pass recomputes: "none", only norms, activations and attention
        weights, which cost more to store; "dots", everything but products with parameters;
        "full", everything inside a block.
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
    norm_offset: Share = 0.0
    qk_norm: bool = False
    norm_first: bool = True
    residual: str = "sequential"
    rotary: bool = False
    rotary_share: RotaryShare = 1.0
    rope_base: Positive = 10_000.0
    rope_scaling: tuple = ()
    bias: bool = True
    bias_of: str = "all"
    dropout: Rate = 0.0
    attention_dropout: Rate = 0.0
    causal: bool = True
    window: OtherWidth = 0
    init_std: Weight = 0.0
    remat: str = "none"
    dtype: Any = jnp.float32

    def filled(self) -> Options:
        """Replaces each 0 that means a default by its value.

        Raises:
          ConfigError: an option is out of range, or does not fit the others.
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
        one_of("residual", self.residual, RESIDUALS)
        one_of("bias_of", self.bias_of, tuple(BIASES))
        fits = self.norm_first or self.residual == "sequential"
        require(fits, "residual", self.residual, "'sequential' with norm_first=False")
        require(self.causal or not self.window, "window", self.window, "0 with causal=False")
        filled = self._replace(head_size=self.head_size or self.width // self.heads)
        if self.rotary:
            filled.frequencies()
        return filled._replace(
            kv_heads=kv_heads,
            hidden=self.hidden or 4 * self.width,
            init_std=self.init_std or math.sqrt(2 / (5 * self.width)),
            rope_scaling=tuple(self.rope_scaling),
        )

    def frequencies(self) -> Float[np.ndarray, "h"]:
        """The frequencies of the rotary positions, of filled options."""
        size = int(self.rotary_share * self.head_size)
        return frequencies(size, self.rope_base, self.rope_scaling)

    def biased(self, layer: str) -> bool:
        """Whether a linear layer of a block has a bias."""
        return self.bias and layer in BIASES[self.bias_of]


def norm(o: Options, size: int = 0) -> LayerNorm | RMSNorm:
    """Makes a norm of the kind that the options name, of `size` elements or of the width."""
    size, given = size or o.width, {"eps": o.norm_eps, "offset": o.norm_offset}
    return RMSNorm(size, **given) if o.norm == "rms" else LayerNorm(size, use_bias=o.bias, **given)


class Block(nnx.Module):
    """Self-attention and a two-layer network, each added to the sum so far."""

    def __init__(self, o: Options, rngs: nnx.Rngs):
        """Makes the parameters; `o` are options from `Options.filled`."""
        inner = {"init": normal(o.init_std), "dtype": o.dtype, "rngs": rngs}
        back = {**inner, "init": normal(o.init_std / math.sqrt(2 * o.depth))}
        self.norm1 = norm(o)
        self.norm2 = None if o.residual == "parallel_shared" else norm(o)
        self.query_norm, self.key_norm = (
            norm(o, o.head_size) if o.qk_norm else None for _ in range(2)
        )
        heads = (o.heads, o.kv_heads, o.head_size)
        self.qkv = QueryKeyValue(o.width, *heads, use_bias=o.biased("qkv"), **inner)
        self.merge = Linear(o.heads * o.head_size, o.width, use_bias=o.biased("merge"), **back)
        self.up = Linear(o.width, o.hidden, use_bias=o.biased("up"), **inner)
        gate = partial(Linear, o.width, o.hidden, use_bias=o.biased("gate"), **inner)
        self.gate = gate() if o.activation in GATED else None
        self.down = Linear(o.hidden, o.width, use_bias=o.biased("down"), **back)
        self.options = o

    def look(
        self, x: Float[Array, "B T D"], turn: Rotation | None
    ) -> tuple[Float[Array, "B T N H"], tuple[Array, Array]]:
        """Returns queries, and keys and values [K, B, T, H]."""
        o = self.options
        part = REMAT[o.remat][1]
        heads = named(part(lambda x: self.qkv(self.norm1(x) if o.norm_first else x))(x))
        turned, value = self.qkv.turned_and_value(heads)
        if self.query_norm is not None:
            query, key = self.qkv.query_and_key(turned)
            query, key = self.query_norm(query), self.key_norm(key)
            query, key = (x if turn is None else rotate(x, turn) for x in (query, key))
        else:
            query, key = self.qkv.query_and_key(turned if turn is None else rotate(turned, turn))
        return query, (key.transpose(2, 0, 1, 3), value.transpose(2, 0, 1, 3))

    def add(
        self,
        x: Float[Array, "B T D"],
        query: Float[Array, "B T N H"],
        seen: tuple[Float[Array, "K B S H"], Float[Array, "K B S H"]],
        shared: _AttentionInputs,
        memory: Any,
        key: Array | None,
        train: bool,
    ) -> Float[Array, "B T D"]:
        """Returns the block's output; `seen` are keys and values, `memory` those of a context."""
        o, (B, T, _) = self.options, x.shape
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        seen = [array.transpose(1, 2, 0, 3) for array in seen]
        part = REMAT[o.remat][1]
        causal = o.causal and not shared.back
        mix = partial(attention, causal=causal, window=o.window, implied=not shared.back)
        mix = partial(mix, rate=o.attention_dropout, train=train)
        h = part(mix)(
            query, *seen, shared.mask, segment=shared.segment, bias=shared.bias, draws=keys[0]
        )
        h = h.reshape(B, T, -1)
        before = x
        x = x + dropout(named(self.merge(laid(h, *HIDDEN))), o.dropout, keys[1], train)
        x = x if o.norm_first else part(self.norm1)(x)
        x = self.across(x, memory, shared, key, train)
        seen = x if o.residual == "sequential" else before
        h = part(self._narrow)(*map(named, part(self._widen)(laid(seen, *STREAM))))
        x = laid(x + dropout(h, o.dropout, keys[2], train), *STREAM)
        return x if o.norm_first else part(self.norm2)(x)

    def across(
        self,
        x: Float[Array, "B T D"],
        memory: Any,
        shared: _AttentionInputs,
        key: Array | None,
        train: bool,
    ) -> Float[Array, "B T D"]:
        """What comes between self-attention and the last layers: nothing, in this block."""
        del memory, shared, key, train
        return x

    def _widen(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T F"], ...]:
        norm = self.norm1 if self.norm2 is None else self.norm2
        h = norm(x) if self.options.norm_first else x
        layers = (self.up,) if self.gate is None else (self.up, self.gate)
        return tuple(laid(layer(h), *HIDDEN) for layer in layers)

    def _narrow(self, up: Array, gate: Array | None = None) -> Float[Array, "B T D"]:
        """Activation in float32, then the product: rounding to bfloat16 at each step is slower."""
        up, name = up.astype(jnp.float32), self.options.activation
        if gate is None:
            return self.down(ACTIVATIONS[name](up))
        return self.down(GATED[name](gate.astype(jnp.float32)) * up)


class Transformer(nnx.Module):
    """A stack of blocks, and a final norm if `norm_first`."""

    def __init__(self, *, rngs: nnx.Rngs, block: type[Block] = Block, **options: Any):
        """Builds the network.

        Args:
          rngs: for the initial parameters.
          block: the class of its blocks.
          **options: see `Options`.

        Raises:
          ConfigError: an option is out of range, or does not fit the others.
        """
        o = Options(**options).filled()

        @nnx.split_rngs(splits=o.depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def blocks(rngs: nnx.Rngs) -> Block:
            return block(o, rngs)

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
        bias: Float[Array, "1 N T S"] | None = None,
        memory: tuple | None = None,
        seen: Bool[Array, "B S"] | None = None,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Returns the new vectors and the cache; `sequence` describes most arguments.

        Args:
          x: the vectors.
          segment: see `sequence`, also for the next two.
          cache: see there.
          capacity: see there.
          bias: is added to the products of queries and keys, in all blocks; S are the positions of
            the cache, or T without one.
          memory: arrays [L K, B, ...] of a context, which `Block.across` of each block gets as
            [K, B, ...]; with parameters from `unstacked`, tuples of L of these.
          seen: which vectors of that context are seen.
          key: for dropout.
          train: whether dropout is on.

        With parameters from `unstacked`, a Python loop replaces the scan over blocks, and the cache
        contains tuples.

        Raises:
          ConfigError: more positions than the capacity, or a mesh that cannot split them.
          ValueError: both a segment and a cache are given.
        """
        o, (B, T, _) = self.options, x.shape
        one_segment(segment, cache)
        if train:
            check_split(T, o.heads)
        require(not capacity or capacity >= T, "capacity", capacity, f"at least {T} positions")
        place, turn = placed(T, segment, cache), None
        if o.rotary:
            turn = rotation(place, o.frequencies())
        segments = held_segments(B, T, segment, cache, capacity)
        if cache is None:
            held = self._empty_cache(B, capacity) if capacity else None
            mask = visible(T, o.causal, segment, o.window)
            shared = _AttentionInputs(turn, mask, segment, 0, False, bias, seen)
        else:
            held = (cache.key, cache.value)
            mask = visible_of(segments, T, cache.length, o.window)
            shared = _AttentionInputs(turn, mask, None, cache.length, True, bias, seen)
        keys = None if key is None else jax.random.split(key, o.depth)
        x = laid(x.astype(o.dtype), *STREAM)
        x, held = self._run(x, shared, held, memory, keys, train)
        x = x if self.norm is None else self.norm(x)
        if held is None:
            return x, None
        next_place = jnp.broadcast_to(place[:, -1] + 1, (1, B))
        return x, Cache(*held, segments, next_place, shared.at + jnp.int32(T))

    def _split_blocks(self) -> tuple[Any, Any, list | None]:
        """The graph of a block; its stacked parameters or None; a list of each block's or None."""
        graph, params = nnx.split(self.blocks)
        leaves, tree = jax.tree.flatten(params, is_leaf=lambda leaf: isinstance(leaf, tuple))
        if not isinstance(leaves[0], tuple):
            return graph, params, None
        return (
            graph,
            None,
            [tree.unflatten(block_leaves) for block_leaves in zip(*leaves, strict=True)],
        )

    def _empty_cache(self, batch: int, capacity: int) -> tuple:
        o = self.options
        stacked = self._split_blocks()[2] is None
        shape = (o.kv_heads * (o.depth if stacked else 1), batch, capacity, o.head_size)
        zeros = bits(jnp.zeros(shape, o.dtype))
        return (zeros, zeros) if stacked else ((zeros,) * o.depth,) * 2

    def _run(
        self,
        x: Array,
        shared: _AttentionInputs,
        held: tuple | None,
        memory: tuple | None,
        keys: Array | None,
        train: bool,
    ) -> tuple[Float[Array, "B T D"], tuple | None]:
        """Applies the blocks; also returns the cached keys and values with those of `x` added.

        Keys and values are part of the scan's carry, which XLA updates in place. As inputs and
        outputs of the scan, they would be copied at each step.
        """
        graph, params, block_params = self._split_blocks()

        def block(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
            (x, held), (params, memory, key, layer) = carry, inputs
            net = nnx.merge(graph, params)
            query, seen = net.look(x, shared.turn)
            if held is not None:
                held = tuple(write(h, n, layer, shared.at) for h, n in zip(held, seen, strict=True))
            if shared.back:
                seen = (
                    held
                    if layer is None
                    else tuple(lax.dynamic_index_in_dim(h, layer, keepdims=False) for h in held)
                )
                seen = tuple(numbers(h, self.options.dtype) for h in seen)
            return (net.add(x, query, seen, shared, memory, key, train), held), None

        depth, K = self.options.depth, self.options.kv_heads
        if block_params is None:
            block = REMAT[self.options.remat][0](block)
            if held is not None:
                held = tuple(h.reshape(depth, K, *h.shape[1:]) for h in held)
            memory = jax.tree.map(lambda m: m.reshape(depth, -1, *m.shape[1:]), memory)
            inputs = (params, memory, keys, jnp.arange(depth))
            (x, held), _ = lax.scan(block, (x, held), inputs)
            return x, None if held is None else tuple(h.reshape(-1, *h.shape[2:]) for h in held)
        caches = [None] * depth if held is None else list(zip(*held, strict=True))
        for i in range(depth):
            key = None if keys is None else keys[i]
            part = None if memory is None else tuple(m[i] for m in memory)
            (x, caches[i]), _ = block((x, caches[i]), (block_params[i], part, key, None))
        return x, None if held is None else tuple(zip(*caches, strict=True))


class _AttentionInputs(NamedTuple):
    """Inputs of attention in all blocks; `at` is the cache index of the first new position."""

    turn: Rotation | None
    mask: Bool[Array, "B 1 T S"] | None
    segment: Int[Array, "B T"] | None
    at: Int[Array, ""] | int
    back: bool  # whether the cache holds earlier positions
    bias: Float[Array, "1 N T S"] | None
    seen: Bool[Array, "B S"] | None  # of a context


def unstacked(params: Any) -> Any:
    """Replaces each array stacked over L blocks, in nested dicts, by a tuple of L arrays.

    Networks accept both forms. A step of one token uses each weight once, but the CPU first copies
    a block's weights out of the stack, which doubles the time. Unstack once, outside the loop over
    tokens. Parameters without stacked blocks are returned unchanged.
    """

    def split(tree: Any, stacked: bool) -> Any:
        if isinstance(tree, dict):
            return {name: split(sub, stacked or name == "blocks") for name, sub in tree.items()}
        return tuple(tree[i] for i in range(len(tree))) if stacked else tree

    return split(params, False)
