"""Batch and spectral normalisation against their formulas, in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax.nn.functional import functional
from genjax.nn.layers import Conv, Linear, Maxout
from genjax.nn.norm import BatchNorm, SpectralNorm


class Called(nnx.Module):
    """A network of one layer."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x, *, key, train):
        return self.layer(x, train)


def test_batch_norm_normalises_by_the_batch_and_keeps_pytorchs_averages():
    rng = np.random.default_rng(0)
    scale, bias = rng.normal(size=3), rng.normal(size=3)
    layer = BatchNorm(3, momentum=0.9)
    layer.scale[...], layer.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    mean, var = np.zeros(3), np.ones(3)
    for step in range(3):
        x = 2 * rng.normal(size=(4, 5, 2, 3)) + step
        flat = x.reshape(-1, 3)
        normal = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
        found = layer(jnp.asarray(x, jnp.float32), True)
        np.testing.assert_allclose(found, normal * scale + bias, atol=1e-5)
        mean = 0.9 * mean + 0.1 * flat.mean(0)
        var = 0.9 * var + 0.1 * flat.var(0, ddof=1)
    np.testing.assert_allclose(layer.mean[...], mean, atol=1e-5)
    np.testing.assert_allclose(layer.var[...], var, atol=1e-5)
    x = rng.normal(size=(2, 3))
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32), False), expected, atol=1e-5)
    np.testing.assert_allclose(layer.mean[...], mean, atol=1e-5)


def test_batch_norm_has_the_statistics_of_the_global_batch_and_in_float32():
    net = functional(lambda rngs: Called(BatchNorm(1)))
    x = jnp.arange(16.0).reshape(16, 1) + 1000
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    found, mutable = jax.jit(net.apply, static_argnames="train")(
        *net.init(jax.random.key(0)), sharded, train=True
    )
    exact = np.arange(16.0) - 7.5
    np.testing.assert_allclose(found[:, 0], exact / np.sqrt(exact.var() + 1e-5), atol=1e-3)
    np.testing.assert_allclose(mutable["layer"]["mean"], 0.1 * 1007.5, rtol=1e-5)
    low = BatchNorm(1)(jnp.asarray(x, jnp.bfloat16), True)
    assert low.dtype == jnp.bfloat16


def largest(kernel):
    return np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]))[1][0]


def test_spectral_norm_converges_to_the_largest_singular_value():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 4, 5)), jnp.float32)
    layer = SpectralNorm(5, rngs=nnx.Rngs(0))
    first = largest(layer(kernel, True))
    for _ in range(100):
        out = layer(kernel, True)
    np.testing.assert_allclose(out, kernel / largest(kernel), atol=1e-5)
    assert abs(first - 1) > 1e-3
    kept = layer.u[...]
    np.testing.assert_allclose(layer(kernel, False), out, atol=1e-5)
    np.testing.assert_array_equal(layer.u[...], kept)


def test_gradient_through_spectral_norm():
    """Miyato et al. 2018, eq. 12: (A - <A, W/sigma> u v^T) / sigma for the loss <A, W/sigma>."""
    rng = np.random.default_rng(0)
    kernel, a = (jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    layer = SpectralNorm(4, rngs=nnx.Rngs(0))
    for _ in range(200):
        layer(kernel, True)
    gradient = jax.grad(lambda w: jnp.vdot(a, layer(w, False)))(kernel)
    left, sigmas, right = np.linalg.svd(np.asarray(kernel, np.float64))
    sigma, first = sigmas[0], np.outer(left[:, 0], right[0])
    expected = (a - np.vdot(a, kernel / sigma) * first) / sigma
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


@pytest.mark.parametrize("make", [Linear, Conv])
def test_layers_take_spectral_norm_as_an_option(make):
    net = functional(lambda rngs: Called(make(3, 4, spectral_norm=True, rngs=rngs)))
    params, mutable = net.init(jax.random.key(0))
    x = jnp.ones((2, 4, 4, 3))
    apply = jax.jit(net.apply, static_argnames="train")
    for _ in range(100):
        out, mutable = apply(params, mutable, x, train=True)
    sigma = largest(params["layer"]["kernel"])
    plain, _ = apply(params, mutable, x, train=False)
    np.testing.assert_allclose(out, plain, atol=1e-5)
    bare = make(3, 4, rngs=nnx.Rngs(0))
    bare.kernel[...] = params["layer"]["kernel"] / sigma
    np.testing.assert_allclose(out, bare(x), atol=1e-4)
    assert set(mutable["layer"]) == {"spectral"}


def test_maxout_is_the_largest_of_its_pieces():
    layer = Maxout(3, 4, 2, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(5, 3))
    kernel = np.asarray(layer.linear.kernel[...], np.float64).reshape(3, 4, 2)
    expected = np.einsum("bd,dfp->bfp", x, kernel).max(-1)
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, atol=1e-5)
