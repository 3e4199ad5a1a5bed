"""Advantages and losses: verl's and trl's own functions (golden), tunix' numbers, enumeration."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.methods import policy_gradient as pg
from genjax.methods import preference_losses as losses

G = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "policy_gradient.npz"))
MASK = G["mask"] > 0


def close(found, expected, **tolerance):
    np.testing.assert_allclose(found, expected, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def test_advantages_are_those_of_verl():
    gae = pg.gae(G["reward"], G["value"], jnp.asarray(MASK), 0.97, 0.9)
    close(gae, G["gae"])
    close(pg.whiten(gae, MASK), G["gae_whitened"])
    score = jnp.asarray(G["reward"].sum(1))
    close(pg.leave_one_out(score, 4), G["rloo"])
    close(pg.group_relative(score, 4, False), G["grpo_unscaled"])
    close(pg.group_relative(score, 4, True), G["grpo"])


def test_padding_anywhere_changes_no_advantage():
    """A token of padding between and around the drawn ones."""
    place = np.array([1, 2, 4, 5, 7, 8])
    wide = {name: np.full((8, 10), 7.0) for name in ("reward", "value")}
    for name in wide:
        wide[name][:, place] = G[name]
    mask = np.zeros((8, 10), bool)
    mask[:, place] = MASK
    found = pg.gae(wide["reward"], wide["value"], jnp.asarray(mask), 0.97, 0.9)
    close(found[:, place], G["gae"])
    assert not found[:, [0, 3, 6, 9]].any()
    last = np.asarray(pg.last_of(jnp.asarray(mask)))
    assert [row.nonzero()[0].tolist() for row in last] == [[place[n - 1]] for n in MASK.sum(1)]


def test_an_estimate_of_all_rewards_is_the_rest_of_the_rewards():
    """With decay 1 the advantage is what is still to come, less the value."""
    found = pg.gae(G["reward"], G["value"], jnp.asarray(MASK), 1.0, 1.0)
    rest = np.cumsum(G["reward"][:, ::-1], 1)[:, ::-1]
    close(found, (rest - G["value"]) * MASK)


@pytest.mark.parametrize("average", pg.AVERAGES)
def test_losses_and_their_averages_are_those_of_verl(average):
    weight, divisor = pg.weights(jnp.asarray(MASK), average, MASK.shape[1])
    policy = pg.policy_loss(G["log_p"] - G["old"], G["advantage"], 0.1, 0.25)
    close((weight * policy).sum() / divisor.sum(), G[f"policy_{average}"])
    value = pg.value_loss(G["new_value"], G["value"], G["returns"], 0.2)
    close((weight * value).sum() / divisor.sum(), G[f"value_{average}"])
    some = np.abs(G["log_p"] - G["old"])[MASK] > np.log(1.25)
    assert 0.1 < some.mean() < 0.9  # of the ratios are clipped


def test_the_estimate_of_the_divergence():
    close(pg.k3(jnp.asarray(G["log_p"] - G["reference"])), G["k3"])


def test_gradients_of_the_penalty_by_enumeration():
    """Of tokens drawn from p: k3 has the gradient of KL(r || p), times the ratio of KL(p || r)."""
    rng = np.random.default_rng(0)
    logits, base = jnp.asarray(rng.normal(size=(2, 6)))
    base = jax.nn.log_softmax(base)

    def mean(estimate):
        drawn = jax.lax.stop_gradient(jax.nn.log_softmax(logits))

        def value(logits):
            new = jax.nn.log_softmax(logits)
            return (jnp.exp(drawn) * estimate(new - base, new - drawn)).sum()

        return jax.value_and_grad(value)(logits)

    def divergence(p, r):
        return (jnp.exp(p) * (p - r)).sum()

    ahead = jax.value_and_grad(lambda x: divergence(jax.nn.log_softmax(x), base))(logits)
    back = jax.grad(lambda x: divergence(base, jax.nn.log_softmax(x)))(logits)
    plain = mean(lambda log_ratio, moved: pg.k3(log_ratio))
    weighed = mean(lambda log_ratio, moved: jnp.exp(moved) * pg.k3(log_ratio))
    close(plain[0], ahead[0])
    close(plain[1], back)
    close(weighed[0], ahead[0])
    close(weighed[1], ahead[1])
    assert np.abs(back - ahead[1]).max() > 0.05


def test_preference_losses_are_those_of_trl():
    chosen, rejected = (
        G[f"preference_{name}"] - G[f"preference_reference_{name}"]
        for name in ("chosen", "rejected")
    )
    margin = jnp.asarray(chosen - rejected)
    close(losses.dpo(margin, 0.3), G["dpo"])
    close(losses.dpo(margin, 0.3, 0.2), G["dpo_smoothed"])
    close(losses.ipo(margin, 0.3), G["ipo"])
    divergence = (G["preference_other"] - G["preference_other_base"]).mean()
    assert divergence > 0.1
    close(divergence, G["kto_divergence"])
    kto = losses.kto(jnp.asarray(chosen), jnp.asarray(rejected), divergence, 0.3, 1.5, 0.5)
    close(jnp.concatenate(kto), G["kto"])
    close(
        losses.orpo(jnp.asarray(G["mean_chosen"]), jnp.asarray(G["mean_rejected"]), 0.3), G["orpo"]
    )


def test_a_certain_answer_has_finite_odds():
    one = jnp.asarray([0.0, -1e-9])
    value, slope = jax.value_and_grad(lambda x: losses.orpo(x, x - 1.0, 0.3).sum())(one)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    x = np.array([-1e-6, -0.5, -0.7, -40.0])
    close(losses.log1mexp(jnp.asarray(x)), np.log(-np.expm1(x)), rtol=1e-5)


def test_the_dpo_losses_that_tunix_publishes():
    """Of its `test_dpo_loss_fn`: log p of 8 answers, the first 4 of them chosen, 4 tokens each."""
    rng = np.random.RandomState(0)
    log_p, base = (rng.normal(0, 5, size=(8, 4)).sum(-1) for _ in range(2))
    ratio = jnp.asarray(log_p - base)
    margin = ratio[:4] - ratio[4:]
    close(losses.dpo(margin, 0.1).mean(), 0.753059, atol=1e-5)
    close(losses.dpo(margin, 0.1, 0.3).mean(), 0.925447, atol=1e-5)


def test_the_bradley_terry_loss():
    rng = np.random.default_rng(1)
    chosen, rejected = rng.normal(size=(2, 5))
    expected = -np.log(np.exp(chosen) / (np.exp(chosen) + np.exp(rejected)))
    close(losses.bradley_terry(jnp.asarray(chosen), jnp.asarray(rejected)), expected)
    found = losses.bradley_terry(jnp.asarray(chosen), jnp.asarray(rejected), 0.1)
    close(found, expected + 0.1 * (chosen + rejected) ** 2)
