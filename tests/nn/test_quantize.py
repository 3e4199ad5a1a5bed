"""Quantisation against vector-quantize-pytorch (tests/golden/make_quantize.py) and closed forms."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import quantize

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "quantize.npz")
DECAY = float(GOLDEN["decay"])
KEY = jax.random.key(0)


@pytest.mark.parametrize("trick", ["straight_through", "rotation"])
def test_codebooks_and_gradients_are_the_peers(trick):
    through = getattr(quantize, trick)
    book = quantize.codebook(jnp.asarray(GOLDEN["start"]))
    for step, x in enumerate(GOLDEN["x"]):
        peer = {key: GOLDEN[f"{trick}/{key}"][step] for key in ("index", "quantised", "slope")}
        index = quantize.nearest(x, book["codes"])
        np.testing.assert_array_equal(index, peer["index"])
        code = book["codes"][index]
        made, back = jax.vjp(lambda x, code=code: through(x, code), jnp.asarray(x))
        np.testing.assert_allclose(made, peer["quantised"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(made, code, rtol=1e-5, atol=1e-6)
        slope = back(jnp.asarray(GOLDEN["weight"]))[0]
        np.testing.assert_allclose(slope, peer["slope"], rtol=1e-5, atol=1e-6)
        commitment = jnp.square(x - code).mean()
        np.testing.assert_allclose(commitment, GOLDEN[f"{trick}/commitment"][step], rtol=1e-6)
        book = quantize.ema_update(book, jnp.asarray(x), index, DECAY)
        expected = GOLDEN[f"{trick}/codes"][step]
        np.testing.assert_allclose(book["codes"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_finite_scalars_are_the_peers(number):
    levels, z, quantised, index, slope = (
        GOLDEN[f"fsq{number}/{key}"] for key in ("levels", "z", "quantised", "index", "slope")
    )
    made = quantize.fsq(z, levels)
    np.testing.assert_allclose(made, quantised, atol=1e-6)
    np.testing.assert_array_equal(quantize.fsq_index(made, levels), index)
    found = jax.grad(lambda z: jnp.square(quantize.fsq(z, levels)).sum())(jnp.asarray(z))
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (7,), (4, 4, 4)])
def test_numbers_and_codes_of_finite_scalars_are_one_to_one(levels):
    index = jnp.arange(np.prod(levels))
    code = quantize.fsq_code(index, levels)
    np.testing.assert_array_equal(quantize.fsq_index(code, levels), index)
    assert len(np.unique(np.asarray(code), axis=0)) == len(index)
    assert np.abs(code).max() <= 1
    # Every code is reached, and is its own quantisation's: a bijection of what fsq gives.
    reached = quantize.fsq(jax.random.normal(KEY, (200_000, len(levels))) * 2, levels)
    assert set(np.unique(quantize.fsq_index(reached, levels))) == set(range(len(index)))


def test_impossible_levels_are_refused():
    with pytest.raises(ValueError, match="no more codes together"):
        quantize.fsq_code(jnp.zeros(1, jnp.int32), (256, 256, 256, 256))
    with pytest.raises(ValueError, match="at least 2 each"):
        quantize.fsq(jnp.zeros((1, 2)), (5, 1))


def test_a_vector_without_direction_is_passed_straight_through():
    x, code = jnp.array([[0.0, 0.0], [1e-9, 0.0]]), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    made, back = jax.vjp(lambda x: quantize.rotation(x, code), x)
    np.testing.assert_allclose(made, code, rtol=1e-6)
    np.testing.assert_allclose(back(jnp.ones((2, 2)))[0], 1.0)


def test_nearest_is_by_brute_force():
    x, codes = (np.random.default_rng(s).normal(size=(n, 3)) for s, n in ((0, 50), (1, 9)))
    distance = np.square(x[:, None] - codes).sum(-1)
    np.testing.assert_array_equal(
        quantize.nearest(jnp.float32(x), jnp.float32(codes)), distance.argmin(1)
    )


def test_averages_settle_on_the_means_of_their_vectors():
    """With the same batch for ever each code is the mean of its cell."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)), jnp.float32)
    index = jnp.arange(30) % 3
    book = quantize.codebook(jnp.zeros((3, 2)))
    for _ in range(200):
        book = quantize.ema_update(book, x, index, 0.9)
    expected = [x[index == k].mean(0) for k in range(3)]
    np.testing.assert_allclose(book["codes"], expected, atol=1e-5)


def test_dead_codes_alone_restart_on_the_data():
    x = 5 + jnp.arange(12.0).reshape(6, 2)
    book = quantize.codebook(jnp.zeros((4, 2))) | {"counts": jnp.array([3.0, 0.1, 2.0, 0.0])}
    new = quantize.restart(book, x, KEY, 0.5)
    rows = {tuple(row) for row in np.asarray(x)}
    for k, dead in enumerate((False, True, False, True)):
        assert (tuple(np.asarray(new["codes"][k])) in rows) == dead
        assert float(new["counts"][k]) == (0.5 if dead else float(book["counts"][k]))
    np.testing.assert_allclose(new["sums"][1] / new["counts"][1], new["codes"][1])


def test_kmeans_finds_what_is_far_apart():
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rng = np.random.default_rng(1)
    x = np.concatenate([c + 0.1 * rng.normal(size=(40, 2)) for c in centres])
    best = np.inf
    for seed in range(5):  # Lloyd's iterations depend on where they begin
        found = quantize.kmeans(jnp.float32(x), jax.random.key(seed), 3)
        found = found[quantize.nearest(jnp.float32(x), found)]
        best = min(best, float(np.square(x - found).sum(1).mean()))
    assert best == pytest.approx(
        np.mean(
            [np.square(x[i : i + 40] - x[i : i + 40].mean(0)).sum(1).mean() for i in (0, 40, 80)]
        ),
        rel=1e-4,
    )


def test_perplexity_counts_what_is_used_alike():
    for used, count in itertools.product((1, 2, 5), (5, 9)):
        shares = quantize.histogram(jnp.arange(40) % used, count)
        np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
        np.testing.assert_allclose(quantize.perplexity(shares), used, rtol=1e-5)
    uneven = quantize.histogram(jnp.array([[0, 0], [0, 1]]), 3)
    expected = 0.75**-0.75 * 0.25**-0.25
    np.testing.assert_allclose(quantize.perplexity(uneven), expected, rtol=1e-6)
