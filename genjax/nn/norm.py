"""Normalisation that keeps state: batch normalisation and spectral normalisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float


class BatchNorm(nnx.Module):
    """Batch normalisation over [..., C] (Ioffe & Szegedy 2015, algorithms 1 and 2).

    In training, statistics are taken over every axis of the batch but the last, in float32; on a
    mesh, over the global batch. The running averages follow PyTorch: the running variance
    averages unbiased variances (n - 1), while the normalisation uses the biased one.
    """

    def __init__(self, features: int, *, momentum: float = 0.9, eps: float = 1e-5):
        """Makes `scale` and `bias` [C] and the running `mean` and `var` [C].

        `momentum` is the weight of the old average: 0.9 is 0.1 in PyTorch's convention.
        """
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros((features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((features,), jnp.float32))
        self.momentum, self.eps = momentum, eps

    def __call__(self, x: Float[Array, "B *space C"], train: bool) -> Float[Array, "B *space C"]:
        """Normalises by the batch and updates the averages in training, else by the averages."""
        y = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = y.mean(axes)
            var = jnp.square(y - mean).mean(axes)
            n = x.size // x.shape[-1]
            for average, new in ((self.mean, mean), (self.var, var * (n / max(n - 1, 1)))):
                m = self.momentum
                average[...] = m * average[...] + (1 - m) * lax.stop_gradient(new)
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * lax.rsqrt(var + self.eps)
        return ((y - mean) * factor + self.bias[...]).astype(x.dtype)


class SpectralNorm(nnx.Module):
    """Divides a kernel by its largest singular value (Miyato et al. 2018, algorithm 1).

    The kernel [..., F] is used as the matrix W [N, F]. Power iteration estimates the value as
    sigma = v^T W u; `u` [F] is kept between calls, and u and v are constants for the gradient.
    """

    def __init__(self, features_out: int, *, rngs: nnx.Rngs):
        """Draws `u`, of length one."""
        self.u = nnx.Variable(_unit(jax.random.normal(rngs.params(), (features_out,))))

    def __call__(self, kernel: Float[Array, "*N F"], train: bool) -> Float[Array, "*N F"]:
        """Returns W / sigma; in training `u` makes one step of the power iteration first."""
        matrix = kernel.reshape(-1, kernel.shape[-1])
        constant, u = lax.stop_gradient(matrix), self.u[...]
        v = _unit(_times(constant, u))
        if train:
            self.u[...] = u = _unit(_times(constant.T, v))
        return kernel / _times(v, _times(matrix, u))


def _times(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _unit(x: Float[Array, "N"]) -> Float[Array, "N"]:
    return x / (jnp.linalg.norm(x) + 1e-12)
