"""Guidance against closed forms of a mixture of Gaussians, and against its papers by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.checks import ConfigError
from genjax.sampling import grids, guidance, mixture, paths, solvers
from genjax.sampling.guidance import Guidance
from genjax.sampling.parametrisation import Prediction
from genjax.sampling.paths import Levels
from genjax.sampling.table import solve

MIX = mixture.ring(8, deviation=0.2, groups=3)
WORSE = MIX._replace(deviation=0.4)
LABEL = np.arange(24) % 3
X = np.random.default_rng(0).normal(size=(24, 2))
PLACES = [("cosine", 0.2), ("cosine", 0.6), ("flow", 0.5), ("edm", 0.3), ("edm", 2.0)]


def level(name, t):
    return paths.levels(paths.make(name), t)


def single(at):
    return Levels(*(jnp.float32(a) for a in at))


def by_label(x, at):
    """The conditional and the unconditional prediction."""
    return mixture.predict(MIX, x, at, jnp.asarray(LABEL)), mixture.predict(MIX, x, at)


def by_worse(x, at):
    """Autoguidance: the same label, by a worse model."""
    label = jnp.asarray(LABEL)
    return mixture.predict(MIX, x, at, label), mixture.predict(WORSE, x, at, label)


def score_of(pair, at, x):
    """Of x_0 and of epsilon, which have to agree."""
    a, b = (at.alpha * np.float64(pair.x0) - x) / at.sigma**2, -np.float64(pair.epsilon) / at.sigma
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 / at.sigma)
    return a


@pytest.mark.parametrize("both", [by_label, by_worse])
@pytest.mark.parametrize(("name", "t"), PLACES)
def test_the_guided_score_is_the_closed_form(name, t, both):
    """score_u + w (score_c - score_u), of the exact scores in float64."""
    at, w = level(name, t), 2.5
    good = mixture.score(MIX, X, at, LABEL)
    bad = mixture.score(MIX, X, at) if both is by_label else mixture.score(WORSE, X, at, LABEL)
    pair, _ = guidance.guided(both, Guidance(w))(jnp.asarray(X, jnp.float32), single(at), ())
    want = bad + w * (good - bad)
    tolerance = 1e-5 * (1 + np.abs(want).max()) / at.sigma
    np.testing.assert_allclose(score_of(pair, at, X), want, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("kind", ["linear", "projected"])
def test_guidance_of_one_is_none(kind):
    at, x = level("cosine", 0.5), jnp.asarray(X, jnp.float32)
    pair, _ = guidance.guided(by_label, Guidance(1.0), kind)(x, single(at), jnp.zeros_like(x))
    good = by_label(x, single(at))[0]
    np.testing.assert_array_equal(pair.x0, good.x0)
    np.testing.assert_allclose(pair.epsilon, good.epsilon, atol=2e-6)


@pytest.mark.parametrize("kind", guidance.KINDS)
@pytest.mark.parametrize(("t", "inside"), [(0.049, 0), (0.05, 1), (0.5, 1), (0.51, 0)])
def test_interval(kind, t, inside):
    """On EDM's path t is sigma / alpha; both ends are inside (Kynkäänniemi et al. 2024, eq. 5)."""
    x, at = jnp.asarray(X, jnp.float32), single(level("edm", t))
    g = Guidance(0.6, jnp.float32(0.05), jnp.float32(0.5), rescale=0.5 * (kind != "cfg++"))
    pair, _ = guidance.guided(by_label, g, kind)(x, at, jnp.zeros_like(x))
    everywhere, _ = guidance.guided(by_label, g._replace(low=0.0, high=np.inf), kind)(
        x, at, jnp.zeros_like(x)
    )
    good = by_label(x, at)[0]
    want, other = (everywhere, good) if inside else (good, everywhere)
    np.testing.assert_allclose(pair.x0, want.x0, atol=1e-6)
    np.testing.assert_allclose(pair.epsilon, want.epsilon, atol=1e-4)
    assert np.abs(pair.x0 - other.x0).max() > 1e-4


def images(seed):
    """Predictions of 2 examples, 3 x 3 x 2, with x_t that they explain."""
    at = level("cosine", 0.4)
    draw = np.random.default_rng(seed).normal
    x, good, bad = (draw(size=(2, 3, 3, 2)) for _ in range(3))
    return at, x, good, bad


def as_both(good, bad, at):
    def both(x, _):
        return tuple(
            Prediction(jnp.float32(x0), (x - jnp.float32(at.alpha * x0)) / jnp.float32(at.sigma))
            for x0 in (good, bad)
        )

    return both


def test_rescale_is_lin_et_al_eq_15_and_16():
    at, x, good, bad = images(0)
    w, phi = 3.0, 0.7
    guided = bad + w * (good - bad)
    axes = (1, 2, 3)
    rescaled = guided * good.std(axes, keepdims=True) / guided.std(axes, keepdims=True)
    want = phi * rescaled + (1 - phi) * guided
    denoise = guidance.guided(as_both(good, bad, at), Guidance(w, rescale=phi))
    pair, _ = denoise(jnp.float32(x), single(at), ())
    np.testing.assert_allclose(pair.x0, want, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(at.alpha * pair.x0 + at.sigma * pair.epsilon, x, atol=1e-5)


def test_projected_is_sadat_et_als_algorithm_1():
    """Three calls by hand: momentum, the bound of the norm, the two projections."""
    w, eta, radius, beta = 4.0, 0.3, 2.5, -0.5
    g = Guidance(w, parallel=eta, radius=radius, momentum=beta)
    memory, running = jnp.zeros((2, 3, 3, 2)), np.zeros((2, 3, 3, 2))
    lengths = []
    for call in range(3):
        at, x, good, bad = images(call)
        denoise = guidance.guided(as_both(good, bad, at), g, "projected")
        pair, memory = denoise(jnp.float32(x), single(at), memory)
        running = (good - bad) + beta * running
        np.testing.assert_allclose(memory, running, rtol=1e-5, atol=1e-5)
        for n in range(2):
            d, v = running[n].ravel(), good[n].ravel()
            lengths.append(np.linalg.norm(d))
            d = d * min(1, radius / lengths[-1])
            along = d @ v / (v @ v) * v
            want = v + (w - 1) * (d - along + eta * along)
            np.testing.assert_allclose(pair.x0[n].ravel(), want, rtol=2e-5, atol=2e-5)
    assert max(lengths) > radius


@pytest.mark.parametrize("parallel", [0.0, 1.0])
def test_projected_turns_away_and_stays_short(parallel):
    at, x, good, bad = images(5)
    w = 7.0
    g = Guidance(w, parallel=parallel, radius=0.5)
    denoise = guidance.guided(as_both(good, bad, at), g, "projected")
    moved = np.float64(denoise(jnp.float32(x), single(at), 0.0)[0].x0) - good
    inner = (moved * good).sum((1, 2, 3))
    assert np.all(np.sqrt((moved**2).sum((1, 2, 3))) < (w - 1) * 0.5 * 1.0001)
    assert np.all(np.abs(inner) < 1e-4) if parallel == 0 else np.all(np.abs(inner) > 0.1)


def test_cfg_plus_plus_is_chung_et_als_algorithm_1():
    """x_0 of lambda, and the noise of the unconditional prediction, by DDIM."""
    path, strength = paths.make("cosine"), 0.6
    grid = grids.grid(path, grids.times(path, 12, "lambda"))
    denoise = guidance.guided(by_label, Guidance(strength), "cfg++")
    keys = jax.random.split(jax.random.key(0), len(X))
    start = jnp.asarray(X, jnp.float32)
    run = jax.jit(lambda x: solve(denoise, solvers.ddim(path, grid), keys, (2,), start=x))
    x = X.copy()
    for i in range(12):
        at, to = (Levels(*(float(a[k]) for a in grid)) for k in (i, i + 1))
        null, good = mixture.predict(MIX, x, at), mixture.predict(MIX, x, at, LABEL)
        noise = null.epsilon + strength * (good.epsilon - null.epsilon)
        x0 = (x - at.sigma * noise) / at.alpha
        x = to.alpha * x0 + to.sigma * null.epsilon
    np.testing.assert_allclose(run(start), x, atol=2e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(("name", "t"), PLACES)
def test_classifier_guidance_by_the_exact_posterior(name, t, scale):
    """By Bayes' rule scale 1 is the conditional model, and w is classifier-free guidance of w."""
    at, x, label = level(name, t), jnp.asarray(X, jnp.float32), jnp.asarray(LABEL)
    denoise = guidance.classifier_guided(
        lambda x, at, memory: (mixture.predict(MIX, x, at), memory),
        lambda x, at: mixture.log_label(MIX, x, at, label),
        scale,
    )
    pair, _ = denoise(x, single(at), ())
    null, good = (mixture.score(MIX, X, at, la) for la in (None, LABEL))
    want = null + scale * (good - null)
    tolerance = 2e-5 * (1 + np.abs(want).max()) / at.sigma
    np.testing.assert_allclose(score_of(pair, at, X), want, rtol=1e-4, atol=tolerance)


def test_a_classifier_says_nothing_in_pure_noise():
    at, x, label = single(Levels(1000.0, 0.0, 1.0)), jnp.asarray(X, jnp.float32), jnp.asarray(LABEL)
    denoise = guidance.classifier_guided(
        lambda x, at, memory: (mixture.predict(MIX, x, at), memory),
        lambda x, at: mixture.log_label(MIX, x, at, label),
        2.0,
    )
    pair, _ = denoise(x, at, ())
    want = mixture.predict(MIX, x, at)
    np.testing.assert_allclose(pair.x0, want.x0, atol=1e-6)
    np.testing.assert_allclose(pair.epsilon, want.epsilon, atol=1e-6)


def fixed(x0, at):
    def denoise(x, level, memory):
        return Prediction(x0, (x - level.alpha * x0) / level.sigma, x0), memory

    return denoise


def test_dynamic_thresholding_is_saharia_et_als():
    """Each example by its own percentile, and not at all where that is below 1."""
    at, x, x0, _ = images(1)
    x0[0] *= 3
    x0[1] = np.clip(0.2 * x0[1], -0.9, 0.9)
    pair, _ = guidance.thresholded(fixed(jnp.float32(x0), single(at)), 90.0)(
        jnp.float32(x), single(at), ()
    )
    s = np.percentile(np.abs(x0[0]), 90.0)
    assert s > 1.5
    np.testing.assert_allclose(pair.x0[0], np.clip(x0[0], -s, s) / s, atol=1e-6)
    np.testing.assert_allclose(pair.x0[1], x0[1], atol=1e-6)
    np.testing.assert_allclose(at.alpha * pair.x0 + at.sigma * pair.epsilon, x, atol=1e-5)
    np.testing.assert_array_equal(pair.fraction, jnp.float32(x0))


def test_clipping_keeps_the_pair_consistent():
    at, x, x0, _ = images(2)
    pair, _ = guidance.clipped(fixed(jnp.float32(x0), single(at)))(jnp.float32(x), single(at), ())
    assert np.abs(x0).max() > 1
    np.testing.assert_allclose(pair.x0, np.clip(x0, -1, 1), atol=1e-6)
    np.testing.assert_allclose(at.alpha * pair.x0 + at.sigma * pair.epsilon, x, atol=1e-5)
    np.testing.assert_array_equal(pair.fraction, jnp.float32(x0))


@pytest.mark.parametrize(
    ("kind", "g", "said"),
    [
        ("stronger", Guidance(), "guidance_kind='stronger'.*linear, projected, cfg"),
        ("linear", Guidance(2.0, 1.0, 1.0), "guidance_interval=.*low < high"),
        ("linear", Guidance(2.0, -1.0, 1.0), "guidance_interval"),
        ("linear", Guidance(2.0, rescale=1.5), "guidance_rescale=1.5"),
        ("projected", Guidance(2.0, radius=0.0), "guidance_radius=0"),
        ("projected", Guidance(2.0, momentum=-1.0), "guidance_momentum=-1"),
        ("cfg++", Guidance(2.0), "guidance=2.*between 0 and 1 with cfg"),
        ("cfg++", Guidance(0.5, rescale=0.5), "guidance_rescale=0.5.*cfg"),
        ("linear", Guidance(2.0, momentum=-0.5), "guidance_momentum=-0.5.*projected"),
        ("linear", Guidance(2.0, radius=3.0), "guidance_radius=3.*projected"),
        ("cfg++", Guidance(0.5, parallel=0.0), "guidance_parallel=0.*projected"),
    ],
)
def test_guidance_that_cannot_be_followed_is_refused(kind, g, said):
    with pytest.raises(ConfigError, match=said):
        guidance.check(kind, g)


def test_guidance_that_can_be_followed_is_not():
    guidance.check("linear", Guidance(7.5, 0.1, 2.0, 0.7))
    guidance.check("projected", Guidance(7.5, 0.1, 2.0, 0.7, 0.0, 2.5, -0.75))
    guidance.check("cfg++", Guidance(0.6, 0.1, 2.0))
