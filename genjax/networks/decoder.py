"""A decoder-only transformer over tokens or frames (Radford et al. 2019; Touvron et al. 2023)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Depth, OtherWidth, Positive, Rate, Share, Weight, Width, one_of, require
from genjax.networks import transformer
from genjax.networks.kv_cache import Cache, placed
from genjax.networks.sequence import Head, embedding, small
from genjax.networks.transformer import STREAM, RotaryShare, Transformer
from genjax.nn.layers import dropout, plus
from genjax.nn.positions import sinusoidal
from genjax.parallel.layout import laid

RULES = transformer.RULES

POSITIONS = ("learned", "sinusoidal", "rotary", "none")


class Network(nnx.Module):
    """Predicts the logits of the next token or frame; `sequence` describes how to call it.

    The defaults are GPT-2's. Llama has norm "rms", activation "swiglu", positions "rotary",
    bias=False and mostly tied=False; `interop/architectures` has the options of others.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        *,
        frames: bool = False,
        width: Width = 128,
        depth: Depth = 4,
        heads: Width = 4,
        kv_heads: OtherWidth = 0,
        head_size: OtherWidth = 0,
        hidden: OtherWidth = 0,
        activation: str = "gelu",
        norm: str = "layer",
        norm_eps: Positive = 1e-5,
        norm_offset: Share = 0.0,
        qk_norm: bool = False,
        norm_first: bool = True,
        residual: str = "sequential",
        positions: str = "learned",
        rotary_share: RotaryShare = 1.0,
        rope_base: Positive = 10_000.0,
        rope_scaling: tuple = (),
        bias: bool = True,
        bias_of: str = "all",
        head_bias: bool = False,
        tied: bool = True,
        embed_scale: Positive = 1.0,
        window: OtherWidth = 0,
        outputs: OtherWidth = 0,
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        init_std: Weight = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          vocabulary_size: number of values of a token, or of keys of a frame, V.
          length: the largest number of positions if they are learned; otherwise there is no limit.
          frames: whether the input is frames [B, T, V] of zeros and ones.
          width: see `transformer.Options`, also for the arguments not listed here.
          positions: "learned", one vector per position; "sinusoidal", which also multiplies the
            embedded input by sqrt(D) (Vaswani et al. 2017, sections 3.4 and 3.5); "rotary"; or
            "none".
          head_bias: whether the head has a bias.
          tied: whether the head shares the embedding's weights.
          embed_scale: multiplies the embedded input, rounded to the compute type (Gemma's is
            sqrt(D)).
          outputs: numbers that an untied head gives for each position, such as 1 for a value or a
            reward, zero at first; 0 for the V logits.
          dropout: rate on the embedded input and on what each block adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an option is out of range, or does not fit the others.
        """
        one_of("positions", positions, POSITIONS)
        layer_options = {"dtype": dtype, "rngs": rngs}
        self.embed = embedding(vocabulary_size, width, frames, **layer_options)
        is_learned = positions == "learned"
        self.positions = (
            nnx.Param(small(rngs.params(), (length, width), jnp.float32)) if is_learned else None
        )
        self.body = Transformer(
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            hidden=hidden,
            activation=activation,
            norm=norm,
            norm_eps=norm_eps,
            norm_offset=norm_offset,
            qk_norm=qk_norm,
            norm_first=norm_first,
            residual=residual,
            rotary=positions == "rotary",
            rotary_share=rotary_share,
            rope_base=rope_base,
            rope_scaling=rope_scaling,
            bias=bias,
            bias_of=bias_of,
            window=window,
            dropout=dropout,
            attention_dropout=attention_dropout,
            init_std=init_std,
            remat=remat,
            **layer_options,
        )
        head = {"tied": tied, "use_bias": head_bias}
        if outputs:
            head |= {"tied": False, "init": jax.nn.initializers.zeros}
        self.head = Head(width, outputs or vocabulary_size, **head, rngs=rngs)
        self.kind, self.dropout, self.width = positions, dropout, width
        self.embed_scale = embed_scale

    def __call__(
        self,
        x: Int[Array, "B T"] | Float[Array, "B T V"],
        *,
        segment: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
        capacity: int = 0,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B T V"], Cache | None]:
        """Returns the logits in float32, and the cache.

        Raises:
          ConfigError: more positions than the network learned, or than the capacity.
          ValueError: both a segment and a cache are given.
        """
        keys = [None] * 2 if key is None else jax.random.split(key)
        h = self.embed(x)
        if self.embed_scale != 1:
            h = h * jnp.asarray(self.embed_scale, h.dtype)
        h = self._add_positions(h, placed(x.shape[1], segment, cache))
        h = dropout(h, self.dropout, keys[0], train)
        options = {"segment": segment, "cache": cache, "capacity": capacity}
        h, cache = self.body(h, **options, key=keys[1], train=train)
        logits = self.head(h[:, -1:] if capacity else h, self.embed)
        return laid(logits, *STREAM), cache

    def _add_positions(
        self, h: Float[Array, "B T D"], index: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        if self.kind == "learned":
            table, T = self.positions[...], h.shape[1]
            learned = len(table)
            require(
                learned >= T, "positions", T, f"at most {learned}, as many as the network learned"
            )
            return plus(h, table[index])
        if self.kind == "sinusoidal":
            return (h * math.sqrt(self.width) + sinusoidal(index, self.width)).astype(h.dtype)
        return h
