"""Layers: linear, maxout, convolution, normalisation, embedding, dropout.

Parameters are float32. `dtype` is the compute type: operands are rounded to it, and products are
accumulated in float32. Gradients of kernels, statistics of norms and softmax are always float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from genjax.nn.convolution import convolve, spread
from genjax.nn.norm import SpectralNorm
from genjax.nn.products import contraction
from genjax.nn.updated import Updated
from genjax.parallel.layout import LENGTH, ways

Initializer = Callable[..., jax.Array]
Activation = Callable[[jax.Array], jax.Array]

uniform_fan_avg = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
standard_normal = jax.nn.initializers.normal(1.0)
zeros = jax.nn.initializers.zeros


def product(
    x: Float[Array, "... D"], kernel: Float[Array, "D F"] | Updated
) -> Float[Array, "... F"]:
    """`x @ kernel`, accumulated in float32 and returned in x's dtype.

    A kernel of a wider dtype is rounded to x's, and its gradient is not; see `contract`.
    """
    if x.ndim == 3 and ways(LENGTH) > 1:  # a split length cannot be merged with split examples
        return contract("btd,df->btf", x, kernel).astype(x.dtype)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = contract("rd,df->rf", rows, kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1]).astype(x.dtype)


def contract(
    spec: str, x: Float[Array, "..."], y: Float[Array, "..."] | Updated
) -> Float[Array, "..."]:
    """`jnp.einsum(spec, x, y)`, accumulated and returned in float32 (float64 of float64).

    For products with batch axes or a float32 result; see `genjax.nn.products.contraction`.
    """
    return y.contracted(spec, x) if isinstance(y, Updated) else contraction(spec, x, y)


def plus(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """x + y in x's dtype; y may be broadcast along axes of x.

    It is computed in float32, and so is the gradient of y, a sum over those axes. A sum of ones in
    bfloat16, as in JAX's own gradient on the CPU, stops at 256.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (x.astype(wide) + y.astype(wide)).astype(x.dtype)


def times(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """x y in x's dtype, element by element; both gradients are computed as in `plus`."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (x.astype(wide) * y.astype(wide)).astype(x.dtype)


def activated(f: Activation, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """f(x), computed in float32 and rounded once, to x's dtype."""
    return f(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


class Linear(nnx.Module):
    """`y = x W + b` over the last axis."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        use_bias: bool = True,
        spectral_norm: bool = False,
        init: Initializer = uniform_fan_avg,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters `kernel` [in, out] and `bias` [out]."""
        self.kernel = nnx.Param(init(rngs.params(), (features_in, features_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32)) if use_bias else None
        self.spectral = SpectralNorm(features_out, rngs=rngs) if spectral_norm else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "... D"], train: bool = False) -> Float[Array, "... F"]:
        """Applies the layer; `train` is for spectral normalisation."""
        kernel = _normalised(self.kernel[...], self.spectral, train)
        y = product(x.astype(self.dtype), kernel)
        return y if self.bias is None else plus(y, self.bias[...])


def _normalised(kernel: Array, spectral: SpectralNorm | None, train: bool) -> Array:
    return kernel if spectral is None else spectral(kernel, train)


class Maxout(nnx.Module):
    """The largest of `pieces` linear functions per feature (Goodfellow et al. 2013, eq. 2)."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        pieces: int,
        *,
        spectral_norm: bool = False,
        init: Initializer = uniform_fan_avg,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes one linear layer of `features_out * pieces` features."""
        self.linear = Linear(
            features_in,
            features_out * pieces,
            spectral_norm=spectral_norm,
            init=init,
            dtype=dtype,
            rngs=rngs,
        )
        self.pieces = pieces

    def __call__(self, x: Float[Array, "... D"], train: bool = False) -> Float[Array, "... F"]:
        """Applies the layer; `train` is for spectral normalisation."""
        y = self.linear(x, train)
        y = y.reshape(*y.shape[:-1], -1, self.pieces)
        largest = jnp.arange(self.pieces) == y.argmax(-1, keepdims=True)
        return jnp.where(largest, y, 0).sum(-1)  # the gradient of `max` is slow: it counts ties


class Conv(nnx.Module):
    """2D convolution over [B, H, W, C], with zero padding that keeps H and W at stride 1."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        use_bias: bool = True,
        spectral_norm: bool = False,
        init: Initializer = uniform_fan_avg,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters `kernel` [k, k, in, out] and `bias` [out]."""
        shape = (kernel_size, kernel_size, features_in, features_out)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32)) if use_bias else None
        self.spectral = SpectralNorm(features_out, rngs=rngs) if spectral_norm else None
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B h w F"]:
        """Applies the layer; h = ceil(H / stride). `train` is for spectral normalisation."""
        kernel = _normalised(self.kernel[...], self.spectral, train)
        x = x.astype(self.dtype)
        if kernel.shape[:2] == (1, 1) and self.stride == 1:
            y = product(x, kernel[0, 0])
        else:
            y = convolve(x, kernel, self.stride)
        return y if self.bias is None else plus(y, self.bias[...])


class Conv1D(nnx.Module):
    """1D convolution over [B, T, C] at stride 1, as one product of all windows of k positions."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        kernel_size: int,
        *,
        padded: bool = True,
        init: Initializer = uniform_fan_avg,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters `kernel` [k, in, out] and `bias` [out].

        `padded`: with zeros, so that T stays, one more on the right if k is even. Otherwise only
        whole windows count.
        """
        shape = (kernel_size, features_in, features_out)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))
        self.padded, self.dtype = padded, dtype

    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B t F"]:
        """Applies the layer; t = T if padded, else T - k + 1."""
        size, features_in, features_out = self.kernel.shape
        x = x.astype(self.dtype)
        if self.padded:
            x = jnp.pad(x, ((0, 0), ((size - 1) // 2, size // 2), (0, 0)))
        T = x.shape[1] - size + 1
        windows = jnp.stack([x[:, i : i + T] for i in range(size)], axis=2)
        kernel = self.kernel[...].reshape(size * features_in, features_out)
        return plus(product(windows.reshape(len(x), T, -1), kernel), self.bias[...])


class ConvTranspose(nnx.Module):
    """2D transposed convolution that doubles H and W: `lax.conv_transpose`, stride 2, "SAME"."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        kernel_size: int = 4,
        *,
        use_bias: bool = True,
        init: Initializer = uniform_fan_avg,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the parameters `kernel` [k, k, in, out], k >= 2, and `bias` [out]."""
        shape = (kernel_size, kernel_size, features_in, features_out)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W F"]:
        """Applies the layer."""
        flipped = self.kernel[...][::-1, ::-1].swapaxes(2, 3)
        y = spread(x.astype(self.dtype), flipped, 2, (2 * x.shape[1], 2 * x.shape[2]))
        return y if self.bias is None else plus(y, self.bias[...])


class GroupNorm(nnx.Module):
    """Group normalisation over [B, ..., C] (Wu & He 2018), float32 statistics."""

    def __init__(self, features: int, *, groups: int = 32, eps: float = 1e-6):
        """Makes `scale` and `bias` [C]; `groups` is lowered to a divisor of C, C / 4 at most."""
        self.groups = math.gcd(min(groups, max(features // 4, 1)), features)
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.eps = eps

    def __call__(
        self, x: Float[Array, "B *space C"], activation: Activation | None = None
    ) -> Float[Array, "B *space C"]:
        """Normalises each group of channels of each example, then applies `activation`.

        Sums go over the pixels of each channel first, then over the channels of a group, so that
        they are sums of vectors. Everything between x and the result is float32.
        """
        y = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])
        y = y - self._group_mean(y)
        factor = lax.rsqrt(self._group_mean(jnp.square(y)) + self.eps) * self.scale[...]
        y = y * factor + self.bias[...]
        y = y if activation is None else activation(y)
        return y.reshape(x.shape).astype(x.dtype)

    def _group_mean(self, y: Float[Array, "B N C"]) -> Float[Array, "B 1 C"]:
        """The mean over the pixels and channels of a group, repeated for each of its channels."""
        mean = y.mean(1).reshape(len(y), self.groups, -1).mean(2)
        return jnp.repeat(mean, y.shape[-1] // self.groups, axis=1)[:, None]


def standardised(x: Float[Array, "... D"], eps: float) -> Float[Array, "... D"]:
    """Each vector minus its mean, divided by its standard deviation, float32.

    `eps` is added to the variance.
    """
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    return y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)


def _factor(scale: nnx.Param, offset: float) -> Float[Array, "D"]:
    return scale[...] + offset if offset else scale[...]


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), float32 statistics."""

    def __init__(
        self, features: int, *, eps: float = 1e-5, use_bias: bool = True, offset: float = 0.0
    ):
        """Makes `scale` and `bias` [D]; the factor is `scale` + `offset`, at first 1."""
        self.scale = nnx.Param(jnp.full((features,), 1.0 - offset, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32)) if use_bias else None
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises each vector."""
        y = standardised(x, self.eps) * _factor(self.scale, self.offset)
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Division by the root mean square over the last axis (Zhang & Sennrich 2019, eq. 4).

    The mean square is float32.
    """

    def __init__(self, features: int, *, eps: float = 1e-5, offset: float = 0.0):
        """Makes `scale` [D]; the factor is `scale` + `offset`, at first 1."""
        self.scale = nnx.Param(jnp.full((features,), 1.0 - offset, jnp.float32))
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises each vector."""
        y = x.astype(jnp.float32)
        y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * _factor(self.scale, self.offset)).astype(x.dtype)


class Embed(nnx.Module):
    """A table of vectors, looked up by index."""

    def __init__(
        self,
        entries: int,
        features: int,
        *,
        init: Initializer = standard_normal,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the parameter `embedding` [entries, features]."""
        self.embedding = nnx.Param(init(rngs.params(), (entries, features), jnp.float32))
        self.dtype = dtype

    def __call__(self, index: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Looks the vectors up."""
        return self.embedding[...][index].astype(self.dtype)


def dropout(
    x: Float[Array, "..."], rate: float, key: jax.Array | None, train: bool
) -> Float[Array, "..."]:
    """Zeroes elements with probability `rate` in training and rescales the rest.

    Raises:
      ValueError: no key in training with rate > 0.
    """
    if not train or rate == 0.0:
        return x
    if key is None:
        raise ValueError(f"dropout of rate {rate} in training needs a key, but none was given")
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def sinusoidal_embedding(
    position: Float[Array, "B"], features: int, max_period: float = 10_000.0
) -> Float[Array, "B D"]:
    """Sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017, sec. 3.5)."""
    half = features // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half) / max(half - 1, 1))
    angle = position.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def upsample_nearest(x: Float[Array, "B H W C"]) -> Float[Array, "B 2*H 2*W C"]:
    """Repeats every pixel 2 x 2."""
    B, H, W, C = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)


def space_to_depth(x: Float[Array, "B H W C"], block: int) -> Float[Array, "B h w D"]:
    """Folds block x block pixels into channels: h = H / block, D = C block^2."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // block, block, W // block, block, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H // block, W // block, block * block * C)


def depth_to_space(x: Float[Array, "B h w D"], block: int) -> Float[Array, "B H W C"]:
    """The inverse of `space_to_depth`."""
    B, H, W, D = x.shape
    x = x.reshape(B, H, W, block, block, D // block**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, H * block, W * block, D // block**2)
