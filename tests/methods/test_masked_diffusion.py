"""Masked diffusion: its bound and samples against every mask, order and token of a small joint."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from specs import images

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.methods import masked_diffusion
from genjax.methods.masked_diffusion import Options
from genjax.nn.functional import Functional
from genjax.sampling import conditions
from genjax.sampling.unmasking import Schedule
from genjax.training.assemble import assemble

KEY = jax.random.key(0)
S, K = 3, 3
STATES = np.array(list(itertools.product(range(K + 1), repeat=S)))  # K is the mask
EXAMPLES = np.array(list(itertools.product(range(K), repeat=S)))
JOINTS = np.random.default_rng(0).dirichlet(np.full(K**S, 0.5), size=2)
JOINTS = 0.8 * JOINTS + 0.2 / K**S  # one for each label, in which nothing is too rare to count
SCHEDULES = (("linear", 2.0), ("cosine", 2.0), ("polynomial", 3.0))


def conditionals(joint):
    """p(token i | those that are not masked) [states, S, K], by summing over the joint."""
    table = np.zeros((len(STATES), S, K))
    for n, state in enumerate(STATES):
        fits = ((state == K) | (state == EXAMPLES)).all(1)
        for i, value in itertools.product(range(S), range(K)):
            table[n, i, value] = joint[fits & (EXAMPLES[:, i] == value)].sum()
    return table / table.sum(-1, keepdims=True)


TABLES = np.stack([conditionals(j) for j in (*JOINTS, JOINTS.mean(0))])  # the last of no label


def exact(conditional=False):
    """The network that knows the joint."""
    tables = jnp.log(jnp.asarray(TABLES, jnp.float32))

    def apply(params, mutable, x, label, time, *, segment=None, key=None, train=False):
        state = x @ jnp.array([16, 4, 1])
        return tables[label if conditional else 0, state], mutable

    return Functional(lambda key: ({}, {}), apply)


def spec(kind="code", shape=(1, S, 1), values=K, classes=0, fields=()):
    facts = {"vocabulary_size": values}
    if kind == "text":
        letters = "abcdefgh"[: values - 1]
        facts |= {"special": {"start": values - 1, "eos": values - 1}}
        facts["tokenizer"] = Characters(letters, {"eos": values - 1})
    found = images((1, 1, 1), classes=classes).fields | {
        "token": Field(kind, shape, np.dtype(np.int32), facts)
    }
    found |= {name: Field("mask", shape, np.dtype(np.int32)) for name in fields}
    del found["image"]
    return DataSpec("toy", found, "token", {"train": 64})


def made(options=None, network=None, **given):
    options = options or Options()
    return masked_diffusion.Denoiser(
        network or exact(options.class_conditional), options, spec(**given)
    )


EMPTY = ({"denoiser": {}}, {"denoiser": {}})


def bound(schedule, timesteps=0):
    """The bound of each example in nats, by every mask and a quadrature over time, or each step."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    t, weights = (nodes + 1) / 2, weights / 2
    w = np.asarray(schedule.weight(jnp.asarray(t)), np.float64)
    if timesteps:
        t = np.arange(1, timesteps + 1) / timesteps
        now, before = (np.asarray(schedule.masked(a), np.float64) for a in (t, t - t[0]))
        w, weights = (now - before) / now, np.ones(timesteps)
    share = np.asarray(schedule.masked(jnp.asarray(t)), np.float64)
    total = np.zeros(len(EXAMPLES))
    for masked in itertools.product((False, True), repeat=S):
        masked = np.array(masked)
        state = np.where(masked, K, EXAMPLES) @ np.array([16, 4, 1])
        p = np.take_along_axis(TABLES[0, state], EXAMPLES[..., None], -1)[..., 0]
        chance = share ** masked.sum() * (1 - share) ** (~masked).sum()
        total += -(np.log(p) * masked).sum(1) * (weights * w * chance).sum()
    return total


@pytest.mark.parametrize(("name", "exponent"), SCHEDULES)
def test_of_exact_conditionals_the_bound_is_minus_log_p_of_each_example(name, exponent):
    found = bound(Schedule(name, exponent))
    np.testing.assert_allclose(found, -np.log(JOINTS[0]), rtol=1e-3)
    one = bound(Schedule(name, exponent), timesteps=1)
    first = TABLES[0, -1][np.arange(S), EXAMPLES]  # all is masked: the marginals
    np.testing.assert_allclose(one, -np.log(first).sum(1), rtol=1e-5)


@pytest.mark.parametrize("timesteps", [0, 3])
@pytest.mark.parametrize(("name", "exponent"), SCHEDULES)
def test_evaluations_and_losses_are_unbiased_estimates_of_it(name, exponent, timesteps):
    model = made(Options(schedule=name, exponent=exponent, timesteps=timesteps, eval_times=4))
    expected = bound(Schedule(name, exponent), timesteps)
    repeats = 1000
    batch = {"token": jnp.asarray(np.tile(EXAMPLES, (repeats, 1))).reshape(-1, 1, S, 1)}
    found = jax.jit(functools.partial(masked_diffusion.evaluate, model))(*EMPTY, batch, KEY)
    each = np.asarray(found["nll"]).reshape(repeats, -1)
    error = each.std(0) / np.sqrt(repeats)
    assert (np.abs(each.mean(0) - expected) < 4.5 * error).all()
    np.testing.assert_allclose(found["bits_per_token"], found["nll"] / S / math.log(2), rtol=1e-5)

    batch = {"token": jnp.asarray(EXAMPLES).reshape(-1, 1, S, 1)}
    keys = jax.random.split(KEY, 2000)
    run = jax.vmap(lambda key: masked_diffusion.loss(model, *EMPTY, batch, key, 0))
    value, aux = jax.jit(run)(keys)
    error = value.std() / np.sqrt(len(keys))
    assert abs(value.mean() - expected.mean() / S) < 4.5 * error
    assert error < 0.02
    assert aux.weight[0] == batch["token"].size


def test_times_are_spread_over_an_example_and_over_the_batch():
    """The share that is masked, over all times: at most half a stratum from one half."""
    times, length, count = 8, 2000, 50
    model = made(Options(eval_times=times), uniform(K), shape=(1, length, 1))
    batch = {"token": jnp.zeros((count, 1, length, 1), jnp.int32)}
    found = jax.jit(functools.partial(masked_diffusion.evaluate, model))(*EMPTY, batch, KEY)
    share = np.asarray(found["accuracy"].weight) / (times * length)
    noise = 4.5 * 0.5 / np.sqrt(times * length)
    assert np.abs(share - 0.5).max() < 0.5 / times + noise
    assert share.std() > 0.02  # examples have times of their own
    assert abs(share.mean() - 0.5) < 0.5 / (times * count) + noise / np.sqrt(count)


def chi_square(tokens, p):
    index = np.asarray(tokens).reshape(-1, S) @ np.array([9, 3, 1])
    count = np.bincount(index, minlength=K**S)
    return (np.square(count - len(index) * p) / (len(index) * p)).sum()


LIMIT = 75  # of a chi-square of 26 degrees of freedom: above it with probability 1e-6


def ancestral(steps, table):
    """Of each example the chance to be drawn in so many steps: of each, which tokens come in it."""
    total = np.zeros(len(EXAMPLES))
    for when in itertools.product(range(steps), repeat=S):
        when, p = np.array(when), np.full(len(EXAMPLES), steps**-S, float)
        for step in range(steps):
            state = np.where(when < step, EXAMPLES, K) @ np.array([16, 4, 1])
            each = np.take_along_axis(table[state], EXAMPLES[..., None], -1)[..., 0]
            p = p * np.where(when == step, each, 1).prod(1)
        total += p
    return total


def test_samples_have_the_frequencies_of_the_joint():
    model, num = made(), 20_000

    def draw(**options):
        run = functools.partial(masked_diffusion.sample, model, *EMPTY, KEY, num, **options)
        tokens = jax.jit(run)()
        assert tokens.shape == (num, 1, S, 1)
        return tokens

    assert chi_square(draw(decoding="first_hitting"), JOINTS[0]) < LIMIT
    assert chi_square(draw(steps=64), JOINTS[0]) < LIMIT
    few = ancestral(2, TABLES[0])
    assert chi_square(draw(steps=2), few) < LIMIT
    assert chi_square(draw(steps=2), JOINTS[0]) > 3 * LIMIT  # where tokens do not know each other
    one = draw(decoding="confidence", steps=1)
    assert chi_square(one, ancestral(1, TABLES[0])) < LIMIT


@pytest.mark.parametrize("decoding", ["ancestral", "first_hitting", "confidence"])
def test_a_sample_does_not_depend_on_those_beside_it(decoding):
    model = made(Options(decoding=decoding, steps=4))
    few, many = (masked_diffusion.sample(model, *EMPTY, KEY, num) for num in (3, 7))
    np.testing.assert_array_equal(few, many[:3])
    assert len(np.unique(np.asarray(many).reshape(7, -1), axis=0)) > 2


def test_labels_and_their_guidance():
    """Of tokens that come one by one: p(x | y)^w p(x)^(1 - w), normalised for each."""
    model = made(Options(class_conditional=True), classes=2)
    num, label = 20_000, jnp.arange(20_000) % 2

    def share(**options):
        run = functools.partial(masked_diffusion.sample, model, *EMPTY, KEY, num)
        draw = jax.jit(
            functools.partial(run, {"label": label}, decoding="first_hitting", **options)
        )
        return np.asarray(draw())

    tokens = share()
    for y in range(2):
        assert chi_square(tokens[np.asarray(label) == y], JOINTS[y]) < LIMIT
    guided = share(guidance=2.0)
    for y in range(2):
        table = TABLES[y] ** 2 / np.maximum(TABLES[2], 1e-9)
        table = table / table.sum(-1, keepdims=True)
        order = []  # what first hitting draws: the mean over all orders
        for turn in itertools.permutations(range(S)):
            p = np.ones(len(EXAMPLES))
            rank = np.argsort(turn)
            for step, i in enumerate(turn):
                state = np.where(rank < step, EXAMPLES, K) @ np.array([16, 4, 1])
                p = p * table[state, i, EXAMPLES[:, i]]
            order.append(p)
        expected = np.mean(order, 0)
        assert chi_square(guided[np.asarray(label) == y], expected) < LIMIT
        assert np.abs(expected - JOINTS[y]).max() > 0.02


def test_hidden_labels_are_as_many_as_asked_for():
    options = Options(class_conditional=True, label_dropout=0.3)
    model, seen = recording(made(options, classes=2))
    count = 20_000
    batch = {"token": jnp.zeros((count, 1, S, 1), jnp.int32), "label": jnp.ones(count, jnp.int32)}
    masked_diffusion.loss(model, *EMPTY, batch, KEY, 0)
    label = np.asarray(seen[0][1])
    assert set(np.unique(label)) == {1, 2}
    assert abs((label == 2).mean() - 0.3) < 4.5 * np.sqrt(0.21 / count)


def recording(model):
    """The model, and the list of what its network has been given."""
    seen = []

    def apply(params, mutable, x, label, time, **named):
        seen.append((x, label, time, named))
        return model.network.apply(params, mutable, x, label, time, **named)

    return model._replace(network=Functional(model.network.init, apply)), seen


def uniform(values):
    """The network that knows nothing."""

    def apply(params, mutable, x, label, time, **named):
        return jnp.zeros((*x.shape, values)), mutable

    return Functional(lambda key: ({}, {}), apply)


@pytest.fixture
def documents():
    """Rows of 6 tokens, and which of them count, by hand."""
    segment = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 0, 0], [1, 1, 2, 2, 2, 0]]
    given = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    counts = [[0, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    token = np.random.default_rng(1).integers(0, 4, (4, 6))
    batch = {"token": token, "segment": segment, "loss_mask": given}
    return {k: jnp.asarray(v, jnp.int32) for k, v in batch.items()}, np.array(counts)


def test_only_what_counts_is_masked_and_weighs(documents):
    batch, counts = documents
    options = Options(eval_times=2, time_conditional=True, schedule="polynomial")
    model, seen = recording(made(options, uniform(5), kind="text", shape=(6,), values=5))
    terms, _ = model.terms(*EMPTY, batch, None, jnp.ones(4), KEY)
    x, named = seen[0][0], seen[0][3]
    np.testing.assert_array_equal(x, np.where(counts, 5, batch["token"]))
    np.testing.assert_array_equal(terms.masked, counts)
    np.testing.assert_array_equal(named["segment"], batch["segment"])
    model.terms(*EMPTY, batch, None, jnp.full(4, 0.5), KEY)
    np.testing.assert_allclose(seen[1][2], 0.25)  # the share that is masked, not the time
    still = made(options._replace(time_conditional=False), uniform(5), kind="text", shape=(6,))
    still, seen = recording(still)
    still.terms(*EMPTY, batch, None, jnp.ones(4), KEY)
    assert seen[0][2] is None

    # A network that knows nothing has the bound log 5 a token, whatever counts.
    keys = jax.random.split(KEY, 4000)
    run = jax.vmap(lambda key: masked_diffusion.loss(model, *EMPTY, batch, key, 0))
    value, aux = jax.jit(run)(keys)
    assert (aux.weight == counts.sum()).all()
    assert abs(value.mean() - math.log(5)) < 4.5 * value.std() / np.sqrt(len(keys))
    batch["bytes"] = jnp.array([7.0, 4.0, 2.0, 3.0])
    run = jax.vmap(lambda key: masked_diffusion.evaluate(model, *EMPTY, batch, key))
    found = jax.jit(run)(keys)
    np.testing.assert_array_equal(found["loss"].weight[0], counts.sum(1))
    each = found["loss"].total
    error = 4.5 * each.std(0) / np.sqrt(len(keys))
    assert (np.abs(each.mean(0) - counts.sum(1) * math.log(5)) < error).all()
    bits = found["bits_per_byte"]
    np.testing.assert_allclose(bits.total, each / math.log(2), rtol=1e-5)
    np.testing.assert_array_equal(bits.weight[0], batch["bytes"])


def test_bits_per_byte_of_a_stream_are_of_as_many_tokens_as_bytes():
    """All of a window's tokens count, and its bytes are those of all but the first."""
    model = made(Options(), uniform(5), kind="text", shape=(6,), values=5)
    batch = {"token": jnp.zeros((8, 6), jnp.int32), "bytes": jnp.full(8, 5.0)}
    found = masked_diffusion.evaluate(model, *EMPTY, batch, KEY)
    np.testing.assert_array_equal(found["loss"].weight, 6)
    expected = found["loss"].total / 6 * 5 / math.log(2)
    np.testing.assert_allclose(found["bits_per_byte"].total, expected, rtol=1e-6)


def test_what_is_given_of_a_text_stays_and_the_rest_is_drawn_for_it():
    model, num = made(Options(steps=3), kind="text", shape=(S,)), 20_000
    prompt = jnp.tile(jnp.array([[1, -1, 2]]), (num, 1))
    for decoding in ("ancestral", "first_hitting", "confidence"):
        found = np.asarray(
            masked_diffusion.sample(model, *EMPTY, KEY, num, {"prompt": prompt}, decoding=decoding)
        )
        assert (found[:, [0, 2]] == [1, 2]).all()
        p = TABLES[0, 16 + 4 * K + 2, 1]
        share = np.bincount(found[:, 1], minlength=K) / num
        assert (np.abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / num) + 1e-4).all()
    short = masked_diffusion.sample(model, *EMPTY, KEY, 5, {"prompt": prompt[:5, :1]})
    assert short.shape == (5, S)
    assert (np.asarray(short) >= 0).all()
    free = made(Options(), uniform(K), kind="text", shape=(S,))._replace(begin=(2,))
    begun = np.asarray(masked_diffusion.sample(free, *EMPTY, KEY, 5, length=2))
    assert begun.shape == (5, 2)
    assert (begun[:, 0] == 2).all()


def config(conditional=False, **network):
    c = configs.base()
    c.method, c.batch_size, c.duration = "masked_diffusion", 256, "600_steps"
    c.optimizer.learning_rate, c.ema.decay = 3e-3, ()
    c.schedule.name = "cosine"
    with c.unlocked():
        options = Options(class_conditional=conditional, label_dropout=0.0, eval_times=16)
        c.masked_diffusion = ConfigDict(options._asdict())
        network = {"width": 32, "depth": 2, "heads": 2} | network
        c.model = ConfigDict({"network": "masked_transformer", "denoiser": network})
    return c


def test_the_bound_of_a_markov_chain_is_learned():
    """x_1 is uniform; x_s of label y is x_(s-1) + 1 with probability 0.9 - 0.6 y, else x_(s-1)."""
    length, values, count = 4, 3, 256
    run = assemble(
        config(conditional=True),
        spec(shape=(1, 2, 2), values=values, classes=2),
        devices=jax.devices()[:1],
    )

    def draw(key):
        first, move, label = (jax.random.fold_in(key, i) for i in range(3))
        y = jax.random.randint(label, (count,), 0, 2)
        x = jax.random.randint(first, (count, 1), 0, values)
        moves = jax.random.bernoulli(move, (0.9 - 0.6 * y)[:, None], (count, length - 1))
        code = jnp.concatenate([x, x + jnp.cumsum(moves, 1)], 1) % values
        return {"token": code.reshape(count, 1, 2, 2), "label": y}

    shardings = {name: shape.sharding for name, shape in run.batch.items()}
    draw = jax.jit(draw, out_shardings=shardings)
    with jax.set_mesh(run.mesh):
        state = run.init()
        for i in range(600):
            state, _ = run.step(state, draw(jax.random.fold_in(KEY, i)))
        test = [draw(jax.random.fold_in(KEY, 1000 + i)) for i in range(16)]
        test = {name: jnp.concatenate([b[name] for b in test]) for name in test[0]}
        found = jax.jit(run.method.evaluate)(state.params, state.mutable, test, KEY)
        code = run.method.sample(
            state.params, state.mutable, KEY, 512, {"label": jnp.zeros(512, jnp.int32)}
        )
    p = np.where(test["label"] == 0, 0.9, 0.3)[:, None]
    moved = np.diff(np.asarray(test["token"]).reshape(-1, length), axis=1) % values
    each = np.log(values) - np.log(np.where(moved, p, 1 - p)).sum(1)
    gap = np.asarray(found["nll"]) - each  # its mean is at least a Kullback-Leibler divergence
    error = gap.std() / np.sqrt(len(gap))
    assert -4.5 * error < gap.mean() < 0.12
    assert error < 0.03
    share = (np.diff(np.asarray(code).reshape(-1, length), axis=1) % values == 1).mean()
    assert share == pytest.approx(0.9, abs=0.04)


def text_method():
    return masked_diffusion.build(config(), spec("text", (6,), 5))


def test_a_prompt_with_gaps_is_read_from_the_command_line():
    known = text_method().conditions
    (row,) = conditions.parse(known, {"prompt": ["a[MASK]b[MASK 2]"]})
    np.testing.assert_array_equal(row["prompt"], [0, -1, 1, -1, -1])
    with pytest.raises(ConfigError, match=r"a gap='\[MASK 0\]'"):
        conditions.parse(known, {"prompt": ["a[MASK 0]"]})
    padded = config()
    padded.dataset.text.documents = "padded"
    method = masked_diffusion.build(padded, spec("text", (6,), 5))
    (row,) = conditions.parse(method.conditions, {"prompt": ["[MASK]"]})
    np.testing.assert_array_equal(row["prompt"], [4, -1])  # behind what begins a text
    params, mutable = method.init(KEY, {})
    assert (method.sample(params, mutable, KEY, 3, steps=2)[:, 0] == 4).all()


def test_what_is_refused():
    method = masked_diffusion.build(config(), spec())
    params, mutable = method.init(KEY, {})
    for options, words in (
        ({"decoding": "greedy"}, "decoding"),
        ({"steps": 0}, "steps=0: expected a whole number from 1"),
        ({"schedule": "sine"}, "schedule"),
        ({"temperature": -1}, "temperature=-1"),
        ({"guidance": 2}, "masked_diffusion.class_conditional=True"),
        ({"decoding": "first_hitting", "steps": 3}, "nothing with decoding=first_hitting"),
        ({"choice_temperature": 3}, "nothing with decoding=ancestral"),
        ({"length": 2}, "images have a fixed size"),
        ({"condition": {"label": jnp.zeros(2, jnp.int32)}}, "class_conditional=True"),
        ({"condition": {"prompt": jnp.zeros((2, 1), jnp.int32)}}, "only texts can have a prompt"),
    ):
        with pytest.raises(ConfigError, match=words):
            method.sample(params, mutable, KEY, 2, **options)
    text = text_method()
    for options, words in (
        ({"length": 7}, "--length=7: expected 0 to 6"),
        ({"condition": {"prompt": jnp.zeros((2, 7), jnp.int32)}}, "at most 6"),
    ):
        with pytest.raises(ConfigError, match=words):
            text.sample(*text.init(KEY, {}), KEY, 2, **options)
    for key, value in (("exponent", 0.0), ("eval_times", 0), ("label_dropout", 1.0)):
        changed = config()
        changed.masked_diffusion[key] = value
        with pytest.raises(ConfigError, match=f"masked_diffusion.{key}="):
            masked_diffusion.build(changed, spec())
    with pytest.raises(ConfigError, match="has no labels"):
        masked_diffusion.build(config(conditional=True), spec())
    with pytest.raises(ConfigError, match=r"target of toy is image \(image\)"):
        masked_diffusion.build(config(), images((4, 4, 1)))
    with pytest.raises(ConfigError, match="codes of real numbers"):
        masked_diffusion.build(config(), spec(values=0))
    with pytest.raises(ConfigError, match="Nearest: width"):
        masked_diffusion.build(config(widht=3), spec())
