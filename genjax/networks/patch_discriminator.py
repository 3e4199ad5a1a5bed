"""The discriminator of patches (PatchGAN, Isola et al. 2017, appendix 6.1.2)."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from genjax.checks import ConfigError, Range, Width, one_of
from genjax.nn.layers import Conv
from genjax.nn.norm import BatchNorm
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = ((r"kernel$", fsdp), (r"(scale|bias|mean|var)$", replicate))

KERNEL = 4
NORMS = ("batch", "none")
normal = jax.nn.initializers.normal(0.02)


def _conv_output_size(size: int, stride: int) -> int:
    """Height or width after a convolution with one row of zeros on each side."""
    return (size - 2) // stride + 1


class Discriminator(nnx.Module):
    """Strided convolutions; each output judges one patch of the image.

    `layers` convolutions of stride 2, then two of stride 1. The width doubles with each of the
    former, up to eightfold. Patches have 70 x 70 pixels with three of them, 34 x 34 with two.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: Width = 64,
        layers: Annotated[int, Range(1, 16)] = 3,
        norm: str = "batch",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the images [H, W, C].
          channels: width of the first layer.
          layers: number of convolutions of stride 2.
          norm: "batch", after all convolutions but the first and the last, or "none".
          dtype: compute type.
          rngs: for the initial parameters.

        Raises:
          ConfigError: an unknown norm, or images that are too small for the layers.
        """
        one_of("model.discriminator.norm", norm, NORMS)
        self.strides = (*(2,) * layers, 1, 1)
        height, width, _ = shape
        for stride in self.strides:
            height, width = _conv_output_size(height, stride), _conv_output_size(width, stride)
        if min(height, width) < 1:
            raise ConfigError(
                f"model.discriminator.layers={layers}: too many for images of {shape[0]} x "
                f"{shape[1]}, whose output would be empty. Use fewer, or larger images."
            )
        convs, norms, width = {}, {}, shape[-1]
        for i, stride in enumerate(self.strides):
            last = i == layers + 1
            has_norm = norm == "batch" and i > 0 and not last
            features = 1 if last else channels * min(2**i, 8)
            convs[str(i)] = Conv(
                width,
                features,
                KERNEL,
                stride=stride,
                use_bias=not has_norm,
                init=normal,
                dtype=dtype,
                rngs=rngs,
            )
            if has_norm:
                norms[str(i)] = BatchNorm(features)
            width = features
        self.convs, self.norms, self.normed = nnx.Dict(convs), nnx.Dict(norms), tuple(norms)

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> Float[Array, "B h w"]:
        """The logit of each patch, float32."""
        for i, stride in enumerate(self.strides):
            name = str(i)
            height, width = (_conv_output_size(size, stride) for size in x.shape[1:3])
            x = self.convs[name](x)[:, :height, :width]
            if name in self.normed:
                x = self.norms[name](x, train)
            if i + 1 < len(self.strides):
                x = nnx.leaky_relu(x, 0.2)
        return x[..., 0].astype(jnp.float32)
