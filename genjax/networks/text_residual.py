"""Residual 1D convolutions for texts of fixed length (Gulrajani et al. 2017, section 5.4).

Both networks have `depth` blocks of two convolutions, whose result is scaled by 0.3. Neither has
normalisation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Blocks, Kernel, Width
from genjax.nn.layers import Conv1D, Linear
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"kernel$", fsdp), (r"bias$", replicate))

SCALE = 0.3  # of what a block adds
_he = jax.nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")


class Block(nnx.Module):
    """x + 0.3 (rectifier, convolution, rectifier, convolution)."""

    def __init__(self, width: int, kernel_size: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Makes the convolutions."""
        options = {"init": _he, "dtype": dtype, "rngs": rngs}
        self.first = Conv1D(width, width, kernel_size, **options)
        self.second = Conv1D(width, width, kernel_size, **options)

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Applies the block."""
        return x + SCALE * self.second(nnx.relu(self.first(nnx.relu(x))))


class Generator(nnx.Module):
    """Maps z to a distribution over the tokens at each position."""

    def __init__(
        self,
        latent_dim: int,
        vocabulary_size: int,
        length: int,
        *,
        width: Width = 512,
        depth: Blocks = 5,
        kernel_size: Kernel = 5,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          latent_dim: dimensions of z.
          vocabulary_size: values of a token, V.
          length: tokens of a text, T.
          width: of the vectors at each position.
          depth: number of blocks.
          kernel_size: positions that a convolution sees.
          dtype: compute type.
          rngs: for the initial parameters.
        """
        self.latent = Linear(latent_dim, length * width, dtype=dtype, rngs=rngs)
        blocks = {str(i): Block(width, kernel_size, dtype, rngs) for i in range(depth)}
        self.blocks = nnx.Dict(blocks)
        self.out = Conv1D(width, vocabulary_size, 1, dtype=dtype, rngs=rngs)
        self.shape = (length, width)

    def __call__(
        self,
        z: Float[Array, "B Z"],
        label: Int[Array, "B"] | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B T V"]:
        """Returns the probabilities, float32."""
        h = self.latent(z).reshape(len(z), *self.shape)
        for i in range(len(self.blocks)):
            h = self.blocks[str(i)](h)
        return jax.nn.softmax(self.out(h).astype(jnp.float32))


class Discriminator(nnx.Module):
    """Maps a distribution over the tokens at each position, or one-hot tokens, to a logit."""

    def __init__(
        self,
        vocabulary_size: int,
        length: int,
        *,
        width: Width = 512,
        depth: Blocks = 5,
        kernel_size: Kernel = 5,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; for the arguments see `Generator`."""
        self.into = Conv1D(vocabulary_size, width, 1, dtype=dtype, rngs=rngs)
        blocks = {str(i): Block(width, kernel_size, dtype, rngs) for i in range(depth)}
        self.blocks = nnx.Dict(blocks)
        self.out = Linear(length * width, 1, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T V"],
        label: Int[Array, "B"] | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B"], None]:
        """Returns the logits in float32, and None: there are no classes."""
        h = self.into(x)
        for i in range(len(self.blocks)):
            h = self.blocks[str(i)](h)
        return self.out(h.reshape(len(h), -1))[:, 0].astype(jnp.float32), None
