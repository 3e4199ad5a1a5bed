"""Adversarial networks on texts, in a world of 27 texts that can be enumerated."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.checks import ConfigError
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.methods import text_game, text_gan
from genjax.networks import recurrent
from genjax.nn.functional import Functional, functional
from genjax.training.assemble import assemble

V, T = 3, 3
TEXTS = jnp.array(list(itertools.product(range(V), repeat=T)), jnp.int32)
PLACE = jnp.array([V ** (T - 1 - t) for t in range(T)])
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=V**T) * 2.0, jnp.float32)
KEY = jax.random.key(0)


def spec(padded=False, values=V, length=T):
    special = {"start": 0, "eos": 0} if padded else {"start": 0}
    facts = {"vocabulary_size": values, "special": special}
    facts["tokenizer"] = Characters("abcdefgh"[:values], {})
    fields = {"token": Field("text", (length + 1,), np.dtype(np.int32), facts)}
    if padded:
        fields["segment"] = Field("mask", (length + 1,), np.dtype(np.int32))
    return DataSpec("made", fields, "token", {"train": 64, "validation": 64})


def table():
    """A discriminator with a logit for each text; of relaxed texts, their mean logit."""

    def apply(params, mutable, x, label, key=None, train=False):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return (params["w"][x @ PLACE], None), mutable
        shares = jnp.einsum("ba,bc,bd->bacd", x[:, 0], x[:, 1], x[:, 2]).reshape(len(x), -1)
        return (shares @ params["w"], None), mutable

    return Functional(lambda key: ({"w": LOGITS}, {}), apply)


def network(frames=False, values=V):
    return functional(lambda rngs: recurrent.Network(values, T, width=4, frames=frames, rngs=rngs))


def game(padded=False, **options):
    options = text_game.Options(**{"rollouts": 1, **options})
    net = network(frames=options.kind == "gumbel")
    if options.kind == "gumbel":
        net = text_gan._of_one_hot(net, V)
    return text_game.TextGame(net, table(), options, spec(padded), text_game.Clock(0, 10, 110))


def spread(network, seed):
    """Parameters with enough variance that texts differ much in probability."""
    params, mutable = network.init(jax.random.key(seed))
    keys = jax.random.split(jax.random.key(seed + 100), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda p, k: p + 0.7 * jax.random.normal(k, p.shape), params, keys), mutable


@pytest.fixture(scope="module")
def world():
    """(params, mutable) of a generator, a rollout network that differs, and a discriminator."""
    net = network()
    (generator, state), (rollout, _) = spread(net, 1), spread(net, 2)
    params = {"generator": generator, "rollout": rollout, "discriminator": {"w": LOGITS}}
    return params, {"generator": state, "discriminator": {}}


def log_p(params, texts=TEXTS):
    """log p of each token of each text [X, T], without the code under test."""
    before = jnp.pad(texts[:, :-1], ((0, 0), (1, 0)))
    (logits, _), _ = network().apply(params, {}, before)
    logits = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logits, texts[..., None], -1)[..., 0]


def true_values(rollout, ended=None):
    """The mean reward of texts that begin as each text up to each token, [X, T], by enumeration."""
    reward, each = jax.nn.sigmoid(LOGITS), log_p(rollout)
    found = np.zeros((len(TEXTS), T))
    for x, t in itertools.product(range(len(TEXTS)), range(T)):
        same = (TEXTS[:, : t + 1] == TEXTS[x, : t + 1]).all(1)
        found[x, t] = (same * jnp.exp(each[:, t + 1 :].sum(1)) * reward).sum()
    return jnp.asarray(found)


def standard_errors(draws, truth):
    """How many standard errors the mean of draws [N, ...] is away from the truth, at most."""
    error = draws.std(0, ddof=1) / math.sqrt(len(draws))
    return float((np.abs(draws.mean(0) - truth) / np.maximum(error, 1e-9)).max())


def test_values_are_the_mean_rewards_of_what_may_follow(world):
    played = game(rollouts=400)
    found = jax.jit(lambda key: text_game.values(played, *world, TEXTS, key))(KEY)
    truth = true_values(world[0]["rollout"])
    np.testing.assert_allclose(found[:, -1], jax.nn.sigmoid(LOGITS), rtol=1e-6)
    np.testing.assert_allclose(found, truth, atol=5 * 0.5 / math.sqrt(400))
    assert jnp.abs(found - truth).mean() < 0.02
    assert jnp.abs(found - true_values(world[0]["generator"])).mean() > 0.04


def policy_gradients(world, **options):
    """Gradients of the loss by many keys [N, parameters]."""
    played, batch = game(**options), {"token": jnp.zeros((64, T + 1), jnp.int32)}
    params, mutable = world

    def loss(generator, key):
        return text_gan.policy_loss(
            played, {**params, "generator": generator}, mutable, batch, key, 0
        )[0]

    def flat(key):
        slope = jax.grad(loss)(params["generator"], key)
        return jax.flatten_util.ravel_pytree(slope)[0]

    keys = jax.random.split(KEY, 300)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(flat, keys))(keys))


def true_gradient(world, rollout):
    """- sum over texts of p(text) sum_t grad log p(token) Q(token)."""
    generator, value = world[0]["generator"], true_values(world[0][rollout])
    p = jnp.exp(log_p(generator).sum(1))
    slope = jax.grad(lambda g: -(p[:, None] * log_p(g) * value).sum())(generator)
    return jax.flatten_util.ravel_pytree(slope)[0]


@pytest.mark.parametrize("baseline", [False, True])
def test_the_policy_gradient_is_the_enumerated_one(world, baseline):
    found = policy_gradients(world, baseline=baseline)
    assert standard_errors(found, true_gradient(world, "rollout")) < 4.5
    assert standard_errors(found, true_gradient(world, "generator")) > 6


def test_with_the_generators_own_rollouts_it_is_the_gradient_of_the_expected_reward(world):
    params, mutable = world
    own = {**params, "rollout": params["generator"]}
    reward = jax.nn.sigmoid(LOGITS)
    slope = jax.grad(lambda g: -(jnp.exp(log_p(g).sum(1)) * reward).sum())(own["generator"])
    truth = jax.flatten_util.ravel_pytree(slope)[0]
    np.testing.assert_allclose(true_gradient((own, mutable), "rollout"), truth, atol=1e-6)


@partial(jax.jit, static_argnums=0)
def completed(padded, params, token, given, key):
    return text_game.complete(game(padded), params, {}, token, given, key)


NOTHING = jnp.zeros((5000, T), jnp.int32)


def test_texts_are_drawn_from_the_language_model(world):
    params = world[0]["generator"]
    drawn = completed(False, params, NOTHING, NOTHING[:, 0], KEY)
    shares = np.bincount(np.asarray(drawn @ PLACE), minlength=V**T) / len(NOTHING)
    truth = np.exp(log_p(params).sum(1))
    assert (np.abs(shares - truth) < 4.5 * np.sqrt(truth / len(NOTHING)) + 1e-4).all()
    rows = jnp.resize(TEXTS, NOTHING.shape)
    kept = completed(False, params, rows, jnp.full(len(rows), T - 1), KEY)
    np.testing.assert_array_equal(kept[:, :-1], rows[:, :-1])
    assert (kept[:, -1] != rows[:, -1]).any()


def test_a_text_ends_and_what_follows_has_no_gradient(world):
    """The token 0 ends a text: the rest is 0, and the likelihood is that of the text alone."""
    params, text_key = world[0]["generator"], jax.random.fold_in(KEY, 0)
    stream, drawn = (
        np.asarray(completed(padded, params, NOTHING, NOTHING[:, 0], text_key))
        for padded in (False, True)
    )
    ended = np.cumsum(drawn == 0, 1) - (drawn == 0) > 0
    assert ended.any()
    assert stream[ended].any()
    assert not drawn[ended].any()

    @jax.jit
    def loss(batch):
        return text_gan.policy_loss(game(padded=True), *world, batch, KEY, 0)[1].metrics

    found = loss({"token": jnp.zeros((len(NOTHING), T + 1), jnp.int32)})["entropy"]
    entropy = -(log_p(params, drawn) * ~ended).sum() / (~ended).sum()
    np.testing.assert_allclose(found, entropy, rtol=1e-5)


def test_the_optimal_discriminator_is_the_log_ratio(world):
    """At log p_data - log p_generator (Goodfellow et al. 2014, prop. 1) the gradient is zero."""
    params, mutable = world
    played, rows = game(), jnp.concatenate([TEXTS, TEXTS[:5]])
    p_data = np.bincount(np.asarray(rows @ PLACE), minlength=V**T) / len(rows)
    best = jnp.log(p_data) - log_p(params["generator"]).sum(1)
    batch = {"token": jnp.pad(rows, ((0, 0), (1, 0)))}

    def slope(w, key):
        def loss(w):
            own = {**params, "discriminator": {"w": w}}
            return text_gan.discriminator_loss(played, own, mutable, batch, key, 0)[0]

        return jax.grad(loss)(w)

    keys = jax.random.split(KEY, 400)
    slopes = jax.jit(lambda w: jax.lax.map(lambda key: slope(w, key), keys))
    assert standard_errors(np.asarray(slopes(best)), 0.0) < 4.5
    assert standard_errors(np.asarray(slopes(jnp.zeros_like(best))), 0.0) > 6


def test_relaxed_tokens_tend_to_exact_draws(world):
    played = game(kind="gumbel")
    params, _ = spread(played.generator, 3)

    def drawn(temperature, num=4000):
        return text_game.relaxed(played, params, {}, num, temperature, KEY)

    cold, warm, hot = (np.asarray(jax.jit(drawn)(t)) for t in (1e-4, 1.0, 1e4))
    np.testing.assert_allclose(cold.sum(-1), 1.0, rtol=1e-5)
    assert (cold.max(-1) > 0.999).mean() > 0.995
    assert (warm.max(-1) > 0.999).mean() < 0.2
    np.testing.assert_allclose(hot, 1 / V, atol=2e-3)
    before = jnp.pad(jax.nn.one_hot(TEXTS[:, :-1], V), ((0, 0), (1, 0), (0, 0)))
    before = before.at[:, 0, 0].set(1.0)
    (logits, _), _ = network(frames=True).apply(params, {}, before)
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), TEXTS[..., None], -1)[..., 0]
    truth = np.exp(each.sum(1))
    shares = np.bincount(np.asarray(cold.argmax(-1) @ PLACE), minlength=V**T) / len(cold)
    assert (np.abs(shares - truth) < 4.5 * np.sqrt(truth / len(cold)) + 1e-3).all()
    first = np.bincount(warm[:, 0].argmax(-1), minlength=V) / len(warm)
    np.testing.assert_allclose(first, jax.nn.softmax(logits[0, 0]), atol=0.03)


def test_the_temperature_falls_exponentially():
    """1 / beta with beta = 100^(n / N) (Nie et al. 2019, section 3.3), from step 10 to 110."""
    played = game(kind="gumbel", temperature=1.0, final_temperature=0.01)
    found = [float(played.temperature(step)) for step in (0, 10, 60, 110, 200)]
    np.testing.assert_allclose(found, [1.0, 1.0, 0.1, 0.01, 0.01], rtol=1e-5)


def test_the_gradient_of_relaxed_tokens_reaches_the_generator():
    """That of the mean reward at a temperature is its numerical derivative at the same noise."""
    played = game(kind="gumbel", loss="wasserstein")
    params, mutable = spread(played.generator, 4)
    own = {"generator": params, "discriminator": {"w": LOGITS}}
    batch = {"token": jnp.pad(TEXTS, ((0, 0), (1, 0)))}
    state = {"generator": mutable, "discriminator": {}}

    @jax.jit
    def loss(bias):
        head = {**params["head"], "bias": bias}
        return text_gan.generator_loss(
            played, {**own, "generator": {**params, "head": head}}, state, batch, KEY, 0
        )[0]

    bias, step = params["head"]["bias"], 1e-2 * jnp.array([1.0, 0.0, -1.0])
    slope = jax.grad(loss)(bias) @ step
    np.testing.assert_allclose(loss(bias + step) - loss(bias - step), 2 * slope, rtol=1e-2)
    assert abs(slope) > 1e-5


def test_the_penalty_of_a_linear_critic_has_a_closed_form():
    """(|w| - 1)^2 wherever it is measured, beside the Wasserstein loss of one-hot tokens."""
    w = jnp.asarray(np.random.default_rng(1).normal(size=(T, V)), jnp.float32)
    critic = Functional(
        lambda key: ({"w": w}, {}),
        lambda params, mutable, x, label, key=None, train=False: (
            ((x * params["w"]).sum((1, 2)), None),
            mutable,
        ),
    )
    even = Functional(
        lambda key: ({}, {}),
        lambda params, mutable, z, label, key=None, train=False: (
            jnp.full((len(z), T, V), 1 / V),
            mutable,
        ),
    )
    options = text_game.Options(kind="wgan_gp", loss="wasserstein", gradient_penalty=10.0)
    played = text_game.TextGame(even, critic, options, spec())
    batch = {"token": jnp.pad(TEXTS, ((0, 0), (1, 0)), constant_values=2)}
    params, mutable = (
        {"generator": {}, "discriminator": {"w": w}},
        {"generator": {}, "discriminator": {}},
    )
    loss, aux = text_gan.discriminator_loss(played, params, mutable, batch, KEY, 0)
    penalty = (np.linalg.norm(w) - 1) ** 2
    np.testing.assert_allclose(aux.metrics["gradient_penalty"], penalty, rtol=1e-5)
    np.testing.assert_allclose(loss, 10 * penalty, rtol=1e-4)  # the mean of all texts is even
    slope = jax.grad(
        lambda w: text_gan.discriminator_loss(
            played, {**params, "discriminator": {"w": w}}, mutable, batch, KEY, 0
        )[0]
    )(w)
    norm = np.linalg.norm(w)
    np.testing.assert_allclose(slope, 10 * 2 * (norm - 1) * w / norm, rtol=1e-4, atol=1e-5)


def run_config(**changes):
    config = configs.load("configs/seqgan.py:tiny", changes)
    return config


def test_the_phases_follow_each_other():
    """60 steps of likelihood, 20 of the discriminator alone, then the game, and no likelihood."""
    run = assemble(run_config(), spec(values=8, length=8))
    found = [(p.trains, p.start, p.stop) for p in run.method.phases]
    assert found == [("generator", 0, 60), ("generator", 80, None), ("discriminator", 60, None)]
    config = run_config(**{"duration": "8_epochs", "text_gan.pretraining": "50_percent"})
    config.text_gan.critic_steps, config.text_gan.discriminator_pretraining = 2, ""
    run = assemble(config, spec(values=8, length=8))
    assert (run.total_steps, run.method.phases[0].stop) == (16, 8)


BAD = {
    "text_gan.kind": ("seq_gan", "seqgan"),
    "text_gan.loss": ("wasserstein", "sigmoid of a logit"),
    "text_gan.gradient_penalty": (10.0, "0 with kind"),
    "text_gan.pretraining": ("110_steps", "the game is never played"),
    "dataset.text.documents": ("packed", "judges one text"),
    "model.discriminator.sizes": ((1, 2, 9), "sizes of 1 to 8"),
    "model.discriminator.features": ((8,), "one per size"),
    "model.language": ("recurrant", "recurrent"),
}


@pytest.mark.parametrize("key", BAD)
def test_a_bad_value_is_one_error(key):
    value, expected = BAD[key]
    with pytest.raises(ConfigError, match=expected):
        assemble(run_config(**{key: value}), spec(values=8, length=8))


def test_a_penalty_of_a_network_without_likelihood_has_no_pretraining():
    config = configs.load("configs/wgan_gp_text.py:tiny")
    config.text_gan.pretraining = "10_steps"
    with pytest.raises(ConfigError, match="no likelihood"):
        assemble(config, spec(values=8, length=8))
    field = Field("label", (), np.dtype(np.int32))
    with pytest.raises(ConfigError, match="needs text"):
        assemble(config, DataSpec("made", {"label": field}, "label", {"train": 64}))
