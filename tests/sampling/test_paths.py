"""Paths between data and noise against naive formulas in float64 and in rational numbers."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.sampling import bound, parametrisation, paths

PATHS = {name: paths.make(name) for name in paths.NAMES}
PATHS |= {f"{name} in 100 steps": paths.make(name, 100) for name in paths.BETAS}
PATHS |= {f"{name} in 100 steps to noise": paths.make(name, 100, True) for name in paths.BETAS}
PATHS |= {f"shifted {name}": paths.make(name, shift=3.0) for name in ("cosine", "flow", "edm")}


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_tables_are_exact_at_both_ends(name):
    """Against rational arithmetic on the same betas, where float32 sums would cancel."""
    betas = paths.BETAS[name](1000)
    path = paths.discrete(betas)
    at, steps = paths.levels(path, np.arange(1000)), bound.steps_of(path)
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
            large=float(beta),
            x0=float(previous) ** 0.5 * float(beta / (1 - now)),
            small=float((1 - previous) / (1 - now) * beta),
        )
        for field, value in want.items():
            np.testing.assert_allclose(getattr(steps, field)[t], value, 1e-9, 0, err_msg=field)
        np.testing.assert_allclose(at.alpha[t], want["alpha"], rtol=1e-10)
        np.testing.assert_allclose(at.sigma[t], want["sigma"], rtol=1e-10)
        np.testing.assert_allclose(bound.snr(steps)[t], float(now / (1 - now)), rtol=1e-10)


@pytest.mark.parametrize("T", [100, 250, 4000])
def test_linear_schedule_ends_equally_noisy_for_any_length(T):
    ours, reference = (
        np.log(paths.levels(paths.discrete(paths.linear_betas(n)), n - 1).alpha) for n in (T, 1000)
    )
    assert abs(ours / reference - 1) < 0.12


def test_linear_schedule_takes_its_ends():
    betas = paths.linear_betas(5, 0.1, 0.5)
    np.testing.assert_allclose(betas, [0.1, 0.2, 0.3, 0.4, 0.5])


def test_model_variance_at_the_first_index_is_the_decoders():
    steps = bound.steps_of(paths.make("cosine", 10))
    small, large = (bound.model_variance(steps, kind) for kind in ("fixed_small", "fixed_large"))
    assert small[0] == large[0] == steps.small[1] > 0
    np.testing.assert_array_equal(small[1:], steps.small[1:])
    np.testing.assert_array_equal(large[1:], steps.large[1:])


@pytest.mark.parametrize("scaling", paths.SCALINGS)
def test_scales_are_the_naive_formulas(scaling):
    lam = np.linspace(-8, 8, 33)
    alpha, sigma = paths.scales(scaling, lam)
    ratio = np.exp(-lam)
    want = {
        "preserving": (1 / np.sqrt(1 + ratio**2), ratio / np.sqrt(1 + ratio**2)),
        "linear": (1 / (1 + ratio), ratio / (1 + ratio)),
        "exploding": (np.ones(33), ratio),
    }[scaling]
    np.testing.assert_allclose(alpha, want[0], rtol=1e-13)
    np.testing.assert_allclose(sigma, want[1], rtol=1e-13)
    if scaling != "exploding":  # and to the ends, where the naive ones lose all digits
        alpha, sigma = paths.scales(scaling, np.array([-np.inf, -300.0, 300.0, np.inf]))
        np.testing.assert_allclose(alpha, [0, np.exp(-300.0), 1, 1], rtol=1e-13)
        np.testing.assert_allclose(sigma, [1, 1, np.exp(-300.0), 0], rtol=1e-13)


@pytest.mark.parametrize("name", PATHS)
def test_lambda_and_time_are_inverse(name):
    path = PATHS[name]
    t = np.linspace(path.first, path.last, 201)[:-1]
    t = t[t <= path.last - 1] if "to noise" in name else t  # whose last step is a jump
    lam = path.lam(t)
    assert np.all(np.diff(lam) < 0)
    np.testing.assert_allclose(path.time(lam), t, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(path.lam(path.time(lam)), lam, rtol=1e-10, atol=1e-10)
    found = float(path.time(path.lam(np.float64(path.last))))
    np.testing.assert_allclose(found, path.last, rtol=1e-10)
    # The functions of JAX's arrays are the same ones.
    mine = np.asarray(path.lam(jnp.asarray(t, jnp.float32)))
    exact = path.lam(t.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(mine, exact, rtol=2e-5, atol=2e-5)


NAIVE = {
    # Song et al. 2021b, eq. 33; Nichol & Dhariwal 2021, eq. 17 with offset 0; Jabri et al. 2023.
    "linear": lambda t: (np.exp(-0.25 * t**2 * 19.9 - 0.05 * t), None),
    "cosine": lambda t: (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)),
    "sigmoid": lambda t: (
        np.sqrt((_sigmoid(3) - _sigmoid(6 * t - 3)) / (2 * _sigmoid(3) - 1)),
        None,
    ),
    "flow": lambda t: (1 - t, t),
    "edm": lambda t: (np.ones_like(t), t),
}


def _sigmoid(u):
    return 1 / (1 + np.exp(-u))


@pytest.mark.parametrize("name", NAIVE)
def test_continuous_paths_are_the_papers(name):
    path = PATHS[name]
    t = np.linspace(0.05, 0.95, 19)  # where no path is clipped
    at, (alpha, sigma) = paths.levels(path, t), NAIVE[name](t)
    sigma = np.sqrt(1 - alpha**2) if sigma is None else sigma
    np.testing.assert_allclose(at.alpha, alpha, rtol=1e-10)
    np.testing.assert_allclose(at.sigma, sigma, rtol=1e-10)
    told = 250 * np.log(t) if name == "edm" else 1000 * t
    np.testing.assert_allclose(at.time_input, told, rtol=1e-12)


def test_sigmoid_betas_are_the_papers():
    """Jabri et al. 2023, algorithm 1, at the whole steps of a process in discrete time."""
    alpha = paths.levels(paths.make("sigmoid", 50), np.arange(49)).alpha
    want, _ = NAIVE["sigmoid"](np.arange(1, 50) / 50)
    np.testing.assert_allclose(alpha, want, rtol=1e-9)


@pytest.mark.parametrize("name", ["cosine", "sigmoid"])
def test_the_cosine_ends_before_its_last_noise(name):
    """Lu et al. 2022b, appendix D: lambda is at least -5.1."""
    path = PATHS[name]
    assert path.lam(np.float64(path.last)) == pytest.approx(-5.1, rel=1e-9)
    assert path.lam(np.float64(path.first)) == pytest.approx(7.5, rel=1e-9)
    np.testing.assert_array_equal(path.lam(np.array([1e-9, 1 - 1e-9])), [7.5, -5.1])
    assert 0 < path.first < 0.01
    assert 0.99 < path.last < 1


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_zero_terminal_snr(name):
    """Lin et al. 2024, algorithm 1, word for word."""
    T = 1000
    betas = paths.BETAS[name](T)
    roots = np.sqrt(np.cumprod(1 - betas))
    first, last = roots[0], roots[-1]
    want = (roots - last) * first / (first - last)
    path = paths.make(name, T, zero_terminal_snr=True)
    at = paths.levels(path, np.arange(T))
    assert at.alpha[-1] == 0
    assert at.sigma[-1] == 1
    np.testing.assert_allclose(at.alpha[0], first, rtol=1e-12)
    np.testing.assert_allclose(at.alpha[:-1], want[:-1], rtol=1e-9)
    assert float(path.time(-np.inf)) == T - 1


def test_pure_noise_says_nothing_to_epsilon():
    path = paths.make("linear", 100, zero_terminal_snr=True)
    with pytest.raises(
        ConfigError, match=r"nothing about the data there.*Use v, velocity, x0 or edm"
    ):
        parametrisation.check("epsilon", path)
    with pytest.raises(ConfigError, match="ends in pure noise"):
        parametrisation.check("epsilon", PATHS["flow"])
    for kind in ("v", "velocity", "x0", "edm"):
        parametrisation.check(kind, path)
    parametrisation.check("epsilon", paths.make("linear", 100))


def test_a_shifted_flow_is_a_flow_at_other_times():
    """Esser et al. 2024, eq. 23."""
    t, s = np.linspace(0.01, 0.99, 99), 3.0
    at = paths.levels(paths.make("flow", shift=s), t)
    np.testing.assert_allclose(at.sigma, s * t / (1 + (s - 1) * t), rtol=1e-12)
    np.testing.assert_allclose(at.alpha, 1 - s * t / (1 + (s - 1) * t), rtol=1e-10)
    np.testing.assert_allclose(at.time_input, 1000 * t)
    path = paths.make("flow")
    assert paths.shifted(path, 1.0) is path


@pytest.mark.parametrize("name", ["linear", "cosine", "edm"])
def test_a_shift_multiplies_the_noise(name):
    """Hoogeboom et al. 2023, eq. 3: the signal-to-noise ratio is divided by the factor's square."""
    path = PATHS[name]
    t = np.linspace(path.first, path.last, 9)
    plain, moved = paths.levels(path, t), paths.levels(paths.shifted(path, 4.0), t)
    ratio = (moved.sigma / moved.alpha) / (plain.sigma / plain.alpha)
    np.testing.assert_allclose(ratio, 4.0, rtol=1e-10)


@pytest.mark.parametrize("name", ["linear", "flow", "edm"])
def test_noised_is_the_sum(name):
    at = paths.levels(PATHS[name], jnp.array([0.1, 0.4, 0.9]))
    x0, noise = (jax.random.normal(jax.random.key(k), (3, 2, 2, 1)) for k in (0, 1))
    x = paths.noised(at, x0, noise)
    for i in range(3):
        np.testing.assert_allclose(x[i], at.alpha[i] * x0[i] + at.sigma[i] * noise[i], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="cosin"), "Nearest: cosine"),
        (dict(name="flow", num_timesteps=10), "linear, cosine, sigmoid"),
        (dict(name="linear", num_timesteps=1), "at least 2, or 0"),
        (dict(name="flow", shift=0.0), "more than 0"),
        (dict(name="flow", zero_terminal_snr=True), "zero_terminal_snr=True.*continuous time"),
    ],
)
def test_paths_that_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        paths.make(**options)


def test_betas_that_are_refused():
    for betas in ([0.1, 1.0], [0.0, 0.5], [[0.1]]):
        with pytest.raises(ConfigError, match="strictly between 0 and 1"):
            paths.discrete(np.array(betas))


def test_a_sigmoid_that_is_not_symmetric():
    """Jabri et al. 2023, appendix B, in their own words."""
    start, end, tau, t = 0.0, 3.0, 0.5, np.linspace(0.05, 0.95, 19)
    v_start, v_end = _sigmoid(start / tau), _sigmoid(end / tau)
    gamma = (v_end - _sigmoid((t * (end - start) + start) / tau)) / (v_end - v_start)
    path = paths.sigmoid(start, end, tau)
    np.testing.assert_allclose(paths.levels(path, t).alpha, np.sqrt(gamma), rtol=1e-10)
    np.testing.assert_allclose(path.time(path.lam(t)), t, rtol=1e-9)
