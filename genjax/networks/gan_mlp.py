"""The fully connected networks of the first GAN (Goodfellow et al. 2014, section 5).

They take examples of any shape, such as images or points of a plane.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Blocks, Rate, Weight, Width, one_of
from genjax.networks import gan_head
from genjax.nn.layers import Linear, Maxout, dropout
from genjax.nn.norm import BatchNorm

RULES = gan_head.RULES
OUTPUTS = {"tanh": jnp.tanh, "linear": lambda x: x}


class Generator(nnx.Module):
    """Maps z to an example by linear layers with rectifiers."""

    def __init__(
        self,
        latent_dim: int,
        shape: tuple[int, ...],
        *,
        widths: tuple[Width, ...] = (256, 512),
        batch_norm: bool = False,
        output: str = "tanh",
        init_std: Weight = 0.02,
        num_classes: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          latent_dim: length of z.
          shape: of an example, such as (28, 28, 1) or (2,).
          widths: of the hidden layers.
          batch_norm: whether hidden layers are normalised over the batch.
          output: "tanh", for images in [-1, 1], or "linear".
          init_std: standard deviation of the initial kernels.
          num_classes: number of labels; 0: unconditional.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an unknown output.
        """
        one_of("model: output", output, tuple(OUTPUTS))
        init = jax.nn.initializers.normal(init_std)
        self.latent = gan_head.Latent(latent_dim, num_classes, rngs=rngs)
        width, layers, norms = self.latent.features, {}, {}
        for i, features in enumerate(widths):
            layers[str(i)] = Linear(
                width, features, use_bias=not batch_norm, init=init, dtype=dtype, rngs=rngs
            )
            if batch_norm:
                norms[str(i)] = BatchNorm(features)
            width = features
        self.layers, self.norms = nnx.Dict(layers), nnx.Dict(norms)
        self.out = Linear(width, math.prod(shape), init=init, dtype=dtype, rngs=rngs)
        self.shape, self.output, self.batch_norm = tuple(shape), output, batch_norm

    def __call__(
        self,
        z: Float[Array, "B Z"],
        label: Int[Array, "B"] | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B *shape"]:
        """Maps each z to an example, float32."""
        h = self.latent(z, label)
        for name in sorted(self.layers, key=int):
            h = self.layers[name](h)
            h = nnx.relu(self.norms[name](h, train) if self.batch_norm else h)
        x = OUTPUTS[self.output](self.out(h).astype(jnp.float32))
        return x.reshape(len(z), *self.shape)


class Discriminator(nnx.Module):
    """Maps an example to features by maxout layers with dropout (Goodfellow et al. 2013)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        widths: tuple[Width, ...] = (240, 240),
        pieces: Blocks = 5,
        dropout: Rate = 0.5,
        input_dropout: Rate = 0.2,
        init_std: Weight = 0.02,
        spectral_norm: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the input, channels last, including those of labels and packing.
          widths: of the layers; the last one is `features`.
          pieces: number of linear functions; a feature is their maximum.
          dropout: rate after each layer.
          input_dropout: rate on the input.
          init_std: standard deviation of the initial kernels.
          spectral_norm: whether kernels have spectral normalisation (Miyato et al. 2018).
          dtype: compute type.
          rngs: for the initial parameters.
        """
        init = jax.nn.initializers.normal(init_std)
        width, layers = math.prod(shape), {}
        for i, features in enumerate(widths):
            layers[str(i)] = Maxout(
                width,
                features,
                pieces,
                spectral_norm=spectral_norm,
                init=init,
                dtype=dtype,
                rngs=rngs,
            )
            width = features
        self.layers = nnx.Dict(layers)
        self.features, self.init = width, init
        self.dropout, self.input_dropout = dropout, input_dropout

    def __call__(
        self,
        x: Float[Array, "B *shape"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B F"]:
        """Returns the features of each example; dropout in training needs `key`."""

        def drop(h: Array, rate: float, layer: int) -> Array:
            return dropout(h, rate, None if key is None else jax.random.fold_in(key, layer), train)

        h = drop(x.reshape(len(x), -1), self.input_dropout, 0)
        for i, name in enumerate(sorted(self.layers, key=int), start=1):
            h = drop(self.layers[name](h, train), self.dropout, i)
        return h
