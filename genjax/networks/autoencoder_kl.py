"""The encoder and decoder of latent diffusion's first stage (Rombach et al. 2022, appendix G).

Residual blocks at every resolution and attention at the lowest one, as in diffusers'
`AutoencoderKL`, including its 1x1 convolutions after the encoder and before the decoder.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from genjax.checks import Blocks, Width, require
from genjax.networks.autoencoders import check_size
from genjax.networks.unet import AttentionBlock, ResidualBlock
from genjax.nn.layers import Conv, GroupNorm, upsample_nearest
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"kernel$", fsdp), (r"(scale|bias)$", replicate))


class Level(nnx.Module):
    """The residual blocks of one resolution, and the convolution that changes the resolution."""

    def __init__(
        self, cin: int, cout: int, blocks: int, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        """Makes the layers; `stride` is the last convolution's, 0: there is no such convolution."""
        widths = [cin, *[cout] * blocks]
        self.blocks = nnx.Dict(
            {
                str(i): ResidualBlock(*pair, 0, 0.0, dtype, rngs)
                for i, pair in enumerate(itertools.pairwise(widths))
            }
        )
        self.resample = Conv(cout, cout, stride=stride, dtype=dtype, rngs=rngs) if stride else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W F"]:
        """Applies the blocks, but not the convolution."""
        for name in sorted(self.blocks, key=int):
            x = self.blocks[name](x)
        return x


class Middle(nnx.Module):
    """A residual block, attention with one head, a residual block."""

    def __init__(self, channels: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Makes the layers."""
        self.block1 = ResidualBlock(channels, channels, 0, 0.0, dtype, rngs)
        self.attention = AttentionBlock(channels, 1, dtype, rngs)
        self.block2 = ResidualBlock(channels, channels, 0, 0.0, dtype, rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Applies the layers."""
        return self.block2(self.attention(self.block1(x)))


class Encoder(nnx.Module):
    """Maps an image to a grid of vectors, 2^(levels - 1) times smaller along each side."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        features: int,
        *,
        channels: tuple[Width, ...] = (32, 64, 64),
        blocks: Blocks = 1,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the images [H, W, C].
          features: length of the vectors.
          channels: width of each level; each one but the last halves the resolution.
          blocks: residual blocks per level (the decoder has one more).
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: the height or width cannot be halved that often.
        """
        require(bool(channels), "config.model.encoder.channels", channels, "one width per level")
        check_size(shape, len(channels) - 1, "model.encoder.channels")
        self.stem = Conv(shape[-1], channels[0], dtype=dtype, rngs=rngs)
        widths = itertools.pairwise((channels[0], *channels))
        last = len(channels) - 1
        self.down = nnx.Dict(
            {
                str(i): Level(cin, cout, blocks, 2 if i < last else 0, dtype, rngs)
                for i, (cin, cout) in enumerate(widths)
            }
        )
        self.middle = Middle(channels[-1], dtype, rngs)
        self.norm = GroupNorm(channels[-1])
        self.out = Conv(channels[-1], features, dtype=dtype, rngs=rngs)
        self.quant = Conv(features, features, 1, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B h w D"]:
        """Returns the vectors, float32."""
        x = self.stem(x)
        for name in sorted(self.down, key=int):
            level = self.down[name]
            x = level(x)
            if level.resample is not None:
                x = level.resample(x)
        x = self.out(self.norm(self.middle(x), nnx.silu))
        return self.quant(x).astype(jnp.float32)


class Decoder(nnx.Module):
    """The encoder reversed; pixels are repeated where the encoder has strides."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        features: int,
        *,
        channels: tuple[Width, ...] = (32, 64, 64),
        blocks: Blocks = 1,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; `shape` is the output's shape, the rest as for `Encoder`."""
        require(bool(channels), "config.model.decoder.channels", channels, "one width per level")
        self.quant = Conv(features, features, 1, dtype=dtype, rngs=rngs)
        self.stem = Conv(features, channels[-1], dtype=dtype, rngs=rngs)
        self.middle = Middle(channels[-1], dtype, rngs)
        widths = itertools.pairwise((channels[-1], *channels[::-1]))
        last = len(channels) - 1
        self.up = nnx.Dict(
            {
                str(i): Level(cin, cout, blocks + 1, int(i < last), dtype, rngs)
                for i, (cin, cout) in enumerate(widths)
            }
        )
        self.norm = GroupNorm(channels[0])
        self.out = Conv(channels[0], shape[-1], dtype=dtype, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "B h w D"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Returns the image, float32."""
        x = self.middle(self.stem(self.quant(z)))
        for name in sorted(self.up, key=int):
            level = self.up[name]
            x = level(x)
            if level.resample is not None:
                x = level.resample(upsample_nearest(x))
        return self.out(self.norm(x, nnx.silu)).astype(jnp.float32)
