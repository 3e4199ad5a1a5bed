"""Discriminator of texts: convolutions of many sizes, the largest value of each, a highway layer.

From Yu et al. 2017 (SeqGAN), section 3.3, which joins Kim 2014 and Srivastava et al. 2015.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Rate, Width, require
from genjax.nn.layers import Conv1D, Embed, Linear, dropout, product
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"(kernel|embedding)$", fsdp), (r"bias$", replicate))

# The authors' code for 20 tokens.
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20)
FEATURES = (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160)


def _uniform(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


class Discriminator(nnx.Module):
    """Maps a text, as tokens or as a distribution over the tokens at each position, to a logit."""

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        *,
        width: Width = 64,
        sizes: tuple[Width, ...] = SIZES,
        features: tuple[Width, ...] = FEATURES,
        dropout: Rate = 0.25,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          vocabulary_size: values of a token, V.
          length: tokens of a text, T.
          width: of the token embeddings.
          sizes: positions that a convolution of each size sees.
          features: of each size.
          dropout: rate on the output of the highway layer.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: a size is greater than the text, or `features` has another length.
        """
        fits = bool(sizes) and max(sizes) <= length
        require(fits, "model.discriminator.sizes", sizes, f"sizes of 1 to {length}, the text's")
        matched = len(features) == len(sizes)
        require(matched, "model.discriminator.features", features, f"{len(sizes)}, one per size")
        options = {"init": jax.nn.initializers.truncated_normal(0.1), "dtype": dtype, "rngs": rngs}
        self.embed = Embed(vocabulary_size, width, init=_uniform, dtype=dtype, rngs=rngs)
        self.convolutions = nnx.Dict(
            {
                str(i): Conv1D(width, count, size, padded=False, **options)
                for i, (size, count) in enumerate(zip(sizes, features, strict=True))
            }
        )
        total = sum(features)
        self.value = Linear(total, total, dtype=dtype, rngs=rngs)
        self.gate = Linear(total, total, dtype=dtype, rngs=rngs)
        self.out = Linear(total, 1, **options)
        self.dropout, self.dtype = dropout, dtype

    def __call__(
        self,
        x: Int[Array, "B T"] | Float[Array, "B T V"],
        label: None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B"], None]:
        """Returns the logits in float32, and None: there are no classes."""
        tokens = jnp.issubdtype(x.dtype, jnp.integer)
        table = self.embed.embedding[...]
        h = self.embed(x) if tokens else product(x.astype(self.dtype), table)
        # The largest value, then the rectifier: the same, with fewer ties.
        convolved = (self.convolutions[str(i)](h) for i in range(len(self.convolutions)))
        pooled = nnx.relu(jnp.concatenate([y.max(1) for y in convolved], axis=-1))
        share = jax.nn.sigmoid(self.gate(pooled))
        h = share * nnx.relu(self.value(pooled)) + (1 - share) * pooled
        h = dropout(h, self.dropout, key, train)
        return self.out(h)[:, 0].astype(jnp.float32), None
