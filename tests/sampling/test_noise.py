"""Noise of samplers: a Brownian motion's law, and that a sample is its key's and nobody else's."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax.sampling import grids, mixture, noise, paths, solvers
from genjax.sampling.table import NOISE, PAIRS, padded, solve

MIX = mixture.ring(8)
ALL = [
    paths.make("linear"),
    paths.make("cosine"),
    paths.make("sigmoid"),
    paths.make("flow"),
    paths.make("edm"),
    paths.make("linear", 1000),
    paths.make("cosine", 1000),
    paths.make("sigmoid", 1000),
    paths.make("linear", 1000, zero_terminal_snr=True),
]


def denoise(x, at, memory):
    return mixture.predict(MIX, x, at), memory


@partial(jax.jit, static_argnums=3)
def motion(keys, position, depth, shape=(2,)):
    """The motion of each key at several positions [P B ...], all compiled once."""
    return jax.vmap(lambda p: noise.brownian(keys, p, depth, shape))(position)


@pytest.mark.parametrize(
    ("depth", "where"),
    [
        (0, [0, 1]),
        (3, [0, 1, 2, 3, 5, 6, 8]),
        (11, [1, 2, 900, 1024, 1025, 2047, 2048]),
        (20, [1, 2, 3, 2**18 + 1, 2**19, 2**20 - 1, 2**20]),
    ],
)
def test_the_motion_is_brownian(depth, where):
    """Every covariance is the smaller share; increments over disjoint intervals are independent."""
    keys = jax.random.split(jax.random.key(depth), 6000)
    found = motion(keys, jnp.asarray(where), jnp.int32(depth))
    w = np.asarray(found, np.float64).reshape(len(where), -1)
    share = np.asarray(where) / 2**depth
    want = np.minimum.outer(share, share)
    error = np.sqrt((np.outer(share, share) + want**2) / w.shape[1])
    assert np.all(np.abs(w @ w.T / w.shape[1] - want) <= 5 * error)
    steps = np.diff(w, axis=0) / np.sqrt(np.diff(share))[:, None]
    n, tolerance = len(steps), 5 / np.sqrt(w.shape[1])
    np.testing.assert_allclose(steps @ steps.T / w.shape[1], np.eye(n), atol=2 * tolerance)
    np.testing.assert_allclose(steps.mean(1), 0, atol=tolerance)
    np.testing.assert_allclose((steps**4).mean(1), 3, atol=10 * tolerance)
    first, second = np.asarray(found, np.float64)[-1].T  # numbers of one sample, and two samples
    assert abs(np.mean(first * second)) < 5 / np.sqrt(len(keys))
    assert abs(np.mean(first[1:] * first[:-1])) < 5 / np.sqrt(len(keys))


def test_the_motion_is_the_same_at_every_depth_and_not_the_first_point():
    keys, where = jax.random.split(jax.random.key(0), 8), jnp.asarray([0, 1, 7, 21, 32])
    coarse = motion(keys, where, jnp.int32(5))
    for deeper in (1, 6, 15):
        fine = motion(keys, where * 2**deeper, jnp.int32(5 + deeper))
        np.testing.assert_array_equal(coarse, fine)
    np.testing.assert_array_equal(coarse[0], 0)
    assert np.abs(coarse[-1] - noise.normals(keys, 0, (2,))).min() > 0
    moved = motion(jax.random.split(jax.random.key(1), 8), where, jnp.int32(5))
    assert np.abs(coarse[1:] - moved[1:]).min() > 0


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.scaling}{p.steps}")
def test_two_halves_noises_are_that_of_the_whole(path):
    """20 steps and 40: each level's noise is the scaled sum of its halves'."""
    spacing = "trailing" if path.steps else "uniform"
    coarse, fine = (grids.grid(path, grids.times(path, n, spacing)) for n in (20, 40))
    positions = []
    for grid in (coarse, fine):
        with np.errstate(divide="ignore"):
            ratio = grid.sigma / grid.alpha
        positions.append(noise.positions(ratio))
    keys = jax.random.split(jax.random.key(0), 8)
    (few, shallow), (many, deep) = positions
    b = np.asarray(motion(keys, jnp.asarray(many[:3]), jnp.int32(deep)))
    # Where a level is on the coarse motion, it is on the fine one, but for a digit.
    shared = np.isin(np.round(coarse.sigma, 12), np.round(fine.sigma, 12))
    assert shared.sum() >= (20 if path.steps else 2)
    for i in np.flatnonzero(shared):
        j = int(np.abs(fine.sigma - coarse.sigma[i]).argmin())
        assert abs(few[i] / 2.0**shallow - many[j] / 2.0**deep) <= 2.0**-shallow
    whole = noise.increment(b[0], b[2], jnp.int32(many[0]), jnp.int32(many[2]), deep)
    halves = [
        noise.increment(b[i], b[i + 1], jnp.int32(many[i]), jnp.int32(many[i + 1]), deep)
        * np.sqrt(float(many[i] - many[i + 1]))
        for i in (0, 1)
    ]
    np.testing.assert_allclose(
        whole, sum(halves) / np.sqrt(float(many[0] - many[2])), rtol=2e-4, atol=2e-4
    )


def test_an_increment_is_standard_normal_and_none_where_nothing_moves():
    keys = jax.random.split(jax.random.key(0), 6000)
    depth = jnp.int32(9)
    a, b = motion(keys, jnp.asarray([300, 296]), depth)
    drawn = np.asarray(noise.increment(a, b, jnp.int32(300), jnp.int32(296), depth), np.float64)
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / drawn.size)
    still = noise.increment(a, a, jnp.int32(300), jnp.int32(300), depth)
    np.testing.assert_array_equal(still, 0)


@pytest.mark.parametrize("path", ALL, ids=lambda p: f"{p.scaling}{p.steps}")
def test_positions_fall_with_every_grid(path):
    """The most steps, too, whose last levels are closer than any digits tell."""
    spacings = ("uniform", "lambda", "karras") + ("leading", "linspace") * bool(path.steps)
    for spacing in spacings:
        for steps in (1, 2, 20, 250, 1000):
            if spacing == "linspace" and steps == 1000:
                continue  # takes a timestep twice, and is refused
            if spacing in ("lambda", "karras") and steps > 20 and path.steps:
                steps = 250
            grid = grids.grid(path, grids.times(path, steps, spacing))
            with np.errstate(divide="ignore"):
                position, depth = noise.positions(grid.sigma / grid.alpha)
            assert np.all(np.diff(position) < 0), (spacing, steps)
            assert position[-1] >= 0
            assert position[0] <= 2**depth
            assert depth <= noise.MOST


def test_positions_of_equal_and_of_crowded_levels():
    position, _ = noise.positions(np.asarray([4.0, 4.0, 1.0, 1.0, 0.0]))
    assert position[0] == position[1] > position[2] == position[3] > position[4]
    for crowd in (1e-12 * np.arange(9)[::-1], 1 + 1e-12 * np.arange(9)[::-1]):
        position, depth = noise.positions(crowd)
        assert depth == noise.MOST
        assert np.all(np.diff(position) == -1)
    huge = 1e15 * (1 + np.arange(9)[::-1])
    position, depth = noise.positions(np.append(np.inf, huge))
    assert np.all(np.diff(position) < 0)
    assert 0 <= position[-1] < position[0] <= 2**depth


def test_rows_that_draw_noise_move():
    """With every solver of noise at 1000 steps: an increment over nothing would be no noise."""
    path = paths.make("linear", 1000)
    grid = grids.grid(path, grids.times(path, 1000))
    drew = []
    for name, solver in solvers.SOLVERS.items():
        options = {"eta": 1.0} if "eta" in solver.options else {}
        table = solver.table(path, grid, **options)
        draws = sum(np.abs(t[:, NOISE]) for t in (table.point, table.anchor, table.second))
        assert np.all(np.diff(table.position)[draws > 0] < 0), name
        drew += [name] * table.stochastic
    assert set(drew) >= {"ddim", "ddpm", "euler_ancestral", "edm", "dpm++_2s", "dpm++_2m_sde"}
    assert not set(drew) & {"euler", "heun", "dpm++_2m", "unipc", "deis", "pndm"}


def ancestral(path, steps):
    return solvers.ddpm(path, grids.grid(path, grids.times(path, steps)))


def test_a_sample_does_not_depend_on_how_many_are_drawn_nor_on_the_devices():
    keys = jax.random.split(jax.random.key(0), 64)
    table = ancestral(paths.make("linear", 1000), 20)
    run = jax.jit(lambda keys: solve(denoise, table, keys, (2,)))
    together = np.asarray(run(keys))
    np.testing.assert_allclose(run(keys[:4]), together[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run(keys[::-1]), together[::-1])
    devices = jax.devices()
    assert len(devices) == 8
    for shape, spec in (((8,), ("a",)), ((2, 4), ("b",))):
        mesh = Mesh(np.reshape(devices, shape), ("a", "b")[: len(shape)])
        spread = jax.device_put(keys, NamedSharding(mesh, PartitionSpec(*spec)))
        drawn = run(spread)
        assert len(drawn.sharding.device_set) == 8
        np.testing.assert_allclose(drawn, together, rtol=1e-5, atol=1e-6)
    assert np.abs(np.diff(np.sort(together[:, 0]))).min() > 0  # no two alike


@pytest.mark.parametrize("name", ["linear1000", "edm"])
def test_few_and_many_steps_share_their_composition(name):
    """20 and 40 ancestral steps of a key end alike; another key's noise from the same first point
    leads elsewhere.
    """
    path = paths.make("edm") if name == "edm" else paths.make("linear", 1000)
    keys = jax.random.split(jax.random.key(0), 512)
    others = jax.random.split(jax.random.key(1), 512)

    @jax.jit
    def run(table, keys, start):
        return solve(denoise, table, keys, (2,), start=start)

    def grid(steps):
        return grids.grid(path, grids.times(path, steps, "karras" if name == "edm" else "uniform"))

    tables = [padded(solvers.ddpm(path, grid(n)), 40, PAIRS + 2) for n in (20, 40)]
    start = np.float32(tables[1].start) * noise.normals(keys, 0, (2,))
    few, many = (run(t, keys, start) for t in tables)
    elsewhere = run(tables[1], others, start)
    assert run._cache_size() == 1

    def alike(a, b):
        same = np.mean(mixture.nearest(MIX, a)[0] == mixture.nearest(MIX, b)[0])
        return same, np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]

    same, correlation = alike(few, many)
    chance, other = alike(elsewhere, many)
    assert same > 0.55, same
    assert correlation > 0.85, correlation
    assert chance < 0.35, chance
    assert other < 0.4, other
