"""Convolutions of any kernel, stride, padding and grouping, for networks with published weights."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from genjax.nn.convolution import convolution
from genjax.nn.layers import Initializer, uniform_fan_avg
from genjax.nn.window import window_of


class ExactConv(nnx.Module):
    """2D convolution over [B, H, W, C], computed in float32 to its full precision on any device.

    A metric on features must not depend on the device, but by default accelerators multiply float32
    with fewer bits.
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        kernel_size: tuple[int, int],
        *,
        stride: int = 1,
        padding: str = "SAME",
        groups: int = 1,
        init: Initializer = uniform_fan_avg,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters `kernel` [h, w, in / groups, out] and `bias` [out].

        Args:
          features_in: channels of the input.
          features_out: channels of the output.
          kernel_size: (h, w).
          stride: of both axes.
          padding: "VALID", or "SAME" as in TensorFlow, which pads the end more than the start.
          groups: number of channel groups, which are convolved separately.
          init: of the kernel.
          rngs: for the initial parameters.
        """
        shape = (*kernel_size, features_in // groups, features_out)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))
        self.stride, self.padding, self.groups = stride, padding, groups

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
        """Applies the layer."""
        kernel = self.kernel[...]
        strides = (self.stride, self.stride)
        window = window_of(x.shape[1:3], kernel.shape[:2], strides, self.padding, self.groups)
        return convolution(x, kernel, window, lax.Precision.HIGHEST) + self.bias[...]


def exact_product(x: Float[Array, "B D"], kernel: Float[Array, "D F"]) -> Float[Array, "B F"]:
    """`x @ kernel` in float32 to its full precision on any device."""
    return jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST)


def fold_batch_norm(
    kernel: Float[np.ndarray, "F C h w"], norm: Mapping[str, np.ndarray], eps: float
) -> dict[str, Float[np.ndarray, "..."]]:
    """The parameters of an `ExactConv` equal to a convolution and the batch norm after it.

    With fixed statistics, batch norm (Ioffe & Szegedy 2015, algorithm 2) is an affine map of each
    channel: kernel' = kernel * s and bias' = bias - mean * s with s = weight / sqrt(var + eps).

    Args:
      kernel: in PyTorch's layout; the convolution has no bias.
      norm: `weight`, `bias`, `running_mean` and `running_var`, [F] each.
      eps: of the batch norm.
    """
    norm64 = {name: np.asarray(value, np.float64) for name, value in norm.items()}
    scale = norm64["weight"] / np.sqrt(norm64["running_var"] + eps)
    folded = np.asarray(kernel, np.float64).transpose(2, 3, 1, 0) * scale
    bias = norm64["bias"] - norm64["running_mean"] * scale
    return {"kernel": folded.astype(np.float32), "bias": bias.astype(np.float32)}
