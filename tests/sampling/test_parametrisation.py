"""What a network's output says, against the papers' formulas; the pairs go both ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.sampling import guidance, parametrisation, paths
from genjax.sampling.paths import Levels

PATHS = {name: paths.make(name) for name in paths.NAMES}
PATHS |= {f"{name} in 1000 steps": paths.make(name, 1000) for name in paths.BETAS}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", parametrisation.KINDS)
def test_every_prediction_gives_back_x0_and_epsilon(kind, name):
    path = PATHS[name]
    t = path.first + np.array([0.001, 0.01, 0.3, 0.7, 0.99]) * (path.last - path.first)
    exact = paths.levels(path, t)
    at = Levels(*(jnp.asarray(a, jnp.float32) for a in exact))
    shape = (len(t), 3, 3, 1)
    x0 = jax.random.uniform(jax.random.key(0), shape, minval=-1)
    noise = jax.random.normal(jax.random.key(1), shape)
    x = paths.noised(at, x0, noise)
    alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in exact[1:])
    np.testing.assert_allclose(x, alpha * x0 + sigma * noise, rtol=1e-5, atol=1e-5)
    target = parametrisation.target(kind, at, x0, noise, 0.5)
    pair = parametrisation.interpret(kind, at, target, x, 0.5)
    # Division by alpha, or by sigma, magnifies float32's 6e-8 of x.
    size = np.maximum(alpha, sigma)
    scale = 2e-6 + (4e-7 * size / alpha if kind == "epsilon" else 0)
    if kind in ("v", "velocity", "edm") and path.scaling == "exploding":
        scale = 2e-6 * size
    assert np.all(np.abs(pair.x0 - x0) < scale)
    scale = 2e-6 + (4e-7 / sigma if kind in ("x0", "edm") else 0)
    assert np.all(np.abs(pair.epsilon - noise) < scale)


def test_v_is_the_velocity_on_the_circle():
    """v = d x / d phi with x = cos(phi) x0 + sin(phi) epsilon (Salimans & Ho 2022, app. D)."""
    x0, noise = 0.3, -1.2
    for t in (0, 400, 999):
        at = paths.levels(PATHS["cosine in 1000 steps"], t)
        phi, h = np.arctan2(at.sigma, at.alpha), 1e-5
        slope = (
            np.cos(phi + h) * x0
            + np.sin(phi + h) * noise
            - np.cos(phi - h) * x0
            - np.sin(phi - h) * noise
        ) / (2 * h)
        v = parametrisation.target("v", at, np.full((1, 1), x0), np.full((1, 1), noise))
        np.testing.assert_allclose(v[0, 0], slope, rtol=1e-5)


def test_flow_is_that_of_conditional_flow_matching():
    """Tong et al. 2024, eq. 14 and 15 with sigma 0 (torchcfm's ConditionalFlowMatcher).

    x_t = t x_1 + (1 - t) x_0 and u_t = x_1 - x_0, from noise x_0 to data x_1: time runs backwards.
    """
    rng = np.random.default_rng(0)
    noise, data, time = rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), rng.random(4)
    at = paths.levels(PATHS["flow"], 1 - time)
    x_t = time[:, None] * data + (1 - time[:, None]) * noise
    np.testing.assert_allclose(paths.noised(at, data, noise), x_t, rtol=1e-12)
    found = parametrisation.target("velocity", at, data, noise)
    np.testing.assert_allclose(-found, data - noise, rtol=1e-12)


def test_cosine_is_variance_preserving_conditional_flow_matching():
    """Albergo & Vanden-Eijnden 2023, eq. 8 (torchcfm's VariancePreservingConditionalFlowMatcher).

    x_t = cos(pi t / 2) x_0 + sin(pi t / 2) x_1 and u_t = pi / 2 (cos(pi t / 2) x_1 - sin(pi t / 2)
    x_0): v times pi / 2, time reversed.
    """
    rng = np.random.default_rng(0)
    noise, data = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    time = rng.uniform(0.05, 0.95, 4)
    at = paths.levels(PATHS["cosine"], 1 - time)
    cos, sin = (f(np.pi / 2 * time)[:, None] for f in (np.cos, np.sin))
    np.testing.assert_allclose(paths.noised(at, data, noise), cos * noise + sin * data, rtol=1e-10)
    velocity = np.pi / 2 * (cos * data - sin * noise)
    found = parametrisation.target("v", at, data, noise)
    np.testing.assert_allclose(-np.pi / 2 * found, velocity, rtol=1e-10)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_preconditioning_is_table_1(sigma_data):
    """Karras et al. 2022, table 1 and eq. 8."""
    sigma = np.geomspace(0.002, 80.0, 12)
    at = paths.levels(PATHS["edm"], sigma)
    found = parametrisation.preconditioning(at, sigma_data)
    total = sigma**2 + sigma_data**2
    want = dict(
        skip=sigma_data**2 / total,
        out=sigma * sigma_data / np.sqrt(total),
        into=1 / np.sqrt(total),
        weight=total / (sigma * sigma_data) ** 2,
    )
    for name, value in want.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(at.time_input / 1000, np.log(sigma) / 4, rtol=1e-12)
    # D(x) = c_skip x + c_out F, and F = (y - c_skip (y + n)) / c_out has the weight 1.
    rng = np.random.default_rng(0)
    x, output, data, noise = rng.standard_normal((4, 12, 5)).astype(np.float32)
    skip, out, into = (want[k][:, None] for k in ("skip", "out", "into"))
    pair = parametrisation.interpret("edm", at, output, x, sigma_data)
    np.testing.assert_allclose(pair.x0, skip * x + out * output, rtol=1e-5, atol=1e-6)
    clean = (x - (skip * x + out * output)) / sigma[:, None]
    np.testing.assert_allclose(pair.epsilon, clean, rtol=1e-3, atol=1e-4)
    found = parametrisation.target("edm", at, data, noise, sigma_data)
    noisy = data.astype(np.float64) + sigma[:, None] * noise
    np.testing.assert_allclose(found, (data - skip * noisy) / out, rtol=1e-4, atol=1e-5)
    seen = parametrisation.network_input("edm", PATHS["edm"], at, x, sigma_data)
    np.testing.assert_allclose(seen, into * x, rtol=1e-5)
    assert parametrisation.network_input("v", PATHS["flow"], at, x, sigma_data) is x


def test_preconditioning_of_another_scaling_is_of_x_over_alpha():
    """On a preserving path x / alpha has the noise sigma / alpha: D is Karras's of that."""
    at, sigma_data = paths.levels(PATHS["linear"], np.linspace(0.1, 0.9, 5)), 0.7
    found = parametrisation.preconditioning(at, sigma_data)
    s = at.sigma / at.alpha
    total = s**2 + sigma_data**2
    np.testing.assert_allclose(found.skip, sigma_data**2 / total / at.alpha, rtol=1e-6)
    np.testing.assert_allclose(found.out, s * sigma_data / np.sqrt(total), rtol=1e-6)
    np.testing.assert_allclose(found.into, 1 / (at.alpha * np.sqrt(total)), rtol=1e-6)
    np.testing.assert_allclose(found.weight, total / (s * sigma_data) ** 2, rtol=1e-6)


def test_clipping_keeps_the_pair_consistent():
    at = Levels(*map(jnp.float32, paths.levels(PATHS["cosine in 1000 steps"], 600)))
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    output = jax.random.normal(jax.random.key(1), x.shape)
    pair = parametrisation.interpret("epsilon", at, output, x)
    clipped, _ = guidance.clipped(lambda x, at, memory: (pair, memory))(x, at, ())
    assert float(jnp.abs(pair.x0).max()) > 1
    np.testing.assert_array_equal(clipped.x0, np.clip(pair.x0, -1, 1))
    np.testing.assert_allclose(at.alpha * clipped.x0 + at.sigma * clipped.epsilon, x, atol=1e-6)
