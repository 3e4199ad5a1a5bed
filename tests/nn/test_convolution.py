"""Convolutions and their transposes against XLA's own, and derivatives of derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.extend.core import jaxprs_in_params

from genjax.nn.convolution import convolve, correlate, spread
from genjax.nn.functional import functional
from genjax.nn.layers import ConvTranspose, product

CASES = [(6, 4, 2), (7, 3, 2), (8, 5, 2), (5, 3, 1), (5, 4, 1), (5, 1, 2), (7, 4, 3)]


def arrays(size, taps, stride, dtype=np.float32):
    rng = np.random.default_rng(0)
    out = -(-size // stride)
    shapes = [(2, size, size + 1, 3), (taps, taps, 3, 4), (2, out, -(-(size + 1) // stride), 4)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def reference(x, w, stride):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(("size", "taps", "stride"), CASES)
def test_the_family_is_xlas_convolution_and_its_gradients(size, taps, stride):
    x, w, g = arrays(size, taps, stride)
    y, vjp = jax.vjp(lambda x, w: reference(x, w, stride), x, w)
    dx, dw = vjp(g)
    np.testing.assert_allclose(convolve(x, w, stride), y, atol=1e-5)
    np.testing.assert_allclose(spread(g, w, stride, x.shape[1:3]), dx, atol=1e-5)
    np.testing.assert_allclose(correlate(x, g, stride, taps), dw, atol=2e-5)


@pytest.mark.parametrize(("size", "taps", "stride"), [(6, 4, 2), (5, 3, 1)])
def test_the_family_is_closed_under_differentiation(size, taps, stride):
    """<g, w * x> is linear in each of three arrays: its gradients are the three members."""
    x, w, g = arrays(size, taps, stride)
    shape = x.shape[1:3]
    members = (
        lambda x, w, g: jnp.vdot(g, convolve(x, w, stride)),
        lambda x, w, g: jnp.vdot(x, spread(g, w, stride, shape)),
        lambda x, w, g: jnp.vdot(w, correlate(x, g, stride, taps)),
    )
    expected = jax.grad(lambda x, w, g: jnp.vdot(g, reference(x, w, stride)), (0, 1, 2))(x, w, g)
    for member in members:
        for found, e in zip(jax.grad(member, (0, 1, 2))(x, w, g), expected, strict=True):
            np.testing.assert_allclose(found, e, atol=2e-5)


class Transposing(nnx.Module):
    """A network of one layer."""

    def __init__(self, taps, rngs):
        self.layer = ConvTranspose(3, 2, taps, rngs=rngs)

    def __call__(self, x, *, key, train):
        return self.layer(x)


@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_conv_transpose_and_its_gradients_are_those_of_lax(taps):
    net = functional(lambda rngs: Transposing(taps, rngs))
    kernel = net.init(jax.random.key(0))[0]["layer"]["kernel"]
    bias = jnp.array([0.5, -1.0])
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 4, 5, 3), (2, 8, 10, 2)))

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=numbers) + bias

    def ours(x, kernel):
        return net.apply({"layer": {"kernel": kernel, "bias": bias}}, {}, x)[0]

    expected, vjp = jax.vjp(plain, x, kernel)
    np.testing.assert_allclose(ours(x, kernel), expected, atol=1e-5)
    for found, e in zip(jax.vjp(ours, x, kernel)[1](g), vjp(g), strict=True):
        np.testing.assert_allclose(found, e, atol=2e-5)


def penalty(params, x):
    """A gradient penalty through every kind of product, on a network with curvature."""

    def critic(x):
        h = jnp.tanh(convolve(x, params[0], 2))
        h = jnp.tanh(convolve(h, params[1], 1))
        h = jnp.tanh(spread(h, params[2], 2, (2 * h.shape[1], 2 * h.shape[2])))
        return jnp.tanh(product(h, params[3])).sum()

    return jnp.square(jax.grad(critic)(x)).sum()


def test_the_double_gradient_of_a_penalty_is_right():
    """Central differences in float64, along a random direction of all kernels and the image."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        shapes = [(4, 4, 2, 3), (3, 3, 3, 3), (4, 4, 2, 3), (2, 3), (1, 6, 6, 2)]
        point = [jnp.asarray(rng.normal(scale=0.4, size=s), jnp.float64) for s in shapes]
        ahead = [jnp.asarray(rng.normal(size=s), jnp.float64) for s in shapes]
        value = jax.jit(lambda values: penalty(values[:4], values[4]))
        gradient = jax.grad(value)(point)
        for i in range(len(shapes)):
            moved = [
                value(
                    [
                        p + s * a * (i == j)
                        for j, (p, a) in enumerate(zip(point, ahead, strict=True))
                    ]
                )
                for s in (1e-5, -1e-5)
            ]
            expected = float(moved[0] - moved[1]) / 2e-5
            assert abs(expected) > 1e-3
            np.testing.assert_allclose(jnp.vdot(gradient[i], ahead[i]), expected, rtol=1e-6)


def test_gradients_of_gradients_of_products_stay_in_bfloat16():
    x, kernel = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)

    def outer(kernel):
        return jax.grad(lambda x: jnp.square(product(x, kernel)).sum())(x).sum()

    jaxpr = jax.make_jaxpr(jax.grad(outer))(kernel)
    operands = {
        v.aval.dtype
        for e in equations(jaxpr.jaxpr)
        if e.primitive.name == "contraction"
        for v in e.invars
    }
    assert operands == {jnp.dtype(jnp.bfloat16)}


def equations(jaxpr):
    """Every equation, those of inner functions too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
