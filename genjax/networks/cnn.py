"""A small convolutional classifier, for images of any size."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from genjax.checks import Kernel, Rate, Width, require
from genjax.nn.layers import Conv, GroupNorm, Linear, dropout, space_to_depth
from genjax.parallel.rules import Rules, fsdp, replicate

RULES: Rules = (
    (r"kernel$", fsdp),
    (r"(scale|bias)$", replicate),
)


def fold(x: Float[Array, "B H W C"], block: int) -> Float[Array, "B h w D"]:
    """`space_to_depth` of images of any size, padded with zeros at the bottom and on the right."""
    pads = [(0, 0), (0, -x.shape[1] % block), (0, -x.shape[2] % block), (0, 0)]
    return space_to_depth(jnp.pad(x, pads), block)


class Level(nnx.Module):
    """Halves the resolution by a linear map of 2 x 2 pixels, then a convolution with a shortcut."""

    def __init__(self, cin: int, cout: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Makes the layers."""
        self.merge = Linear(4 * cin, cout, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(cout)
        self.conv = Conv(cout, cout, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
        """Applies the level."""
        x = self.merge(fold(nnx.relu(x), 2))
        return x + self.conv(self.norm(x, nnx.relu))


class Classifier(nnx.Module):
    """Maps images to features and logits.

    A convolution over patches, levels that halve the resolution, and a hidden layer that sees every
    position, which is more accurate than average pooling if objects are centred. Levels halve the
    resolution by matrix products because the gradient of a convolution is slow on a CPU.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: tuple[Width, ...],
        features: Width,
        patch_size: Kernel,
        dropout: Rate,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          shape: of the images, (H, W, C).
          num_classes: number of labels.
          channels: width of the first convolution, and of each level after it.
          features: width of the hidden layer.
          patch_size: pixels folded into channels before the first convolution.
          dropout: dropout rate of the features.
          dtype: compute type.
          rngs: for the initial parameters.
        """
        require(bool(channels), "config.model.channels", channels, "at least one width")
        height, width, depth = shape
        factor = patch_size * 2 ** (len(channels) - 1)
        positions = -(-height // factor) * -(-width // factor)
        self.stem = Conv(depth * patch_size**2, channels[0], dtype=dtype, rngs=rngs)
        self.levels = nnx.Dict(
            {
                str(i): Level(cin, cout, dtype, rngs)
                for i, (cin, cout) in enumerate(itertools.pairwise(channels))
            }
        )
        self.norm = GroupNorm(channels[-1])
        self.hidden = Linear(positions * channels[-1], features, dtype=dtype, rngs=rngs)
        self.head = Linear(features, num_classes, dtype=dtype, rngs=rngs)
        self.patch_size, self.rate = patch_size, dropout

    def __call__(
        self,
        x: Float[Array, "B H W C"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B D"], Float[Array, "B K"]]:
        """Applies the network.

        Args:
          x: images.
          key: for dropout; needed in training if the rate is above 0.
          train: whether dropout is on.

        Returns:
          The features, which are the output of the hidden layer, and the logits; both float32.
        """
        x = self.stem(fold(x, self.patch_size))
        for name in sorted(self.levels, key=int):
            x = self.levels[name](x)
        x = self.norm(x, nnx.relu)
        features = nnx.relu(self.hidden(x.reshape(len(x), -1))).astype(jnp.float32)
        logits = self.head(dropout(features, self.rate, key, train))
        return features, logits.astype(jnp.float32)
