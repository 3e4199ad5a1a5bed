"""The prior over tokens: it reaches a known entropy, and draws what it says it draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from specs import images

from genjax import config as configs
from genjax.config import ConfigError
from genjax.method import DataSpec, Field
from genjax.methods import token_prior
from genjax.training.assemble import assemble

KEY = jax.random.key(0)


def spec(shape, values, classes=0, count=64):
    facts = {"vocabulary_size": values} if values else {}
    dtype = np.dtype(np.int32 if values else np.float32)
    fields = images((1, 1, 1), classes=classes).fields | {
        "code": Field("code", shape, dtype, facts)
    }
    del fields["image"]
    return DataSpec("toy", fields, "code", {"train": count})


def config(network="token_transformer", conditional=False, **prior):
    c = configs.base()
    c.method, c.batch_size, c.duration = "token_prior", 64, "300_steps"
    c.optimizer.learning_rate, c.ema.decay = 1e-2, ()
    c.schedule.name = "cosine"
    with c.unlocked():
        c.token_prior = ConfigDict({"class_conditional": conditional})
        c.model = ConfigDict({"network": network, "prior": {"width": 16, "depth": 2} | prior})
    return c


@pytest.mark.parametrize("network", ["token_transformer", "pixelcnn"])
def test_the_likelihood_of_a_markov_chain_is_learned(network):
    """x_1 is uniform; x_s of label y is x_(s-1) + 1 with probability 0.9 - 0.6 y, else x_(s-1)."""
    S, K = 6, 3
    c = config(network, conditional=True)
    run = assemble(c, spec((2, 3, 1), K, 2), devices=jax.devices()[:1])

    def draw(key):
        first, move, label = (jax.random.fold_in(key, i) for i in range(3))
        y = jax.random.randint(label, (64,), 0, 2)
        x = jax.random.randint(first, (64, 1), 0, K)
        moves = jax.random.bernoulli(move, (0.9 - 0.6 * y)[:, None], (64, S - 1))
        code = jnp.concatenate([x, x + jnp.cumsum(moves, 1)], 1) % K
        return {"code": code.reshape(64, 2, 3, 1), "label": y}

    shardings = {name: shape.sharding for name, shape in run.batch.items()}
    draw = jax.jit(draw, out_shardings=shardings)
    with jax.set_mesh(run.mesh):
        state = run.init()
        for i in range(300):
            state, _ = run.step(state, draw(jax.random.fold_in(KEY, i)))
        test = [draw(jax.random.fold_in(KEY, 1000 + i)) for i in range(16)]
        test = {name: jnp.concatenate([b[name] for b in test]) for name in test[0]}
        found = jax.jit(run.method.evaluate)(state.params, state.mutable, test, KEY)

    p = np.where(test["label"] == 0, 0.9, 0.3)[:, None]
    moved = np.diff(np.asarray(test["code"]).reshape(-1, S), axis=1) % K
    exact = np.log(K) - np.log(np.where(moved, p, 1 - p)).sum(1)
    gap = np.asarray(found["nll"]) - exact  # its mean is a Kullback-Leibler divergence
    assert -0.02 < gap.mean() < 0.03
    assert np.corrcoef(found["nll"], exact)[0, 1] > 0.99
    bits = found["nll"] / S / np.log(2)
    np.testing.assert_allclose(found["bits_per_token"], bits, rtol=1e-5)


@pytest.mark.parametrize("network", ["token_transformer", "pixelcnn"])
def test_samples_come_as_often_as_the_model_says(network):
    shape = (1, 2, 2)
    method = token_prior.build(config(network), spec(shape, 2))
    params, mutable = method.init(KEY, {})
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    noisy = [p + 0.2 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    params = tree.unflatten(noisy)
    images = jnp.array(list(itertools.product(range(2), repeat=4)))
    nll = jax.jit(method.evaluate)(params, mutable, {"code": images.reshape(-1, *shape)}, KEY)
    expected = np.exp(-np.asarray(nll["nll"]))
    num = 20_000
    draw = jax.jit(method.sample, static_argnames=("num", "temperature", "top_k"))
    code = np.asarray(draw(params, mutable, KEY, num=num)).reshape(num, 4)
    counts = np.bincount(code @ np.array([8, 4, 2, 1]), minlength=16)
    spread = np.sqrt(num * expected * (1 - expected))
    assert (np.abs(counts - num * expected) < 4.5 * spread + 1).all()
    assert counts.max() < 0.9 * num
    # The most probable token of all, one after the other.
    greedy = np.asarray(draw(params, mutable, KEY, num=3, top_k=1)).reshape(3, 4)
    cold = np.asarray(draw(params, mutable, KEY, num=3, temperature=1e-4)).reshape(3, 4)
    best = images
    for s in range(4):  # of the two halves that share a beginning, the likelier
        halves = [best[best[:, s] == v] for v in (0, 1)]
        mass = [sum(expected[int(row @ np.array([8, 4, 2, 1]))] for row in h) for h in halves]
        best = halves[int(np.argmax(mass))]
    for found in (greedy, cold):
        np.testing.assert_array_equal(found, np.tile(best, (3, 1)))


@pytest.mark.parametrize("network", ["token_transformer", "pixelcnn"])
def test_samples_of_a_label_are_of_that_label(network):
    """Each class's draws against the likelihoods that the model gives under that label."""
    shape, num = (1, 2, 1), 4000
    method = token_prior.build(config(network, conditional=True), spec(shape, 2, 2))
    leaves, tree = jax.tree.flatten(method.init(KEY, {})[0])
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noisy = [p + 0.4 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    params, mutable = tree.unflatten(noisy), method.init(KEY, {})[1]
    images = jnp.array(list(itertools.product(range(2), repeat=2)))
    label = jnp.arange(2 * num) % 2
    draw = jax.jit(method.sample, static_argnames="num")
    code = np.asarray(draw(params, mutable, KEY, num=2 * num, condition={"label": label})).reshape(
        -1, 2
    )
    expected = []
    for y in range(2):
        batch = {"code": images.reshape(-1, *shape), "label": jnp.full(4, y)}
        nll = jax.jit(method.evaluate)(params, mutable, batch, KEY)["nll"]
        expected.append(np.exp(-np.asarray(nll)))
        counts = np.bincount(code[np.asarray(label) == y] @ np.array([2, 1]), minlength=4)
        spread = np.sqrt(num * expected[y] * (1 - expected[y]))
        assert (np.abs(counts - num * expected[y]) < 4.5 * spread + 1).all()
    assert np.abs(expected[0] - expected[1]).max() > 0.05


def test_what_is_refused():
    method = token_prior.build(config(), spec((1, 2, 2), 4))
    params, mutable = method.init(KEY, {})
    for options, words in (
        ({"temperature": 0}, "--temperature=0: expected a number from 1e-06 to"),
        ({"temperature": "hot"}, "a number from 1e-06 to"),
        ({"top_k": 5}, "from 0 to 4"),
        ({"condition": {"label": jnp.zeros(2, jnp.int32)}}, "class_conditional=True"),
    ):
        with pytest.raises(ConfigError, match=words):
            method.sample(params, mutable, KEY, 2, **options)
    with pytest.raises(ConfigError, match="has no labels"):
        token_prior.build(config(conditional=True), spec((1, 2, 2), 4))
    says = r"target of toy is image \(image\).*dataset\.codes.*stages\.autoencoder=RUNDIR"
    with pytest.raises(ConfigError, match=says):
        token_prior.build(config(), images((4, 4, 1)))
    with pytest.raises(ConfigError, match="target of toy is codes of real numbers"):
        token_prior.build(config(), spec((2, 2, 4), 0))
    with pytest.raises(ConfigError, match="Nearest: width"):
        token_prior.build(config(widht=3), spec((1, 2, 2), 4))
