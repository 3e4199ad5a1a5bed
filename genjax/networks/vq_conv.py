"""Convolutional encoder and decoder between an image and a small grid of vectors.

The encoder has strided convolutions, then residual blocks; the decoder mirrors it (van den Oord et
al. 2017, section 4.1). Blocks have group norm. As in the authors' published example, the width
halves at each higher resolution.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from genjax.checks import Range
from genjax.networks.autoencoders import check_size
from genjax.nn.layers import Conv, ConvTranspose, GroupNorm, activated
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"kernel$", fsdp), (r"(scale|bias)$", replicate))


def widths(channels: int, halvings: int) -> list[int]:
    """Channels after each halving: `channels` after the last, half of the next one's before."""
    return [max(channels >> (halvings - 1 - i), 1) for i in range(halvings)]


class ResidualBlock(nnx.Module):
    """x + (norm, SiLU, 3x3, norm, SiLU, 1x1)."""

    def __init__(self, channels: int, hidden: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """`hidden` is the width between the two convolutions."""
        self.norm1, self.norm2 = GroupNorm(channels), GroupNorm(hidden)
        self.conv1 = Conv(channels, hidden, 3, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(hidden, channels, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Applies the block."""
        h = self.conv1(self.norm1(x, nnx.silu))
        return x + self.conv2(self.norm2(h, nnx.silu))


class Encoder(nnx.Module):
    """Maps an image to a grid of vectors, 2^halvings times smaller along each side."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        features: int,
        *,
        channels: Annotated[int, Range(2, 2**17)] = 64,
        halvings: Annotated[int, Range(0, 16)] = 2,
        blocks: Annotated[int, Range(0, 100)] = 2,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the images [H, W, C].
          features: length of the vectors.
          channels: width at the lowest resolution; it halves at each higher one.
          halvings: number of strided convolutions.
          blocks: number of residual blocks after them.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: a negative number; see also `check_size`.
        """
        check_size(shape, halvings, "model.encoder.halvings")
        width, downs = shape[-1], {}
        for i, features_out in enumerate(widths(channels, halvings)):
            downs[str(i)] = Conv(width, features_out, 4, stride=2, dtype=dtype, rngs=rngs)
            width = features_out
        self.downs = nnx.Dict(downs)
        self.stem = Conv(width, channels, 3, dtype=dtype, rngs=rngs)
        self.blocks = nnx.Dict(
            {str(i): ResidualBlock(channels, channels // 2, dtype, rngs) for i in range(blocks)}
        )
        self.norm = GroupNorm(channels)
        self.out = Conv(channels, features, 1, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B h w D"]:
        """Returns the vectors, float32."""
        for name in sorted(self.downs, key=int):
            x = activated(nnx.silu, self.downs[name](x))
        x = self.stem(x)
        for name in sorted(self.blocks, key=int):
            x = self.blocks[name](x)
        return self.out(self.norm(x, nnx.silu)).astype(jnp.float32)


class Decoder(nnx.Module):
    """The encoder reversed."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        features: int,
        *,
        channels: Annotated[int, Range(2, 2**17)] = 64,
        halvings: Annotated[int, Range(0, 16)] = 2,
        blocks: Annotated[int, Range(0, 100)] = 2,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; `shape` is the output's shape, the rest as for `Encoder`.

        Raises:
          ConfigError: as `Encoder`.
        """
        check_size(shape, halvings, "model.decoder.halvings")
        self.stem = Conv(features, channels, 3, dtype=dtype, rngs=rngs)
        self.blocks = nnx.Dict(
            {str(i): ResidualBlock(channels, channels // 2, dtype, rngs) for i in range(blocks)}
        )
        self.norm = GroupNorm(channels)
        mirrored, ups = widths(channels, halvings)[::-1], {}
        for i, pair in enumerate(itertools.pairwise(mirrored)):
            ups[str(i)] = ConvTranspose(*pair, 4, dtype=dtype, rngs=rngs)
        self.ups = nnx.Dict(ups)
        if halvings:
            self.out = ConvTranspose(mirrored[-1], shape[-1], 4, dtype=dtype, rngs=rngs)
        else:
            self.out = Conv(channels, shape[-1], 3, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "B h w D"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Returns the image, float32."""
        x = self.stem(z)
        for name in sorted(self.blocks, key=int):
            x = self.blocks[name](x)
        x = self.norm(x, nnx.silu)
        for name in sorted(self.ups, key=int):
            x = activated(nnx.silu, self.ups[name](x))
        return self.out(x).astype(jnp.float32)
