"""Layers against their formulas, in float64 numpy."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads
from scipy import special

from genjax.nn import layers
from genjax.nn.attention import attention
from genjax.nn.functional import functional
from genjax.nn.plain_attention import softmax


def rand(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def f32(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (32, 8), (128, 32), (12, 3), (3, 1)])
def test_group_norm(channels, groups):
    """Wu & He 2018, eq. 1-6."""
    x, scale, bias = 3 * rand(2, 5, 4, channels) + 1, rand(channels, seed=1), rand(channels, seed=2)
    layer = layers.GroupNorm(channels)
    layer.scale[...], layer.bias[...] = f32(scale), f32(bias)
    expected = np.empty_like(x)
    size = channels // groups
    for b in range(2):
        for g in range(groups):
            part = x[b, :, :, g * size : (g + 1) * size]
            normal = (part - part.mean()) / np.sqrt(part.var() + 1e-6)
            expected[b, :, :, g * size : (g + 1) * size] = normal
    expected = expected * scale + bias
    np.testing.assert_allclose(layer(f32(x)), expected, atol=2e-5)
    activated = expected / (1 + np.exp(-expected))
    np.testing.assert_allclose(layer(f32(x), jax.nn.silu), activated, atol=2e-5)


def test_group_norm_and_activation_round_once_in_bfloat16():
    x = rand(1, 8, 8, 4) + 100.0
    low = jnp.asarray(x, jnp.bfloat16)
    exact = np.asarray(low, np.float64)
    normal = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-6)
    for activation, expected in ((None, normal), (jax.nn.silu, normal / (1 + np.exp(-normal)))):
        found = layers.GroupNorm(4)(low, activation)
        assert found.dtype == jnp.bfloat16
        error = np.abs(np.asarray(found, np.float64) - expected)
        assert (error <= 2.0**-8 * np.abs(expected) + 1e-4).all()


def test_an_activation_is_rounded_once():
    x = jnp.asarray(rand(500), jnp.bfloat16)
    found = layers.activated(jax.nn.silu, x)
    exact = np.asarray(x, np.float64)
    exact = exact / (1 + np.exp(-exact))
    assert found.dtype == jnp.bfloat16
    assert (np.abs(np.asarray(found, np.float64) - exact) <= 2.0**-8 * np.abs(exact) + 1e-9).all()


def reference_attention(q, k, v):
    out = np.empty_like(q)
    for b in range(q.shape[0]):
        for n in range(q.shape[2]):
            scores = q[b, :, n] @ k[b, :, n].T / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max(1, keepdims=True))
            out[b, :, n] = weights / weights.sum(1, keepdims=True) @ v[b, :, n]
    return out


@pytest.mark.parametrize("heads", [1, 3])
def test_attention(heads):
    q, k, v = (rand(2, 7, heads, 4, seed=s) for s in range(3))
    found = attention(f32(q), f32(k), f32(v))
    np.testing.assert_allclose(found, reference_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize("T", [65, 600])
def test_attention_in_blocks_sees_what_comes_before(T):
    """Against every query by itself, in float64; the gradient as autodiff has it."""
    q, k, v = (rand(2, T, 2, 3, seed=s) for s in range(3))
    mask = np.tril(np.ones((T, T), bool)) & (np.arange(T) // 50 == np.arange(T)[:, None] // 50)
    given, mask = [f32(x) for x in (q, k, v)], jnp.asarray(mask)
    found = attention(*given, mask, causal=True)
    for t in range(T):
        rows = slice(t // 50 * 50, t + 1)
        expected = reference_attention(q[:, t : t + 1], k[:, rows], v[:, rows])
        np.testing.assert_allclose(found[:, t : t + 1], expected, atol=1e-5)

    def blocks(q, k, v):
        return jnp.sin(attention(q, k, v, mask, causal=True)).sum()

    def plain(q, k, v):
        scores = jnp.where(mask, jnp.einsum("btnd,bsnd->bnts", q, k) / 3**0.5, -jnp.inf)
        return jnp.sin(jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(scores), v)).sum()

    found, expected = (jax.grad(f, argnums=(0, 1, 2))(*given) for f in (blocks, plain))
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_attention_does_not_overflow():
    q = f32(rand(1, 4, 1, 2) * 1e4)
    assert np.isfinite(attention(q, q, q)).all()


def test_linear_and_its_gradient():
    layer = layers.Linear(5, 3, rngs=nnx.Rngs(0))
    x, kernel = rand(2, 4, 5), np.asarray(layer.kernel[...], np.float64)
    layer.bias[...] = f32([1.0, 2.0, 3.0])
    np.testing.assert_allclose(layer(f32(x)), x @ kernel + [1, 2, 3], atol=1e-5)
    check_grads(layers.product, (f32(x), f32(kernel)), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    dx, dk = jax.vjp(layers.product, f32(x), f32(kernel))[1](jnp.ones((2, 4, 3)))
    np.testing.assert_allclose(dx, np.ones((2, 4, 3)) @ kernel.T, atol=1e-5)
    np.testing.assert_allclose(dk, x.reshape(8, 5).T @ np.ones((8, 3)), atol=1e-5)


def test_bfloat16_products_accumulate_in_float32():
    x = jnp.ones((1, 4096), jnp.bfloat16) * 1.01
    kernel = jnp.ones((4096, 1), jnp.bfloat16)
    exact = 4096 * float(jnp.bfloat16(1.01))
    np.testing.assert_allclose(layers.product(x, kernel)[0, 0], exact, rtol=2**-8)
    dx, dk = jax.vjp(layers.product, x, kernel)[1](jnp.ones((1, 1), jnp.bfloat16))
    assert dx.dtype == dk.dtype == jnp.bfloat16


CONTRACTIONS = {
    "rd,rf->df": [(6, 3), (6, 5)],  # of a kernel
    "rf,rd->df": [(6, 5), (6, 3)],
    "rk,rl->kl": [(1, 3), (1, 1)],
    "tbh,tbf->hf": [(4, 2, 3), (4, 2, 5)],  # of a recurrent kernel
    "kbtgs,kbtgd->kbsd": [(2, 3, 4, 1, 5), (2, 3, 4, 1, 6)],  # of attention's values
    "df,rd->rf": [(3, 5), (4, 3)],
    "rd,df->rf": [(4, 3), (3, 5)],
}


@pytest.mark.parametrize("spec", CONTRACTIONS)
def test_contractions_and_their_gradients(spec):
    operands, out = spec.split("->")
    a, b = operands.split(",")
    for dtype, rounding in ((jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)):
        low = [jnp.asarray(rand(*n, seed=i), dtype) for i, n in enumerate(CONTRACTIONS[spec])]
        x, y = (np.asarray(array, np.float64) for array in low)
        found, back = jax.vjp(lambda x, y: layers.contract(spec, x, y), *low)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, np.einsum(spec, x, y), atol=1e-5)
        # What comes after may be a transpose, which XLA likes to merge into a product.
        turned = jax.jit(lambda x, y: layers.contract(spec, x, y).T)(*low)
        np.testing.assert_allclose(turned, found.T, atol=1e-5)
        g = np.asarray(jnp.asarray(rand(*found.shape, seed=2), dtype), np.float64)
        slopes = np.einsum(f"{out},{b}->{a}", g, y), np.einsum(f"{out},{a}->{b}", g, x)
        for slope, expected in zip(back(f32(g)), slopes, strict=True):
            assert slope.dtype == dtype
            np.testing.assert_allclose(
                np.asarray(slope, np.float64), expected, rtol=rounding, atol=1e-5
            )


def products(compiled):
    """Types of the operands of the products in a compiled program."""
    text = compiled.as_text()
    kinds = dict(re.findall(r"%([\w.-]+) = (\w+)\[", text))
    pairs = re.findall(r" dot\(%([\w.-]+), %([\w.-]+)\)", text)
    return [(kinds[x], kinds[y]) for x, y in pairs]


@pytest.mark.parametrize("spec", CONTRACTIONS)
def test_bfloat16_contractions_and_their_gradients_are_products_of_the_type_of_a_plain_one(spec):
    """Which is bfloat16 where the CPU has units for it, float32 where it has not."""

    def ones(*shape):
        return jnp.ones(shape, jnp.bfloat16)

    def total(x, y):
        return jnp.square(layers.contract(spec, x, y)).sum()

    plain = products(jax.jit(layers.product).lower(ones(64, 32), ones(32, 96)).compile())
    assert len(plain) == 1
    sizes = {"b": 3, "t": 24, "k": 20} | dict(zip("dfghlrs", range(16, 86, 10), strict=True))
    given = [ones(*map(sizes.get, indices)) for indices in spec.split("->")[0].split(",")]
    whole = jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*given).compile()
    assert products(whole) == 3 * plain


def test_a_sharded_bfloat16_kernel_gradient_gathers_no_examples():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over = jax.NamedSharding(mesh, jax.P("data"))
    x, y = (jax.device_put(jnp.asarray(rand(64, n), jnp.bfloat16), over) for n in (32, 24))
    compiled = jax.jit(lambda x, y: layers.contract("rd,rf->df", x, y)).lower(x, y).compile()
    expected = np.asarray(x, np.float64).T @ np.asarray(y, np.float64)
    np.testing.assert_allclose(compiled(x, y), expected, atol=1e-4)
    assert "all-reduce" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_conv(size, stride):
    layer = layers.Conv(2, 4, size, stride=stride, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.kernel[...], np.float64)
    x = rand(2, 6, 6, 2)
    out = 6 // stride
    total = max((out - 1) * stride + size - 6, 0)
    before = total // 2
    padded = np.pad(x, ((0, 0), (before, total - before), (before, total - before), (0, 0)))
    expected = np.zeros((2, out, out, 4))
    for i in range(out):
        for j in range(out):
            window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            expected[:, i, j] = np.einsum("bhwc,hwcf->bf", window, kernel)
    np.testing.assert_allclose(layer(f32(x)), expected, atol=1e-5)


def slopes(layer, *given):
    """The gradient of the sum of all that a layer puts out."""
    graph, params = nnx.split(layer)

    def total(params):
        return nnx.merge(graph, params)(*given).astype(jnp.float32).sum()

    return nnx.to_pure_dict(jax.grad(total)(params))


def test_the_gradient_of_an_embedding_adds_up_in_float32():
    """1,000 times 1 is 256 where each sum is rounded to bfloat16."""
    layer = layers.Embed(3, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    found = slopes(layer, jnp.ones(1000, jnp.int32))["embedding"]
    np.testing.assert_array_equal(found, [[0, 0], [1000, 1000], [0, 0]])


@pytest.mark.parametrize("kind", [layers.Linear, layers.Conv, layers.ConvTranspose])
def test_the_gradient_of_a_bias_adds_up_in_float32(kind):
    layer = kind(2, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    doubled = 4 if kind is layers.ConvTranspose else 1
    found = slopes(layer, jnp.ones((10, 10, 10, 2), jnp.bfloat16))["bias"]
    np.testing.assert_array_equal(found, np.full(3, 1000 * doubled))


def test_what_is_repeated_gets_its_gradient_in_float32():
    x, y = jnp.full((10, 100, 2), 3, jnp.bfloat16), jnp.full(2, 2, jnp.bfloat16)
    for function, value, slope in ((layers.plus, 5, 1000), (layers.times, 6, 3000)):
        found = function(x, y)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found, np.full(x.shape, value))
        gradient = jax.grad(lambda y, f=function: f(x, y).astype(jnp.float32).sum())
        # 3,000 is 2,992 in bfloat16, which is the type of y.
        np.testing.assert_array_equal(gradient(y), jnp.full(2, slope, jnp.bfloat16))
        np.testing.assert_array_equal(gradient(y.astype(jnp.float32)), np.full(2, slope))


def test_softmax_and_its_derivatives_are_those_of_float64():
    x, dx, g = 10 * rand(3, 4, 5), rand(3, 4, 5, seed=1), rand(3, 4, 5, seed=2)
    x[0, 0] = [0.0, -np.inf, 200.0, 201.0, -np.inf]
    expected = special.softmax(x, axis=-1)
    np.testing.assert_allclose(softmax(f32(x)), expected, rtol=1e-5, atol=1e-38)
    jacobian = expected[..., :, None] * (np.eye(5) - expected[..., None, :])
    _, moved = jax.jvp(softmax, (f32(x),), (f32(dx),))
    np.testing.assert_allclose(moved, np.einsum("abij,abj->abi", jacobian, dx), atol=1e-6)
    (pulled,) = jax.vjp(softmax, f32(x))[1](f32(g))
    np.testing.assert_allclose(pulled, np.einsum("abij,abi->abj", jacobian, g), atol=1e-6)
    check_grads(softmax, (f32(rand(2, 5)),), 2, atol=1e-2, rtol=1e-2)


def test_sinusoidal_embedding():
    """Vaswani et al. 2017, section 3.5, with the frequencies of DDPM: 10000^(-i / (D/2 - 1))."""
    found = layers.sinusoidal_embedding(f32([0.0, 1.0, 999.0]), 8)
    for row, t in enumerate([0.0, 1.0, 999.0]):
        angles = [t * 10_000 ** (-i / 3) for i in range(4)]
        np.testing.assert_allclose(found[row], [*np.sin(angles), *np.cos(angles)], atol=1e-4)


def test_dropout():
    x = jnp.ones((100, 100))
    found = np.asarray(layers.dropout(x, 0.25, jax.random.key(0), True))
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.75)}
    assert abs((found == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1e4)
    chex.assert_trees_all_equal(layers.dropout(x, 0.25, None, False), x)
    chex.assert_trees_all_equal(layers.dropout(x, 0.0, None, True), x)
    with pytest.raises(ValueError, match="needs a key"):
        layers.dropout(x, 0.25, None, True)


def test_resampling():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(
        layers.upsample_nearest(x)[0, :, :, 0], np.kron(x[0, :, :, 0], np.ones((2, 2)))
    )
    folded = layers.space_to_depth(x, 2)
    assert folded.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(folded[0, 0, 1], [2, 3, 6, 7])
    np.testing.assert_array_equal(layers.depth_to_space(folded, 2), x)
    colour = f32(rand(2, 6, 4, 3))
    np.testing.assert_array_equal(
        layers.depth_to_space(layers.space_to_depth(colour, 2), 2), colour
    )


class Counter(nnx.Module):
    """A layer with state: counts its training calls and adds the count."""

    def __init__(self, rngs):
        self.linear = layers.Linear(2, 2, rngs=rngs)
        self.calls = nnx.BatchStat(jnp.int32(0))

    def __call__(self, x, *, key=None, train=False):
        if train:
            self.calls[...] += 1
        return self.linear(x) + self.calls[...]


def test_the_seam_is_pure_and_returns_the_new_state():
    net = functional(Counter)
    params, mutable = net.init(jax.random.key(0))
    assert set(params) == {"linear"}
    assert mutable == {"calls": 0}
    apply = jax.jit(net.apply, static_argnames="train")
    first, changed = apply(params, mutable, jnp.ones((1, 2)), train=True)
    assert changed == {"calls": 1}
    assert mutable == {"calls": 0}
    again, same = apply(params, changed, jnp.ones((1, 2)), train=False)
    assert same == {"calls": 1}
    np.testing.assert_array_equal(first, again)
    expected = np.ones((1, 2)) @ np.asarray(params["linear"]["kernel"]) + 1
    np.testing.assert_allclose(first, expected, atol=1e-6)
    doubled = jax.tree.map(lambda p: 2 * p, params)
    assert not np.array_equal(net.apply(doubled, mutable, jnp.ones((1, 2)))[0], first)


def test_initial_parameters_depend_on_the_key_alone():
    net = functional(Counter)
    a, b, c = (net.init(jax.random.key(s))[0]["linear"]["kernel"] for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
