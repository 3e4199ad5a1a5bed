"""Log-densities against scipy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from genjax.nn import likelihoods

RNG = np.random.default_rng(0)


def test_gaussian_is_scipys():
    x, mean, log_scale = RNG.normal(size=(3, 50)) * [[3.0], [1.0], [2.0]]
    expected = stats.norm.logpdf(x, mean, np.exp(log_scale))
    np.testing.assert_allclose(likelihoods.gaussian(x, mean, log_scale), expected, rtol=2e-5)


def test_bernoulli_is_scipys_and_finite_far_out():
    x, logit = RNG.integers(0, 2, 50), RNG.normal(size=50) * 5
    expected = stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logit)))
    np.testing.assert_allclose(likelihoods.bernoulli(x, logit), expected, rtol=1e-4)
    np.testing.assert_allclose(
        likelihoods.bernoulli(jnp.ones(2), jnp.array([-1e4, 1e4])), [-1e4, 0]
    )


def test_softplus_and_its_slope_are_those_of_float64():
    x = np.concatenate([np.linspace(-100, 100, 4001), [-1e30, 0, 1e30, -np.inf, np.inf]])
    found = likelihoods.softplus(jnp.asarray(x, jnp.float32))
    least = float(np.finfo(np.float32).tiny)  # what is smaller may become 0
    exact = np.logaddexp(0, np.float32(x).astype(float))
    np.testing.assert_allclose(found, exact, rtol=3e-7, atol=least)
    slope = jax.vmap(jax.grad(likelihoods.softplus))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(slope, special.expit(x), rtol=2e-5, atol=least)
    bend = jax.vmap(jax.grad(jax.grad(likelihoods.softplus)))(jnp.linspace(-5.0, 5.0, 11))
    expected = special.expit(np.linspace(-5, 5, 11)) * special.expit(-np.linspace(-5, 5, 11))
    np.testing.assert_allclose(bend, expected, rtol=1e-5)


def test_softplus_in_bfloat16_errs_by_its_three_roundings_at_most():
    x = jnp.linspace(-80, 80, 2001).astype(jnp.bfloat16)
    exact = np.asarray(x, float)
    roundings = 3 * float(jnp.finfo(jnp.bfloat16).eps) / 2  # of exp, log1p and the sum
    for function, expected in [
        (likelihoods.softplus, np.logaddexp(0, exact)),
        (jax.vmap(jax.grad(likelihoods.softplus)), special.expit(exact)),
    ]:
        found = function(x)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, float), expected, rtol=roundings)


@pytest.mark.parametrize("log_scale", [-9.0, -5.0, -2.0, 1.0])
@pytest.mark.parametrize("mean", [-1.3, -0.2, 0.0, 0.9, 3.0])
def test_the_256_bins_share_all_of_the_logistic(mean, log_scale):
    levels = np.arange(256)
    x = jnp.asarray(levels / 127.5 - 1, jnp.float32)
    found = np.asarray(likelihoods.discretised_logistic(x, mean, log_scale), np.float64)
    edges = np.concatenate([[-np.inf], (levels[:-1] + 0.5) / 127.5 - 1, [np.inf]])
    low = stats.logistic.cdf(edges, mean, np.exp(log_scale))
    high = stats.logistic.sf(edges, mean, np.exp(log_scale))
    mass = np.where(edges[1:] < mean, np.diff(low), -np.diff(high))
    np.testing.assert_allclose(np.exp(found).sum(), 1, atol=2e-3)
    seen = mass > 1e-30
    np.testing.assert_allclose(found[seen], np.log(mass[seen]), rtol=2e-3, atol=2e-3)
    slope = jax.grad(lambda m: likelihoods.discretised_logistic(x, m, log_scale).sum())(mean)
    assert np.isfinite(slope)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (1.5, 0.3), (-0.7, 2.5)])
def test_kl_is_its_integral(mean, scale):
    def integrand(z):
        q = stats.norm.pdf(z, mean, scale)
        return q * (stats.norm.logpdf(z, mean, scale) - stats.norm.logpdf(z))

    expected = integrate.quad(integrand, mean - 12 * scale, mean + 12 * scale)[0]
    np.testing.assert_allclose(likelihoods.gaussian_kl(mean, np.log(scale)), expected, atol=1e-6)


DISTRIBUTIONS = {"laplace": stats.laplace, "gaussian": stats.norm}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_likelihood_is_the_mass_on_a_pixels_bin(name):
    """scipy's distribution functions in float64, wherever their difference has digits left."""
    levels = np.arange(256) / 127.5 - 1
    means, scales = np.array([-1.4, -1.0, -0.3, 0.002, 0.7, 1.0]), np.exp([-5.5, -3.0, -1.0, 1.0])
    x, mean, scale = np.meshgrid(levels, means, scales, indexing="ij")
    found = likelihoods.discretised(
        name, *(jnp.asarray(a, jnp.float32) for a in (x, mean, np.log(scale)))
    )
    peer = DISTRIBUTIONS[name](mean, scale)
    low, high = x - 1 / 255, x + 1 / 255
    mass = np.where(x > mean, peer.sf(low) - peer.sf(high), peer.cdf(high) - peer.cdf(low))
    mass = np.where(x == -1, peer.cdf(high), np.where(x == 1, peer.sf(low), mass))
    seen = mass > 1e-200
    assert seen.mean() > 0.5
    np.testing.assert_allclose(found[seen], np.log(mass[seen]), rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(np.exp(np.asarray(found, np.float64)).sum(0), 1.0, atol=2e-5)
    assert np.isfinite(found).all()
