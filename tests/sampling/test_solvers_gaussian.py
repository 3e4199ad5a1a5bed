"""The solvers on Gaussian data, whose best denoiser and whose results are known exactly.

For x_0 ~ N(mu, s^2): x_t ~ N(alpha mu, V) with V = alpha^2 s^2 + sigma^2, and the best
x0_hat is mu + alpha s^2 / V (x_t - alpha mu). Every sampler is then an affine map of x_T and of
the noises.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables

from genjax.config import ConfigError
from genjax.sampling import grids, paths, solvers
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.solvers import SOLVERS
from genjax.sampling.table import solve

MU, S = 0.7, 0.5


def alpha_bars(name, T):
    """Independent of the code under test: plain products of 1 - beta, in float64."""
    if name == "linear":
        betas = np.linspace(0.1 / T, 20 / T, T)
    else:
        f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return np.cumprod(1 - betas)


def grid_of(name, T, steps=None, spacing="trailing"):
    path = paths.make(name, T)
    return path, grids.grid(path, grids.times(path, steps or T, spacing))


def denoiser(name, T, mu=MU, s=S):
    """The best denoiser, told the timestep of the full process."""
    bars = alpha_bars(name, T)
    gain = jnp.asarray(np.sqrt(bars) * s**2 / (bars * s**2 + 1 - bars), jnp.float32)
    residue = jnp.asarray(np.sqrt(1 - bars) / (bars * s**2 + 1 - bars), jnp.float32)
    alpha = jnp.asarray(np.sqrt(bars), jnp.float32)

    def predict(x, at, memory):
        t = at.time_input.astype(jnp.int32)
        shift = x - alpha[t] * mu
        return Prediction(mu + gain[t] * shift, residue[t] * shift), memory

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


def timesteps_of(table):
    """The timesteps of the calls, from the data's end."""
    return table.at.time_input[::-1].astype(int)


def run(predict, table, shape, seed=0, start=None):
    """Samples of the whole loop, each with its own key."""
    keys = jax.random.split(jax.random.key(seed), shape[0])
    told = {"stochastic": table.stochastic}
    solved = jax.jit(lambda keys, x: solve(predict, table, keys, shape[1:], start=x, **told))
    return np.asarray(solved(keys, start), np.float64)


def normal(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    return x, np.asarray(x, np.float64)


def assert_moments(samples, mean, var):
    """Within four standard errors of a Gaussian sample's mean and variance."""
    n = samples.size
    assert abs(samples.mean() - mean) < 4 * np.sqrt(var / n)
    assert abs(samples.var() / var - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
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
    table = solvers.ddpm(*grid_of(name, T, steps, spacing), variance=variance)
    samples = run(denoiser(name, T), table, (1000, 100))
    want = moments(alpha_bars(name, T), timesteps_of(table), variance)
    assert_moments(samples, *want)


def test_large_variance_is_exact_for_standard_normal_data():
    """Ho et al. 2020, section 3.2. Every x_t stays N(0, 1); the last step adds no noise."""
    table = solvers.ddpm(*grid_of("cosine", 5), variance="fixed_large")
    samples = run(denoiser("cosine", 5, mu=0.0, s=1.0), table, (1000, 100))
    assert_moments(samples, 0.0, alpha_bars("cosine", 5)[0])


@pytest.mark.parametrize("name", paths.NAMES)
def test_every_solver_hits_point_data_exactly(name):
    """On every path, in continuous and in discrete time, and from pure noise.

    There x_0 and epsilon stay what they are, so that every step of every order is exact.
    """
    x, noises = np.random.default_rng(0).standard_normal((2, 4)), np.ones((99, 2, 4))
    made = [paths.make(name)]
    if name in paths.BETAS:
        made += [paths.make(name, 50), paths.make(name, 50, zero_terminal_snr=True)]
    for path, (solver, maker) in itertools.product(made, SOLVERS.items()):
        for end in grids.ENDS:
            steep = solver == "pndm" and path.steps  # refused from nearly pure noise: see below
            grid = grids.grid(path, grids.times(path, 8, "leading" if steep else "uniform"), end)
            if solver == "pndm" and not grid.alpha[0]:
                continue
            table = maker.table(path, grid)

            def predict(x, at):
                return np.full_like(x, 0.3), (x - at.alpha * 0.3) / at.sigma

            found = tables.run(table, predict, table.start * x, noises)[-1]
            epsilon = (table.start * x - grid.alpha[0] * 0.3) / grid.sigma[0]
            want = grid.alpha[-1] * 0.3 + grid.sigma[-1] * epsilon
            if end == "data" or not table.stochastic:
                np.testing.assert_allclose(found, want, rtol=1e-7, err_msg=f"{solver} to {end}")


def test_what_pndm_refuses():
    path = paths.make("linear", 50, zero_terminal_snr=True)
    with pytest.raises(ConfigError, match="pure noise"):
        solvers.pndm(path, grids.grid(path, grids.times(path, 8)))
    with pytest.raises(ConfigError, match="at least 4"):
        solvers.pndm(*grid_of("linear", 50, 3))


def ddim_factor(bars, timesteps, s=S):
    """x_0 - mu over x_T - alpha mu: each step multiplies by the cosine between its levels."""
    now = bars[np.asarray(timesteps)]
    previous = np.concatenate([[1.0], now[:-1]])
    mixed = np.sqrt(now * previous) * s**2 + np.sqrt((1 - now) * (1 - previous))
    return np.prod(mixed / (now * s**2 + 1 - now))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize(("name", "steps"), [("linear", None), ("cosine", 10), ("cosine", 1)])
def test_ddim_map(name, steps, spacing):
    T = 100
    table, bars = solvers.ddim(*grid_of(name, T, steps, spacing)), alpha_bars(name, T)
    start, x = normal((20, 5))
    samples = run(denoiser(name, T), table, (20, 5), start=start)
    timesteps = timesteps_of(table)
    want = MU + ddim_factor(bars, timesteps) * (x - np.sqrt(bars[timesteps[-1]]) * MU)
    np.testing.assert_allclose(samples, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise(eta):
    """Mean and variance by recursion; with eta = 1 they are the ancestral sampler's."""
    T, steps = 100, 10
    table, bars = solvers.ddim(*grid_of("cosine", T, steps), eta=eta), alpha_bars("cosine", T)
    timesteps = timesteps_of(table)
    mean, var = 0.0, 1.0
    for i in reversed(range(steps)):
        now, previous = bars[timesteps[i]], bars[timesteps[i - 1]] if i else 1.0
        total = now * S**2 + 1 - now
        noise = eta**2 * (1 - previous) / (1 - now) * (1 - now / previous)
        gain = np.sqrt(previous * now) * S**2 + np.sqrt(1 - previous - noise) * np.sqrt(1 - now)
        gain /= total
        mean = np.sqrt(previous) * MU + gain * (mean - np.sqrt(now) * MU)
        var = gain**2 * var + noise
    if eta == 1:
        np.testing.assert_allclose(moments(bars, timesteps, "fixed_small"), (mean, var))
    samples = run(denoiser("cosine", T), table, (1000, 100))
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
        table, (start, x) = solvers.ddim(*grid_of("cosine", T, steps)), normal((4, 2))
        samples = run(denoiser("cosine", T), table, (4, 2), start=start)
        factor = (samples - MU) / (x - np.sqrt(bars[-1]) * MU)
        errors.append(np.abs(factor - exact).mean())
    slope = np.polyfit(np.log(numbers), np.log(errors), 1)[0]
    assert abs(slope + 1) < 0.1, (slope, errors)
    assert 1e-3 < errors[-1] < errors[0] < 0.5


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "dpm++_2m_sde"])
def test_only_the_key_decides_the_noise(name):
    """And the start decides it not: three runs from the same point."""
    table, predict = SOLVERS[name].table(*grid_of("cosine", 20, 5)), denoiser("cosine", 20)
    start, _ = normal((2, 3))
    first, again, other = (run(predict, table, (2, 3), k, start) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).min() > 0
