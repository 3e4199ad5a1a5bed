"""Every path, parametrisation, solver and spacing together: sound samples, or a reason why not."""

from __future__ import annotations

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.checks import ConfigError
from genjax.sampling import grids, guidance, mixture, parametrisation, paths, solvers
from genjax.sampling.guidance import Guidance
from genjax.sampling.table import NOISE, PAIRS, padded, solve

MIX = mixture.ring(8, deviation=0.1)
STEPS = 12
PATHS = {(name, 0, False): paths.make(name) for name in paths.NAMES}
PATHS |= {
    (name, 50, zero): paths.make(name, 50, zero)
    for name in ("linear", "cosine", "sigmoid")
    for zero in (False, True)
}
MOST_CALLS, WIDTH = 24, PAIRS + 2 * 4


def refusal(key, spacing, solver):
    """Why a combination is refused, by rules written here; None if it is not."""
    name, T, zero = key
    if not T and spacing in ("trailing", "leading"):
        return "whole timesteps, but a path in continuous time has none"
    if solver != "pndm" or spacing == "leading":
        return None
    if zero or name == "flow":
        return "pndm: the path ends in pure noise"
    steep = T and name != "linear" and spacing in ("uniform", "trailing", "linspace")
    return "pndm.*nearly pure noise" if steep else None


@functools.cache
def tables():
    """(path, spacing, solver) -> its table, and why there is none."""
    made, refused = {}, {}
    for key, path in PATHS.items():
        for spacing in grids.NAMES:
            for name, solver in solvers.SOLVERS.items():
                case = (key, spacing, name)
                try:
                    grid = grids.grid(path, grids.times(path, STEPS, spacing))
                    made[case] = solver.table(path, grid)
                except ConfigError as error:
                    refused[case] = str(error)
    return made, refused


def test_what_is_refused_is_refused_with_its_reason():
    made, refused = tables()
    assert len(made) + len(refused) == len(PATHS) * len(grids.NAMES) * len(solvers.SOLVERS)
    for (key, spacing, solver), said in refused.items():
        want = refusal(key, spacing, solver)
        assert want is not None, (key, spacing, solver, said)
        assert re.search(want, said), (key, spacing, solver, said)
    for case in made:
        assert refusal(*case) is None, case


def test_tables_are_finite_and_their_noise_moves():
    for case, table in tables()[0].items():
        for part in (*table.at, table.point, table.anchor, table.second, table.spread):
            assert np.isfinite(part).all(), case
        draws = sum(np.abs(t[:, NOISE]) for t in (table.point, table.anchor, table.second))
        assert np.all(np.diff(table.position)[draws > 0] < 0), case
        assert np.all(np.diff(table.position) <= 0), case
        assert table.calls <= MOST_CALLS


@functools.cache
def stacked():
    """All tables in one, of room for the largest."""
    made = tables()[0]
    wide = [padded(table, MOST_CALLS, WIDTH) for table in made.values()]
    return jax.tree.map(lambda *parts: np.stack(parts), *wide)


def denoiser(kind):
    """The exact pair, through the output of a network of a parametrisation."""

    def denoise(x, at, memory):
        pair = mixture.predict(MIX, x, at)
        output = parametrisation.target(kind, at, pair.x0, pair.epsilon)
        return parametrisation.interpret(kind, at, output, x), memory

    return denoise


def ends_in_noise(key):
    return key[0] == "flow" or key[2]


@pytest.mark.parametrize("kind", parametrisation.KINDS)
def test_samples_are_of_the_mixture(kind):
    """Distances to the nearest centre, over its deviation times sqrt(pi / 2), have a mean near 1.

    Few steps fall short of that: how far depends on the spacing alone.
    """
    made = list(tables()[0])
    if kind == "epsilon":
        for key in filter(ends_in_noise, PATHS):
            with pytest.raises(ConfigError, match="pure noise"):
                parametrisation.check(kind, PATHS[key])
    table = stacked()
    keys = jax.random.split(jax.random.key(0), 16)
    denoise = denoiser(kind)

    @jax.jit
    def run(table):
        return jax.vmap(lambda table: solve(denoise, table, keys, (2,)))(table)

    samples = np.asarray(run(table))
    assert samples.shape == (len(made), 16, 2)
    distance = mixture.nearest(MIX, samples.reshape(-1, 2).astype(np.float64))[1]
    mean = distance.reshape(len(made), 16).mean(1) / (MIX.deviation * np.sqrt(np.pi / 2))
    for case, value in zip(made, mean, strict=True):
        if kind == "epsilon" and ends_in_noise(case[0]) and case[1] != "leading":
            assert np.isnan(value), case  # that is why it is refused
        else:
            assert value < most(*case), (case, value)


def most(key, spacing, solver):
    """How far samples may be from their centre after 12 steps, over what is right.

    "linspace" in continuous time leaves the whole of small noise to one step, and so does any even
    grid on EDM's path, whose time is sigma, from 80.
    """
    if spacing in ("uniform", "linspace") and key[0] == "edm":
        return 50.0
    stochastic = solver in ("edm", "dpm++_2m_sde", "dpm++_3m_sde")
    if spacing == "linspace" and not key[1]:
        return 7.0 if stochastic else 4.0
    return (7.0 if spacing == "karras" else 2.7) if stochastic else 2.0


def test_nothing_is_compiled_again():
    """Another path, solver, grid, number of steps, eta or strength of guidance: one program."""
    labels = jnp.arange(16) % 8

    @jax.jit
    def run(table, strength, keys):
        def both(x, at):
            return mixture.predict(MIX, x, at, labels), mixture.predict(MIX, x, at)

        denoise = guidance.guided(both, strength)
        return solve(denoise, table, keys, (2,))

    keys, drawn = jax.random.split(jax.random.key(0), 16), []
    for name, T, solver, options, steps, scale in (
        ("cosine", 0, "ddim", dict(eta=0.0), 12, 1.0),
        ("cosine", 0, "ddim", dict(eta=1.0), 12, 1.0),
        ("linear", 50, "ddpm", dict(variance="fixed_large"), 20, 1.0),
        ("edm", 0, "heun", {}, 10, 2.0),
        ("flow", 0, "unipc_3", {}, 16, 1.5),
        ("sigmoid", 50, "dpm++_3m_sde", dict(eta=0.5), 24, 3.0),
        ("linear", 0, "pndm", {}, 12, 1.0),
    ):
        path = PATHS[name, T, False]
        grid = grids.grid(path, grids.times(path, steps, "lambda"))
        table = solvers.SOLVERS[solver].table(path, grid, **options)
        strength = Guidance(*map(np.float64, Guidance(scale)))
        samples = run(padded(table, MOST_CALLS, WIDTH), strength, keys)
        component, distance = mixture.nearest(MIX, samples)
        np.testing.assert_array_equal(component, labels)
        assert distance.max() < 6 * MIX.deviation
        drawn.append(np.asarray(samples))
    assert run._cache_size() == 1
    assert all(np.abs(a - b).max() > 1e-4 for a, b in itertools.pairwise(drawn))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: solvers.ddim(*p, eta=1.5), "eta=1.5"),
        (lambda p: solvers.dpm_multistep(*p, order=4), "order=4.*1, 2 or 3"),
        (lambda p: solvers.dpm_multistep(*p, eta=-1.0), "eta=-1"),
        (lambda p: solvers.dpm_singlestep(*p, eta=2.0), "eta=2"),
        (lambda p: solvers.unipc(*p, order=0), "order=0"),
        (lambda p: solvers.unipc(*p, kind="bh3"), "kind='bh3'.*bh1, bh2"),
        (lambda p: solvers.deis(*p, order=5), "order=5"),
        (lambda p: solvers.ddpm(*p, variance="small"), "variance='small'.*fixed_small"),
        (lambda p: solvers.heun(*p, churn=-1.0), "churn=-1"),
        (lambda p: solvers.pndm(*p, warmup="none"), "warmup='none'"),
        (lambda p: grids.grid(p[0], [0.5], "middle"), "middle"),
        (lambda p: grids.times(p[0], 0), "steps=0"),
        (lambda p: grids.times(p[0], 4, "evenly"), "spacing='evenly'"),
        (lambda p: grids.times(p[0], 4, shift=0.0), "shift=0"),
        (lambda p: grids.times(p[0], 2, given=(0.2, 0.4)), "decreasing times"),
        (lambda p: grids.times(p[0], 2, given=(2.0, 0.4)), "decreasing times"),
        (lambda p: grids.times(PATHS["linear", 50, False], 51), "between 1 and 50"),
        (lambda p: grids.times(PATHS["linear", 50, False], 5, shift=3.0), "shift=3.*lambda"),
        (lambda p: grids.grid(p[0], [0.5, 0.5]), "same noise twice"),
        (lambda p: paths.make("straight"), "straight.*flow"),
        (lambda p: paths.make("flow", 10), "num_timesteps.*linear, cosine, sigmoid"),
        (lambda p: paths.make("linear", 1), "num_timesteps=1"),
        (lambda p: paths.make("linear", zero_terminal_snr=True), "zero_terminal_snr"),
        (lambda p: paths.make("linear", shift=0.0), "shift=0"),
        (lambda p: parametrisation.check("score", p[0]), "score"),
    ],
)
def test_what_does_not_exist_is_refused(make, said):
    path = paths.make("cosine")
    with pytest.raises(ConfigError, match=said):
        make((path, grids.grid(path, grids.times(path, 6, "lambda"))))


@pytest.mark.parametrize("key", PATHS, ids=str)
@pytest.mark.parametrize("spacing", ["linspace", "lambda", "karras"])
def test_a_shifted_grid_keeps_its_ends_and_falls(key, spacing):
    """Of a flow it is Esser et al. 2024, eq. 23; nowhere do two steps come to lie together."""
    path, (name, T, _) = PATHS[key], key
    if T and spacing == "linspace":
        return
    plain = grids.times(path, 20, spacing)
    moved = grids.times(path, 20, spacing, shift=3.0)
    at, to = (path.lam(t) for t in (plain, moved))
    assert moved[0] == plain[0] == path.last
    assert np.isfinite(grids.grid(path, moved).alpha).all()
    assert np.all(to[1:] < at[1:])
    np.testing.assert_allclose(
        at[-1] - to[-1], np.log(3), atol=0.15 if T else 0.05
    )  # at little noise
    if name == "flow":
        np.testing.assert_allclose(moved, 3 * plain / (1 + 2 * plain), rtol=1e-9)
