"""How tokens are unmasked: against schedules, order statistics, and diffusers' decoding."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.sampling import logits as processors
from genjax.sampling import unmasking
from genjax.sampling.unmasking import Schedule

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "unmasking.npz")
KEYS = jax.random.split(jax.random.key(0), 4000)
SCHEDULES = (Schedule(), Schedule("cosine"), Schedule("polynomial", 3.0))
DRAW = unmasking.chooser((), False)
MASKED = {  # by the formulas of the papers, in float64
    "linear": lambda t: t,
    "cosine": lambda t: np.cos(np.pi / 2 * (1 - t)),
    "polynomial": lambda t: t**3,
}


def empty(S):
    return jnp.full((len(KEYS), S), -1, jnp.int32)


def saying(values, K):
    """Logits [B, S, K] of which the token `values` [B] is drawn for certain."""
    return jnp.where(jnp.arange(K) == values[:, None, None], 0.0, -jnp.inf)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_have_their_weights_and_inverses(schedule):
    t = np.linspace(0.001, 0.999, 999)
    masked = MASKED[schedule.name]
    slope = (masked(t + 1e-6) - masked(t - 1e-6)) / 2e-6
    np.testing.assert_allclose(schedule.masked(t), masked(t), rtol=1e-5)
    np.testing.assert_allclose(schedule.weight(t), slope / masked(t), rtol=2e-4)
    np.testing.assert_allclose(schedule.time(schedule.masked(t)), t, rtol=1e-3)
    ends = schedule.masked(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(ends, [0.0, 1.0])
    step = schedule.step_weight(jnp.array([0.25, 0.75]), 4)
    wanted = [4, 4 * (1 - masked(0.5) / masked(0.75))]
    np.testing.assert_allclose(step, wanted, rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_unmasks_as_many_tokens_as_the_schedule_says(schedule):
    """The network says in which step it is: the tokens are the steps that unmasked them."""
    steps, S = 7, 5

    def denoise(tokens, masked):
        step = jnp.round((1 - schedule.time(masked)) * steps).astype(jnp.int32)
        return saying(jnp.broadcast_to(step, len(tokens)), steps)

    found = unmasking.ancestral(denoise, empty(S), KEYS, DRAW, schedule, steps)
    t = np.arange(steps, -1, -1) / steps
    p = -np.diff(MASKED[schedule.name](t))
    count = np.bincount(np.asarray(found).ravel(), minlength=steps)
    total = found.size
    assert (np.abs(count - total * p) < 4.5 * np.sqrt(total * p * (1 - p)) + 1).all()
    # Each token by itself: of two, both are unmasked in the first step by the product.
    both = (np.asarray(found)[:, :2] == 0).all(1).mean()
    assert abs(both - p[0] ** 2) < 4.5 * np.sqrt(p[0] ** 2 / len(KEYS)) + 1e-3


def test_a_step_that_unmasks_nothing_asks_the_network_nothing():
    asked = []

    def denoise(tokens, masked):
        jax.debug.callback(lambda: asked.append(1))
        return jnp.zeros((*tokens.shape, 3))

    steps = 400
    found = unmasking.ancestral(
        denoise, empty(3)[:2], KEYS[:2], DRAW, Schedule(), steps
    ).block_until_ready()
    jax.effects_barrier()
    assert (np.asarray(found) >= 0).all()
    assert 1 <= len(asked) <= 6


def test_first_hitting_unmasks_one_token_a_step_in_any_order_at_the_times_of_uniform_numbers():
    S, bins = 3, 50

    def denoise(tokens, masked):  # how many are unmasked already, and when
        return saying((tokens >= 0).sum(1) * bins + (bins * masked).astype(jnp.int32), S * bins)

    found = np.asarray(unmasking.first_hitting(denoise, empty(S), KEYS, DRAW))
    rank, time = found // bins, (found % bins + 0.5) / bins
    kinds, count = np.unique(rank, axis=0, return_counts=True)
    assert [tuple(kind) for kind in kinds] == list(itertools.permutations(range(S)))
    p = 1 / 6
    assert (np.abs(count - len(KEYS) * p) < 4.5 * np.sqrt(len(KEYS) * p * (1 - p))).all()
    # The first of three uniform numbers has the mean 3/4, the next 1/2; a deviation below 0.23.
    means = [time[rank == n].mean() for n in range(S)]
    np.testing.assert_allclose(means, [0.75, 0.5, 0.25], atol=4.5 * 0.23 / len(KEYS) ** 0.5)


@pytest.mark.parametrize("case", ["cosine", "linear", "cosine_more_than_tokens"])
def test_confidence_decoding_is_that_of_diffusers(case):
    logits, drawn, tokens = (
        jnp.asarray(GOLDEN[f"{case}/{name}"]) for name in ("logits", "drawn", "tokens")
    )
    T, B, S, _ = logits.shape
    name = case.partition("_")[0]
    schedule = Schedule(name)

    def index(masked):
        return jnp.round((1 - schedule.time(masked[0])) * T).astype(jnp.int32)

    def denoise(x, masked):
        return logits[index(masked)]

    def choose(keys, found):  # what the peer drew of these logits
        step = jnp.argmin(jnp.abs(logits - found).sum((1, 2, 3)))
        return drawn[step].astype(jnp.int32)

    start = jnp.full((B, S), -1, jnp.int32)
    end = unmasking.confidence(denoise, start, KEYS[:B], choose, schedule, T, 0.0)
    np.testing.assert_array_equal(end, tokens[-1])


def test_noise_in_the_choice_keeps_any_token():
    """Of four tokens two are kept in the first of two steps, the certain ones or, by noise, any."""
    sure = jnp.array([0.0, 9.0, 9.0, 0.0])  # log-odds of value 0, which is drawn in the first step

    def denoise(tokens, masked):
        later = jnp.where(masked < 0.9, 1.0, -30.0)[:, None]  # and value 1 in the second
        parts = (jnp.broadcast_to(a, tokens.shape) for a in (sure, 0.0, later))
        return jnp.stack(list(parts), -1)

    def choose(keys, logits):
        return (logits[..., 2] > 0).astype(jnp.int32)

    def kept(noise):
        found = unmasking.confidence(denoise, empty(4), KEYS, choose, Schedule(), 2, noise)
        return (np.asarray(found) == 0).mean(0)

    np.testing.assert_array_equal(kept(0.0), [0, 1, 1, 0])
    np.testing.assert_allclose(kept(1000.0), 0.5, atol=4.5 * 0.5 / len(KEYS) ** 0.5)


def test_processors_and_the_most_probable_token():
    p = jnp.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.broadcast_to(jnp.log(p), (len(KEYS), 3, 4))

    def shares(choose):
        found = choose(KEYS, logits)
        return np.bincount(np.asarray(found).ravel(), minlength=4) / found.size

    def expected(options):
        return unmasking.chooser(processors.chain(processors.Options(**options)), False)

    spread = 4.5 * 0.5 / np.sqrt(3 * len(KEYS))
    cold = np.asarray(p) ** 2 / (np.asarray(p) ** 2).sum()
    np.testing.assert_allclose(shares(expected({"temperature": 0.5})), cold, atol=spread)
    two = np.array([0.625, 0.375, 0, 0])
    np.testing.assert_allclose(shares(expected({"top_k": 2})), two, atol=spread)
    np.testing.assert_allclose(shares(expected({"top_p": 0.8})), two, atol=spread)
    np.testing.assert_array_equal(shares(unmasking.chooser((), True)), [1, 0, 0, 0])
