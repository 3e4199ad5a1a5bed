"""Magnitude-preserving layers: their formulas, and what they preserve (Karras et al. 2024)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import integrate, special, stats

from genjax.nn import magnitude
from genjax.nn.layers import upsample_nearest
from genjax.nn.magnitude import MPConv, MPEmbed, MPFourier, MPLinear


def rand(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def f32(x):
    return jnp.asarray(x, jnp.float32)


def rms(x, axis=None):
    return np.sqrt(np.square(np.asarray(x, np.float64)).mean(axis))


def unit(kernel):
    return kernel / rms(kernel, tuple(range(kernel.ndim - 1)))


def test_silu_is_divided_by_its_root_mean_square():
    square, _ = integrate.quad(lambda a: (a * special.expit(a)) ** 2 * stats.norm.pdf(a), -20, 20)
    x = rand(1000)
    made = magnitude.mp_silu(f32(x))
    np.testing.assert_allclose(made, x * special.expit(x) / round(square**0.5, 3), rtol=1e-5)
    np.testing.assert_allclose(rms(magnitude.mp_silu(f32(rand(100_000)))), 1, rtol=1e-2)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sum_and_concatenation_of_what_has_unit_magnitude_have_it(t):
    """Of orthogonal vectors the sum's is one exactly; parts of a concatenation have shares by t."""
    a, b = np.array([1.0, 1.0, -1.0, 1.0]), np.array([1.0, 1.0, 1.0, -1.0])
    length = np.sqrt((1 - t) ** 2 + t**2)
    made = magnitude.mp_sum(f32(a), f32(b), t)
    np.testing.assert_allclose(made, ((1 - t) * a + t * b) / length, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(rms(made), 1, rtol=1e-6)
    wide = np.tile(b, 3)
    made = np.asarray(magnitude.mp_cat(f32(a), f32(wide), t))
    np.testing.assert_allclose(rms(made), 1, rtol=1e-6)
    shares = np.square(made[:4]).sum() / 16, np.square(made[4:]).sum() / 16
    np.testing.assert_allclose(shares, np.square([(1 - t) / length, t / length]), atol=1e-6)
    np.testing.assert_allclose(made[4:], made[4] * wide, atol=1e-6)


def test_each_layer_preserves_magnitude_at_the_start_and_of_any_weights():
    """To a hundredth or two; the borders of an image see zeros beside them."""
    rngs = nnx.Rngs(0)
    x = f32(rand(2, 18, 18, 64))
    linear, conv = MPLinear(64, 128, rngs=rngs), MPConv(64, 128, rngs=rngs)
    for layer, made in ((linear, lambda: linear(x)), (conv, lambda: conv(x)[:, 1:-1, 1:-1])):
        first = made()
        np.testing.assert_allclose(rms(first), 1, rtol=1e-2)
        np.testing.assert_allclose(rms(layer.mp_kernel[...]), 1, rtol=1e-3)
        layer.mp_kernel[...] = 7 * layer.mp_kernel[...]
        np.testing.assert_allclose(made(), first, rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(rms(magnitude.pixel_norm(5 * x + 1), -1), 1, rtol=1e-3)
    np.testing.assert_allclose(rms(MPFourier(20_000, rngs=rngs)(f32([-1.3, 0.4])), 1), 1, rtol=2e-2)
    np.testing.assert_allclose(rms(MPEmbed(5, 20_000, rngs=rngs)(jnp.arange(5))), 1, rtol=1e-3)


def test_layers_are_their_formulas():
    rngs, kernel, x = nnx.Rngs(0), rand(3, 3, 5, 4), rand(1, 1, 1, 5, seed=1)
    conv, linear, fourier = (
        MPConv(5, 4, rngs=rngs),
        MPLinear(5, 4, rngs=rngs),
        MPFourier(6, rngs=rngs),
    )
    conv.mp_kernel[...], linear.mp_kernel[...] = f32(kernel), f32(kernel[1, 2])
    expected = 0.5 * x @ unit(kernel)[1, 1] / np.sqrt(45)
    np.testing.assert_allclose(conv(f32(x), 0.5), expected, rtol=1e-3)
    expected = 0.5 * x @ unit(kernel[1, 2]) / np.sqrt(5)
    np.testing.assert_allclose(linear(f32(x), 0.5), expected, rtol=1e-3)
    f, phi = (np.asarray(v[...], np.float64) for v in (fourier.frequencies, fourier.phases))
    expected = np.sqrt(2) * np.cos(2 * np.pi * (0.3 * f + phi))
    np.testing.assert_allclose(fourier(f32([0.3]))[0], expected, atol=1e-5)
    assert (phi >= 0).all()
    assert (phi < 1).all()


def test_an_embedding_is_a_product_with_a_scaled_one_hot_vector():
    embed, linear = MPEmbed(5, 3, rngs=nnx.Rngs(0)), MPLinear(5, 3, rngs=nnx.Rngs(1))
    linear.mp_kernel[...] = embed.mp_kernel[...] = f32(rand(5, 3))
    label = jnp.array([4, 0, 5, 2])
    expected = linear(np.sqrt(5) * jax.nn.one_hot(label, 5))
    np.testing.assert_allclose(embed(label), expected, atol=1e-6)
    np.testing.assert_array_equal(embed(label)[2], 0.0)


def test_the_gradient_is_orthogonal_to_the_weights_of_each_output():
    """But for the small number in the denominator, as the length of weights has no effect."""
    x, kernel = f32(rand(2, 6, 6, 3)), f32(rand(3, 3, 3, 4))

    def loss(kernel):
        conv = MPConv(3, 4, rngs=nnx.Rngs(0))
        conv.mp_kernel[...] = kernel
        return jnp.sin(conv(x)).sum()

    gradient = jax.grad(loss)(kernel)
    along = (gradient * kernel).sum((0, 1, 2))
    lengths = jnp.linalg.norm(gradient.reshape(-1, 4), axis=0)
    assert (lengths > 0.1).all()
    assert (jnp.abs(along) < 2e-4 * lengths * jnp.linalg.norm(kernel.reshape(-1, 4), axis=0)).all()


def test_normalise_gives_unit_magnitude_once_and_leaves_other_leaves():
    params = {
        "encoder": {"0": {"conv1": {"mp_kernel": f32(9 * rand(3, 3, 4, 6))}, "gain": f32(0.3)}},
        "label": {"mp_kernel": f32(0.1 * rand(7, 5))},
        "other": {"kernel": f32(rand(4, 4))},
    }
    once = magnitude.normalise(params)
    for leaf in (once["encoder"]["0"]["conv1"]["mp_kernel"], once["label"]["mp_kernel"]):
        np.testing.assert_allclose(rms(leaf, tuple(range(leaf.ndim - 1))), 1, rtol=3e-3)
    np.testing.assert_allclose(
        once["encoder"]["0"]["conv1"]["mp_kernel"],
        unit(np.asarray(params["encoder"]["0"]["conv1"]["mp_kernel"], np.float64)),
        rtol=1e-3,
    )
    for a, b in zip(*map(jax.tree.leaves, (once, magnitude.normalise(once))), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-3)
    np.testing.assert_array_equal(once["other"]["kernel"], params["other"]["kernel"])
    np.testing.assert_array_equal(once["encoder"]["0"]["gain"], params["encoder"]["0"]["gain"])


def test_averages_of_pixels():
    x = rand(2, 6, 4, 3)
    made = magnitude.downsample_average(f32(x))
    expected = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(made, expected, atol=1e-6)
    np.testing.assert_allclose(magnitude.downsample_average(upsample_nearest(made)), made)


def test_a_pixel_of_zeros_has_a_finite_derivative():
    x = jnp.zeros((2, 4)).at[1].set(1.0)
    assert jnp.isfinite(jax.jacobian(magnitude.pixel_norm)(x)).all()
    np.testing.assert_array_equal(magnitude.pixel_norm(x)[0], 0.0)


def test_bfloat16_is_rounded_once():
    x = jnp.asarray(rand(64, 300), jnp.bfloat16)
    y = jnp.asarray(rand(64, 300, seed=1), jnp.bfloat16)
    exact, other = np.asarray(x, np.float64), np.asarray(y, np.float64)
    for made, expected in (
        (magnitude.pixel_norm(x), exact / (1e-4 + rms(exact, -1)[:, None])),
        (magnitude.mp_silu(x), exact * special.expit(exact) / 0.596),
        (magnitude.mp_sum(x, y, 0.3), (0.7 * exact + 0.3 * other) / np.sqrt(0.58)),
        (magnitude.mp_cat(x, y, 0.5), np.concatenate([exact, other], -1)),
    ):
        assert made.dtype == jnp.bfloat16
        error = np.abs(np.asarray(made, np.float64) - expected)
        assert (error <= 2.0**-8 * np.abs(expected) + 1e-7).all()
