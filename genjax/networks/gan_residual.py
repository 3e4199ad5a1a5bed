"""Residual generator and discriminator without normalisation (R3GAN, Huang et al. 2024, section 3).

Bottleneck blocks with Fixup initialisation, bilinear resampling between the levels, and a learned
constant that z modulates at the start of the generator. The 3 x 3 convolutions are not grouped,
unlike the paper's. With `spectral_norm` the discriminator is regularised as in SNGAN (Miyato et al.
2018).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Blocks, ConfigError, Positive, Width, require
from genjax.networks import gan_head
from genjax.nn.layers import Conv, Initializer, Linear, times, uniform_fan_avg, zeros
from genjax.parallel.rules import Rules, replicate

RULES: Rules = ((r"basis$", replicate), *gan_head.RULES)

SLOPE = 0.2
_GAIN = math.sqrt(2 / (1 + SLOPE**2))  # keeps the variance through a leaky rectifier (He et al.)


def _scaled(gain: float) -> Initializer:
    """Normal with standard deviation gain / sqrt(fan in)."""
    return jax.nn.initializers.variance_scaling(gain**2, "fan_in", "normal")


def upsample(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Doubles height and width bilinearly: 3/4 of the nearest pixel and 1/4 of the next nearest."""
    for axis in (1, 2):
        n = x.shape[axis]
        padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode="edge")
        before, after = (jax.lax.slice_in_dim(padded, s, s + n, axis=axis) for s in (0, 2))
        pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pair.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    return x


def downsample(x: Float[Array, "B 2*H 2*W C"]) -> Float[Array, "B H W C"]:
    """Halves height and width bilinearly: the mean of 2 x 2 pixels."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


def _check(resolution: int, channels: tuple[int, ...]) -> int:
    """Returns the side of the smallest level; raises ConfigError if the sizes do not fit."""
    require(bool(channels), "model: channels", channels, "one width per level, at least one")
    factor = 2 ** (len(channels) - 1)
    if resolution % factor:
        raise ConfigError(
            f"model: images of {resolution} x {resolution} cannot be halved {len(channels) - 1} "
            f"times: the size must be a multiple of {factor}. Set dataset.image_size or the "
            "number of widths in the model's `channels`."
        )
    return resolution // factor


class ResidualBlock(nnx.Module):
    """x + (1x1, leaky rectifier, 3x3, leaky rectifier, 1x1): figure 3 of R3GAN."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        depth: int,
        *,
        spectral_norm: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Makes the layers.

        With L = `depth` blocks in the network, the first two kernels are scaled by L^(-1/4) and
        the last is zero (Zhang et al. 2019, Fixup: L^(-1/(2m - 2)) for m = 3 layers). A kernel
        that is divided by its norm cannot be zero, so with `spectral_norm` it is not.
        """

        def conv(features_in: int, features_out: int, size: int, bias: bool, init) -> Conv:
            return Conv(
                features_in,
                features_out,
                size,
                use_bias=bias,
                spectral_norm=spectral_norm,
                init=init,
                dtype=dtype,
                rngs=rngs,
            )

        init = _scaled(_GAIN * depth**-0.25)
        self.conv1 = conv(channels, hidden, 1, True, init)
        self.conv2 = conv(hidden, hidden, 3, True, init)
        self.conv3 = conv(hidden, channels, 1, False, _scaled(1.0) if spectral_norm else zeros)

    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        """Applies the block."""
        h = nnx.leaky_relu(self.conv1(x, train), SLOPE)
        h = nnx.leaky_relu(self.conv2(h, train), SLOPE)
        return x + self.conv3(h, train)


class Levels(nnx.Module):
    """The levels of one network, in order of computation: blocks, and changes of width."""

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: int,
        expansion: float,
        *,
        spectral_norm: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """`channels` has the width of each level; 1x1 convolutions change it between levels."""
        levels, changes = {}, {}
        for i, width in enumerate(channels):
            levels[str(i)] = nnx.Dict(
                {
                    str(b): ResidualBlock(
                        width,
                        max(round(width * expansion), 1),
                        blocks * len(channels),
                        spectral_norm=spectral_norm,
                        dtype=dtype,
                        rngs=rngs,
                    )
                    for b in range(blocks)
                }
            )
            next_width = channels[min(i + 1, len(channels) - 1)]
            changes[str(i)] = None
            if next_width != width:
                changes[str(i)] = Conv(
                    width,
                    next_width,
                    1,
                    use_bias=False,
                    spectral_norm=spectral_norm,
                    init=_scaled(1.0),
                    dtype=dtype,
                    rngs=rngs,
                )
        self.levels, self.changes = nnx.Dict(levels), nnx.Dict(changes)

    def __call__(self, x: Array, resample, train: bool) -> Float[Array, "B h w F"]:
        """Applies the levels, with `resample` between them; the 1x1 acts on the smaller image."""
        last = len(self.levels) - 1
        for i in range(last + 1):
            level, change = self.levels[str(i)], self.changes[str(i)]
            for b in range(len(level)):
                x = level[str(b)](x, train)
            if i < last:
                up = resample is upsample
                x = x if up else resample(x)
                x = x if change is None else change(x, train)
                x = resample(x) if up else x
        return x


class Generator(nnx.Module):
    """A learned constant scaled by z, residual levels, and bilinear doubling between them."""

    def __init__(
        self,
        latent_dim: int,
        shape: tuple[int, int, int],
        *,
        channels: tuple[Width, ...] = (16, 64, 128),
        blocks: Blocks = 1,
        expansion: Positive = 1.0,
        num_classes: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          latent_dim: length of z.
          shape: of the square images [H, H, C].
          channels: width of each level, from full resolution to the smallest.
          blocks: residual blocks per level.
          expansion: width inside a block, divided by the level's width.
          num_classes: number of labels; 0: unconditional.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: the image size does not fit the number of levels, or there are no levels.
        """
        side = _check(shape[0], channels)
        width = channels[-1]
        self.latent = gan_head.Latent(latent_dim, num_classes, rngs=rngs)
        self.modulation = Linear(
            self.latent.features, width, use_bias=False, init=_scaled(1.0), dtype=dtype, rngs=rngs
        )
        self.basis = nnx.Param(jax.random.normal(rngs.params(), (side, side, width)))
        self.levels = Levels(
            channels[::-1], blocks, expansion, spectral_norm=False, dtype=dtype, rngs=rngs
        )
        self.out = Conv(channels[0], shape[-1], 1, init=_scaled(1.0), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "B Z"],
        label: Int[Array, "B"] | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Maps each z to an image in [-1, 1], float32."""
        h = self.modulation(self.latent(z, label))[:, None, None]
        h = self.levels(times(h, self.basis[...]), upsample, train)
        return jnp.tanh(self.out(h).astype(jnp.float32))


class Discriminator(nnx.Module):
    """Maps an image to features by the generator's levels in reverse order."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: tuple[Width, ...] = (16, 64, 128),
        blocks: Blocks = 1,
        expansion: Positive = 1.0,
        spectral_norm: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; its `features` is the last level's width.

        Args:
          shape: of the square input [H, H, C]; C includes the channels of labels and packing.
          channels: width of each level, from full resolution to the smallest.
          blocks: residual blocks per level.
          expansion: width inside a block, divided by the level's width.
          spectral_norm: whether convolutions have spectral normalisation.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: the image size does not fit the number of levels, or there are no levels.
        """
        side = _check(shape[0], channels)
        self.stem = Conv(
            shape[-1],
            channels[0],
            1,
            spectral_norm=spectral_norm,
            init=_scaled(1.0),
            dtype=dtype,
            rngs=rngs,
        )
        self.levels = Levels(
            channels, blocks, expansion, spectral_norm=spectral_norm, dtype=dtype, rngs=rngs
        )
        basis = jax.random.normal(rngs.params(), (side, side, channels[-1])) / side
        self.basis = nnx.Param(basis)
        self.features, self.init = channels[-1], uniform_fan_avg
        self.spectral_norm = spectral_norm

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B F"]:
        """Returns the features of each image; `train` is for spectral normalisation."""
        h = self.levels(self.stem(x, train), downsample, train)
        basis = self.basis[...]
        if self.spectral_norm:  # the divisor is the spectral norm of the sum over pixels
            basis /= jnp.linalg.norm(basis.reshape(-1, basis.shape[-1]), axis=0).max()
        return jnp.sum(times(h, basis), axis=(1, 2))
