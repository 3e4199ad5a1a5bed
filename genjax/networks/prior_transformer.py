"""The transformer of DALL-E 2's prior (Ramesh et al. 2022, section 2.2).

It predicts an image's vector from a caption. Its sequence is: the caption's encoded tokens, the
caption's vector, the time, the noisy image vector, and a learned query, whose output is the
prediction. A position sees itself and those before it.

With the same weights it computes what diffusers' `PriorTransformer` does. Two things differ. The
sines and cosines of a time alternate, which permutes the rows of `time1/kernel`: row 2 i is the
peer's row D / 2 + i, and row 2 i + 1 is its row i. There is no mean and deviation of vectors among
the parameters: the method scales its data.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from genjax.checks import Depth, OtherWidth, Rate, Weight, Width, require
from genjax.networks import transformer
from genjax.networks.transformer import Transformer, normal
from genjax.nn.layers import Linear, dropout, plus
from genjax.nn.positions import sinusoidal

RULES = ((r"query$", transformer.replicate), *transformer.RULES)

ADDED = 4  # positions after the tokens: caption's vector, time, noisy vector, query


class Network(nnx.Module):
    """Predicts a vector [1, 1, E] from a noisy one, its time, a caption's vector and its tokens."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        num_classes: int = 0,
        *,
        context_width: int,
        vector_width: int,
        length: Width,
        width: Width = 128,
        depth: Depth = 4,
        heads: Width = 4,
        hidden: OtherWidth = 0,
        activation: str = "gelu",
        dropout: Rate = 0.0,
        attention_dropout: Rate = 0.0,
        init_std: Weight = 0.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the noisy vector: (1, 1, E).
          out_channels: size of the prediction.
          num_classes: 0: the network has no labels.
          context_width: size of a token's vector.
          vector_width: size of the caption's vector.
          length: the number of tokens of a caption, S.
          width: D; see `transformer.Options`, also for the arguments not listed here.
          dropout: rate on the embedded sequence and on what each block adds.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an option is out of range, or does not fit the others.
        """
        require(tuple(shape[:2]) == (1, 1), "shape", shape, "(1, 1, E): the network makes vectors")
        require(not num_classes, "num_classes", num_classes, "0: the network has no labels")
        expected = "at least 1: the network needs a caption: diffusion.conditions=('text',)"
        require(context_width > 0, "context_width", context_width, expected)
        require(vector_width > 0, "vector_width", vector_width, "at least 1: a caption's vector")
        linear = partial(Linear, dtype=dtype, rngs=rngs)
        self.token = linear(context_width, width)
        self.caption = linear(vector_width, width)
        self.noisy = linear(shape[2], width)
        self.time1, self.time2 = linear(width, width), linear(width, width)
        self.query = nnx.Param(normal(0.02)(rngs.params(), (width,)))
        self.positions = nnx.Param(normal(0.01)(rngs.params(), (length + ADDED, width)))
        self.body = Transformer(
            width=width,
            depth=depth,
            heads=heads,
            hidden=hidden,
            activation=activation,
            causal=True,
            dropout=dropout,
            attention_dropout=attention_dropout,
            init_std=init_std,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.out = Linear(width, out_channels, rngs=rngs)
        self.length, self.width, self.rate = length, width, dropout

    def __call__(
        self,
        x: Float[Array, "B 1 1 E"],
        t: Float[Array, "B"],
        label: None = None,
        *,
        vector: Float[Array, "B V"],
        context: Float[Array, "B S C"],
        context_mask: Bool[Array, "B S"],
        key: Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B 1 1 F"]:
        """Applies the network; the result is float32.

        Args:
          x: noisy image vectors.
          t: time inputs, see `sampling.paths`.
          label: None.
          vector: the captions' vectors.
          context: their tokens, encoded.
          context_mask: true for the tokens that are seen.
          key: for dropout; needed in training if a rate is above 0.
          train: whether dropout is on.

        Raises:
          ConfigError: another number of tokens than the network has positions for.
        """
        del label
        S, keys = context.shape[1], [None] * 2 if key is None else jax.random.split(key)
        require(self.length == S, "model.denoiser.length", self.length, f"{S}, as captions have")
        time = self.time1(sinusoidal(t, self.width))
        time = self.time2(jax.nn.silu(time.astype(jnp.float32)))
        query = jnp.broadcast_to(self.query[...].astype(time.dtype), time.shape)
        added = [self.caption(vector), time, self.noisy(x[:, 0, 0]), query]
        h = jnp.concatenate([self.token(context), jnp.stack(added, axis=1)], axis=1)
        h = dropout(plus(h, self.positions[...]), self.rate, keys[0], train)
        seen = jnp.pad(context_mask, ((0, 0), (0, ADDED)), constant_values=True)
        h, _ = self.body(h, segment=seen.astype(jnp.int32), key=keys[1], train=train)
        return self.out(h[:, -1].astype(jnp.float32))[:, None, None]
