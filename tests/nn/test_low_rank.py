"""Updates of kernels, against what the layers compute of the two factors one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from genjax.nn import low_rank
from genjax.nn.heads import QueryKeyValue
from genjax.nn.layers import Conv, ConvTranspose, Linear

RNG = np.random.default_rng(0)
SCALE = 2.0


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def factors(found, rank, kind="lora"):
    return {name: normal(*shape) for name, shape in found.shapes(rank, kind).items()}


def test_of_a_linear_layer():
    layer, x = Linear(6, 5, rngs=nnx.Rngs(0)), normal(2, 3, 6)
    found = low_rank.layout("net/up/kernel", (6, 5))
    own = factors(found, 2)
    apart = layer(x) + SCALE * (x @ own["a"]) @ own["b"]
    layer.kernel = nnx.Param(low_rank.merged(found, layer.kernel[...], own, SCALE))
    np.testing.assert_allclose(layer(x), apart, atol=1e-5)


@pytest.mark.parametrize("make", [lambda r: Conv(4, 6, 3, stride=2, rngs=r), None])
def test_of_a_convolution_the_first_factor_is_one_to_rank_channels(make):
    """A is a convolution of the same window, B one of a single pixel."""
    make = make or (lambda r: ConvTranspose(4, 6, 4, rngs=r))
    layer, x = make(nnx.Rngs(0)), normal(2, 6, 6, 4)
    found = low_rank.layout("generator/up/kernel", layer.kernel[...].shape)
    own, kernel = factors(found, 3), layer.kernel[...]
    base = layer(x)
    layer.kernel = nnx.Param(own["a"])
    layer.bias = nnx.Param(jnp.zeros(3))
    apart = base + SCALE * layer(x) @ own["b"]
    layer.kernel = nnx.Param(low_rank.merged(found, kernel, own, SCALE))
    layer.bias = nnx.Param(jnp.zeros(6))
    np.testing.assert_allclose(layer(x), apart, atol=1e-4)


def test_of_stacked_heads_each_block_has_its_own():
    x, depth = normal(2, 3, 8), 3
    layer = QueryKeyValue(8, 4, 2, 3, init=nnx.initializers.normal(1.0), dtype=jnp.float32,
                          rngs=nnx.Rngs(0))  # fmt: skip
    kernel = normal(depth, *layer.kernel[...].shape)
    found = low_rank.layout("lm/body/blocks/qkv/kernel", kernel.shape)
    assert found == ((depth,), (8,), (2, 12))
    own = factors(found, 2)
    merged = low_rank.merged(found, kernel, own, SCALE)
    for block in range(depth):
        layer.kernel = nnx.Param(kernel[block])
        low = jnp.einsum("btd,dr,rkf->btkf", x, own["a"][block], own["b"][block])
        apart = layer(x) + SCALE * low
        layer.kernel = nnx.Param(merged[block])
        np.testing.assert_allclose(layer(x), apart, atol=1e-5)


def test_layouts():
    assert low_rank.layout("net/blocks/0/up/kernel", (4, 5)) == ((), (4,), (5,))
    assert low_rank.layout("net/blocks/up/kernel", (2, 4, 5)) == ((2,), (4,), (5,))
    assert low_rank.layout("net/blocks/conv/kernel", (2, 3, 3, 4, 5)) == ((2,), (3, 3, 4), (5,))
    assert low_rank.layout("net/blocks/pair/kernel", (2, 4, 3, 5)) == ((2,), (4,), (3, 5))
    memory = low_rank.layout("net/decoder/blocks/memory/kernel", (2, 4, 3, 5))
    assert memory == ((2,), (4,), (3, 5))
    assert low_rank.layout("net/decoder/blocks/memory/bias", (2, 3, 5)) is None
    assert low_rank.layout("net/blocks/up/bias", (2, 5)) is None
    assert low_rank.layout("net/blocks/qkv/bias", (2, 3, 5)) is None
    assert low_rank.layout("net/norm/scale", (5,)) is None


@pytest.mark.parametrize("path", ["net/blocks/qkv/kernel", "net/conv/kernel"])
def test_dora_is_the_magnitude_times_the_direction(path):
    """Liu et al. 2024, eq. 5, output by output; the length is no part of the gradient."""
    kernel = normal(2, 4, 3, 5)
    found = low_rank.layout(path, kernel.shape)
    own = factors(found, 2, "dora")
    stack, (inputs, outputs) = int(np.prod(found.stack)), found.sides
    W = np.asarray(kernel, np.float64).reshape(stack, inputs, outputs)
    A = np.asarray(own["a"], np.float64).reshape(stack, inputs, 2)
    B = np.asarray(own["b"], np.float64).reshape(stack, 2, outputs)
    m = np.linalg.norm(W, axis=1) + np.asarray(own["magnitude"]).reshape(stack, outputs)
    V = W + SCALE * A @ B
    expected = V * (m / np.linalg.norm(V, axis=1))[:, None]
    merged = low_rank.merged(found, kernel, own, SCALE)
    np.testing.assert_allclose(merged, expected.reshape(kernel.shape), rtol=1e-4, atol=1e-5)
    grads = jax.grad(lambda own: low_rank.merged(found, kernel, own, SCALE).sum())(own)
    slope = SCALE * A.swapaxes(1, 2) @ np.ones_like(W)
    slope = slope * (m / np.linalg.norm(V, axis=1))[:, None]
    np.testing.assert_allclose(grads["b"], slope.reshape(own["b"].shape), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_it_begins_with_the_kernel_itself(kind):
    kernel = normal(3, 40, 7, 9)
    found = low_rank.layout("net/blocks/qkv/kernel", kernel.shape)
    own = low_rank.begin(jax.random.key(0), found, 4, kind)
    assert jnp.abs(own["a"]).max() <= 40**-0.5
    np.testing.assert_allclose(own["a"].std(), (3 * 40) ** -0.5, rtol=0.1)
    merge = jax.jit(lambda kernel, own: low_rank.merged(found, kernel, own, SCALE))
    np.testing.assert_array_equal(merge(kernel, own), kernel)
