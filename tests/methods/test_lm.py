"""The likelihood of sequences: optax, closed forms, a Markov chain."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from specs import images

from genjax import config as configs
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field, Phase
from genjax.methods import lm
from genjax.networks import decoder
from genjax.nn.functional import Functional, functional
from genjax.parallel.rules import path_name
from genjax.sampling.stopping import automaton
from genjax.training import optim
from genjax.training.accumulate import gradient

V, T = 5, 6


def spec(kind="text", length=T, vocabulary=V):
    facts = {"vocabulary_size": vocabulary, "special": {"start": 0, "eos": 4}}
    facts["tokenizer"] = Characters("abcd", {"eos": 4})
    name, field = {
        "text": ("token", Field("text", (length + 1,), np.dtype(np.int32), facts)),
        "roll": ("frame", Field("roll", (length, 88), np.dtype(np.uint8))),
    }[kind]
    return DataSpec("made", {name: field}, name, {"train": 8})


def table(rows):
    """A network whose logits depend on the last token alone: a table [V, V]."""
    params = jnp.asarray(rows, jnp.float32)

    def apply(params, mutable, x, *, segment=None, cache=None, capacity=0, key=None, train=False):
        return (params[x], 0 if capacity or cache is not None else None), mutable

    return Functional(lambda key: (params, {}), apply)


def made(options=None, rows=None):
    rows = np.random.default_rng(0).normal(size=(V, V)) if rows is None else rows
    return lm.Language(table(rows), options or lm.Options(), spec(), T)


def arrays(model):
    params, mutable = model.network.init(None)
    return {"lm": params}, {"lm": mutable}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    token = jnp.asarray(rng.integers(0, V, (4, T + 1)), jnp.int32)
    segment = jnp.asarray(
        [[1] * 7, [1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 0, 0, 0], [1, 2, 3, 3, 3, 3, 0]]
    )
    counted = jnp.asarray(rng.integers(0, 2, (4, T + 1)), jnp.uint8)
    return {"token": token, "segment": segment, "loss_mask": counted}


def pairs(batch):
    """(token, next token) of every target that counts, by a plain loop."""
    token, segment, counted = (np.asarray(batch[k]) for k in ("token", "segment", "loss_mask"))
    for row in range(len(token)):
        for t in range(T):
            one = segment[row, t] == segment[row, t + 1] > 0
            if one and counted[row, t + 1]:
                yield token[row, t], token[row, t + 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("z_loss", [0.0, 0.05])
def test_the_loss_is_that_of_optax_over_the_targets_that_count(batch, smoothing, z_loss):
    model = made(lm.Options(smoothing, z_loss))
    params, mutable = arrays(model)
    value, aux = lm.loss(model, params, mutable, batch, jax.random.key(0), jnp.int32(0))
    before, target = np.array(list(pairs(batch))).T
    logits = params["lm"][before]
    each = optax.softmax_cross_entropy(
        logits, optax.smooth_labels(jax.nn.one_hot(target, V), smoothing)
    )
    each += z_loss * jax.nn.logsumexp(logits, axis=-1) ** 2
    assert aux.weight == len(target)
    np.testing.assert_allclose(value, each.mean(), rtol=1e-6)
    right = (np.asarray(logits).argmax(-1) == target).mean()
    np.testing.assert_allclose(aux.metrics["accuracy"], right, rtol=1e-6)


def test_a_microbatch_weighs_as_much_as_it_has_targets(batch):
    model = made()
    phase = Phase("lm", lambda *a: lm.loss(model, *a))
    found = [
        gradient(phase, *arrays(model), batch, jax.random.key(0), jnp.int32(0), count)
        for count in (1, 2, 4)
    ]
    for grads, metrics, _ in found[1:]:
        chex.assert_trees_all_close(grads, found[0][0], rtol=1e-5, atol=1e-7)
        chex.assert_trees_all_close(metrics, found[0][1], rtol=1e-5)


def test_evaluation_counts_tokens_and_bytes(batch):
    model = made()
    size = jnp.asarray([3.0, 4.0, 5.0, 6.0])
    found = lm.evaluate(model, *arrays(model), {**batch, "bytes": size}, jax.random.key(0))
    before, target = np.array(list(pairs(batch))).T
    log_p = jax.nn.log_softmax(arrays(model)[0]["lm"])[before, target]
    loss, bits = found["loss"], found["bits_per_byte"]
    assert loss.weight.sum() == len(target)
    np.testing.assert_allclose(loss.total.sum(), -log_p.sum(), rtol=1e-6)
    np.testing.assert_allclose(
        bits.total.sum() / bits.weight.sum(), -log_p.sum() / 18 / math.log(2), rtol=1e-6
    )
    assert lm.derived({"loss": 2.0}) == {"perplexity": pytest.approx(math.e**2)}


def test_frames_are_independent_keys_and_the_first_does_not_count():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, T, 88)).astype(np.float32)
    seen = []

    def apply(params, mutable, x, **named):
        seen.append(np.asarray(x))
        return (jnp.asarray(logits), None), mutable

    model = lm.Language(Functional(None, apply), lm.Options(), spec("roll"), T)
    frame = rng.integers(0, 2, (2, T, 88)).astype(np.uint8)
    batch = {
        "frame": jnp.asarray(frame),
        "segment": jnp.asarray([[1] * 6, [1] * 3 + [2] * 2 + [0]]),
    }
    found = lm.evaluate(model, {"lm": {}}, {"lm": {}}, batch, jax.random.key(0))["loss"]
    np.testing.assert_array_equal(seen[0][0, 1:], frame[0, :-1])
    np.testing.assert_array_equal(seen[0][1, [1, 2, 4]], frame[1, [0, 1, 3]])
    assert not seen[0][:, 0].any()
    assert not seen[0][1, 3].any()  # silence comes before the second tune
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    nll = -np.log(np.where(frame == 1, p, 1 - p)).sum(-1)
    expected = [nll[0, 1:].sum(), nll[1, [1, 2, 4]].sum()]
    np.testing.assert_allclose(found.total, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.weight, [5, 3])


def test_a_model_of_a_markov_chain_reaches_its_entropy_rate():
    rng = np.random.default_rng(3)
    chain = rng.dirichlet(np.full(V, 0.3), size=V)
    values, vectors = np.linalg.eig(chain.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    rate = -(stationary[:, None] * chain * np.log(np.maximum(chain, 1e-300))).sum()

    net = functional(lambda rngs: decoder.Network(V, 16, width=16, depth=1, heads=2, rngs=rngs))
    model = lm.Language(net, lm.Options(), spec(length=16), 16)
    transition, start = jnp.log(chain), jnp.log(stationary)

    def draw(key, count):
        first, *keys = jax.random.split(key, 17)
        token = [jax.random.categorical(first, start, shape=(count,))]
        for key in keys:
            token.append(jax.random.categorical(key, transition[token[-1]]))
        return {"token": jnp.stack(token, 1)}

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 400))

    def step(carry, key):
        params, state = carry
        grads = jax.grad(lambda p: lm.loss(model, {"lm": p}, {"lm": {}}, draw(key, 64), key, 0)[0])(
            params
        )
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        carry = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, carry, jax.random.split(jax.random.key(0), 400))
        terms, _ = model.terms(params, {}, draw(jax.random.key(1), 4096))
        return terms.nll.mean()

    params, _ = net.init(jax.random.key(2))
    assert float(train(params)) == pytest.approx(rate, abs=0.01)


def test_texts_begin_with_the_start_and_end_with_the_end():
    rows = np.full((V, V), -30.0)
    rows[[0, 1, 2, 3], [1, 2, 3, 4]] = 0.0  # 0 1 2 3 and the end
    model = made(rows=rows)
    found = lm.sample(model, *arrays(model), jax.random.key(0), 2)
    np.testing.assert_array_equal(found[:, :7], [[0, 1, 2, 3, 4, -1, -1]] * 2)
    assert found.shape == (2, 1 + lm.NEW)
    prompt = jnp.asarray([[-1, 2], [1, 2]])
    for options in ({"beams": 2, "max_new_tokens": 4}, {"temperature": 0}):
        found = lm.sample(
            model, *arrays(model), jax.random.key(0), 2, {"prompt": prompt}, **options
        )
        np.testing.assert_array_equal(found[:, 1:5], [[2, 3, 4, -1]] * 2)
    words = lm.sample(
        *(model, *arrays(model), jax.random.key(0), 1, {"prompt": prompt[1:]}),
        decode=lambda ids: "".join("abcde"[i] for i in ids if i >= 0),
        stop=automaton([b"d"], [b"a", b"b", b"c", b"d", b""]),
    )
    assert "".join(words) == "d"


def test_the_same_options_are_compiled_for_once():
    traced = []

    def counting(model):
        def apply(*args, **named):
            traced.append(named)
            return model.network.apply(*args, **named)

        return model._replace(network=Functional(model.network.init, apply))

    def roll(params, mutable, x, *, cache=None, capacity=0):
        return (0.5 - x, 0), mutable

    text = counting(made())
    music = counting(lm.Language(Functional(None, roll), lm.Options(), spec("roll"), T))
    every = {"top_k": 4, "top_p": 0.9, "min_p": 0.01, "temperature": 0.7, "allowed": [1, 2, 3]}
    every |= {"repetition_penalty": 1.1, "no_repeat_ngram": 3, "min_new_tokens": 2}
    every |= {"banned": [[2, 3]], "max_new_tokens": 4}
    beams = {"beams": 2, "max_new_tokens": 3, "top_k": 3}
    for seed, fresh in ((0, True), (1, False)):
        for options in (every, beams):
            traced.clear()
            num = 1 if "beams" in options else 2  # a search draws nothing
            lm.sample(text, *arrays(text), jax.random.key(seed), num, **options)
            assert bool(traced) == fresh
        traced.clear()
        lm.sample_frames(music, {"lm": {}}, {"lm": {}}, jax.random.key(seed), 2, frames=3)
        assert bool(traced) == fresh
    for changed in ({"temperature": 0.9}, {"banned": [[3, 2]]}, {"min_new_tokens": 3}):
        traced.clear()
        lm.sample(text, *arrays(text), jax.random.key(0), 2, **(every | changed))
        assert traced, changed


def test_options_that_do_not_go_together_are_refused():
    model = made()
    with pytest.raises(configs.ConfigError, match=r"--stop=.*nothing with --beams"):
        lm.sample(model, *arrays(model), jax.random.key(0), 1, beams=2, stop=np.zeros((2, V), int))
    with pytest.raises(configs.ConfigError, match=r"--length_penalty.*nothing without --beams"):
        lm.sample(model, *arrays(model), jax.random.key(0), 1, length_penalty=0.6)
    with pytest.raises(configs.ConfigError, match="--max_new_tokens=-1"):
        lm.sample(model, *arrays(model), jax.random.key(0), 1, max_new_tokens=-1)


def test_a_roll_is_drawn_from_its_own_past():
    """A network that repeats what it saw makes silence, and one that turns it over alternates."""

    def apply(params, mutable, x, *, cache=None, capacity=0):
        return (40.0 * (0.5 - x), 0), mutable

    model = lm.Language(Functional(None, apply), lm.Options(), spec("roll"), T)
    rolls = lm.sample_frames(model, {"lm": {}}, {"lm": {}}, jax.random.key(0), 3, frames=5)
    assert rolls.shape == (3, 5, 88)
    expected = np.broadcast_to(np.array([1, 0, 1, 0, 1])[:, None], (5, 88))
    np.testing.assert_array_equal(rolls[0], expected)
    with pytest.raises(configs.ConfigError, match=r"--frames=7: expected 0 to 6"):
        lm.sample_frames(model, {"lm": {}}, {"lm": {}}, jax.random.key(0), 3, frames=7)


@pytest.mark.parametrize("bias", [False, True])
def test_nanogpts_setting_decays_what_nanogpt_does(bias):
    """Parameters of two dimensions or more, before they are stacked over the blocks."""
    keys = {"model.lm.width": 8, "model.lm.bias": bias}
    config = configs.load("configs/gpt_char.py:nanogpt", keys)
    method = lm.build(config, spec(length=64))
    params = jax.tree.map(lambda p: 1.0 + p, method.init(jax.random.key(0), None)[0]["lm"])
    optimizer = optim.build(config, "lm", optax.constant_schedule(1.0))
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params, step=jnp.int32(0))
    held, counted = dict(jax.tree_util.tree_leaves_with_path(params)), 0
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = path_name(path)
        # A bias of qkv has an axis of heads here, and is a vector in nanoGPT.
        matrix = update.ndim - ("blocks" in name) > 1 and not name.endswith("bias")
        counted += matrix
        expected = -0.1 * held[path] if matrix else 0.0
        np.testing.assert_allclose(update, expected, rtol=1e-6, err_msg=path_name(path))
    assert counted == 6  # tokens, positions, and four kernels of the blocks


def test_label_smoothing_is_no_option_of_frames():
    config = configs.load("configs/tcn_music.py:tiny", {"lm.label_smoothing": 0.1})
    with pytest.raises(configs.ConfigError, match=r"label_smoothing=0\.1: expected 0 with piano"):
        lm.build(config, spec("roll"))


def test_a_roll_has_88_keys():
    config = configs.load("configs/tcn_music.py:tiny", {"model.vocabulary_size": 100})
    with pytest.raises(configs.ConfigError, match=r"vocabulary_size=100: expected 88 keys, or 0"):
        lm.build(config, spec("roll"))


def test_no_roll_is_longer_than_memory():
    model = lm.Language(Functional(None, None), lm.Options(), spec("roll"), lm.ENDLESS)
    with pytest.raises(configs.ConfigError, match=r"--frames=1000000000: expected 0 to 1048576"):
        lm.sample_frames(model, {}, {}, jax.random.key(0), 1, frames=10**9)


def test_images_are_refused():
    config = configs.base()
    with config.unlocked():
        config.lm = {}
    with pytest.raises(configs.ConfigError, match="'image' of mnist is of kind 'image'"):
        lm.build(config, images((8, 8, 1), name="mnist"))
