"""The mixture of Gaussians against scipy, by which all else is measured."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax.checks import ConfigError
from genjax.sampling import mixture, paths

MIX = mixture.ring(8, deviation=0.3, groups=3)._replace(weights=np.arange(1, 9) / 36)
LABEL = np.array([0, 1, 2, 3, 0, 2])  # 3: none of them, which stands for all
X = np.random.default_rng(0).normal(size=(6, 2))


def density(x, at, label):
    """p(x_t | label) by scipy, one example."""
    own = (MIX.labels == label) | (label == 3)
    variance = at.alpha**2 * MIX.deviation**2 + at.sigma**2
    each = [stats.multivariate_normal(at.alpha * c, variance * np.eye(2)) for c in MIX.centres]
    parts = np.array([w * n.pdf(x) for w, n in zip(MIX.weights, each, strict=True)])
    return parts[own].sum() / MIX.weights[own].sum()


@pytest.mark.parametrize("name", ["cosine", "flow", "edm"])
def test_density_score_and_predictions(name):
    at = paths.levels(paths.make(name), 0.3)
    want = np.log([density(x, at, label) for x, label in zip(X, LABEL, strict=True)])
    np.testing.assert_allclose(mixture.log_density(MIX, X, at, LABEL), want, rtol=1e-12)
    whole = np.log([density(x, at, 3) for x in X])
    np.testing.assert_allclose(mixture.log_density(MIX, X, at), whole, rtol=1e-12)
    h = 1e-5
    slope = np.stack(
        [
            mixture.log_density(MIX, X + h * e, at, LABEL)
            - mixture.log_density(MIX, X - h * e, at, LABEL)
            for e in np.eye(2)
        ],
        axis=1,
    )
    score = mixture.score(MIX, X, at, LABEL)
    np.testing.assert_allclose(score, slope / (2 * h), rtol=1e-6, atol=1e-7)
    pair = mixture.predict(MIX, X, at, LABEL)  # by Tweedie's formula
    np.testing.assert_allclose(pair.epsilon, -at.sigma * score, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(at.alpha * pair.x0 + at.sigma * pair.epsilon, X, atol=1e-12)
    single = paths.Levels(*(jnp.full(6, a, jnp.float32) for a in at))  # one level an example
    ours = mixture.predict(MIX, jnp.asarray(X, jnp.float32), single, jnp.asarray(LABEL))
    np.testing.assert_allclose(ours.x0, pair.x0, atol=1e-5)
    np.testing.assert_allclose(ours.epsilon, pair.epsilon, atol=1e-5)


def test_labels_posterior_is_bayes():
    at = paths.levels(paths.make("cosine"), 0.4)
    prior = [MIX.weights[MIX.labels == k].sum() for k in range(3)]
    joint = np.array([[prior[k] * density(x, at, k) for k in range(3)] for x in X])
    want = np.log(joint / joint.sum(1, keepdims=True))
    found = [mixture.log_label(MIX, X, at, np.full(6, k)) for k in range(3)]
    np.testing.assert_allclose(np.stack(found, 1), want, rtol=1e-9, atol=1e-12)


def test_draws_are_of_the_mixture_and_of_their_labels():
    tight = MIX._replace(deviation=0.02)
    x = np.asarray(mixture.draw(tight, jax.random.key(0), 4000), np.float64)
    component, distance = mixture.nearest(tight, x)
    assert stats.chisquare(np.bincount(component), 4000 * MIX.weights).pvalue > 1e-3
    assert abs(np.mean(distance**2) / (2 * 0.02**2) - 1) < 5 / np.sqrt(4000)
    labels = np.arange(4000) % 4
    x = np.asarray(mixture.draw(tight, jax.random.key(1), 4000, jnp.asarray(labels)), np.float64)
    component = mixture.nearest(tight, x)[0]
    np.testing.assert_array_equal(MIX.labels[component][labels < 3], labels[labels < 3])
    assert len(np.unique(component[labels == 3])) == 8


def test_a_ring_has_a_deviation_of_one_half_and_needs_components():
    ring = mixture.ring()
    assert ring.num_labels == 8
    np.testing.assert_allclose(ring.centres.T @ ring.centres / 8, 0.25 * np.eye(2), atol=1e-12)
    for options, said in (
        (dict(count=0), "count=0"),
        (dict(deviation=0.0), "deviation=0"),
        (dict(groups=9), "groups=9"),
    ):
        with pytest.raises(ConfigError, match=said):
            mixture.ring(**options)
