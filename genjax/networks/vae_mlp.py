"""Fully connected encoder and decoder (Kingma & Welling 2014, appendix C; Burda et al. 2016)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.checks import Width, one_of
from genjax.nn.layers import Linear
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"kernel$", fsdp), (r"(bias|scale)$", replicate))

ACTIVATIONS = {"tanh": jnp.tanh, "relu": nnx.relu, "silu": nnx.silu, "none": lambda x: x}


def with_label(
    x: Float[Array, "B D"], label: Int[Array, "B"] | None, num_classes: int
) -> Float[Array, "B F"]:
    """Appends the one-hot label, if the network has classes.

    Raises:
      ValueError: a label is given without classes, or is missing with classes.
    """
    if (label is not None) != bool(num_classes):
        raise ValueError("a network takes labels if and only if it was built with num_classes > 0")
    if label is None:
        return x
    return jnp.concatenate([x, jax.nn.one_hot(label, num_classes, dtype=x.dtype)], axis=-1)


class Layers(nnx.Module):
    """Linear layers, each followed by the activation."""

    def __init__(
        self,
        features_in: int,
        widths: tuple[int, ...],
        activation: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Makes the layers; `features` is the width of the last one."""
        one_of("model: activation", activation, tuple(ACTIVATIONS))
        layers, width = {}, features_in
        for i, features in enumerate(widths):
            layers[str(i)] = Linear(width, features, dtype=dtype, rngs=rngs)
            width = features
        self.layers, self.features, self.activation = nnx.Dict(layers), width, activation

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B F"]:
        """Applies the layers."""
        for name in sorted(self.layers, key=int):
            x = ACTIVATIONS[self.activation](self.layers[name](x))
        return x


class Encoder(nnx.Module):
    """Maps an example to the mean and log scale of q(z | x)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        latent_dim: int,
        *,
        widths: tuple[Width, ...] = (200, 200),
        activation: str = "tanh",
        num_classes: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of an example, such as (28, 28, 1).
          latent_dim: length of z.
          widths: of the hidden layers.
          activation: one of `ACTIVATIONS`.
          num_classes: number of labels; 0: unconditional.
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an unknown activation, or a width below 1.
        """
        features = math.prod(shape) + num_classes
        self.body = Layers(features, widths, activation, dtype, rngs)
        self.out = Linear(self.body.features, 2 * latent_dim, dtype=dtype, rngs=rngs)
        self.num_classes = num_classes

    def __call__(
        self,
        x: Float[Array, "B *shape"],
        label: Int[Array, "B"] | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B Z"], Float[Array, "B Z"]]:
        """Returns the mean and log scale, float32."""
        h = self.body(with_label(x.reshape(len(x), -1), label, self.num_classes))
        mean, log_scale = jnp.split(self.out(h).astype(jnp.float32), 2, axis=-1)
        return mean, log_scale


class Decoder(nnx.Module):
    """Maps z to the parameters of p(x | z)."""

    def __init__(
        self,
        latent_dim: int,
        shape: tuple[int, ...],
        *,
        widths: tuple[Width, ...] = (200, 200),
        activation: str = "tanh",
        num_classes: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network; `shape` is the output's shape, the rest as for `Encoder`."""
        self.body = Layers(latent_dim + num_classes, widths, activation, dtype, rngs)
        self.out = Linear(self.body.features, math.prod(shape), dtype=dtype, rngs=rngs)
        self.shape, self.num_classes = tuple(shape), num_classes

    def __call__(
        self,
        z: Float[Array, "B Z"],
        label: Int[Array, "B"] | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B *shape"]:
        """Returns the parameters, float32."""
        h = self.body(with_label(z, label, self.num_classes))
        return self.out(h).astype(jnp.float32).reshape(len(z), *self.shape)
