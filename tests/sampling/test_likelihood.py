"""Likelihoods by the probability-flow ODE against densities that are known."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

from genjax.checks import ConfigError
from genjax.sampling import mixture, paths
from genjax.sampling.likelihood import divergence, log_likelihood

MIX = mixture.ring(8, deviation=0.1)
PATHS = [("flow", 0), ("edm", 0), ("linear", 1000)]


def epsilon(x, at):
    return mixture.predict(MIX, x, at).epsilon


def examples(path, count=32):
    """Draws at the path's first level, and log p of them in float64."""
    at = paths.levels(path, path.first)
    noise = jax.random.normal(jax.random.key(1), (count, 2))
    x = at.alpha * mixture.draw(MIX, jax.random.key(0), count) + at.sigma * noise
    x = jnp.asarray(x, jnp.float32)
    return x, mixture.log_density(MIX, np.asarray(x, np.float64), at)


@pytest.mark.parametrize(("name", "T"), PATHS)
def test_log_p_is_that_of_the_mixture(name, T):
    """Within 0.01 nat at 256 steps. At 64 the error that is told is that before the correction by
    it, and more than what is left.
    """
    path = paths.make(name, T)
    x, want = examples(path)
    found = jax.jit(partial(log_likelihood, epsilon, path, steps=256))(x)
    assert np.abs(found.log_p - want).max() < 0.01
    assert np.abs(found.error).max() < 0.05
    np.testing.assert_array_equal(found.standard_error, 0)
    if name == "edm":
        return
    few = jax.jit(partial(log_likelihood, epsilon, path, steps=64))(x)
    left, told = np.asarray(few.log_p - want), np.asarray(few.error)
    assert np.all(np.abs(left) < 0.75 * np.abs(told) + 1e-3)
    before = left - told
    assert np.abs(before).max() > 0.05
    ratio = -np.sum(told * before) / np.sum(before**2)
    assert 0.6 < ratio < 1.3, ratio


def test_hutchinsons_estimate_is_within_its_standard_errors():
    path, probes = paths.make("cosine"), 24
    x, _ = examples(path)
    exact = jax.jit(partial(log_likelihood, epsilon, path, steps=64))(x)
    found = jax.jit(
        partial(log_likelihood, epsilon, path, steps=64, probes=probes, key=jax.random.key(3))
    )(x)
    np.testing.assert_allclose(found.latent, exact.latent, rtol=1e-4, atol=1e-4)
    apart = np.asarray((found.log_p - exact.log_p) / found.standard_error)
    assert np.abs(apart).max() < 4
    assert 0.5 < np.sqrt(np.mean(apart**2)) < 1.7
    one = log_likelihood(epsilon, path, x, steps=2, probes=1, key=jax.random.key(3))
    assert np.isnan(one.standard_error).all()


@pytest.mark.parametrize("name", ["cosine", "flow", "edm"])
def test_a_linear_models_change_of_variables(name):
    """epsilon = A x / alpha, not symmetric: y(s) is a matrix exponential, div a trace."""
    path = paths.make(name)
    first, last = (float(path.lam(t)) for t in (path.first, path.last))
    last = max(last, -8.0)
    s0, s1 = np.exp(-first), np.exp(-last)
    A = np.array([[0.7, -0.4], [0.9, 0.2]]) / s1
    x = np.random.default_rng(0).normal(size=(8, 1, 2, 1))  # of any shape

    def linear(x, at):
        flat = x.reshape(-1, 2) / at.alpha
        return (flat @ jnp.asarray(A.T, jnp.float32)).reshape(x.shape)

    found = jax.jit(partial(log_likelihood, linear, path))(jnp.asarray(x, jnp.float32))
    bottom, top = (paths.levels_at(path, lam) for lam in (first, last))
    y = x.reshape(-1, 2) / bottom.alpha @ linalg.expm(A * (s1 - s0)).T
    deviation = top.sigma if name == "edm" else np.hypot(top.alpha, top.sigma)
    latent = top.alpha * y
    want = stats.norm(scale=deviation / top.alpha).logpdf(y).sum(1)
    want = want + np.trace(A) * (s1 - s0) - 2 * np.log(bottom.alpha)
    np.testing.assert_allclose(found.latent.reshape(-1, 2), latent, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found.log_p, want, atol=0.02)


def test_divergence_of_a_function_with_a_known_one():
    """f = (x y, sin y + x^2): y + cos y; in expectation for probes, exactly for all four of +-1."""
    y = jnp.asarray([[0.3, -1.2], [2.0, 0.5]])

    def f(y):
        return jnp.stack([y[:, 0] * y[:, 1], jnp.sin(y[:, 1]) + y[:, 0] ** 2], axis=1)

    want = y[:, 1] + jnp.cos(y[:, 1])
    value, exact = divergence(f, y, None)
    np.testing.assert_allclose(value, f(y), rtol=1e-6)
    np.testing.assert_allclose(exact, want[None], rtol=1e-6)
    signs = jnp.asarray([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[:, None, :] * jnp.ones((4, 2, 2))
    value, found = divergence(f, y, signs)
    np.testing.assert_allclose(value, f(y), rtol=1e-6)
    np.testing.assert_allclose(found.mean(0), want, rtol=1e-5)
    assert np.ptp(found, axis=0).min() > 0.1


@pytest.mark.parametrize("steps", [0, 3, -2])
def test_odd_steps_are_refused(steps):
    with pytest.raises(ConfigError, match=f"steps={steps}.*even"):
        log_likelihood(epsilon, paths.make("flow"), jnp.zeros((1, 2)), steps=steps)
