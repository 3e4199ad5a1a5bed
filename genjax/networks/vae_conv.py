"""Convolutional encoder and decoder: halve the image down to a few pixels, and double it back.

Strided convolutions, group norm and SiLU: the architecture of DCGAN (Radford et al. 2016) without
the choices that adversarial training needs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Width
from genjax.networks.dcgan import halvings
from genjax.networks.vae_mlp import with_label
from genjax.nn.layers import Conv, ConvTranspose, GroupNorm, Linear
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"kernel$", fsdp), (r"(scale|bias)$", replicate))


class Encoder(nnx.Module):
    """Maps an image to the mean and log scale of q(z | x)."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        latent_dim: int,
        *,
        channels: Width = 32,
        hidden: Width = 256,
        num_classes: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the square images [H, H, C].
          latent_dim: length of z.
          channels: width at half the resolution; it doubles with each halving.
          hidden: width of the fully connected layer.
          num_classes: number of labels; 0: unconditional.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: a width below 1; see also `dcgan.halvings`.
        """
        levels, width = halvings(shape), shape[-1]
        convs, norms = {}, {}
        for level in range(levels):
            convs[str(level)] = Conv(width, channels << level, 4, stride=2, dtype=dtype, rngs=rngs)
            width = channels << level
            norms[str(level)] = GroupNorm(width)
        self.convs, self.norms = nnx.Dict(convs), nnx.Dict(norms)
        features = (shape[0] >> levels) ** 2 * width + num_classes
        self.hidden = Linear(features, hidden, dtype=dtype, rngs=rngs)
        self.out = Linear(hidden, 2 * latent_dim, dtype=dtype, rngs=rngs)
        self.num_classes = num_classes

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        label: Int[Array, "B"] | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B Z"], Float[Array, "B Z"]]:
        """Returns the mean and log scale, float32."""
        for name in sorted(self.convs, key=int):
            x = self.norms[name](self.convs[name](x), nnx.silu)
        x = with_label(x.reshape(len(x), -1), label, self.num_classes)
        moments = self.out(nnx.silu(self.hidden(x))).astype(jnp.float32)
        mean, log_scale = jnp.split(moments, 2, axis=-1)
        return mean, log_scale


class Decoder(nnx.Module):
    """Maps z to the parameters of p(x | z), in the shape of an image."""

    def __init__(
        self,
        latent_dim: int,
        shape: tuple[int, int, int],
        *,
        channels: Width = 32,
        hidden: Width = 256,
        num_classes: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; `shape` is the output's shape, the rest as for `Encoder`.

        Raises:
          ConfigError: as `Encoder`.
        """
        levels = halvings(shape)
        self.side, width = shape[0] >> levels, channels << (levels - 1)
        self.hidden = Linear(latent_dim + num_classes, hidden, dtype=dtype, rngs=rngs)
        self.stem = Linear(hidden, self.side**2 * width, dtype=dtype, rngs=rngs)
        norms, ups = {"0": GroupNorm(width)}, {}
        for level in range(1, levels):
            ups[str(level)] = ConvTranspose(width, width // 2, 4, dtype=dtype, rngs=rngs)
            width //= 2
            norms[str(level)] = GroupNorm(width)
        self.ups, self.norms = nnx.Dict(ups), nnx.Dict(norms)
        self.out = ConvTranspose(width, shape[-1], 4, dtype=dtype, rngs=rngs)
        self.num_classes = num_classes

    def __call__(
        self,
        z: Float[Array, "B Z"],
        label: Int[Array, "B"] | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B H W C"]:
        """Returns the parameters, float32."""
        h = nnx.silu(self.hidden(with_label(z, label, self.num_classes)))
        h = self.stem(h).reshape(len(z), self.side, self.side, -1)
        h = self.norms["0"](h, nnx.silu)
        for name in sorted(self.ups, key=int):
            h = self.norms[name](self.ups[name](h), nnx.silu)
        return self.out(h).astype(jnp.float32)
