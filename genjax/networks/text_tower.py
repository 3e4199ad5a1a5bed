"""A transformer that maps a text to one vector, as in CLIP (Radford et al. 2021, section 2.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from genjax.checks import Depth, OtherWidth, Rate, Weight, Width, one_of, require
from genjax.networks import transformer
from genjax.networks.transformer import Transformer, normal
from genjax.nn.layers import Embed, Linear, dropout, plus

RULES = transformer.RULES

POOLS = ("end", "mean")


def seen(x: Int[Array, "B T"], end: int, pad: int) -> Bool[Array, "B T"]:
    """Which tokens belong to a text: those up to its first end token, without padding.

    The first token always does, and does not end the text: some tokenizers begin a text with the
    token that ends it. A text that was cut has no end token: all of it is seen.
    """
    first = jnp.arange(x.shape[1]) == 0
    is_end = (x == end) & ~first
    ended = jnp.cumsum(is_end, axis=1) - is_end > 0
    return first | ~(ended | (x == pad) & (x != end))


def ended(x: Int[Array, "B T"], end: int, pad: int) -> Int[Array, "B T"]:
    """Texts that were cut with the end token in place of their last one, as CLIP cuts texts.

    Others are unchanged: those that end, or have padding.
    """
    cut = ~(x[:, 1:] == end).any(1) & (x[:, -1] != pad)
    return x.at[:, -1].set(jnp.where(cut, end, x[:, -1]))


class Network(nnx.Module):
    """Token vectors, learned positions, a transformer, and one vector of the result.

    What follows a text's end token changes nothing. The map to the result has no bias.
    """

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        features: int,
        *,
        end: int,
        pad: int,
        width: Width = 128,
        depth: Depth = 4,
        heads: Width = 4,
        hidden: OtherWidth = 0,
        activation: str = "gelu",
        causal: bool = False,
        pool: str = "end",
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        init_std: Weight = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          vocabulary_size: number of values of a token.
          length: the largest number of tokens of a text, the one that ends it included.
          features: size of the result, E.
          end: the token that ends a text.
          pad: the token that fills up a row after it.
          width: D; see `transformer.Options`, also for the arguments not listed here.
          causal: whether a token sees only itself and those before it, as in CLIP.
          pool: "end": the result is a map of the last vector of the text's end token, which a text
            that was cut has in place of its last one; "mean": of the mean over all its tokens.
          dropout: rate on the embedded tokens and on what each block adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an option is out of range, or does not fit the others.
        """
        one_of("pool", pool, POOLS)
        self.embed = Embed(vocabulary_size, width, init=normal(0.02), dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(normal(0.01)(rngs.params(), (length, width)))
        self.body = Transformer(
            width=width,
            depth=depth,
            heads=heads,
            hidden=hidden,
            activation=activation,
            causal=causal,
            dropout=dropout,
            attention_dropout=attention_dropout,
            init_std=init_std,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.out = Linear(width, features, use_bias=False, rngs=rngs)
        self.end, self.pad, self.pool, self.rate = end, pad, pool, dropout

    def __call__(
        self,
        x: Int[Array, "B T"],
        *,
        whole: bool = True,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B E"] | tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
        """Applies the network; the result is float32.

        Args:
          x: tokens of texts, each with an end token unless it was cut.
          whole: whether the result is one vector; otherwise it is the vector of each token before
            the map, and which tokens belong to the text.
          key: for dropout; needed in training if a rate is above 0.
          train: whether dropout is on.

        Raises:
          ConfigError: more tokens than the network has positions.
        """
        table, T = self.positions[...], x.shape[1]
        require(len(table) >= T, "tokens", T, f"at most {len(table)}, as many as the network knows")
        keys = [None] * 2 if key is None else jax.random.split(key)
        x = ended(x, self.end, self.pad) if self.pool == "end" else x
        own = seen(x, self.end, self.pad)
        h = dropout(plus(self.embed(x), table[:T]), self.rate, keys[0], train)
        h, _ = self.body(h, segment=own.astype(jnp.int32), key=keys[1], train=train)
        h, count = h.astype(jnp.float32), own.sum(1)
        if not whole:
            return h, own
        if self.pool == "mean":
            pooled = jnp.where(own[..., None], h, 0).sum(1) / count[:, None]
        else:
            pooled = jnp.take_along_axis(h, (count - 1)[:, None, None], axis=1)[:, 0]
        return self.out(pooled)
