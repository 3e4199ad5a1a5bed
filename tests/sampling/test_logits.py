"""Processors of logits against transformers' classes (tests/golden/make_generation.py)."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.sampling import logits as lg

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "generation.npz")
LOGITS, HISTORY = (GOLDEN[f"processors/{name}"] for name in ("logits", "history"))
EOS = (7, 33)
BANNED = [[8], [60], *([a, 20 + a] for a in range(6)), HISTORY[0, -3:].tolist()]
SINGLE = {
    "temperature": lg.temperature(0.7),
    "top_k": lg.top_k(5),
    "top_k_all": lg.top_k(99),
    "top_p": lg.top_p(0.8),
    "top_p_small": lg.top_p(0.01),
    "min_p": lg.min_p(0.1),
    "repetition_penalty": lg.repetition_penalty(1.3),
    "no_repeat_1gram": lg.no_repeat_ngram(1),
    "no_repeat_2gram": lg.no_repeat_ngram(2),
    "no_repeat_3gram": lg.no_repeat_ngram(3),
    "banned": lg.banned(BANNED),
    "allowed": lg.allowed((1, 5, 44)),
    "minimum_early": lg.minimum_new_tokens(5, EOS, 7),
    "minimum_late": lg.minimum_new_tokens(5, EOS, 6),
}
MANY = {
    "chain": lg.Options(
        temperature=0,  # the three below do not matter then
        top_k=2,
        top_p=0.1,
        min_p=0.5,
        repetition_penalty=1.3,
        no_repeat_ngram=2,
        allowed=(1, 5, 44),
        banned=BANNED,
        min_new_tokens=5,
    ),
    "chain_drawn": lg.Options(
        temperature=1.7, top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=1.3
    ),
}


def padded(history):
    """With columns to come."""
    return jnp.pad(history, ((0, 0), (0, 4)), constant_values=-1)


@pytest.fixture(scope="module")
def ours():
    """What each processor, and each chain of them, makes of the golden logits."""
    chains = {name: lg.chain(options, eos=EOS, prompt=7) for name, options in MANY.items()}

    @jax.jit
    def run(logits, history):
        made = {}
        for name, processors in (chains | {k: (p,) for k, p in SINGLE.items()}).items():
            made[name] = logits
            for process in processors:
                made[name] = process(made[name], history)
        return made

    return run(LOGITS, padded(HISTORY))


@pytest.mark.parametrize("name", [*SINGLE, *MANY])
def test_a_processor_is_transformers(name, ours):
    expected = GOLDEN[f"processors/{name}"]
    assert name in ("top_k_all", "minimum_late") or not np.array_equal(expected, LOGITS)
    np.testing.assert_allclose(ours[name], expected, rtol=1e-6)


def test_what_is_off_is_not_in_the_chain():
    assert lg.chain(lg.Options(), eos=EOS, prompt=3) == ()
    assert len(lg.chain(MANY["chain"], eos=EOS, prompt=3)) == 5
    assert len(lg.chain(MANY["chain"], eos=(), prompt=3)) == 4  # nothing to put off
    assert len(lg.chain(MANY["chain_drawn"], eos=EOS, prompt=3)) == 5


def test_the_least_of_top_p_is_that_of_a_sort():
    """By its definition in float64, over masses and over distributions flat and sharp."""
    draw = np.random.default_rng(1)
    logits = (draw.normal(size=(5, 97)) * [[0.01], [0.3], [1], [4], [30]]).astype(np.float32)
    p = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    for mass in (1e-6, 0.2, 0.5, 0.9, 0.999):
        kept = np.isfinite(lg.top_p(mass)(jnp.asarray(logits), None))
        for row, chosen in zip(p, kept, strict=True):
            order = np.argsort(-row)
            count = np.searchsorted(np.cumsum(row[order]), mass) + 1
            np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(order[:count]))


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, list])
def test_tokens_are_integers_of_any_kind(kind):
    """What they make is equal, so that it is compiled once, and does the same."""
    both = [
        (lg.allowed((1, 5)), lg.allowed(kind([1, 5]))),
        (lg.banned(((8, 1), (60, 2))), lg.banned(kind([[8, 1], [60, 2]]))),
        (lg.minimum_new_tokens(3, EOS, 2), lg.minimum_new_tokens(3, kind(EOS), 2)),
    ]
    for expected, found in both:
        assert found == expected
        assert hash(found) == hash(expected)
        np.testing.assert_array_equal(found(LOGITS, HISTORY), expected(LOGITS, HISTORY))


@pytest.mark.parametrize("value", [lg.LEAST, 1, np.float32(0.5), np.int64(2), int(lg.MOST)])
def test_numbers_of_any_kind_up_to_their_bounds(value):
    """What may not come stays so, and what may is finite."""
    x = jnp.asarray(LOGITS).at[:, 3].set(-jnp.inf)
    cooled = np.asarray(jax.jit(lg.temperature(value))(x, HISTORY))
    np.testing.assert_allclose(cooled, np.asarray(x) / float(value), rtol=1e-6)
    found = np.asarray(jax.jit(lg.repetition_penalty(value))(x, HISTORY))
    changed = np.where(x < 0, x * float(value), x / float(value))
    occurred = (HISTORY[:, :, None] == np.arange(x.shape[1])).any(1)
    np.testing.assert_allclose(found, np.where(occurred, changed, x), rtol=1e-6)
    for array in (cooled, found):
        np.testing.assert_array_equal(np.isfinite(array), np.isfinite(np.asarray(x)))


def test_the_least_shares_keep_the_most_probable_token():
    for make in (lg.top_p, lg.min_p):
        kept = np.isfinite(jax.jit(make(lg.LEAST))(LOGITS, HISTORY))
        assert kept[np.arange(len(LOGITS)), LOGITS.argmax(1)].all()
    assert (np.isfinite(jax.jit(lg.top_p(lg.LEAST))(LOGITS, HISTORY)).sum(1) == 1).all()


def test_the_least_temperature_is_greedy():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50)) * 100, jnp.float32)
    sharp = jax.nn.softmax(lg.temperature(1e-6)(logits, None))
    np.testing.assert_array_equal(sharp, np.eye(50)[np.argmax(logits, -1)])


def test_the_newest_columns_do_not_depend_on_those_to_come():
    history = jnp.array([[-1, 4, 2, -1, -1], [-1, -1, 3, -1, -1]])
    assert int(lg.columns(history)) == 3
    np.testing.assert_array_equal(lg.newest(history, 3, 2), [[4, 2], [-1, 3]])
    np.testing.assert_array_equal(lg.newest(history, 3, 4), [[-1, -1, 4, 2], [-1, -1, -1, 3]])
    ended = jnp.array([[5, 1, -1, -1], [5, 2, 3, -1]])  # a text that has ended, one that goes on
    assert int(lg.columns(ended)) == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lg.temperature(0), "temperature=0: expected a number from 1e-06 to 1e+06"),
        (lambda: lg.temperature(1e-7), "temperature=1e-07: expected a number from 1e-06"),
        (lambda: lg.chain(lg.Options(temperature=-1.0)), "temperature=-1.0"),
        (lambda: lg.chain(lg.Options(temperature=0, top_k=-5)), "top_k=-5"),
        (lambda: lg.chain(lg.Options(min_new_tokens="few")), "min_new_tokens='few'"),
        (lambda: lg.temperature(math.inf), "temperature=inf: expected a number from"),
        (lambda: lg.temperature("hot"), "temperature='hot'"),
        (lambda: lg.top_k(-1), "top_k=-1: expected a whole number above 0"),
        (lambda: lg.top_k(2.5), "top_k=2.5"),
        (lambda: lg.top_p(0.0), "top_p=0.0: expected a number from 1e-06 to 1"),
        (lambda: lg.top_p(1.5), "top_p=1.5"),
        (lambda: lg.min_p(2.0), "min_p=2.0"),
        (lambda: lg.repetition_penalty(0.0), "repetition_penalty=0.0"),
        (lambda: lg.no_repeat_ngram(0), "no_repeat_ngram=0"),
        (lambda: lg.minimum_new_tokens(-1, EOS, 2), "min_new_tokens=-1"),
        (lambda: lg.temperature(1e39), "temperature=1e+39: expected a number from 1e-06 to 1e+06"),
        (lambda: lg.temperature(True), "temperature=True"),
        (lambda: lg.temperature("1"), "temperature='1'"),
        (lambda: lg.repetition_penalty(1e-38), "repetition_penalty=1e-38: expected a number from"),
        (lambda: lg.top_p(1e-50), "top_p=1e-50: expected a number from 1e-06 to 1"),
        (lambda: lg.top_k(True), "top_k=True: expected a whole number"),
        (lambda: lg.chain(lg.Options(top_k=[])), "top_k=[]: expected a whole number"),
        (lambda: lg.chain(lg.Options(min_p="")), "min_p='': expected a number from 1e-06 to 1"),
        (lambda: lg.allowed(5), "allowed=5: expected a sequence of tokens"),
        (lambda: lg.banned([1, 2]), "banned=1: expected a sequence of tokens"),
        (lambda: lg.banned(1), "banned=1: expected sequences of tokens"),
        (lambda: lg.minimum_new_tokens(1, 5, 0), "eos=5: expected a sequence of tokens"),
        (lambda: lg.minimum_new_tokens(10**10, EOS, 2), "min_new_tokens=10000000000: expected a"),
        (lambda: lg.allowed(()), "at least one token"),
        (
            lambda: lg.allowed((1, 1.9)),
            "allowed=(1, 1.9): expected a sequence of tokens, each a whole number",
        ),
        (lambda: lg.allowed((2**40,)), "allowed=(1099511627776,): expected a sequence"),
        (lambda: lg.banned([["a"]]), "banned=['a']: expected a sequence of tokens"),
        (lambda: lg.minimum_new_tokens(1, (7.0,), 2), "eos=(7.0,): expected a sequence of tokens"),
        (lambda: lg.banned([[1], []]), "at least one token"),
        (
            lambda: lg.allowed((1, 61))(LOGITS, HISTORY),
            "allowed=(1, 61): expected tokens from 0 to",
        ),
        (lambda: lg.banned([[99, 1]])(LOGITS, HISTORY), "banned=(99,): expected tokens from 0 to"),
        (lambda: lg.minimum_new_tokens(1, (-5,), 2)(LOGITS, HISTORY), "eos=(-5,)"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ConfigError) as error:
        make()
    assert words in str(error.value)
