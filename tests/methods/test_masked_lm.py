"""Masked language models: masks by hand and by frequency, metrics against every text of a world."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.methods import masked_lm
from genjax.methods.masked_lm import Masked, Options
from genjax.modalities import text as texts
from genjax.networks.encoder import Encoded
from genjax.nn.functional import Functional
from genjax.sampling import conditions, masking
from genjax.training.assemble import assemble

KEY = jax.random.key(0)


class Pieces:
    """A tokenizer of given tokens; the empty ones are special."""

    def __init__(self, *spelling, **special):
        self.spelling, self.special = [piece.encode() for piece in spelling], special
        self.vocabulary_size, self.begins = len(spelling), ()

    def encode(self, text):
        return np.array([self.spelling.index(word.encode()) for word in text.split()], np.int32)


def spec(tokenizer, length=8, name="token"):
    special = {"start": 0} | {k: v for k, v in tokenizer.special.items() if k != "mask"}
    facts = {"vocabulary_size": tokenizer.vocabulary_size, "tokenizer": tokenizer}
    field = Field("text", (length,), np.dtype(np.int32), facts | {"special": special})
    return DataSpec("toy", {name: field}, name, {"train": 64})


def made(data, encode=None, guess=None, **options):
    """The model of networks that are functions of tokens."""

    def network(function):
        def apply(params, mutable, x, *, segment=None, at=None, key=None, train=False):
            out = function(x)
            if at is not None:
                out = out._replace(logits=jnp.take_along_axis(out.logits, at[..., None], axis=1))
            return out, mutable

        return Functional(lambda key: ({}, {}), apply)

    known = masking.vocabulary(data.generated)
    generator = network(guess) if guess else None
    return Masked(network(encode), generator, Options(**options), data, known)


EMPTY = ({"encoder": {}, "generator": {}}, {"encoder": {}, "generator": {}})


# ---- masks ---------------------------------------------------------------------------------------

PIECES = Pieces("", " the", " cat", "s", ",", " don", "'", "t", "é", "\n", " b", mask=0, eos=0)


def test_words_are_runs_of_letters_with_the_space_before_them():
    known = masking.vocabulary(spec(PIECES).generated)
    token = jnp.array([[3, 1, 2, 3, 4, 5, 6, 7], [7, 8, 3, 9, 3, 0, 3, 10]])
    expected = [[0, 1, 2, 2, 3, 4, 5, 6], [0, 0, 0, 1, 2, 3, 4, 5]]
    np.testing.assert_array_equal(masking.words(known, token, None), expected)
    segment = jnp.array([[1, 1, 1, 2, 2, 2, 2, 2], [1, 2, 2, 2, 2, 2, 2, 2]])
    expected = [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 1, 2, 3, 4, 5, 6]]
    np.testing.assert_array_equal(masking.words(known, token, segment), expected)
    letters = Characters("ab .", {"eos": 4})
    known = masking.vocabulary(spec(letters).generated)
    token = jnp.asarray(letters.encode("ab ba. b"))[None]
    np.testing.assert_array_equal(masking.words(known, token, None)[0], [0, 0, 1, 2, 2, 3, 4, 5])
    assert (known.mask, known.values, len(known.is_text)) == (5, 5, 6)  # it follows the others
    np.testing.assert_array_equal(known.is_text, [1, 1, 1, 1, 0, 0])


def test_a_tokenizers_own_mask_is_the_mask_and_a_network_may_have_more_tokens():
    known = masking.vocabulary(spec(PIECES).generated, 14)
    assert known.mask == 0
    assert len(known.is_text) == 14
    assert not known.is_text[[0, 11, 12, 13]].any()


@pytest.mark.parametrize("whole_words", [True, False])
def test_tokens_are_chosen_and_replaced_as_often_as_asked_for(whole_words):
    """Within 4.5 standard errors, whose count of independent draws is that of words."""
    data, rng = spec(PIECES), np.random.default_rng(0)
    options = {"mask_rate": 0.3, "replace_mask": 0.5, "replace_random": 0.2}
    model = made(data, whole_words=whole_words, **options)
    token = rng.integers(0, 11, (20_000, 8))
    segment = np.sort(rng.integers(0, 3, token.shape))[:, ::-1]
    segment = np.where(segment == 0, 0, 3 - segment).copy()  # texts 1 and 2, then padding
    batch = {"token": jnp.asarray(token), "segment": jnp.asarray(segment)}
    known = model.vocabulary
    _, counts, _ = model.examples(batch)
    inner = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
    expected = np.pad(inner, ((0, 0), (1, 0))) & (token != 0)
    np.testing.assert_array_equal(counts, expected)
    draw = masking.draws(
        known, KEY, *(jnp.asarray(a) for a in (token, counts, segment)), whole_words
    )
    chosen = np.asarray(draw) < 0.3
    assert not chosen[~expected].any()
    share = chosen[expected].mean()
    assert abs(share - 0.3) < 4.5 * math.sqrt(0.3 * 0.7 / 20_000)
    word = np.asarray(masking.words(known, jnp.asarray(token), jnp.asarray(segment)))
    together = (word[:, 1:] == word[:, :-1]) & expected[:, 1:] & expected[:, :-1]
    same = chosen[:, 1:] == chosen[:, :-1]
    if whole_words:
        assert same[together].all()
    else:
        assert abs(same[together].mean() - (0.3**2 + 0.7**2)) < 0.02
    x = masking.corrupted(known, KEY, jnp.asarray(token), jnp.asarray(chosen), 0.5, 0.2)
    x, count = np.asarray(x), chosen.sum()
    np.testing.assert_array_equal(x[~chosen], token[~chosen])
    # A random token is the mask, which is a token of the data here, or the old one by chance.
    for found, p in (
        (x[chosen] == 0, 0.5 + 0.2 / 11),
        (x[chosen] == token[chosen], 0.3 + 0.2 / 11),
    ):
        assert abs(found.mean() - p) < 4.5 * math.sqrt(p * (1 - p) / count)
    others = x[chosen & (x != token) & (x != 0)]
    frequency = np.bincount(others, minlength=11)[1:] / len(others)
    assert np.abs(frequency - 0.1).max() < 4.5 * math.sqrt(0.09 / len(others)) + 0.02


def test_masks_depend_on_the_key_alone():
    seen = []

    def encode(x):
        seen.append(x)
        return Encoded(None, jnp.zeros((*x.shape, 11)))

    model = made(spec(PIECES), encode)
    batch = {"token": jnp.asarray(np.random.default_rng(0).integers(1, 11, (64, 8)))}

    @jax.jit
    def asked(key, step):
        masked_lm.loss(model, *EMPTY, batch, key, step)
        return seen[-1]

    first = asked(KEY, 0)
    np.testing.assert_array_equal(first, asked(KEY, 1))
    assert (first != asked(jax.random.fold_in(KEY, 1), 0)).any()
    assert (first == 0).any()


# ---- losses of networks that know everything, or nothing -----------------------------------------

S, K = 3, 3
WORLD = Characters("abc", {"eos": 3})  # the mask is 4
EXAMPLES = np.array(list(itertools.product(range(K), repeat=S)))
JOINT = np.random.default_rng(0).dirichlet(np.full(K**S, 0.5))
JOINT = 0.8 * JOINT + 0.2 / K**S


def conditionals():
    """p(token i | those that are not masked) [all states of K tokens and the mask, S, K]."""
    table = np.zeros((4,) * S + (S, K))
    for state in itertools.product(range(4), repeat=S):
        fits = ((np.array(state) == K) | (np.array(state) == EXAMPLES)).all(1)
        for i, value in itertools.product(range(S), range(K)):
            table[state][i, value] = JOINT[fits & (EXAMPLES[:, i] == value)].sum()
    return table / table.sum(-1, keepdims=True)


TABLE = conditionals()


def exact(x):
    """The network that knows the joint."""
    table = jnp.log(jnp.asarray(np.pad(TABLE, ((0, 0),) * 4 + ((0, 2),)), jnp.float32))
    state = jnp.where(x == 4, K, x)
    return Encoded(None, table[tuple(state[:, i] for i in range(S))])


def nll_of(masked):
    """-log p of the masked tokens of each example, summed, given the others."""
    state = np.where(masked, K, EXAMPLES)
    p = np.take_along_axis(TABLE[tuple(state.T)], EXAMPLES[..., None], -1)[..., 0]
    return -(np.log(p) * masked).sum(1)


@pytest.fixture(scope="module")
def evaluated():
    """Each example, many times: [repeats, examples]."""
    options = {"mask_rate": 0.4, "replace_mask": 1.0, "replace_random": 0.0, "whole_words": False}
    model = made(spec(WORLD, S), exact, **options, pseudo_positions=1)
    batch = {"token": jnp.asarray(np.tile(EXAMPLES, (2000, 1)))}
    found = jax.jit(functools.partial(masked_lm.evaluate, model))(*EMPTY, batch, KEY)
    return {n: jax.tree.map(lambda a: np.asarray(a).reshape(2000, -1), r) for n, r in found.items()}


def test_evaluations_are_unbiased_of_every_mask(evaluated):
    expected, right = np.zeros(len(EXAMPLES)), np.zeros(len(EXAMPLES))
    for masked in itertools.product((False, True), repeat=S):
        masked = np.array(masked)
        chance = 0.4 ** masked.sum() * 0.6 ** (~masked).sum()
        expected += chance * nll_of(masked)
        best = TABLE[tuple(np.where(masked, K, EXAMPLES).T)].argmax(-1)
        right += chance * ((best == EXAMPLES) & masked).sum(1)
    for name, value in (("loss", expected), ("accuracy", right)):
        each = evaluated[name].total
        error = 4.5 * each.std(0) / math.sqrt(2000) + 1e-6
        assert (np.abs(each.mean(0) - value) < error).all()
    weight = evaluated["loss"].weight
    assert abs(weight.mean() - 0.4 * S) < 4.5 * weight.std() / math.sqrt(weight.size)


def test_the_pseudo_perplexity_is_of_each_token_given_all_others(evaluated):
    expected = sum(nll_of(np.arange(S) == i) for i in range(S))
    each = evaluated["pseudo_loss"]
    assert (np.abs(each.total.mean(0) - expected) < 4.5 * each.total.std(0) / math.sqrt(2000)).all()
    assert each.total.std() > 0.1
    assert (each.weight == S).all()
    whole = made(spec(WORLD, S), exact, pseudo_positions=9)
    run = jax.jit(lambda batch: masked_lm.one_by_one(whole, *EMPTY, batch, KEY))
    found = run({"token": jnp.asarray(EXAMPLES)})
    np.testing.assert_allclose(found["pseudo_loss"].total, expected, rtol=1e-5)
    right = np.zeros(len(EXAMPLES))
    for i in range(S):
        state = np.where(np.arange(S) == i, K, EXAMPLES)
        right += TABLE[tuple(state.T)][:, i].argmax(-1) == EXAMPLES[:, i]
    np.testing.assert_allclose(found["pseudo_accuracy"].total, right, atol=1e-6)
    # Of a padded text only the tokens that are there.
    batch = {"token": jnp.array([[3, 1, 2, 3]]), "segment": jnp.array([[1, 1, 1, 0]])}
    free = made(
        spec(WORLD, 4), lambda x: Encoded(None, jnp.zeros((*x.shape, 5))), pseudo_positions=2
    )
    run = jax.jit(lambda batch: masked_lm.one_by_one(free, *EMPTY, batch, KEY))
    found = run(batch)["pseudo_loss"]
    np.testing.assert_allclose((found.total[0], found.weight[0]), (2 * math.log(5), 2), rtol=1e-6)
    assert masked_lm.derived({"pseudo_loss": math.log(7)})["pseudo_perplexity"] == pytest.approx(7)
    assert masked_lm.derived({"loss": 1.0}) == {}


def test_a_loss_is_a_mean_over_chosen_tokens_and_counts_by_their_number():
    def free(**options):
        """Of one that knows nothing: what the function gives, compiled."""
        model = made(spec(WORLD, 400), lambda x: Encoded(None, jnp.zeros((*x.shape, 5))), **options)
        return lambda function, **named: jax.jit(
            lambda batch: function(model, *EMPTY, batch, KEY, **named)
        )(batch)

    token = np.random.default_rng(0).integers(0, 3, (8, 400))
    batch = {"token": jnp.asarray(token)}
    value, aux = free()(masked_lm.loss, step=0)
    np.testing.assert_allclose(value, math.log(5), rtol=1e-6)
    words = 8  # all letters of a row are one word
    assert aux.weight in np.arange(words + 1) * masked_lm.capacity(400, 0.15)
    alone = free(whole_words=False)
    _, aux = alone(masked_lm.loss, step=0)
    assert abs(aux.weight / token.size - 0.15) < 4.5 * math.sqrt(0.15 * 0.85 / token.size)
    found, _ = alone(masked_lm.guess, train=True)
    assert found.at.shape == (8, masked_lm.capacity(400, 0.15)) == (8, 110)
    np.testing.assert_array_equal(found.token, np.take_along_axis(token, found.at, 1))
    chosen = np.asarray(found.chosen).astype(int)
    assert (np.diff(chosen, axis=1) <= 0).all()  # what was not chosen comes last


# ---- ELECTRA -------------------------------------------------------------------------------------


def test_the_encoder_is_asked_about_draws_of_the_generator():
    """One that says no of all is wrong of what was replaced: p of a token that was not drawn."""
    seen = []
    table = np.log([[0.2, 0.3, 0.5], [0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])  # at each position

    def generator(x):
        logits = jnp.asarray(np.pad(table, ((0, 0), (0, 2)), constant_values=-np.inf), jnp.float32)
        return Encoded(None, jnp.broadcast_to(logits, (*x.shape, 5)))

    def encode(x):
        seen.append(x)
        return Encoded(None, jnp.full(x.shape, -0.7))

    options = {"mask_rate": 0.5, "replaced_weight": 10.0, "whole_words": False}
    model = made(spec(WORLD, S), encode, generator, objective="replaced", **options)
    count = 40_000
    token = np.tile(EXAMPLES[[5]], (count, 1))
    batch = {"token": jnp.asarray(token)}

    @jax.jit
    def run(batch):
        found, _ = masked_lm.guess(model, *EMPTY, batch, KEY)
        said, _ = masked_lm.detect(model, *EMPTY, batch, KEY, found)
        joint = masked_lm.joint_loss(model, *EMPTY, batch, KEY, 0)
        return said, seen[0], joint, masked_lm.evaluate(model, *EMPTY, batch, KEY)

    said, asked, (value, aux), metrics = run(batch)
    np.testing.assert_array_equal(said.replaced, np.asarray(asked) != token)
    p = np.exp(table)[np.arange(S), EXAMPLES[5]]
    share = np.asarray(said.replaced).mean(0)
    expected = 0.5 * (1 - p)
    assert (np.abs(share - expected) < 4.5 * np.sqrt(expected / count)).all()
    bce = np.where(said.replaced, np.log1p(np.exp(0.7)), np.log1p(np.exp(-0.7)))
    np.testing.assert_allclose(said.loss, bce, rtol=1e-5)
    np.testing.assert_array_equal(said.correct, ~np.asarray(said.replaced))

    expected = aux.metrics["masked_loss"] + 10 * aux.metrics["detection_loss"]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert aux.weight == count * S
    shares = [np.asarray(metrics[n].total).mean() / S for n in ("replaced", "detection_accuracy")]
    assert sum(shares) == pytest.approx(1)  # of one that says no of all


def test_gradients_go_through_shared_vectors_but_not_through_draws():
    V = 6

    def network(name):
        def apply(params, mutable, x, *, segment=None, at=None, key=None, train=False):
            hidden = params["embed"][x]
            hidden = hidden if at is None else jnp.take_along_axis(hidden, at[..., None], axis=1)
            return Encoded(None, hidden @ params[name]), mutable

        size = (4, V) if name == "generator" else (4,)
        params = {"embed": jnp.ones((V, 4)) + jnp.arange(4), name: jnp.ones(size)}
        return Functional(lambda key: (params, {}), apply)

    options = Options("replaced", whole_words=False, mask_rate=0.5)
    known = masking.vocabulary(spec(LETTERS, 12).generated)
    networks = network("encoder"), network("generator")
    method = masked_lm.from_networks(*networks, options, spec(LETTERS, 12), (), known)
    batch = {"token": jnp.asarray(np.random.default_rng(0).integers(0, 4, (8, 12)))}
    params, mutable = method.init(KEY, batch)
    assert {name: set(tree) for name, tree in params.items()} == {
        "encoder": {"embed", "encoder"},
        "generator": {"generator"},
    }
    (phase,) = method.phases
    assert phase.networks == ("encoder", "generator")

    @jax.jit
    def gradients(params):
        def losses(params):
            _, aux = phase.loss(params, mutable, batch, KEY, 0)
            return jnp.stack([aux.metrics["masked_loss"], aux.metrics["detection_loss"]])

        _, back = jax.vjp(losses, params)
        return [back(row)[0] for row in jnp.eye(2)]

    masked, detection = jax.device_get(gradients(params))
    assert not any(leaf.any() for leaf in jax.tree.leaves(detection["generator"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(masked["generator"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(detection["encoder"]))
    assert masked["encoder"]["embed"].any()
    assert not masked["encoder"]["encoder"].any()


# ---- samples -------------------------------------------------------------------------------------


def draw(model, prompt, **options):
    prompt = jnp.asarray(prompt)
    run = functools.partial(masked_lm.sample, model, *EMPTY, KEY, len(prompt), **options)
    return np.asarray(jax.jit(run)({"prompt": prompt}))


@pytest.mark.parametrize("decoding", masked_lm.DECODINGS)
def test_gaps_are_filled_and_the_rest_stays(decoding):
    model, num = made(spec(WORLD, S), exact), 20_000
    p = TABLE[1, K, 2, 1]
    found = draw(model, np.tile([[1, -1, 2]], (num, 1)), decoding=decoding, temperature=1.0)
    assert (found[:, [0, 2]] == [1, 2]).all()
    share = np.bincount(found[:, 1], minlength=K) / num
    assert (np.abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / num) + 1e-4).all()
    best = draw(model, [[1, -1, 2]] * 5, decoding=decoding)
    assert (best[:, 1] == p.argmax()).all()


def test_whole_texts_drawn_token_by_token_have_the_frequencies_of_the_joint():
    model, num = made(spec(WORLD, S), exact), 20_000
    run = functools.partial(masked_lm.sample, model, *EMPTY, KEY, num)
    found = jax.jit(functools.partial(run, decoding="first_hitting", temperature=1.0))()
    count = np.bincount(np.asarray(found) @ np.array([9, 3, 1]), minlength=K**S)
    assert (np.square(count - num * JOINT) / (num * JOINT)).sum() < 75  # 26 degrees of freedom
    short = masked_lm.sample(model._replace(begin=(2,)), *EMPTY, KEY, 5, length=S)
    assert (np.asarray(short)[:, 0] == 2).all()


def test_special_tokens_and_the_mask_are_never_drawn():
    def likes_them(x):
        return Encoded(None, jnp.broadcast_to(jnp.array([0.0, 1, 0, 9, 9]), (*x.shape, 5)))

    found = draw(made(spec(WORLD, 5), likes_them), [[-1, 0, -1, -1, 3]])
    np.testing.assert_array_equal(found, [[1, 0, 1, 1, 3]])


def test_a_text_without_gaps_gets_some_as_in_training():
    letters = Characters("ab ", {"eos": 3})
    model = made(spec(letters, 8), lambda x: Encoded(None, jnp.zeros((*x.shape, 5))), mask_rate=0.4)
    text = letters.encode("bb bbb b")
    full = np.tile(text, (500, 1))
    filled = draw(model, full)  # gaps become a space, the first of equals
    changed = (filled != full)[:, text > 0]
    assert abs(changed.mean() - 0.4) < 0.06
    assert (changed[:, 0] == changed[:, 1]).all()
    full[:, 2] = -1  # now it has one
    np.testing.assert_array_equal(draw(model, full), np.tile(text, (500, 1)))


def test_prompts_are_texts_with_gaps_between_the_tokens_that_bound_texts():
    cls = Pieces("[PAD]", "", "", "", " the", " sat", mask=1, bos=2, eos=3)
    cls.begins = (2,)
    data = spec(cls)
    data.generated.facts["special"]["start"] = 2
    (name, field), *_ = masked_lm.conditions_of(data, "stream").items()
    cls.encode = lambda text: np.array([{"the": 4, "sat": 5}[w] for w in text.split()], np.int32)
    np.testing.assert_array_equal(texts.parse("the [MASK] sat", field), [2, 4, -1, 5, 3])
    assert conditions.in_data({name: field}, data) == {"prompt": "token"}
    plain = masked_lm.conditions_of(spec(WORLD), "stream")["prompt"]
    np.testing.assert_array_equal(texts.parse("a[MASK 2]c", plain), [0, -1, -1, 2])
    assert plain.facts["tokenizer"].decode([0, -1, 2]) == "ac"


# ---- embeddings ----------------------------------------------------------------------------------


def test_the_embedding_of_a_text_is_the_mean_over_its_tokens():
    def encode(x):
        return Encoded(jnp.stack([x, x * x], -1).astype(jnp.bfloat16), None)

    token = np.array([[1, 2, 0, 3, 3, 3], [2, 2, 3, 1, 3, 3]])

    def embedded(tokenizer, **batch):
        model = made(spec(tokenizer, 6), encode)
        run = jax.jit(lambda batch: masked_lm.apply(model, *EMPTY, batch))
        return run({"token": jnp.asarray(token), **batch})

    def expected(*lengths):
        rows = [token[i, :n] for i, n in enumerate(lengths)]
        return [[row.mean(), (row * row).mean()] for row in rows]

    ended = embedded(Characters("abc", {"eos": 3}))  # the first eos of those that fill the row
    np.testing.assert_allclose(ended, expected(4, 5), rtol=1e-6)
    assert ended.dtype == jnp.float32
    filled = embedded(Characters("abc", {"eos": 4, "pad": 3}))
    np.testing.assert_allclose(filled, expected(3, 4), rtol=1e-6)
    np.testing.assert_allclose(embedded(Characters("abcd", {})), expected(6, 6), rtol=1e-6)
    segment = jnp.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]])
    given = embedded(Characters("abcd", {}), segment=segment)
    np.testing.assert_allclose(given, expected(2, 3), rtol=1e-6)


# ---- with real networks --------------------------------------------------------------------------

LETTERS = Characters("abcd", {"eos": 4})
NETWORK = {"width": 16, "depth": 1, "heads": 2, "positions": "rotary", "norm_first": True}


def config_of(objective="masked", **overrides):
    config = configs.load("configs/bert.py:tiny", {"masked_lm.objective": objective, **overrides})
    config.dataset.text.length = 11
    with config.unlocked():
        config.model.encoder = ConfigDict(NETWORK)
        config.model.generator = ConfigDict({"heads": 1})
    return config


def binary_entropy(p):
    """The detection loss of an encoder that only knows how many tokens were replaced."""
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_a_small_model_learns_a_cycle_of_letters():
    """abcdabcd: a token is certain given any other, and one in four without."""
    given = {"masked_lm.whole_words": False, "masked_lm.pseudo_positions": 0}
    config = config_of("replaced", **given, **{"schedule.warmup": ""})
    config.optimizer.learning_rate, config.duration = 1e-2, "400_steps"
    run = assemble(config, spec(LETTERS, 12), devices=jax.devices()[:1])
    offset = np.random.default_rng(0).integers(0, 4, (400, config.batch_size, 1))
    batches = {"token": ((offset + np.arange(12)) % 4).astype(np.int32)}
    with jax.set_mesh(run.mesh):
        state, _ = run.steps(run.init(), batches)
    batch = {"token": jnp.asarray(batches["token"][:32].reshape(-1, 12))}
    found = jax.jit(run.method.evaluate)(state.params, state.mutable, batch, KEY)
    share = {name: (value.total.sum() / value.weight.sum()) for name, value in found.items()}
    assert share["accuracy"] > 0.8
    assert share["detection_accuracy"] > 0.97
    assert share["detection_loss"] < 0.9 * binary_entropy(share["replaced"])
    assert not set(masked_lm.SHARED) & set(state.params["generator"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"masked_lm.objective": "causal"}, "objective"),
        ({"masked_lm.replace_mask": 0.8, "masked_lm.replace_random": 0.3}, "at most 1"),
        ({"model.vocabulary_size": 5}, "at least 6"),
        ({"model.length": 4}, "at least 12"),
        ({"masked_lm.mask_rate": 1.0}, "mask_rate"),
    ],
)
def test_what_is_refused(given, expected):
    with pytest.raises(ConfigError, match=expected):
        masked_lm.build(config_of(**given), spec(LETTERS, 12))


def test_other_data_weights_and_options_of_samples_are_refused():
    data, config = spec(LETTERS, 12), config_of("replaced")
    with config.unlocked():
        config.weights = "a/bert"
    with pytest.raises(ConfigError, match=r"as config\.weights are of a BERT"):
        masked_lm.build(config, data)
    image = data._replace(fields={"token": Field("image", (8, 8, 1), np.dtype(np.uint8))})
    with pytest.raises(ConfigError, match="needs text"):
        masked_lm.build(config_of(), image)
    model = made(data, exact)
    for name, value in (("decoding", "beams"), ("steps", 0), ("length", 13)):
        with pytest.raises(ConfigError, match=name):
            masked_lm.sample(model, *EMPTY, KEY, 2, **{name: value})
