"""Pairs of noise levels, distances and the mean-flow identity, against formulas of the papers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from genjax.sampling import consistency, paths

LEAST, MOST = 0.002, 80.0


def test_the_curriculum_of_ict():
    """Song & Dhariwal 2024, table 1: N(k) = min(s0 2^floor(k / K'), s1) + 1."""
    K, s0, s1 = 400_000, 10, 1280
    stretch = math.floor(K / (math.log2(math.floor(s1 / s0)) + 1))
    assert stretch == 50_000
    k = np.asarray([0, 49_999, 50_000, 123_456, 349_999, 350_000, 400_000, 500_000])
    expected = [min(s0 * 2 ** (i // stretch), s1) + 1 for i in k]
    assert expected == [11, 11, 21, 41, 641, 1281, 1281, 1281]
    found = 1 + consistency.intervals("doubling", jnp.asarray(k), K, s0, s1)
    np.testing.assert_array_equal(found, expected)
    constant = consistency.intervals("doubling", jnp.asarray(k), K, 17, 17)
    np.testing.assert_array_equal(constant, np.full(len(k), 17))


def test_the_curriculum_of_consistency_training():
    """Song et al. 2023, appendix C, with s0 = 2 and s1 = 150."""
    K, s0, s1 = 800_000, 2, 150
    k = np.asarray([0, 1, 1000, 200_001, 400_003, 799_000, 800_000])
    expected = np.ceil(np.sqrt(k / K * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
    assert expected[0] == 2
    assert expected[-1] == 151
    found = 1 + consistency.intervals("square_root", jnp.asarray(k), K, s0, s1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("count", [10, 80])
def test_levels_come_as_often_as_the_discretised_lognormal_says(count):
    """p(sigma_i) is in proportion to a difference of two erf (Song & Dhariwal 2024, table 1)."""
    mean, std, rho = -1.1, 2.0, 7
    i = np.arange(count + 1)
    ends = LEAST ** (1 / rho), MOST ** (1 / rho)
    sigma = (ends[0] + i / count * (ends[1] - ends[0])) ** rho
    mass = erf((np.log(sigma) - mean) / (math.sqrt(2) * std))
    expected = np.diff(mass) / (mass[-1] - mass[0])
    draws = 2**16
    u = jnp.asarray((np.arange(draws) + 0.5) / draws, jnp.float32)
    s = consistency.lognormal(u, mean, std, LEAST, MOST)
    upper, lower = consistency.steps_of(s, jnp.int32(count), LEAST, MOST)
    index = np.argmin(np.abs(np.log(np.asarray(lower)[:, None] / sigma)), axis=1)
    np.testing.assert_allclose(lower, sigma[index], rtol=1e-4)
    np.testing.assert_allclose(upper, sigma[index + 1], rtol=1e-4)
    np.testing.assert_allclose(np.bincount(index, minlength=count) / draws, expected, atol=3e-4)


def test_the_mapping_of_ect():
    """r / t = 1 - n(t) / q^a, n(t) = 1 + 8 sigmoid(-t): from 5 / q^a at t = 0 to 1 / q^a."""
    t = np.asarray([0.01, 0.5, 3.0, 60.0])
    for power in (2, 16, 256):
        n = 1 + 8 / (1 + np.exp(t))
        expected = t * np.maximum(1 - n / power, 0)
        found = consistency.nearer(jnp.asarray(t, jnp.float32), jnp.int32(power), 0.0)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-7)
        shifted = consistency.nearer(jnp.asarray([LEAST, 0.01]), jnp.int32(power), LEAST)
        assert shifted[0] == jnp.float32(LEAST)
        assert LEAST <= shifted[1] < 0.01


def test_pseudo_huber_has_the_papers_constant():
    """c = 0.00054 sqrt(d), 0.03 of CIFAR-10; near 0 it is |d|^2 / 2 c, far from it |d| - c."""
    shape = (2, 32, 32, 3)
    c = 0.00054 * math.sqrt(3072)
    assert c == pytest.approx(0.03, rel=3e-3)
    direction = np.random.default_rng(0).normal(size=shape)
    direction /= np.sqrt((direction**2).sum((1, 2, 3), keepdims=True))
    for length in (1e-5, 0.03, 7.0):
        found = consistency.pseudo_huber(jnp.asarray(length * direction, jnp.float32), 0.00054)
        expected = math.sqrt(length**2 + c**2) - c
        np.testing.assert_allclose(found, [expected] * 2, rtol=1e-4)


@pytest.mark.parametrize("name", paths.NAMES)
def test_levels_of_a_ratio_are_those_of_the_path(name):
    path = paths.make(name)
    least, most = consistency.ends(path)
    t = np.asarray([path.first, 0.3 * path.last, 0.9 * path.last])
    expected = paths.levels(path, t)
    s = expected.sigma / expected.alpha
    assert least == pytest.approx(s[0], rel=1e-6)
    assert most > 70
    found = consistency.levels_of(path, jnp.asarray(s, jnp.float32))
    np.testing.assert_allclose(found.alpha, expected.alpha, rtol=1e-5)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-5)
    np.testing.assert_allclose(found.time_input, expected.time_input, rtol=1e-4, atol=1e-3)


MEAN, STD = 0.7, 0.4


def spread(t):
    return jnp.sqrt(jnp.square((1 - t) * STD) + jnp.square(t))


def exact_velocity(z, t):
    """dz/dt of Gaussian data on a straight path."""
    slope = (t - (1 - t) * STD**2) / spread(t) ** 2
    return -MEAN + slope * (z - (1 - t) * MEAN)


def exact_average(z, r, t):
    """(z_t - z_r) / (t - r), z_r being as many standard deviations from the mean as z_t."""
    earlier = (1 - r) * MEAN + spread(r) / spread(t) * (z - (1 - t) * MEAN)
    return (z - earlier) / (t - r)


def test_the_target_of_a_mean_flow_is_the_exact_average_velocity():
    """A fixed point: the identity of the exact u gives u back; of another one it does not."""
    rng = np.random.default_rng(1)
    t = jnp.asarray(rng.uniform(0.3, 1.0, 64), jnp.float32)
    r = t * jnp.asarray(rng.uniform(0.0, 0.8, 64), jnp.float32)
    z = jnp.asarray(rng.normal(size=64), jnp.float32)
    v = exact_velocity(z, t)
    u, target, _ = consistency.identity(lambda z, r, t: (exact_average(z, r, t), None), z, r, t, v)
    np.testing.assert_allclose(u, exact_average(z, r, t), rtol=1e-6)
    np.testing.assert_allclose(target, u, rtol=1e-4, atol=1e-4)
    wrong, moved, _ = consistency.identity(
        lambda z, r, t: (1.1 * exact_average(z, r, t), None), z, r, t, v
    )
    assert np.abs(moved - wrong).mean() > 0.02
    gradient = jax.grad(
        lambda v: consistency.identity(lambda z, r, t: (exact_average(z, r, t), None), z, r, t, v)[
            1
        ].sum()
    )(v)
    assert not np.any(gradient)  # the target is fixed
