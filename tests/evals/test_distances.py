"""FD, KID, IS and PRDC against other libraries (tests/golden/make_evals.py) and closed forms."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.evals import distances

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "evals.npz")
X, Y = GOLDEN["x"], GOLDEN["y"]
FEW = GOLDEN["few/0"], GOLDEN["few/1"]  # fewer examples than features
PAIRS = {"full": (X, Y), "near": (X, X[:140]), "few": FEW, "mixed": (FEW[0], Y)}


def gaussian(x):
    x = x.astype(np.float64)
    return x.mean(0), np.cov(x, rowvar=False)


def orthogonal(rng, dim):
    return np.linalg.qr(rng.standard_normal((dim, dim)))[0]


@pytest.mark.parametrize("case", PAIRS)
def test_frechet_matches_the_peers(case):
    x, y = PAIRS[case]
    ours = distances.frechet_distance(*gaussian(x), *gaussian(y))
    np.testing.assert_allclose(ours, GOLDEN[f"fd/{case}/exact"], rtol=1e-11)
    for peer in ("scipy", "torch_fidelity"):
        np.testing.assert_allclose(ours, GOLDEN[f"fd/{case}/{peer}"], rtol=1e-6)


def test_frechet_of_commuting_gaussians():
    """With one basis of eigenvectors: |m1 - m2|^2 + sum (sqrt a - sqrt b)^2."""
    rng = np.random.default_rng(0)
    basis = orthogonal(rng, 12)
    a, b = rng.uniform(0, 4, 12), rng.uniform(0, 4, 12)
    a[:5], b[3:8] = 0, 0
    means = rng.standard_normal((2, 12))
    expected = np.square(means[0] - means[1]).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    covs = [(basis * values) @ basis.T for values in (a, b)]
    ours = distances.frechet_distance(means[0], covs[0], means[1], covs[1])
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_frechet_of_one_example_against_many_features():
    """90 features of 20, 30 and 1 examples; the nuclear norm of the cross product is the peer."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((20, 90)), rng.standard_normal((30, 90)) + 0.1
    a, b = (v - v.mean(0) for v in (x, y))
    trace = np.linalg.svd(a @ b.T, compute_uv=False).sum() / np.sqrt(19 * 29)
    apart = np.square(x.mean(0) - y.mean(0)).sum()
    expected = apart + np.square(a).sum() / 19 + np.square(b).sum() / 29 - 2 * trace
    ours = distances.frechet_distance(*gaussian(x), *gaussian(y))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    points = distances.frechet_distance(*gaussian(x), y[0], np.zeros((90, 90)))
    expected = np.square(x.mean(0) - y[0]).sum() + np.square(a).sum() / 19
    np.testing.assert_allclose(points, expected, rtol=1e-12)


@pytest.mark.parametrize("x", [X, FEW[0]])
def test_frechet_of_a_set_and_itself_is_zero_and_never_below(x):
    found = distances.frechet_distance(*gaussian(x), *gaussian(x))
    assert 0 <= found < 1e-12
    mean, cov = gaussian(x)
    turn = orthogonal(np.random.default_rng(2), len(mean))
    there = distances.frechet_distance(mean, cov, *gaussian(Y))
    back = distances.frechet_distance(*gaussian(Y @ turn), turn.T @ mean, turn.T @ cov @ turn)
    np.testing.assert_allclose(back, there, rtol=1e-11)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean1": np.zeros(3)}, "shapes"),
        ({"cov2": np.zeros((16, 15))}, "shapes"),
        ({"cov1": np.full((16, 16), np.nan)}, "not finite"),
    ],
)
def test_frechet_refuses(change, words):
    given = dict(zip(("mean1", "cov1", "mean2", "cov2"), (*gaussian(X), *gaussian(Y)), strict=True))
    with pytest.raises(ValueError, match=words):
        distances.frechet_distance(**(given | change))


def test_kid_of_given_subsets_matches_torch_fidelity():
    rows = GOLDEN["kid/rows"]
    values = distances.kid_values(X, Y, rows[:, 0], rows[:, 1])[:, 0]
    np.testing.assert_allclose(values.mean(), GOLDEN["kid/mean"], rtol=1e-10)
    np.testing.assert_allclose(values.std(), GOLDEN["kid/std"], rtol=1e-10)


def test_mmd2_of_all_matches_torch_fidelity_in_blocks_or_not(monkeypatch):
    whole = distances.polynomial_mmd2(X[: len(Y)], Y)
    np.testing.assert_allclose(whole[0], GOLDEN["kid/all"], rtol=1e-10)
    monkeypatch.setattr(distances, "BLOCK", 1000)
    np.testing.assert_allclose(distances.polynomial_mmd2(X[: len(Y)], Y), whole, rtol=1e-10)


def test_mmd2_of_four_points_by_hand():
    """x is 1, 2 and y is 3, 0: one pair within each set, four across."""
    x, y = np.array([[1.0], [2.0]]), np.array([[3.0], [0.0]])
    # k_xx = k(1, 2) = 27; k_yy = k(3, 0) = 1; k_xy: k(1, 3) = 64, k(2, 3) = 343, k(., 0) = 1.
    np.testing.assert_allclose(distances.polynomial_mmd2(x, y)[0], 27 + 1 - 2 * (64 + 343 + 2) / 4)


def draws(shift, repeats, count, **options):
    """[2, repeats] KID and its standard error between fresh samples of two normals."""
    rng = np.random.default_rng(3)
    found = [
        distances.kid(
            rng.standard_normal((count, 4)), rng.standard_normal((count, 4)) + shift, **options
        )
        for _ in range(repeats)
    ]
    return np.array(found).T


def test_kid_of_one_distribution_is_zero_on_average():
    estimates, _ = draws(0.0, 400, 60, subsets=4, subset_size=30)
    assert abs(estimates.mean()) < 3 * estimates.std() / np.sqrt(len(estimates))
    assert (estimates < 0).mean() > 0.3  # it is unbiased, so that it must fall below zero


@pytest.mark.parametrize(
    ("shift", "subsets", "size"), [(0.0, 10, 30), (0.0, 2, 80), (0.3, 1, 30), (0.7, 10, 30)]
)
def test_kid_standard_error_is_that_of_fresh_data(shift, subsets, size):
    """The spread of the estimate over 200 pairs of fresh samples is itself known to 5 %."""
    estimates, errors = draws(shift, 200, 80, subsets=subsets, subset_size=size)
    ratio = np.sqrt(np.square(errors).mean()) / estimates.std(ddof=1)
    assert 0.9 < ratio < 1.3, ratio


def test_mmd2_standard_error_of_coin_tosses():
    """Fair signs: k = 4 + 4ab, so that MMD^2 has no first-order term and 4ab the variance 16."""
    n, m = 600, 200
    x, y = (np.resize([[1.0], [-1.0]], (count, 1)) for count in (n, m))
    _, error = distances.polynomial_mmd2(x, y)
    variance = 2 * 16 / (n * (n - 1)) + 2 * 16 / (m * (m - 1)) + 4 * 16 / (n * m)
    np.testing.assert_allclose(error**2, variance, rtol=0.02)


def test_mmd2_standard_error_is_that_of_fresh_data_for_unequal_sets():
    rng = np.random.default_rng(6)
    found = [
        distances.polynomial_mmd2(rng.standard_normal((160, 4)), rng.standard_normal((30, 4)) + 0.5)
        for _ in range(200)
    ]
    estimates, errors = np.array(found).T
    assert 0.85 < np.sqrt(np.square(errors).mean()) / estimates.std(ddof=1) < 1.2


def test_kid_is_a_function_of_its_seed_and_of_all_the_data():
    options = {"subsets": 8, "subset_size": 50}
    first = distances.kid(X, Y, **options)
    assert distances.kid(X, Y, **options) == first
    assert distances.kid(X, Y, **options, seed=1) != first
    whole, _ = distances.kid(X[:120], Y, subsets=1, subset_size=120)
    np.testing.assert_allclose(whole, GOLDEN["kid/all"], rtol=1e-10)


@pytest.mark.parametrize("options", [{"subset_size": 121}, {"subset_size": 1}, {"subsets": 0}])
def test_kid_refuses(options):
    with pytest.raises(ConfigError, match="expected"):
        distances.kid(X, Y, **({"subset_size": 50} | options))
    with pytest.raises(ValueError, match="x has 16 features and y 15"):
        distances.kid(X, Y[:, :15])
    bad = np.where(np.arange(len(X))[:, None] < 3, np.nan, X)
    with pytest.raises(ValueError, match="3 of the 150 rows"):
        distances.kid(bad, Y)


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score_matches_torch_fidelity(splits):
    scores = distances.split_scores(GOLDEN["logits"][GOLDEN["isc/order"]], splits)
    np.testing.assert_allclose([scores.mean(), scores.std()], GOLDEN[f"isc/{splits}"], rtol=1e-10)
    if splits == 1:  # the order does not matter then
        ours = distances.inception_score(GOLDEN["logits"], 1)
        np.testing.assert_allclose(ours, GOLDEN["isc/1"], rtol=1e-10)


@pytest.mark.parametrize("height", [50.0, 5000.0])
def test_inception_score_of_certain_classes(height):
    """K classes evenly, each with certainty: K. One class, or no opinion: 1."""
    logits = height * np.eye(6)[np.repeat(np.arange(6), 400)]
    mean, std = distances.inception_score(logits, 1)
    np.testing.assert_allclose([mean, std], [6, 0], atol=1e-9)
    mean, _ = distances.inception_score(logits, 10)  # given class by class: shuffled first
    assert 5.8 < mean < 6
    in_order = distances.split_scores(logits, 6)
    np.testing.assert_allclose(in_order, 1, rtol=1e-9)
    np.testing.assert_allclose(distances.inception_score(np.ones((50, 6))), [1, 0], atol=1e-12)


def test_inception_score_refuses():
    with pytest.raises(ValueError, match="9 examples do not make 10 splits"):
        distances.inception_score(np.zeros((9, 3)))
    with pytest.raises(ValueError, match="not finite"):
        distances.inception_score(np.full((20, 3), np.inf))


@pytest.mark.parametrize("block", [distances.BLOCK, 700])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_matches_prdc(k, block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    for real, fake in ((X, Y), (X.astype(np.float64), Y)):
        ours = distances.prdc(real, fake, k)
        expected = {name: GOLDEN[f"prdc/{k}/{name}"] for name in ours}
        assert sorted(ours) == ["coverage", "density", "precision", "recall"]
        np.testing.assert_allclose(list(ours.values()), list(expected.values()), rtol=1e-12)


def test_prdc_by_hand():
    """On a line: real 0, 1, 3, 10 have radii 1, 1, 2, 7; fake 0.5, 2.5, 20 have 2, 2, 17.5."""
    real, fake = (np.array(v)[:, None] for v in ([0.0, 1, 3, 10], [0.5, 2.5, 20.0]))
    found = distances.prdc(real, fake, 1)
    # 0.5 lies in the balls of 0 and 1, 2.5 in that of 3 only (10 - 7 = 3), 20 in none; 2.5 - 1 > 1.
    assert found["precision"] == 2 / 3
    assert found["density"] == 3 / 3
    assert found["coverage"] == 3 / 4
    # 0, 1, 3 lie within 2 of 0.5 or of 2.5, and 3, 10 within 17.5 of 20 (2.5 to 37.5).
    assert found["recall"] == 1.0


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_prdc_on_the_edge_is_outside_however_far_the_origin(offset, monkeypatch):
    """A grid, where most comparisons are ties: against distances by integers."""
    monkeypatch.setattr(distances, "BLOCK", 640)
    rng = np.random.default_rng(4)
    real, fake = (rng.integers(0, 4, (count, 5)) for count in (90, 80))
    d = np.square(real[:, None] - fake[None]).sum(-1)
    radii = [np.sort(np.square(a[:, None] - a[None]).sum(-1), axis=1)[:, 3] for a in (real, fake)]
    inside = d < radii[0][:, None]
    assert (d == radii[0][:, None]).sum() > 150
    expected = {
        "precision": inside.any(0).mean(),
        "recall": (d < radii[1]).any(1).mean(),
        "density": inside.sum(0).mean() / 3,
        "coverage": inside.any(1).mean(),
    }
    for dtype in (np.float32, np.float64):
        found = distances.prdc((real + offset).astype(dtype), (fake + offset).astype(dtype), 3)
        assert found == pytest.approx(expected, rel=1e-12)


def test_prdc_where_expanding_the_square_cancels_every_digit():
    """An outlier at -1e10 moves the mean so far that |a|^2 + |b|^2 - 2ab is noise in float64."""
    rng = np.random.default_rng(5)
    real, fake = (1e7 + rng.integers(0, 50, (n, 8)) for n in (60, 50))
    real[0] = fake[0] = -1e10
    found = distances.prdc(real, fake, 2)
    d = np.square(real[:, None] - fake[None]).sum(-1)
    radius = np.sort(np.square(real[:, None] - real[None]).sum(-1), axis=1)[:, 2]
    assert found["density"] == pytest.approx((d < radius[:, None]).sum(0).mean() / 2, rel=1e-12)
    assert found["coverage"] == (d < radius[:, None]).any(1).mean()


def test_prdc_of_a_collapsed_generator_and_of_a_copy():
    collapsed = distances.prdc(X, np.repeat(Y[:1], 2000, axis=0), 5)
    single = [np.square(X.astype(np.float64) - Y[0]).sum(1)]
    radius = np.sort(np.square(X[:, None].astype(np.float64) - X[None]).sum(-1), axis=1)[:, 5]
    assert collapsed["recall"] == 0.0
    assert collapsed["coverage"] == (single[0] < radius).mean()
    copy = distances.prdc(X, X, 5)
    assert copy["precision"] == copy["recall"] == copy["coverage"] == 1.0


def test_prdc_refuses():
    for k in (0, 9):
        with pytest.raises(ConfigError, match="expected 1 to 8"):
            distances.prdc(X, FEW[0], k)
    with pytest.raises(ValueError, match="shape"):
        distances.prdc(X[0], Y)
