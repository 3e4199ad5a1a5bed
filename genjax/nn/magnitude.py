"""Layers that preserve magnitudes: inputs of unit magnitude give outputs of it, in expectation.

The magnitude of a vector is its root mean square. The equations are those of Karras et al. 2024,
"Analyzing and Improving the Training Dynamics of Diffusion Models". Statistics and sums are
float32, whatever the type of the activations.

A layer normalises its weights before use, so their length has no effect on its output, and the
gradient is orthogonal to them: each update makes them longer, and the effect of the next one
smaller. `normalise` undoes that. Call it after the optimizer's update; a forward pass, as a pure
function, cannot change its weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from genjax.nn.convolution import convolve
from genjax.nn.layers import activated, product
from genjax.parallel.rules import path_name

Tree = Any

# The name of every weight that is normalised before use. Its last axis is the outputs.
KERNEL = "mp_kernel"
# Added to a magnitude that is divided by.
EPS = 1e-4
# The root mean square of SiLU of a standard normal variable, as the paper rounds it.
_SILU = 0.596


def normalise(params: Tree) -> Tree:
    """Scales every magnitude-preserving weight of `params` to unit magnitude; keeps other leaves.

    This is forced weight normalisation (eq. 66, algorithm 1). A training step applies it to the new
    parameters after `optax.apply_updates` and before they are averaged; it changes the output of a
    layer by a relative `EPS` or so. The learning rate has to decay, because nothing else makes
    updates smaller; weight decay has no use.

    Args:
      params: nested dicts of arrays; the weights are the leaves named `KERNEL`.
    """

    def leaf(path: Sequence[Any], p: jax.Array) -> jax.Array:
        return unit_kernel(p) if path_name(path).rsplit("/", 1)[-1] == KERNEL else p

    return jax.tree_util.tree_map_with_path(leaf, params)


def _wide(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _unit(x: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    """x / (EPS + its root mean square over `axes`), float32; its derivative at zero is finite."""
    x = _wide(x)
    square = jnp.square(x).mean(axes, keepdims=True)
    nonzero = square > 0
    root = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1.0)), 0.0)
    return x / (EPS + root)


def unit_kernel(kernel: Float[Array, "*N F"]) -> Float[Array, "*N F"]:
    """The kernel with each output's weights of unit magnitude (eq. 47 without its scale)."""
    return _unit(kernel, tuple(range(kernel.ndim - 1)))


def pixel_norm(x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Scales each vector along the last axis to unit magnitude (eq. 30), in x's dtype."""
    return _unit(x, (-1,)).astype(x.dtype)


def mp_silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """SiLU divided by its root mean square for standard normal x (eq. 81), in x's dtype."""
    return activated(lambda y: nnx.silu(y) / _SILU, x)


def mp_sum(a: Float[Array, "..."], b: Float[Array, "..."], t: float) -> Float[Array, "..."]:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (eq. 88), in a's dtype."""
    length = math.hypot(1 - t, t)
    return (_wide(a) * ((1 - t) / length) + _wide(b) * (t / length)).astype(a.dtype)


def mp_cat(a: Float[Array, "... A"], b: Float[Array, "... B"], t: float) -> Float[Array, "... A+B"]:
    """Concatenates along the last axis, with sums of squares as (1 - t)^2 to t^2 (eq. 103).

    Without the scales a wide input would count more than a narrow one. In a's dtype.
    """
    A, B = a.shape[-1], b.shape[-1]
    scale = math.sqrt(A + B) / math.hypot(1 - t, t)
    parts = (_wide(a) * (scale * (1 - t) / math.sqrt(A)), _wide(b) * (scale * t / math.sqrt(B)))
    return jnp.concatenate([part.astype(a.dtype) for part in parts], axis=-1)


def downsample_average(x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 C"]:
    """The mean of every 2 x 2 pixels, in x's dtype. H and W are even."""
    B, H, W, C = x.shape
    return _wide(x).reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4)).astype(x.dtype)


def _initial(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(unit_kernel(jax.random.normal(rngs.params(), shape, jnp.float32)))


def _scaled(kernel: Float[Array, "*N F"], gain: Float[Array, ""] | float) -> Float[Array, "*N F"]:
    """The kernel with each output's weights of length `gain`, as layers use it (eq. 47)."""
    return unit_kernel(kernel) * (gain / math.sqrt(math.prod(kernel.shape[:-1])))


class MPLinear(nnx.Module):
    """`y = gain x W` over the last axis, each column of W of length one (eq. 47)."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the parameter `mp_kernel` [in, out], of unit magnitude."""
        self.mp_kernel = _initial((features_in, features_out), rngs)
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "... D"], gain: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "... F"]:
        """Applies the layer, in its dtype."""
        return product(x.astype(self.dtype), _scaled(self.mp_kernel[...], gain))


class MPConv(nnx.Module):
    """2D convolution over [B, H, W, C] that keeps H and W, each output's weights of length one."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        kernel_size: int = 3,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the parameter `mp_kernel` [k, k, in, out], of unit magnitude."""
        self.mp_kernel = _initial((kernel_size, kernel_size, features_in, features_out), rngs)
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "B H W C"], gain: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "B H W F"]:
        """Applies the layer, in its dtype."""
        return convolve(x.astype(self.dtype), _scaled(self.mp_kernel[...], gain), 1)


class MPEmbed(nnx.Module):
    """`MPLinear` applied to sqrt(N) times a one-hot vector, which has unit magnitude.

    The result is a row of the normalised weights.
    """

    def __init__(self, entries: int, features: int, *, rngs: nnx.Rngs):
        """Makes the parameter `mp_kernel` [N, D], of unit magnitude along N."""
        self.mp_kernel = _initial((entries, features), rngs)

    def __call__(self, index: Int[Array, "B"]) -> Float[Array, "B D"]:
        """The rows, float32; index N, the null class, is all zeros instead of one-hot."""
        table = unit_kernel(self.mp_kernel[...])
        known = (index < len(table))[:, None]
        return jnp.where(known, table[jnp.minimum(index, len(table) - 1)], 0.0)


class MPFourier(nnx.Module):
    """sqrt(2) cos(2 pi (f x + phi)) of fixed random f ~ N(0, 1) and phi ~ U(0, 1) (eq. 75)."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        """Draws `frequencies` and `phases` [D], which are not trained."""
        self.frequencies = nnx.Variable(jax.random.normal(rngs.params(), (features,)))
        self.phases = nnx.Variable(jax.random.uniform(rngs.params(), (features,)))

    def __call__(self, x: Float[Array, "B"]) -> Float[Array, "B D"]:
        """The features, float32."""
        turns = _wide(x)[:, None] * self.frequencies[...] + self.phases[...]
        return math.sqrt(2) * jnp.cos(2 * math.pi * turns)
