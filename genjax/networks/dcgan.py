"""Deep convolutional generator and discriminator (DCGAN, Radford et al. 2016)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import ConfigError, Kernel, Width, one_of
from genjax.networks import gan_head
from genjax.nn.layers import Conv, ConvTranspose, GroupNorm, Linear
from genjax.nn.norm import BatchNorm

RULES = gan_head.RULES

NORMS = {
    "batch": BatchNorm,
    "layer": lambda features: GroupNorm(features, groups=1),
    "group": GroupNorm,
    "none": lambda features: None,
}
SLOPE = 0.2  # negative slope of the leaky rectifiers (section 3.1)


def halvings(shape: tuple[int, int, int]) -> int:
    """The number of halvings that bring the side of an image to 4 ... 7 pixels.

    Raises:
      ConfigError: the side becomes odd above 7, or is below 8; or the image is not square.
    """
    height, width, _ = shape
    side, count = height, 0
    while side > 7 and side % 2 == 0:
        side, count = side // 2, count + 1
    if side > 7 or not count or height != width:
        raise ConfigError(
            f"images of {height} x {width} cannot be halved to a square of 4 to 7 pixels a side: "
            "set dataset.image_size to 4, 5, 6 or 7 times a power of two, such as 28, 32 or 64."
        )
    return count


def _normalise(norm: nnx.Module | None, x: Array, train: bool) -> Array:
    if norm is None:
        return x
    return norm(x, train) if isinstance(norm, BatchNorm) else norm(x)


class Generator(nnx.Module):
    """A linear layer, then transposed convolutions that double the size, with rectifiers."""

    def __init__(
        self,
        latent_dim: int,
        shape: tuple[int, int, int],
        *,
        channels: Width = 64,
        kernel_size: Kernel = 4,
        norm: str = "batch",
        num_classes: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          latent_dim: length of z.
          shape: of the square images [H, H, C].
          channels: width at half the resolution; it doubles with each halving.
          kernel_size: of the transposed convolutions.
          norm: normalisation before each rectifier, one of `NORMS`.
          num_classes: number of labels; 0: unconditional.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: see `halvings`; or an unknown norm.
        """
        one_of("model: norm", norm, tuple(NORMS))
        levels, init = halvings(shape), jax.nn.initializers.normal(0.02)
        self.side = shape[0] >> levels
        width = channels << (levels - 1)
        bias = norm == "none"
        self.latent = gan_head.Latent(latent_dim, num_classes, rngs=rngs)
        self.stem = Linear(
            self.latent.features,
            self.side**2 * width,
            use_bias=bias,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        norms, ups = {"0": NORMS[norm](width)}, {}
        for level in range(1, levels):
            ups[str(level)] = ConvTranspose(
                width, width // 2, kernel_size, use_bias=bias, init=init, dtype=dtype, rngs=rngs
            )
            width //= 2
            norms[str(level)] = NORMS[norm](width)
        self.ups, self.norms = nnx.Dict(ups), nnx.Dict(norms)
        self.out = ConvTranspose(width, shape[-1], kernel_size, init=init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "B Z"],
        label: Int[Array, "B"] | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Maps each z to an image in [-1, 1], float32; `train` is for batch normalisation."""
        h = self.stem(self.latent(z, label)).reshape(len(z), self.side, self.side, -1)
        h = nnx.relu(_normalise(self.norms["0"], h, train))
        for name in sorted(self.ups, key=int):
            h = nnx.relu(_normalise(self.norms[name], self.ups[name](h), train))
        return jnp.tanh(self.out(h).astype(jnp.float32))


class Discriminator(nnx.Module):
    """Maps an image to features by strided convolutions and leaky rectifiers."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: Width = 64,
        kernel_size: Kernel = 4,
        norm: str = "batch",
        spectral_norm: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; its `features` is the number of values of the last feature map.

        Args:
          shape: of the square input [H, H, C]; C includes the channels of labels and packing.
          channels: width after the first convolution; it doubles with each halving.
          kernel_size: of the convolutions.
          norm: normalisation after each convolution but the first, one of `NORMS`. Not "batch" with
            a gradient penalty: each logit must then depend on its own example alone (Gulrajani et
            al. 2017).
          spectral_norm: whether kernels have spectral normalisation (Miyato et al. 2018).
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: see `halvings`; or an unknown norm.
        """
        one_of("model: norm", norm, tuple(NORMS))
        levels, init = halvings(shape), jax.nn.initializers.normal(0.02)
        convs, norms, width = {}, {}, shape[-1]
        for level in range(levels):
            convs[str(level)] = Conv(
                width,
                channels << level,
                kernel_size,
                stride=2,
                use_bias=level == 0 or norm == "none",
                spectral_norm=spectral_norm,
                init=init,
                dtype=dtype,
                rngs=rngs,
            )
            width = channels << level
            norms[str(level)] = NORMS[norm](width) if level else None
        self.convs, self.norms = nnx.Dict(convs), nnx.Dict(norms)
        self.features, self.init = (shape[0] >> levels) ** 2 * width, init

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B F"]:
        """Returns the features of each image; `train` is for batch and spectral normalisation."""
        for name in sorted(self.convs, key=int):
            x = _normalise(self.norms[name], self.convs[name](x, train), train)
            x = nnx.leaky_relu(x, SLOPE)
        return x.reshape(len(x), -1)
