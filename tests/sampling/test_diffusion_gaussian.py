"""The samplers on Gaussian data, whose best denoiser and whose results are known exactly.

For x_0 ~ N(mu, s^2): x_t ~ N(alpha mu, V) with V = alpha^2 s^2 + sigma^2, and the best
x0_hat is mu + alpha s^2 / V (x_t - alpha mu). Every sampler is then an affine map of x_T and of
the noises.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.sampling import diffusion

MU, S = 0.7, 0.5


def alpha_bars(name, T):
    """Independent of the code under test: plain products of 1 - beta, in float64."""
    if name == "linear":
        betas = np.linspace(0.1 / T, 20 / T, T)
    else:
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return np.cumprod(1 - betas)


def schedule_of(name, T, steps=None, spacing="trailing"):
    full = diffusion.schedule_from_betas(diffusion.NOISE_SCHEDULES[name](T))
    return diffusion.respace(full, steps, spacing)


def denoiser(name, T, mu=MU, s=S):
    """The best denoiser, told the timestep of the full process."""
    bars = alpha_bars(name, T)
    gain = jnp.asarray(np.sqrt(bars) * s**2 / (bars * s**2 + 1 - bars), jnp.float32)
    residue = jnp.asarray(np.sqrt(1 - bars) / (bars * s**2 + 1 - bars), jnp.float32)
    alpha = jnp.asarray(np.sqrt(bars), jnp.float32)

    def predict(x, t):
        assert t.shape == x.shape[:1]
        shift = x - alpha[t][:, None] * mu
        return diffusion.Prediction(mu + gain[t][:, None] * shift, residue[t][:, None] * shift)

    return predict


def moments(bars, timesteps, variance, mu=MU, s=S, mean=0.0, var=1.0):
    """Mean and variance of the ancestral sampler's x_0, by recursion in float64."""
    for i in reversed(range(len(timesteps))):
        now, previous = bars[timesteps[i]], bars[timesteps[i - 1]] if i else 1.0
        beta = 1 - now / previous
        small = (1 - previous) / (1 - now) * beta
        c0 = np.sqrt(previous) * beta / (1 - now)
        ct = np.sqrt(now / previous) * (1 - previous) / (1 - now)
        gain = np.sqrt(now) * s**2 / (now * s**2 + 1 - now)
        mean = c0 * (mu + gain * (mean - np.sqrt(now) * mu)) + ct * mean
        var = (c0 * gain + ct) ** 2 * var
        if i:
            var += small if variance == "fixed_small" else beta
    return mean, var


def run(sampler, predict, schedule, shape, **options):
    x = jax.random.normal(jax.random.key(0), shape)
    run = jax.jit(lambda x, key: sampler(predict, schedule, x, key, clip=False, **options))
    return np.asarray(run(x, jax.random.key(1)), np.float64), np.asarray(x, np.float64)


def assert_moments(samples, mean, var):
    """Within four standard errors of a Gaussian sample's mean and variance."""
    n = samples.size
    assert abs(samples.mean() - mean) < 4 * np.sqrt(var / n)
    assert abs(samples.var() / var - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.parametrize("variance", diffusion.VARIANCES)
@pytest.mark.parametrize(
    ("name", "T", "steps", "spacing"),
    [
        ("linear", 50, None, "trailing"),
        ("cosine", 50, None, "trailing"),
        ("cosine", 100, 7, "trailing"),
        ("linear", 100, 10, "leading"),
    ],
)
def test_ancestral_mean_and_variance(name, T, steps, spacing, variance):
    schedule = schedule_of(name, T, steps, spacing)
    samples, _ = run(
        diffusion.ancestral, denoiser(name, T), schedule, (1000, 100), variance=variance
    )
    want = moments(alpha_bars(name, T), schedule.timesteps, variance)
    assert_moments(samples, *want)


def test_large_variance_is_exact_for_standard_normal_data():
    """Ho et al. 2020, section 3.2. Every x_t stays N(0, 1); the last step adds no noise."""
    schedule = schedule_of("cosine", 5)
    predict = denoiser("cosine", 5, mu=0.0, s=1.0)
    samples, _ = run(diffusion.ancestral, predict, schedule, (1000, 100), variance="fixed_large")
    assert_moments(samples, 0.0, alpha_bars("cosine", 5)[0])


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_point_data_are_hit_exactly(sampler):
    predict = denoiser("cosine", 20, mu=0.3, s=1e-9)
    samples, _ = run(diffusion.SAMPLERS[sampler], predict, schedule_of("cosine", 20, 6), (5, 4))
    np.testing.assert_allclose(samples, 0.3, rtol=1e-6)


def ddim_factor(bars, timesteps, s=S):
    """x_0 - mu over x_T - alpha mu: each step multiplies by the cosine between its levels."""
    now = bars[np.asarray(timesteps)]
    previous = np.concatenate([[1.0], now[:-1]])
    mixed = np.sqrt(now * previous) * s**2 + np.sqrt((1 - now) * (1 - previous))
    return np.prod(mixed / (now * s**2 + 1 - now))


@pytest.mark.parametrize("spacing", diffusion.SPACINGS)
@pytest.mark.parametrize(("name", "steps"), [("linear", None), ("cosine", 10), ("cosine", 1)])
def test_ddim_map(name, steps, spacing):
    T = 100
    schedule, bars = schedule_of(name, T, steps, spacing), alpha_bars(name, T)
    samples, x = run(diffusion.ddim, denoiser(name, T), schedule, (20, 5))
    start = np.sqrt(bars[schedule.timesteps[-1]])
    want = MU + ddim_factor(bars, schedule.timesteps) * (x - start * MU)
    np.testing.assert_allclose(samples, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise(eta):
    """Mean and variance by recursion; with eta = 1 they are the ancestral sampler's."""
    T, steps = 100, 10
    schedule, bars = schedule_of("cosine", T, steps), alpha_bars("cosine", T)
    mean, var = 0.0, 1.0
    for i in reversed(range(steps)):
        now, previous = bars[schedule.timesteps[i]], bars[schedule.timesteps[i - 1]] if i else 1.0
        total = now * S**2 + 1 - now
        noise = eta**2 * (1 - previous) / (1 - now) * (1 - now / previous)
        gain = np.sqrt(previous * now) * S**2 + np.sqrt(1 - previous - noise) * np.sqrt(1 - now)
        gain /= total
        mean = np.sqrt(previous) * MU + gain * (mean - np.sqrt(now) * MU)
        var = gain**2 * var + noise
    if eta == 1:
        np.testing.assert_allclose(moments(bars, schedule.timesteps, "fixed_small"), (mean, var))
    samples, _ = run(diffusion.ddim, denoiser("cosine", T), schedule, (1000, 100), eta=eta)
    assert_moments(samples, mean, var)


def test_ddim_error_falls_as_one_over_steps():
    """DDIM is Euler's method on the probability flow, which carries x_t - alpha mu to x_0 - mu in
    proportion to sqrt(V): the exact map's factor is s / sqrt(V_T). The errors, 1e-1 ... 3e-3, stand
    well clear of float32's 1e-6.
    """
    T = 1000
    bars = alpha_bars("cosine", T)
    exact = S / np.sqrt(bars[-1] * S**2 + 1 - bars[-1])
    numbers, errors = (10, 20, 40, 100, 200), []
    for steps in numbers:
        samples, x = run(
            diffusion.ddim, denoiser("cosine", T), schedule_of("cosine", T, steps), (4, 2)
        )
        factor = (samples - MU) / (x - np.sqrt(bars[-1]) * MU)
        errors.append(np.abs(factor - exact).mean())
    slope = np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert abs(slope + 1) < 0.1, (slope, errors)
    assert 1e-3 < errors[-1] < errors[0] < 0.5


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_only_the_key_decides_the_noise(name):
    schedule, predict = schedule_of("cosine", 20, 5), denoiser("cosine", 20)
    x = jax.random.normal(jax.random.key(0), (2, 3))
    options = {"eta": 0.5} if name == "ddim" else {}
    first, again, other = (
        diffusion.SAMPLERS[name](predict, schedule, x, jax.random.key(k), clip=False, **options)
        for k in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).min()) > 0
