"""The parts that all GANs share: how labels enter, and the head of the discriminator.

`gan_mlp`, `dcgan` and `gan_residual` define generators, and bodies of discriminators that return
features. `Discriminator` adds packing, the label and the head to a body.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.nn.layers import Embed, Initializer, Linear
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = (
    (r"(kernel|embedding)$", fsdp),
    (r"(scale|bias|mean|var|u)$", replicate),
)

CONDITIONING = ("none", "concatenation", "projection", "auxiliary")
_LABEL_FEATURES = 32


class Latent(nnx.Module):
    """The input of a generator: z, with an embedding of the label appended if there is one."""

    def __init__(self, latent_dim: int, num_classes: int, *, rngs: nnx.Rngs):
        """Makes the embedding unless `num_classes` is 0; `features` is the output's length."""
        self.label = Embed(num_classes, _LABEL_FEATURES, rngs=rngs) if num_classes else None
        self.features = latent_dim + (_LABEL_FEATURES if num_classes else 0)

    def __call__(
        self, z: Float[Array, "B Z"], label: Int[Array, "B"] | None
    ) -> Float[Array, "B F"]:
        """Appends the embedding of `label` to `z`.

        Raises:
          ValueError: a label is given without classes, or is missing with classes.
        """
        if (label is not None) != (self.label is not None):
            raise ValueError(
                "a generator takes labels if and only if it was built with num_classes > 0"
            )
        if self.label is None:
            return z
        return jnp.concatenate([z, self.label(label).astype(z.dtype)], axis=-1)


class Head(nnx.Module):
    """Maps features to a logit, which may depend on the label."""

    def __init__(
        self,
        features: int,
        conditioning: str,
        num_classes: int,
        *,
        spectral_norm: bool = False,
        init: Initializer,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`conditioning` is one of `CONDITIONING`; "concatenation" does not change the head."""

        def linear(features_in: int, features_out: int, use_bias: bool) -> Linear:
            return Linear(
                features_in,
                features_out,
                use_bias=use_bias,
                spectral_norm=spectral_norm,
                init=init,
                dtype=dtype,
                rngs=rngs,
            )

        self.linear = linear(features, 1, True)
        self.projection = (
            linear(num_classes, features, False) if conditioning == "projection" else None
        )
        self.auxiliary = (
            linear(features, num_classes, True) if conditioning == "auxiliary" else None
        )
        self.num_classes = num_classes

    def __call__(
        self, features: Float[Array, "B F"], label: Int[Array, "B"] | None, train: bool
    ) -> tuple[Float[Array, "B"], Float[Array, "B K"] | None]:
        """Returns the logit, and the class logits of an auxiliary classifier, float32.

        "projection" adds <embedding of the label, features> to the logit (Miyato & Koyama 2018,
        eq. 4); "auxiliary" also classifies (Odena et al. 2017, section 3).
        """
        logit = self.linear(features, train)[:, 0].astype(jnp.float32)
        classes = None
        if self.projection is not None:
            embedded = self.projection(jax.nn.one_hot(label, self.num_classes), train)
            logit += jnp.sum(embedded.astype(jnp.float32) * features.astype(jnp.float32), axis=-1)
        if self.auxiliary is not None:
            classes = self.auxiliary(features, train).astype(jnp.float32)
        return logit, classes


class Discriminator(nnx.Module):
    """Packing and labels, then a body that computes features, then the head."""

    def __init__(
        self,
        body: Callable[[tuple[int, ...]], nnx.Module],
        shape: tuple[int, ...],
        conditioning: str = "none",
        num_classes: int = 0,
        packing: int = 1,
        *,
        spectral_norm: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the body and the head.

        Args:
          body: builds the body for an input shape. The body is (x, *, key, train) -> features
            [B, F], with attributes `features`, which is F, and `init`, the head's initializer.
          shape: of one example, channels last.
          conditioning: one of `CONDITIONING`; "projection" and "auxiliary" need packing=1.
          num_classes: number of labels.
          packing: number of examples judged together (Lin et al. 2018, PacGAN, section 3).
          spectral_norm: whether the head's kernels have spectral normalisation.
          dtype: compute type of the head.
          rngs: for the initial parameters.
        """
        planes = num_classes if conditioning == "concatenation" else 0
        self.body = body((*shape[:-1], packing * (shape[-1] + planes)))
        self.head = Head(
            self.body.features,
            conditioning,
            num_classes,
            spectral_norm=spectral_norm,
            init=self.body.init,
            dtype=dtype,
            rngs=rngs,
        )
        self.conditioning, self.num_classes, self.packing = conditioning, num_classes, packing

    def __call__(
        self,
        x: Float[Array, "B *space C"],
        label: Int[Array, "B"] | None = None,
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "N"], Float[Array, "N K"] | None]:
        """Judges N = B / packing packs of consecutive examples.

        "concatenation" appends one plane per class to the channels of each example: ones in the
        label's plane, zeros in the others (Mirza & Osindero 2014, who append it to a vector).

        Args:
          x: images [B, H, W, C], or vectors [B, C].
          label: classes; for "none" and "auxiliary" it has no effect and may be None.
          key: for dropout.
          train: whether dropout is on and norms use and update their statistics.

        Returns:
          logits [N] and class logits [N, K], float32; the latter are None unless "auxiliary".

        Raises:
          ValueError: labels are missing, or packing does not divide the batch.
        """
        if label is None and self.conditioning in ("concatenation", "projection"):
            raise ValueError(
                f"conditioning {self.conditioning!r} needs labels, but none were given"
            )
        if self.conditioning == "concatenation":
            planes = jax.nn.one_hot(label, self.num_classes, dtype=x.dtype)
            planes = planes.reshape(x.shape[0], *(1,) * (x.ndim - 2), self.num_classes)
            planes = jnp.broadcast_to(planes, (*x.shape[:-1], self.num_classes))
            x = jnp.concatenate([x, planes], axis=-1)
        if x.shape[0] % self.packing:
            raise ValueError(
                f"a batch of {x.shape[0]} does not divide into packs of {self.packing}"
            )
        if self.packing > 1:
            B, *space, C = x.shape
            x = x.reshape(B // self.packing, self.packing, *space, C)
            x = jnp.moveaxis(x, 1, -2).reshape(B // self.packing, *space, self.packing * C)
        return self.head(self.body(x, key=key, train=train), label, train)
