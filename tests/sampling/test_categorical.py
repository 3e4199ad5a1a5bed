"""Categorical draws: their noise, and how often they are what is rare, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.sampling import categorical

KEY = jax.random.key(0)


def words(high, low):
    return jnp.asarray([high, low], jnp.uint32)


def test_the_exponential_is_that_of_its_64_bits_in_both_tails():
    rng = np.random.default_rng(0)
    high = rng.integers(0, 2**32, 4000) >> np.tile(np.arange(0, 40, 4), 400).clip(0, 32)
    high = np.concatenate([high, 2**32 - 1 - high, [0, 0, 2**32 - 1, 2**31, 2**31 - 1]])
    low = np.concatenate([rng.integers(0, 2**32, len(high) - 5), [0, 7, 2**32 - 1, 0, 2**32 - 1]])
    # 1 - u is the smaller one where u is above a half: of Python's integers neither is rounded.
    whole = [2 * ((int(h) << 32) + int(x)) + 1 for h, x in zip(high, low, strict=True)]
    exact = [-np.log1p(-(n / 2**65)) if n < 2**64 else -np.log((2**65 - n) / 2**65) for n in whole]
    found = categorical.log_exponential(words(high, low))
    np.testing.assert_allclose(found, np.log(exact), rtol=2e-6, atol=2e-6)
    assert min(exact) < 1e-19
    assert max(exact) > 44


def test_uniform_numbers_are_those_of_their_bits():
    found = categorical.fraction(words([0, 0, 1, 2**31, 2**32 - 1], [0, 2**31, 0, 0, 2**32 - 1]))
    np.testing.assert_allclose(found, [2.0**-65, 0.5**33, 0.5**32, 0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize("rare", [1e-9, 1e-15])
def test_what_is_rare_beside_something_common_comes_as_often_as_it_should(rare):
    """Draws in which the rare value's bits begin with zeros, without which it cannot come."""
    zeros = int(-np.log2(rare)) - 4  # bits
    keys = jax.random.split(KEY, 3)
    count = 1_000_000
    common = jax.random.bits(keys[0], (2, count), jnp.uint32)
    free = jax.random.bits(keys[1], (2, count), jnp.uint32)
    if zeros <= 32:
        tail = words(free[0] >> zeros, free[1])
    else:
        tail = words(jnp.zeros_like(free[0]), free[1] >> (zeros - 32))
    logits = jnp.array([np.log1p(-rare), np.log(rare)], jnp.float32)
    drawn = categorical.race(logits, jnp.stack([common, tail], -1))
    share = float(drawn.mean())
    spread = np.sqrt(share * (1 - share) / count)
    assert abs(share * 2.0**-zeros - rare) < 4.5 * spread * 2.0**-zeros
    assert spread < 0.01 * share


def test_draws_come_as_often_as_their_probabilities():
    p = np.array([0.5, 0.3, 0.2, 1e-3, 1e-4, 1e-5, 3e-6, 1e-6])
    count, p = 4_000_000, p / p.sum()
    draw = jax.jit(lambda key: categorical.categorical(key, jnp.tile(jnp.log(p), (count // 4, 1))))
    found = sum(np.bincount(draw(key), minlength=len(p)) for key in jax.random.split(KEY, 4))
    assert (np.abs(found - count * p) < 4.5 * np.sqrt(count * p * (1 - p)) + 1).all()


def test_the_temperature_is_one():
    """The mean of log p over draws is minus the entropy, also with most mass on rare values.

    Noise of few bits draws the rare less often, as a lower temperature would (Zheng et al. 2024):
    the same numbers, cut to 8 bits, are far off.
    """
    K, count = 2048, 1000
    logits = jnp.log(jnp.concatenate([jnp.full(1, 0.5), jnp.full(K - 1, 0.5 / (K - 1))]))
    bits = jax.random.bits(KEY, (2, count, K), jnp.uint32)

    def entropy(bits):
        return -float(logits[categorical.race(jnp.tile(logits, (count, 1)), bits)].mean())

    exact = -float((jnp.exp(logits) * logits).sum())
    half = (logits[0] - logits[1]) / 2  # the standard deviation of log p
    assert abs(entropy(bits) - exact) < 4.5 * half / np.sqrt(count)
    coarse = jnp.stack([(bits[0] >> 24) << 24 | 2**23, jnp.zeros_like(bits[1])])
    assert entropy(coarse) < exact - 10 * half / np.sqrt(count)


def test_gumbel_variables_have_the_mean_and_variance_of_theirs():
    g = categorical.gumbel(KEY, (1_000_000,))
    assert abs(float(g.mean()) - np.euler_gamma) < 4.5 * np.pi / np.sqrt(6e6)
    assert float(g.var()) == pytest.approx(np.pi**2 / 6, rel=0.01)


@pytest.mark.parametrize("values", [1, 5, 1000])
def test_inverted_draws_come_as_often_as_their_probabilities(values):
    """Of few values and many, among them impossible ones, which never come."""
    logits = np.random.default_rng(values).normal(size=values) * 2
    logits[2::7] = -np.inf
    count = 400_000 if values < 10 else 8000
    p = np.exp(logits) / np.exp(logits).sum()
    tiled = jnp.tile(jnp.asarray(logits, jnp.float32), (count // 4, 1))
    draw = jax.jit(lambda key: categorical.inverted(key, tiled))
    found = sum(np.bincount(draw(key), minlength=values) for key in jax.random.split(KEY, 4))
    assert len(found) == values
    assert not found[p == 0].any()
    assert (np.abs(found / count - p) < 4.8 * np.sqrt(p / count) + 2 / count).all()


@pytest.mark.parametrize("place", [-1.0, 0.0, 2.9, 3.0, 7.0])
def test_no_place_is_in_a_value_that_is_impossible(place):
    """The cumulative sums of (0, 1, 0, 2, 0): only 1 and 3 contain places."""
    sums = jnp.array([0.0, 1.0, 1.0, 3.0, 3.0])
    index, rest = categorical._containing(sums, jnp.float32(place))
    assert index == (1 if place < 1 else 3)
    np.testing.assert_allclose(rest, np.clip(place, 0, 3) - (place >= 1), rtol=1e-6)
