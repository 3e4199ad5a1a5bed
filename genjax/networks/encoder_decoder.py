"""An encoder of a source, and a decoder that attends to it (Vaswani et al. 2017).

Its options cover T5 (Raffel et al. 2020), BART (Lewis et al. 2020) and Marian (Junczys-Dowmunt et
al. 2018). Both halves are a `Transformer`; the decoder's blocks attend to the context, which is the
encoder's output, between self-attention and the feed-forward layers.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from genjax.checks import Depth, OtherWidth, Positive, Range, Rate, Weight, Width, one_of, require
from genjax.networks import kv_cache, transformer
from genjax.networks.kv_cache import bits, numbers, placed
from genjax.networks.sequence import Head, embedding, small
from genjax.networks.transformer import HIDDEN, STREAM, Block, Transformer, norm, normal
from genjax.nn.attention import attention
from genjax.nn.heads import QueryKeyValue
from genjax.nn.layers import Embed, Linear, dropout, plus
from genjax.nn.positions import relative_bucket, sinusoidal
from genjax.parallel.layout import laid
from genjax.parallel.rules import Rules, replicate, tensor

RULES: Rules = (
    (r"blocks/query_across/kernel$", tensor(-1)),
    (r"blocks/(memory|merge_across)/kernel$", tensor(-2)),
    (r"relative_\w+/embedding$", replicate),
    (r"positions_\w+$", replicate),
    *transformer.RULES,
)

POSITIONS = ("relative", "learned", "sinusoidal", "rotary", "none")


class Cache(NamedTuple):
    """What the decoder keeps between positions.

    Attributes:
      own: keys and values of the target so far.
      memory: keys and values of the context in all blocks, as `Transformer` takes them; they are
        computed once, when the cache is made.
      seen: which vectors of the context are seen.
    """

    own: kv_cache.Cache
    memory: tuple[Shaped[Array, "LK B S H"], Shaped[Array, "LK B S H"]] | tuple
    seen: Bool[Array, "1 B S"]


class CrossBlock(Block):
    """A block that also attends to a context."""

    def __init__(self, o: transformer.Options, rngs: nnx.Rngs):
        """Makes the parameters; `o` are options from `Options.filled`."""
        super().__init__(o, rngs)
        inner = {"use_bias": o.bias, "init": normal(o.init_std), "dtype": o.dtype, "rngs": rngs}
        self.norm_across = norm(o)
        self.query_across = Linear(o.width, o.heads * o.head_size, **inner)
        self.memory = QueryKeyValue(o.width, 0, o.kv_heads, o.head_size, **inner)
        back = inner | {"init": normal(o.init_std / math.sqrt(2 * o.depth))}
        self.merge_across = Linear(o.heads * o.head_size, o.width, **back)

    def remember(self, context: Float[Array, "B S D"]) -> tuple[Array, Array]:
        """Keys and values [K, B, S, H] of a context."""
        pair = self.memory.turned_and_value(self.memory(context))
        return tuple(x.transpose(2, 0, 1, 3) for x in pair)

    def across(
        self,
        x: Float[Array, "B T D"],
        memory: tuple[Array, Array],
        shared: Any,
        key: Array | None,
        train: bool,
    ) -> Float[Array, "B T D"]:
        """Adds what attention to the context finds; `memory` is the result of `remember`."""
        o, (B, T, _) = self.options, x.shape
        keys = [None] * 2 if key is None else jax.random.split(jax.random.fold_in(key, 3))
        query = self.query_across(self.norm_across(x) if o.norm_first else x)
        query = query.reshape(B, T, o.heads, o.head_size)
        pair = (numbers(m, o.dtype).transpose(1, 2, 0, 3) for m in memory)
        mask = jnp.broadcast_to(shared.seen[:, None, None], (B, 1, T, shared.seen.shape[1]))
        draws = {"rate": o.attention_dropout, "draws": keys[0], "train": train}
        h = attention(query, *pair, mask, **draws).reshape(B, T, -1)
        h = dropout(self.merge_across(laid(h, *HIDDEN)), o.dropout, keys[1], train)
        x = x + h
        return x if o.norm_first else self.norm_across(x)


class Decoder(Transformer):
    """A causal transformer whose blocks attend to a context."""

    def __init__(self, *, rngs: nnx.Rngs, **options: Any):
        """Builds the network; see `transformer.Options`."""
        super().__init__(rngs=rngs, block=CrossBlock, causal=True, **options)

    def remember(self, context: Float[Array, "B S D"]) -> tuple:
        """Keys and values of a context in all blocks: the `memory` of the call."""
        graph, params, block_params = self._split_blocks()
        if block_params is None:
            stacked = lax.map(lambda block: nnx.merge(graph, block).remember(context), params)
            return tuple(m.reshape(-1, *m.shape[2:]) for m in stacked)
        pairs = [nnx.merge(graph, block).remember(context) for block in block_params]
        return tuple(zip(*pairs, strict=True))


class Network(nnx.Module):
    """Predicts the logits of the next token of a target, given its source.

    Source and target share the vocabulary and the embedding. The defaults are those of T5, but for
    the number of tokens that it has. BART has norm_first=False, norm "layer", activation
    "gelu_exact", positions "learned", bias=True and embed_norm=True; Marian has activation "silu",
    positions "sinusoidal" and embed_scale=True instead of the last.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        source_length: int,
        *,
        width: Width = 128,
        depth: Depth = 4,
        decoder_depth: OtherWidth = 0,
        heads: Width = 4,
        head_size: OtherWidth = 0,
        hidden: OtherWidth = 0,
        activation: str = "geglu",
        norm: str = "rms",
        norm_eps: Positive = 1e-6,
        norm_first: bool = True,
        positions: str = "relative",
        buckets: Annotated[int, Range(4, 4096)] = 32,
        furthest: Annotated[int, Range(4, 2**20)] = 128,
        embed_scale: bool = False,
        embed_norm: bool = False,
        bias: bool = False,
        tied: bool = True,
        head_scale: bool = False,
        head_bias: bool = False,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        init_std: Weight = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          vocabulary_size: number of values of a token, V.
          length: the largest number of positions of a target if they are learned; otherwise there
            is no limit.
          source_length: the same of a source.
          width: see `transformer.Options`, also for the arguments not listed here.
          depth: number of blocks of the encoder.
          decoder_depth: number of blocks of the decoder; `depth` if 0.
          positions: "relative", a learned bias for each bucket of offsets and each head, shared by
            all blocks of a half (Raffel et al. 2020, section 2.1); "learned", one vector per
            position; "sinusoidal", with the sines before the cosines; "rotary"; or "none".
          buckets: see `positions.relative_bucket`.
          furthest: see there.
          embed_scale: whether the embedded tokens are multiplied by sqrt(D).
          embed_norm: whether a norm follows the embedding and its positions.
          tied: whether the head shares the embedding's weights.
          head_scale: whether the decoder's output is multiplied by 1 / sqrt(D) before the head.
          head_bias: whether the logits have a bias.
          dropout: rate on the embedded input and on what each layer adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an option is out of range, or does not fit the others.
        """
        one_of("positions", positions, POSITIONS)
        shared = {"dtype": dtype, "rngs": rngs}
        options = {
            "width": width,
            "heads": heads,
            "head_size": head_size,
            "hidden": hidden,
            "activation": activation,
            "norm": norm,
            "norm_eps": norm_eps,
            "norm_first": norm_first,
            "rotary": positions == "rotary",
            "bias": bias,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "init_std": init_std,
            "remat": remat,
        }
        self.embed = embedding(vocabulary_size, width, False, **shared)
        self.encoder = Transformer(depth=depth, causal=False, **options, **shared)
        self.decoder = Decoder(depth=decoder_depth or depth, **options, **shared)
        self.norm_source = transformer.norm(self.encoder.options) if embed_norm else None
        self.norm_target = transformer.norm(self.decoder.options) if embed_norm else None
        learned, relative = positions == "learned", positions == "relative"
        self.positions_source = _table(source_length, width, rngs) if learned else None
        self.positions_target = _table(length, width, rngs) if learned else None
        biases = {"init": small, **shared}
        self.relative_source = Embed(buckets, heads, **biases) if relative else None
        self.relative_target = Embed(buckets, heads, **biases) if relative else None
        if relative:
            require(furthest > buckets, "furthest", furthest, f"more than buckets={buckets}")
        self.head = Head(width, vocabulary_size, tied=tied, use_bias=head_bias, rngs=rngs)
        self.kind, self.furthest, self.dropout, self.width = positions, furthest, dropout, width
        self.embed_scale = math.sqrt(width) if embed_scale else 1.0
        self.head_scale = 1 / math.sqrt(width) if head_scale else 1.0

    def __call__(
        self,
        x: Int[Array, "B T"] | None,
        *,
        source: Int[Array, "B S"] | None = None,
        context: Float[Array, "B S D"] | None = None,
        seen: Bool[Array, "B S"] | None = None,
        segment: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
        capacity: int = 0,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T V"], Cache | None] | Float[Array, "B S D"]:
        """Returns the logits in float32 and the cache; without `x`, the context of the source.

        Args:
          x: the target so far.
          source: tokens of the source; not needed if there is a context or a cache.
          context: the encoder's output.
          seen: which tokens of the source are seen, at least one of each; all if None.
          segment: see `sequence`, also for the next two: they are those of the target.
          cache: see there.
          capacity: see there.
          key: for dropout.
          train: whether dropout is on.

        Raises:
          ConfigError: more positions than the network learned, or than the capacity.
          ValueError: both a segment and a cache are given.
        """
        keys = [None] * 2 if key is None else jax.random.split(key)
        if context is None and cache is None:
            context = self._encode(source, seen, keys[0], train)
        if x is None:
            return context
        if cache is None:
            memory = self.decoder.remember(context)
            seen = jnp.ones(context.shape[:2], bool) if seen is None else seen
        else:
            memory, seen = cache.memory, cache.seen[0]
        T, own = x.shape[1], None if cache is None else cache.own
        drops = [None] * 2 if keys[1] is None else jax.random.split(keys[1])
        h = self._embed(x, placed(T, segment, own), self.positions_target)
        h = h if self.norm_target is None else self.norm_target(h)
        h = dropout(h, self.dropout, drops[0], train)
        first, held = (0, T) if own is None else (own.length, own.segment.shape[2])
        h, own = self.decoder(
            h,
            segment=segment,
            cache=own,
            capacity=capacity,
            bias=self._bias(self.relative_target, first + jnp.arange(T), held, False),
            memory=memory,
            seen=seen,
            key=drops[1],
            train=train,
        )
        h = h[:, -1:] if capacity else h
        logits = laid(self.head((h * self.head_scale).astype(h.dtype), self.embed), *STREAM)
        return logits, None if own is None else Cache(own, jax.tree.map(bits, memory), seen[None])

    def _encode(
        self, source: Array, seen: Bool[Array, "B S"] | None, key: Array | None, train: bool
    ) -> Float[Array, "B S D"]:
        """The context; padding is a segment of its own."""
        keys = [None] * 2 if key is None else jax.random.split(key)
        h = self.embedded_source(source)
        place = jnp.arange(h.shape[1])
        h = h if self.norm_source is None else self.norm_source(h)
        h = dropout(h, self.dropout, keys[0], train)
        bias = self._bias(self.relative_source, place, len(place), True)
        segment = None if seen is None else seen.astype(jnp.int32)
        return self.encoder(h, segment=segment, bias=bias, key=keys[1], train=train)[0]

    def embedded_source(self, source: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """The vectors that the encoder reads; a subclass may read another source."""
        return self._embed(source, jnp.arange(source.shape[1])[None], self.positions_source)

    def _embed(
        self, x: Int[Array, "B T"], place: Int[Array, "B T"], table: nnx.Param | None
    ) -> Float[Array, "B T D"]:
        h = self.embed(x)
        h = (h * self.embed_scale).astype(h.dtype)
        if table is not None:
            T, learned = h.shape[1], len(table[...])
            expected = f"at most {learned}, as many as the network learned"
            require(learned >= T, "positions", T, expected)
            return plus(h, table[...][place])
        if self.kind == "sinusoidal":
            waves = sinusoidal(place, self.width)
            return plus(h, jnp.concatenate([waves[..., 0::2], waves[..., 1::2]], axis=-1))
        return h

    def _bias(
        self, table: Embed | None, place: Int[Array, "T"], held: int, both: bool
    ) -> Float[Array, "1 N T S"] | None:
        """What is added to the products of queries at `place` and keys at 0 ... held - 1."""
        if table is None:
            return None
        offset = jnp.arange(held) - place[:, None]
        bucket = relative_bucket(offset, len(table.embedding[...]), self.furthest, both)
        return table.embedding[...][bucket].transpose(2, 0, 1)[None]


def _table(length: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(small(rngs.params(), (length, width), jnp.float32))
