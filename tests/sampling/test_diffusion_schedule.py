"""Noise schedules, their tables and the conversions between predictions."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.sampling import diffusion


def full(name="cosine", T=1000):
    return diffusion.schedule_from_betas(diffusion.NOISE_SCHEDULES[name](T))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_tables_are_exact_at_both_ends(name):
    """Against rational arithmetic on the same betas, where float32 sums would cancel."""
    betas = diffusion.NOISE_SCHEDULES[name](1000)
    schedule = full(name)
    alpha_bar, rows = Fraction(1), {}
    for t, beta in enumerate(betas):
        previous, alpha_bar = alpha_bar, alpha_bar * (1 - Fraction(beta))
        # 200 bits are plenty, and keep the fractions short.
        alpha_bar = Fraction(round(alpha_bar * 2**200), 2**200)
        rows[t] = (previous, alpha_bar, Fraction(beta))
    for t in (0, 1, 2, 500, 998, 999):
        previous, now, beta = rows[t]
        want = dict(
            alpha=float(now) ** 0.5,
            sigma=float(1 - now) ** 0.5,
            alpha_previous=float(previous) ** 0.5,
            sigma_previous=float(1 - previous) ** 0.5,
            beta=float(beta),
            posterior_x0=float(previous) ** 0.5 * float(beta / (1 - now)),
            posterior_xt=float(1 - beta) ** 0.5 * float((1 - previous) / (1 - now)),
            posterior_variance=float((1 - previous) / (1 - now) * beta),
        )
        for field, value in want.items():
            np.testing.assert_allclose(getattr(schedule, field)[t], value, 1e-6, 0, err_msg=field)
        np.testing.assert_allclose(diffusion.snr(schedule)[t], float(now / (1 - now)), rtol=1e-10)


@pytest.mark.parametrize("T", [100, 250, 4000])
def test_linear_schedule_ends_equally_noisy_for_any_length(T):
    ours, reference = (full("linear", n).log_alpha_bar[-1] for n in (T, 1000))
    assert abs(ours / reference - 1) < 0.12


def test_linear_schedule_takes_its_ends():
    betas = diffusion.linear_betas(5, 0.1, 0.5)
    np.testing.assert_allclose(betas, [0.1, 0.2, 0.3, 0.4, 0.5])


def test_model_variance_at_the_first_index_is_the_decoders():
    schedule = full(T=10)
    for kind in diffusion.VARIANCES:
        assert diffusion.model_variance(schedule, kind)[0] == schedule.posterior_variance[1] > 0
    small, large = (diffusion.model_variance(schedule, kind)[1:] for kind in diffusion.VARIANCES)
    np.testing.assert_array_equal(small, schedule.posterior_variance[1:])
    np.testing.assert_array_equal(large, schedule.beta[1:])


@pytest.mark.parametrize(
    ("steps", "spacing", "expected"),
    [
        (1, "trailing", [9]),
        (3, "trailing", [2, 5, 9]),
        (5, "trailing", [1, 3, 5, 7, 9]),
        (9, "trailing", [0, 1, 2, 3, 4, 5, 6, 7, 9]),
        (10, "trailing", list(range(10))),
        (5, "leading", [0, 2, 4, 6, 8]),
        (4, "leading", [0, 2, 4, 6]),
    ],
)
def test_respaced_timesteps(steps, spacing, expected):
    schedule = full(T=10)
    short = diffusion.respace(schedule, steps, spacing)
    assert short.timesteps.tolist() == expected
    np.testing.assert_array_equal(short.alpha, schedule.alpha[expected])
    alpha_bar = np.exp(schedule.log_alpha_bar)[expected]
    beta = 1 - alpha_bar / np.concatenate([[1], alpha_bar[:-1]])
    np.testing.assert_allclose(short.beta, beta, rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 11, -1])
def test_respace_refuses_impossible_numbers_of_steps(steps):
    with pytest.raises(ValueError, match=f"steps={steps}.*between 1 and 10"):
        diffusion.respace(full(T=10), steps)


def test_errors_name_the_choices():
    schedule, x = full(T=10), jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="trailing, leading"):
        diffusion.respace(schedule, 2, "middle")
    with pytest.raises(ValueError, match="fixed_small, fixed_large"):
        diffusion.model_variance(schedule, "learned")
    with pytest.raises(ValueError, match="epsilon, x0, v"):
        diffusion.to_prediction("score", schedule, x, x, 0)
    with pytest.raises(ValueError, match="epsilon, x0, v"):
        diffusion.prediction_target("score", schedule, x, x, 0)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        diffusion.schedule_from_betas(np.array([0.1, 1.0]))
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        diffusion.ddim(None, schedule, x, jax.random.key(0), eta=1.5)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("kind", diffusion.PREDICTIONS)
def test_every_prediction_gives_back_x0_and_epsilon(kind, name):
    schedule = full(name)
    index = jnp.array([0, 1, 10, 300, 700, 990, 999])
    shape = (len(index), 3, 3, 1)
    x0 = jax.random.uniform(jax.random.key(0), shape, minval=-1)
    noise = jax.random.normal(jax.random.key(1), shape)
    x = diffusion.q_sample(schedule, x0, index, noise)
    alpha_bar = np.exp(schedule.log_alpha_bar)[index].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        x, np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * noise, rtol=1e-5, atol=1e-6
    )
    target = diffusion.prediction_target(kind, schedule, x0, noise, index)
    pair = diffusion.to_prediction(kind, schedule, target, x, index)
    # Division by alpha, or by sigma, magnifies float32's 6e-8 of x.
    scale = 4e-7 / np.sqrt(alpha_bar) if kind == "epsilon" else 2e-6
    assert np.all(np.abs(pair.x0 - x0) < scale)
    scale = 4e-7 / np.sqrt(1 - alpha_bar) if kind == "x0" else 2e-6
    assert np.all(np.abs(pair.epsilon - noise) < scale)


def test_v_is_the_velocity_on_the_circle():
    """v = d x / d phi with x = cos(phi) x0 + sin(phi) epsilon (Salimans & Ho 2022, app. D)."""
    schedule = full()
    x0, noise = 0.3, -1.2
    for index in (0, 400, 999):
        phi = np.arctan2(schedule.sigma[index], schedule.alpha[index]).astype(np.float64)
        h = 1e-5
        slope = (
            np.cos(phi + h) * x0
            + np.sin(phi + h) * noise
            - np.cos(phi - h) * x0
            - np.sin(phi - h) * noise
        ) / (2 * h)
        v = diffusion.prediction_target(
            "v", schedule, jnp.full((1, 1), x0), jnp.full((1, 1), noise), jnp.array([index])
        )
        np.testing.assert_allclose(v[0, 0], slope, rtol=1e-5)


def test_clipping_keeps_the_pair_consistent():
    schedule, index = full(), 600
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    output = jax.random.normal(jax.random.key(1), x.shape)
    pair = diffusion.to_prediction("epsilon", schedule, output, x, index)
    clipped = diffusion.clip_prediction(schedule, pair, x, index)
    assert float(jnp.abs(pair.x0).max()) > 1
    np.testing.assert_array_equal(clipped.x0, np.clip(pair.x0, -1, 1))
    np.testing.assert_allclose(
        schedule.alpha[index] * clipped.x0 + schedule.sigma[index] * clipped.epsilon, x, atol=1e-6
    )
