"""Kernels with a low-rank update beside them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.layers import contract, product
from genjax.nn.updated import Updated

D, R, K, F = 12, 3, 4, 6


def kernels(*outputs):
    """A kernel with an update, and the sum by NumPy in float64."""
    rng = np.random.default_rng(0)
    w, a, b = (rng.normal(size=s) for s in ((D, *outputs), (D, R), (R, *outputs)))
    total = w + 0.5 * np.einsum("ir,r...->i...", a, b)
    made = (jnp.asarray(x, jnp.float32) for x in (w, a, b))
    return Updated(*made, 0.5), total


def inputs(dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, D)), dtype)


def test_products_are_those_of_the_sum():
    kernel, total = kernels(F)
    x = inputs()
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(product(x, kernel), wide @ total, atol=1e-4)
    np.testing.assert_allclose(contract("btd,df->btf", x, kernel), wide @ total, atol=1e-4)
    kernel, total = kernels(K, F)
    expected = np.einsum("btd,dkf->btkf", wide, total)
    np.testing.assert_allclose(contract("btd,dkf->btkf", x, kernel), expected, atol=1e-4)
    flat = product(x, kernel.reshape(len(kernel), -1))
    assert isinstance(kernel.reshape(len(kernel), -1), Updated)
    np.testing.assert_allclose(flat, expected.reshape(2, 5, -1), atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_an_update_the_product_is_that_of_the_kernel_to_the_last_bit(dtype):
    kernel, _ = kernels(F)
    kernel = Updated(kernel.kernel, kernel.a, jnp.zeros_like(kernel.b), 0.5)
    x = inputs(dtype)
    found = product(x, kernel)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, product(x, kernel.kernel))


def test_other_products_with_it_are_those_of_the_sum():
    kernel, total = kernels(F)
    h = np.random.default_rng(2).normal(size=(2, 5, F))
    found = contract("btf,df->btd", jnp.asarray(h, jnp.float32), kernel)
    np.testing.assert_allclose(found, h @ total.T, atol=1e-4)
    assert len(list(kernel)) == D


def test_elsewhere_it_is_the_sum():
    kernel, total = kernels(K, F)
    assert (kernel.shape, kernel.ndim, kernel.dtype) == ((D, K, F), 3, jnp.float32)
    assert kernel[...] is kernel
    for found in (
        kernel[2:4],
        kernel.swapaxes(0, 1)[:, 2:4].swapaxes(0, 1),
        jnp.flip(kernel)[::-1],
    ):
        assert isinstance(found, jax.Array)
    np.testing.assert_allclose(kernel[2:4], total[2:4], atol=1e-5)
    np.testing.assert_allclose(jnp.tanh(kernel), np.tanh(total), atol=1e-5)
    np.testing.assert_allclose(2 * kernel - kernel / 4, 1.75 * total, atol=1e-5)
    np.testing.assert_allclose(-kernel, -total, atol=1e-5)
    flat, whole = kernels(F)
    np.testing.assert_allclose(inputs() @ flat, np.asarray(inputs()) @ whole, atol=1e-4)
    np.testing.assert_allclose(kernel.reshape(-1, F), total.reshape(-1, F), atol=1e-5)
    assert kernel.astype(jnp.bfloat16).kernel.dtype == jnp.bfloat16
    with pytest.raises(AttributeError, match="nothing"):
        _ = kernel.nothing


def test_gradients_are_those_of_the_sum_and_none_is_as_large_as_the_kernel():
    kernel, _ = kernels(F)
    x = inputs()

    def loss(form, a, b):
        made = Updated(kernel.kernel, a, b, 0.5)
        return jnp.sin(product(x, form(made))).sum()

    apart, merged = (
        jax.grad(partial(loss, form), (0, 1)) for form in (lambda k: k, lambda k: k.full())
    )
    for found, expected in zip(*(f(kernel.a, kernel.b) for f in (apart, merged)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def made_shapes(function):
        jaxpr = jax.make_jaxpr(function)(kernel.a, kernel.b)
        return {var.aval.shape for eqn in jaxpr.eqns for var in eqn.outvars}

    assert (D, F) in made_shapes(merged)
    assert (D, F) not in made_shapes(apart)


def test_scans_and_transformations_take_its_parts():
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), kernels(D)[0])
    total = kernels(D)[1]
    rest = total - np.asarray(kernels(D)[0].kernel, np.float64)

    def body(x, kernel):
        return product(x, kernel), None

    found = jax.jit(lambda stack, x: jax.lax.scan(body, x, stack)[0])(stack, inputs())
    second = 2 * np.asarray(kernels(D)[0].kernel, np.float64) + 4 * rest
    expected = np.asarray(inputs(), np.float64) @ total @ second
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
