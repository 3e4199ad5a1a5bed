"""Every solver on mixtures of Gaussians: its order, its law, and back again.

Orders and laws are measured on the tables themselves, in float64 by a reader of a few lines;
`solve` is then held against the reader.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import table_reader
from scipy import integrate, stats

from genjax.checks import ConfigError
from genjax.sampling import grids, mixture, noise, paths, solvers
from genjax.sampling.paths import Levels
from genjax.sampling.table import PAIRS, padded, solve

SMOOTH = mixture.ring(8, deviation=0.2)
MIX = mixture.ring(8)
X = np.random.default_rng(0).normal(size=(16, 2))
COUNTS = (16, 32, 64, 128, 256)


def predict(x, at):
    return mixture.predict(SMOOTH, x, at)


def row(grid, i):
    return Levels(*(float(a[i]) for a in grid))


def flow(path, first, last, x):
    """The probability flow from one level to another, by scipy's Runge-Kutta of order 8."""
    if path.scaling == "linear":  # dx/dt = epsilon - x_0, also from pure noise

        def slope(t, x):
            pair = predict(x.reshape(X.shape), Levels(0.0, 1 - t, t))
            return (pair.epsilon - pair.x0).ravel()

        span, scale = (first.sigma, last.sigma), (1.0, 1.0)
    else:  # dy / d log s = s epsilon, with y = x / alpha

        def slope(u, y):
            at = Levels(0.0, *paths.scales(path.scaling, np.float64(-u)))
            return np.exp(u) * predict(at.alpha * y.reshape(X.shape), at).epsilon.ravel()

        span = tuple(np.log(at.sigma / at.alpha) for at in (first, last))
        scale = first.alpha, last.alpha
    found = integrate.solve_ivp(
        slope, span, (x / scale[0]).ravel(), method="DOP853", rtol=1e-12, atol=1e-13
    )
    return scale[1] * found.y[:, -1].reshape(X.shape)


def grid_of(path, spacing, steps):
    """`steps` steps to the path's first level."""
    if spacing == "even":  # in lambda, from where the data begin to show
        given = path.time(np.linspace(-5.1, path.lam(path.first), steps + 1)[:-1])
        return grids.grid(path, grids.times(path, steps, given=tuple(given)), "first")
    times = grids.times(path, steps + (spacing != "trailing"), spacing)
    return grids.grid(path, times[:steps], "first")


@functools.cache
def exact(path, first, last, start):
    return flow(path, first, last, start * X)


def measured(path, spacing, solver):
    """Calls, errors, and the slope of the logarithm of one against that of the other."""
    calls, errors = [], []
    for steps in COUNTS:
        grid = grid_of(path, spacing, steps)
        table = solver(path, grid)
        start = float(table.start)
        found = table_reader.run(predict, table, start * X)
        want = exact(path, row(grid, 0), row(grid, -1), start)
        calls.append(table.calls)
        errors.append(np.sqrt(np.mean((found - want) ** 2)))
    return calls, errors, -np.polyfit(np.log(calls), np.log(errors), 1)[0]


# Name -> its order: at least that, and of the first three no more.
ORDERS = {
    "euler": 1,
    "ddim": 1,
    "dpm++_1s": 1,
    "heun": 2,
    "dpm++_2s": 2,
    "dpm++_2m": 2,
    "unipc": 2,
    "deis": 2,
    "pndm": 2,
    "dpm++_3m": 2,  # see below
    "unipc_3": 3,
    "deis_3": 3,
}
EVEN = [
    ("cosine", 0, "lambda"),
    ("linear", 0, "lambda"),
    ("linear", 1000, "lambda"),
    ("edm", 0, "karras"),
    ("edm", 0, "lambda"),
    ("flow", 0, "even"),
]


@pytest.mark.parametrize(("name", "T", "spacing"), EVEN)
def test_orders(name, T, spacing):
    """Where steps are even in lambda, or nearly, against scipy's solution of the ODE."""
    path = paths.make(name, T)
    assert set(ORDERS) == {n for n in solvers.SOLVERS if not table_of_eight(n).stochastic}
    for solver, order in ORDERS.items():
        calls, errors, slope = measured(path, spacing, solvers.SOLVERS[solver].table)
        assert slope > order - 0.15, (solver, slope, errors)
        assert order > 1 or slope < 1.1, (solver, slope, errors)
        assert solver not in ("heun", "dpm++_2s", "dpm++_2m", "deis") or slope < 2.3, (
            solver,
            slope,
        )
        assert errors[-1] < {1: 5e-3, 2: 3e-4, 3: 3e-6}[order], (solver, errors)
        assert calls[0] in {"heun": (32,), "pndm": (25,)}.get(solver, (16,)), (solver, calls)


def table_of_eight(name):
    path = paths.make("cosine")
    return solvers.SOLVERS[name].table(path, grid_of(path, "lambda", 8))


@pytest.mark.parametrize(
    ("name", "T", "spacing", "orders"),
    [
        ("flow", 0, "uniform", {"euler": 1, "heun": 2}),
        ("linear", 1000, "trailing", {"ddim": 1, "heun": 2, "dpm++_2m": 2, "deis": 2, "unipc": 2}),
    ],
)
def test_orders_over_time(name, T, spacing, orders):
    """Steps even in t: straight lines for a flow; whole timesteps, as far as they are even."""
    path = paths.make(name, T)
    for solver, order in orders.items():
        _, errors, slope = measured(path, spacing, solvers.SOLVERS[solver].table)
        assert order - 0.15 < slope < order + 0.2, (solver, slope, errors)


def test_why_3m_is_of_second_order():
    """With all of the second derivative's term, of which the published step takes half, it is of
    the third.
    """

    def whole(path, grid):
        table = solvers.dpm_multistep(path, grid, order=3)
        alpha, sigma = (np.append(a, b[-1]) for a, b in zip(table.at[1:], grid[1:], strict=True))
        lam, point = np.log(alpha / sigma), table.point.copy()
        for i in range(2, table.calls):
            h, older, oldest = (lam[i + 1 - k] - lam[i - k] for k in range(3))
            share = 0.5 - (1 + np.expm1(-h) / h) / h
            m = [1 / older, -1 / older - 1 / oldest, 1 / oldest]  # of x_0: a divided difference
            more = alpha[i + 1] * share * np.asarray(m) * h**2 / (older + oldest)
            point[i, PAIRS::2] += more
        return table._replace(point=point)

    path = paths.make("linear", 1000)
    published = measured(path, "lambda", solvers.SOLVERS["dpm++_3m"].table)
    corrected = measured(path, "lambda", whole)
    multistep = measured(path, "lambda", solvers.SOLVERS["dpm++_2m"].table)
    assert 1.8 < published[2] < 2.3
    assert 2.8 < corrected[2] < 3.2
    assert published[1][-1] < 0.5 * multistep[1][-1]


@pytest.mark.parametrize("solver", ORDERS)
def test_the_last_step_may_stand_still(solver):
    """Of a grid of whole timesteps from 0 to the first level, as DDIM's authors had it: nothing is
    divided by its length, and nothing moves.
    """
    path = paths.make("linear", 50)
    grid = grids.grid(path, grids.times(path, 16, "leading"), "first")
    assert grid.sigma[-1] == grid.sigma[-2]
    table = solvers.SOLVERS[solver].table(path, grid)
    last = table.calls - (2 if solver == "heun" else 1)
    cut = Levels(*(a[:last] for a in table.at))
    before = table._replace(at=cut, keep=table.keep[:last])
    found, want = (table_reader.run(predict, t, X) for t in (table, before))
    assert np.isfinite(found).all()
    if solver.startswith("unipc"):  # its last call corrects the point that it stands at
        assert 0 < np.abs(found - want).max() < 0.1
    else:
        np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("warmup", ["runge_kutta", "multistep"])
def test_pndm_is_refused_from_nearly_pure_noise(warmup):
    """Its samples are finite there, and hundreds of deviations off."""
    path = paths.make("cosine", 1000)
    with pytest.raises(ConfigError, match=r"pndm.*diverges.*leading"):
        solvers.pndm(path, grids.grid(path, grids.times(path, 20)), warmup=warmup)
    sound = solvers.pndm(path, grids.grid(path, grids.times(path, 20, "leading")), warmup=warmup)
    samples = table_reader.run(predict, sound, X)
    assert mixture.nearest(SMOOTH, samples)[1].max() < 5 * SMOOTH.deviation


# ---- `solve` is its table ------------------------------------------------------------------------

POINT_ROWS, WIDTH = 48, PAIRS + 2 * 4


def denoise(x, at, memory):
    return mixture.predict(SMOOTH, x, at), memory


@jax.jit
def run_padded(table, keys, fraction=0.0):
    def told(x, at, memory):
        return mixture.predict(SMOOTH, x, at)._replace(fraction=jnp.full_like(x, fraction)), memory

    return solve(told, table, keys, (2,))


@jax.jit
def drawn_noise(table, keys):
    """The first point over its deviation, and the noise of each row [N B D]."""
    motion = jax.vmap(lambda p: noise.brownian(keys, p, table.depth, (2,)))(table.position)
    fall = (table.position[:-1] - table.position[1:]).astype(jnp.float32)
    increments = (motion[:-1] - motion[1:]) * jnp.exp2(0.5 * table.depth.astype(jnp.float32))
    return noise.normals(keys, 0, (2,)), increments / jnp.sqrt(jnp.maximum(fall, 1))[:, None, None]


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_solve_is_its_table(name):
    """To float32's digits, padded or not, with the noise of its own motion."""
    path, solver = paths.make("cosine"), solvers.SOLVERS[name]
    options = {"eta": 0.7} if "eta" in solver.options else {}
    options |= {"variance": "fixed_large"} if name == "ddpm" else {}
    table = solver.table(path, grids.grid(path, grids.times(path, 20, "lambda")), **options)
    keys = jax.random.split(jax.random.key(0), 16)
    wide = padded(table, POINT_ROWS, WIDTH)
    found = run_padded(wide, keys)
    start, drawn = (np.asarray(a, np.float64) for a in drawn_noise(wide, keys))
    want = table_reader.run(predict, table, float(table.start) * start, drawn)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    assert run_padded._cache_size() == drawn_noise._cache_size() == 1


def test_solve_without_noise_padding_or_keys():
    """From a given point, unpadded, and not stochastic: the same."""
    path = paths.make("cosine")
    table = solvers.heun(path, grids.grid(path, grids.times(path, 8, "lambda")))
    keys = jax.random.split(jax.random.key(0), len(X))
    found = jax.jit(lambda x: solve(denoise, table, keys, (2,), stochastic=False, start=x))(
        jnp.asarray(X, jnp.float32)
    )
    np.testing.assert_allclose(found, table_reader.run(predict, table, X), rtol=1e-4, atol=1e-5)


# ---- the law of those that draw noise ------------------------------------------------------------

MU, S = 0.7, 0.5
STOCHASTIC = {
    "ddim": dict(eta=1.0),
    "ddim, half": dict(eta=0.5),
    "ddpm": dict(variance="fixed_small"),
    "ddpm, large": dict(variance="fixed_large"),
    "euler_ancestral": {},
    "edm": dict(churn=20.0, churn_noise=1.0),
    "dpm++_1s": dict(eta=1.0),
    "dpm++_2s": dict(eta=1.0),
    "dpm++_2m_sde": dict(eta=1.0),
    "dpm++_2m_sde, half": dict(eta=0.5),
    "dpm++_3m_sde": dict(eta=1.0),
}
GAUSSIAN_PATHS = [("cosine", 0), ("flow", 0), ("edm", 0), ("linear", 1000)]


def table_of(case, path, grid):
    return solvers.SOLVERS[case.split(",")[0]].table(path, grid, **STOCHASTIC[case])


def karras(path, steps):
    """A grid to the data, from where hardly anything is left of them."""
    times = grids.times(path, steps, "uniform" if path.scaling == "linear" else "karras")
    return grids.grid(path, times)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("name", "T"), GAUSSIAN_PATHS)
def test_moments_of_ddim_by_recursion(name, T, eta):
    """Song et al. 2021, eq. 12 and 16, of a Gaussian in s and lambda, written anew."""
    path = paths.make(name, T)
    grid = karras(path, 9)
    table = solvers.ddim(path, grid, eta=eta)
    mean, variance = 0.0, float(table.start) ** 2
    for i in range(9):
        at, to = row(grid, i), row(grid, i + 1)
        total = at.alpha**2 * S**2 + at.sigma**2
        ratio = 0.0 if not at.alpha else to.sigma * at.alpha / (to.alpha * at.sigma)
        added = eta**2 * to.sigma**2 * (1 - ratio**2)
        x0 = (at.alpha * S**2 / total, at.sigma**2 / total * MU)
        noise = (at.sigma / total, -at.sigma * at.alpha / total * MU)
        kept = np.sqrt(to.sigma**2 - added)
        slope, offset = (to.alpha * a + kept * b for a, b in zip(x0, noise, strict=True))
        mean, variance = slope * mean + offset, slope**2 * variance + added
    np.testing.assert_allclose(table_reader.moments(table, MU, S), (mean, variance), rtol=1e-9)


@pytest.mark.parametrize(("name", "T"), GAUSSIAN_PATHS)
def test_the_ancestral_samplers_are_one(name, T):
    """Ho et al.'s posterior, DDIM with eta 1 and the first-order SDE solver (Lu et al. 2022b) agree
    wherever the pair explains the point.
    """
    path = paths.make(name, T)
    grid = karras(path, 12)
    same = [
        solvers.ddpm(path, grid),
        solvers.ddim(path, grid, eta=1.0),
        solvers.SOLVERS["euler_ancestral"].table(path, grid),
        solvers.dpm_multistep(path, grid, order=1, eta=1.0),
    ]
    drawn = np.random.default_rng(1).normal(size=(12, *X.shape))
    want = table_reader.run(predict, same[0], X, drawn)
    for table in same[1:-1] if path.scaling == "linear" else same[1:]:
        np.testing.assert_allclose(table_reader.run(predict, table, X, drawn), want, atol=1e-9)
    moments = [table_reader.moments(table, MU, S) for table in same]
    np.testing.assert_allclose(moments, [moments[0]] * 4, rtol=1e-9)


@pytest.mark.parametrize("case", STOCHASTIC)
@pytest.mark.parametrize(("name", "T"), GAUSSIAN_PATHS)
def test_moments_come_to_those_of_the_data(name, T, case):
    """The law converges, at least as one over the steps."""
    path = paths.make(name, T)
    errors = []
    for steps in (50, 100, 200, 400):
        mean, variance = table_reader.moments(table_of(case, path, karras(path, steps)), MU, S)
        errors.append(np.hypot(mean - MU, np.sqrt(variance) - S))
    assert errors[-1] < 0.02, errors
    slope = -np.polyfit(np.log([50, 100, 200, 400]), np.log(errors), 1)[0]
    assert slope > 0.8 or errors[-1] < 1e-3, (slope, errors)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++_2m_sde", "dpm++_2s", "edm"])
def test_samples_have_the_mixtures_law(name):
    """Shares of the components by a chi-squared test, means and covariances within each."""
    count = 4096
    path = paths.make("cosine")
    solver = solvers.SOLVERS[name]
    options = {"eta": 1.0} if "eta" in solver.options else {}
    options |= dict(churn=20.0, churn_noise=1.0) if name == "edm" else {}
    grid = grids.grid(path, grids.times(path, 50 if name == "edm" else 100, "lambda"))
    table = solver.table(path, grid, **options)
    table = padded(table, 100, PAIRS + 6)
    x = np.asarray(many(table, jax.random.split(jax.random.key(7), count)), np.float64)
    component, distance = mixture.nearest(MIX, x)
    assert stats.chisquare(np.bincount(component, minlength=8)).pvalue > 1e-3
    np.testing.assert_allclose(x.mean(0), 0, atol=4 * 0.5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(x.T), np.cov(draws().T), atol=0.02)
    within = x - MIX.centres[component]
    np.testing.assert_allclose(within.mean(0), 0, atol=5 * MIX.deviation / np.sqrt(count))
    np.testing.assert_allclose(np.cov(within.T) / MIX.deviation**2, np.eye(2), atol=0.12)
    assert distance.max() < 6 * MIX.deviation


@jax.jit
def many(table, keys):
    def denoise(x, at, memory):
        return mixture.predict(MIX, x, at), memory

    return solve(denoise, table, keys, (2,))


@functools.cache
def draws():
    return np.asarray(mixture.draw(MIX, jax.random.key(1), 20000), np.float64)


def test_the_learned_variance_lies_between_the_two():
    """Fraction 0 is the small variance, 1 the large (Nichol & Dhariwal 2021, eq. 15)."""
    path = paths.make("linear", 100)
    grid = grids.grid(path, grids.times(path, 25))
    keys = jax.random.split(jax.random.key(0), 16)
    found = {}
    for name in solvers.VARIANCES:
        table = padded(solvers.ddpm(path, grid, variance=name), POINT_ROWS, WIDTH)
        for fraction in (0.0, 1.0):
            found[name, fraction] = np.asarray(run_padded(table, keys, fraction))
    small, large = found["fixed_small", 0.0], found["fixed_large", 0.0]
    np.testing.assert_allclose(found["learned", 0.0], small, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["learned", 1.0], large, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["fixed_large", 1.0], large)
    assert np.abs(small - large).max() > 0.01


# ---- from data to noise and back -----------------------------------------------------------------


@pytest.mark.parametrize(("name", "T"), [("cosine", 0), ("edm", 0), ("flow", 0), ("linear", 1000)])
def test_inversion_comes_back(name, T):
    """Up to the noise and down again: the error falls as one over the steps, DDIM's order."""
    path, errors = paths.make(name, T), []
    first = paths.levels(path, path.first)
    data = np.asarray(mixture.draw(SMOOTH, jax.random.key(3), 16), np.float64)
    x = float(first.alpha) * data + float(first.sigma) * X
    for steps in (25, 50, 100, 200):
        grid = grid_of(path, "uniform" if path.scaling == "linear" else "lambda", steps)
        up = table_reader.run(predict, solvers.inverse(path, grid), x)
        down = solvers.ddim(path, grid)
        errors.append(np.abs(table_reader.run(predict, down, up) - x).mean())
    slope = -np.polyfit(np.log([25, 50, 100, 200]), np.log(errors), 1)[0]
    assert 0.8 < slope < 1.3, (slope, errors)
    assert errors[-1] < 0.02
    # What it comes to is noise, and that of the probability flow.
    want = flow(path, row(grid, -1), row(grid, 0), x) if grid.alpha[0] else None
    if want is not None:
        top = float(np.hypot(grid.alpha[0], grid.sigma[0]))
        np.testing.assert_allclose(up / top, want / top, atol=0.1)


def test_inversion_runs_in_the_loop_and_needs_a_first_level():
    path = paths.make("cosine")
    grid = grid_of(path, "lambda", 20)
    table = solvers.inverse(path, grid)
    assert not table.stochastic
    keys = jax.random.split(jax.random.key(0), len(X))
    x = jnp.asarray(X, jnp.float32)
    found = jax.jit(lambda x: solve(denoise, table, keys, (2,), start=x))(x)
    np.testing.assert_allclose(found, table_reader.run(predict, table, X), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="end='first'"):
        solvers.inverse(path, grids.grid(path, grids.times(path, 20, "lambda")))
