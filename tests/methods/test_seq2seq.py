"""Pairs of texts: the likelihood by optax, decoding by brute force, pairs of plain text."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax import config as configs
from genjax import modalities
from genjax.config import ConfigError
from genjax.data import tokenizers
from genjax.data.alphabets import Characters
from genjax.interop import encoder_decoder, export
from genjax.method import DataSpec, Field, options_of
from genjax.method import build as build_method
from genjax.methods import seq2seq

LETTERS = "abcdef"
END, V, S, T = 6, 7, 5, 4


def spec(fields=("source", "target"), plain=False, ended=True):
    special = {"start": END if ended else 0} | ({"eos": END} if ended else {})
    tokenizer = Characters(LETTERS, {"eos": END} if ended else {})
    facts = {"vocabulary_size": V - (not ended), "special": special, "tokenizer": tokenizer}
    if plain:
        fields = {"token": Field("text", (13,), np.dtype(np.int32), facts)}
        return DataSpec("made", fields, "token", {"train": 8})
    shapes = dict(zip(fields, ((S,), (T,)), strict=True))
    fields = {
        name: Field("text", shape, np.dtype(np.int32), facts) for name, shape in shapes.items()
    }
    return DataSpec("made", fields, list(fields)[1], {"train": 8})


def config(**changed):
    made = configs.base()
    made.method = "seq2seq"
    with made.unlocked():
        made.seq2seq = seq2seq.Options()._asdict()
        made.model = {"network": "encoder_decoder", "seq2seq": {}}
        made.model.seq2seq = {"width": 8, "depth": 1, "heads": 2, "buckets": 6, "furthest": 9}
    return configs.override(made, changed)


def drawn(method):
    """Parameters large enough that all matters."""
    batch = {"source": jnp.zeros((2, S), jnp.int32), "target": jnp.zeros((2, T), jnp.int32)}
    shapes, mutable = jax.eval_shape(lambda key: method.init(key, batch), jax.random.key(0))
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), shapes), mutable


@pytest.fixture(scope="module")
def made():
    method = build_method(config(), spec())
    params, mutable = drawn(method)
    model = method.phases[0].loss.args[0]

    @jax.jit
    def logits(source, target):
        """Logits of the tokens after each of `target`, by the whole network, without a cache."""
        ends = jnp.argmax(jnp.pad(source, ((0, 0), (0, 1)), constant_values=END) == END, axis=1)
        seen = jnp.arange(S) <= ends[:, None]
        out = model.network.apply(params["seq2seq"], {}, target, source=source, seen=seen)
        return out[0][0]

    return method, params, mutable, logits


BATCH = {
    "source": jnp.array([[1, 2, END, END, END], [0, 1, 2, 3, 4], [5, END, END, END, END]]),
    "target": jnp.array([[3, 1, END, END], [5, 5, 4, 3], [END, END, END, END]]),
}
COUNTED = [3, 4, 1]


def test_the_loss_is_that_of_optax_up_to_the_end_of_each_target(made):
    method, params, mutable, logits = made
    nll = []
    for source, target, count in zip(*BATCH.values(), COUNTED, strict=True):
        before = jnp.concatenate([jnp.array([END]), target])
        out = logits(source[None], before[None])[0, :count]
        nll.append(optax.softmax_cross_entropy_with_integer_labels(out, target[:count]).sum())
    key = jax.random.key(0)
    loss, aux = jax.jit(method.phases[0].loss)(params, mutable, BATCH, key, 0)
    np.testing.assert_allclose(loss, sum(nll) / sum(COUNTED), rtol=1e-5)
    assert aux.weight == sum(COUNTED)
    found = jax.jit(method.evaluate)(params, mutable, BATCH, key)["loss"]
    np.testing.assert_allclose(found.total, nll, rtol=1e-5)
    np.testing.assert_array_equal(found.weight, COUNTED)


@pytest.mark.parametrize("part", ["encoder", "decoder", "embed", "relative_source"])
def test_the_gradient_of_each_half_is_the_slope_of_the_loss(made, part):
    """By central differences along a direction in which only this part changes."""
    method, params, mutable, _ = made
    params = jax.tree.map(lambda p: 0.3 * p, params)
    rng = np.random.default_rng(7)
    moved = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), params["seq2seq"])
    moved[part] = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), moved[part])

    @jax.jit
    def loss(distance):
        at = jax.tree.map(lambda p, d: p + distance * d, params["seq2seq"], moved)
        return method.phases[0].loss({"seq2seq": at}, mutable, BATCH, jax.random.key(0), 0)[0]

    step = 2e-2
    slope = (loss(step) - loss(-step)) / (2 * step)
    assert abs(slope) > 1e-3
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.0), slope, rtol=0.02)


def greedy(logits, source):
    """The most probable tokens, one by one, without a cache."""
    tokens = [END]
    while len(tokens) <= T:
        row = jnp.array([tokens + [0] * (T + 1 - len(tokens))])
        tokens.append(int(logits(source[None], row)[0, len(tokens) - 1].argmax()))
        if tokens[-1] == END:
            break
    return tokens + [-1] * (T + 1 - len(tokens))


def test_samples_take_the_most_probable_token_and_stop_at_the_end(made):
    method, params, mutable, logits = made
    source = jnp.asarray(np.random.default_rng(5).integers(0, END, (6, S)), jnp.int32)
    expected = [greedy(logits, row) for row in source]
    found = method.sample(params, mutable, jax.random.key(0), 6, {"source": source})
    assert found.tolist() == expected
    assert len({tuple(row) for row in expected}) > 2  # the source matters


def test_a_wide_beam_finds_the_most_probable_target(made):
    method, params, mutable, logits = made
    source = jnp.array([[0, 3, 1, 1, 4]])
    new = 2
    every = [[END]] + [[a, b] for a in range(END) for b in range(V)]
    rows = jnp.array([[END, text[0], 0, 0, 0] for text in every])
    log_p = jax.nn.log_softmax(logits(jnp.repeat(source, len(rows), 0), rows))
    scores = [
        sum(float(log_p[i, t, token]) for t, token in enumerate(text)) / len(text)
        for i, text in enumerate(every)
    ]
    options = {"beams": 43, "max_new_tokens": new, "early_stopping": "never"}
    found = method.sample(params, mutable, None, 1, {"source": source}, **options)
    best = every[int(np.argmax(scores))]
    assert found[0].tolist() == [END, *best, *[-1] * (new - len(best))]


def test_sampling_options_are_those_of_language_models_but_greedy(made):
    method, *_ = made
    options = options_of(method)
    assert options["temperature"].default == 0.0
    assert {"beams", "top_p", "stop", "min_new_tokens"} <= set(options)
    assert method.conditions["source"] == spec().fields["source"]
    with pytest.raises(ConfigError, match="--source is missing"):
        method.sample({}, {}, None, 2)


@pytest.fixture(scope="module", params=["spans", "infilling"])
def plain(request):
    changed = {"seq2seq.corruption": request.param, "seq2seq.density": 0.34}
    changed |= {"seq2seq.mean_span": 2.0}
    return request.param, partial(build_method, config(**changed))


@pytest.mark.parametrize("ended", [True, False])
def test_pairs_of_plain_text(plain, ended):
    kind, build = plain
    method = build(spec(plain=True, ended=ended))
    size = V - (not ended)
    end = END if ended else size + (2 if kind == "spans" else 1)  # of 12 tokens, 2 spans of 4
    field = method.output
    assert field.facts["special"]["eos"] == end
    assert field.facts["vocabulary_size"] == size + (2 if kind == "spans" else 1) + (not ended)
    token = jnp.asarray(np.random.default_rng(0).integers(0, 6, (3, 13)), jnp.int32)
    prepare = jax.jit(lambda key: method.prepare({}, {}, {"token": token}, key, 0))
    one, two = (prepare(jax.random.key(k)) for k in (0, 1))
    lengths = {"spans": (11, 7), "infilling": (13, 13)}[kind]
    assert (one["source"].shape, one["target"].shape) == tuple((3, n) for n in lengths)
    assert (one["source"] != two["source"]).any()
    assert len({tuple((row >= size).tolist()) for row in one["source"]}) > 1  # each row its own
    assert (one["target"][:, -1] == end).all()
    if kind == "infilling":
        np.testing.assert_array_equal(one["target"][:, :-1], token[:, :-1])


def test_other_runs_can_read_texts_with_the_encoder(made, plain):
    method, params, mutable, _ = made
    vectors, seen = method.text_encoder.encode(params, mutable, BATCH["source"])
    assert vectors.dtype == jnp.float32
    np.testing.assert_array_equal(seen.sum(1), [3, 5, 2])
    cut = BATCH["source"][:1, :3]  # what follows the end changes nothing
    np.testing.assert_allclose(
        method.text_encoder.encode(params, mutable, cut)[0], vectors[:1, :3], atol=1e-5
    )
    shifted = BATCH["source"].at[0, 0].set(5)
    other = method.text_encoder.encode(params, mutable, shifted)[0]
    assert np.abs(other[0, 1] - vectors[0, 1]).max() > 1e-2  # a token sees the others
    corrupted = plain[1](spec(plain=True))
    assert corrupted.text_encoder.field.facts["tokenizer"] == Characters(LETTERS, {"eos": END})


def test_gaps_of_a_source_are_what_corruption_leaves(plain):
    kind, build = plain
    method = build(spec(plain=True))
    parse = modalities.find(method.conditions["source"]).parse
    row = parse("a[MASK]bc[MASK]f", method.conditions["source"])
    assert row[:7].tolist() == [0, -1, 1, 2, -1, 5, END]
    model = method.phases[0].loss.args[0]
    found = seq2seq.filled(jnp.asarray(row)[None], model.pairs.gaps)[0, :7].tolist()
    assert found == [0, V, 1, 2, V + (kind == "spans"), 5, END]


def test_what_does_not_fit():
    for data, changed, match in (
        (spec(plain=True), {}, "corruption='': expected one of spans, infilling"),
        (spec(), {"seq2seq.corruption": "spans"}, "corruption='spans': expected '' for made"),
        (spec(), {"model.length": 3}, "config.model.length=3: expected at least 4, as in the data"),
        (spec(), {"seq2seq.start": 9}, "config.seq2seq.start=9: expected -1, or a token"),
        (spec(), {"seq2seq.beams": 0}, "seq2seq.beams=0"),
    ):
        with pytest.raises(ConfigError, match=match):
            build_method(configs_with(**changed), data)
    one = spec()._replace(fields={"target": spec().fields["target"]})
    with pytest.raises(ConfigError, match="made has the texts target and the target target"):
        build_method(config(), one)
    segmented = spec(plain=True)
    segmented = segmented._replace(
        fields={**segmented.fields, "segment": Field("real", (13,), np.dtype(np.int32))}
    )
    with pytest.raises(ConfigError, match="documents='packed or padded': expected 'stream'"):
        build_method(config(**{"seq2seq.corruption": "spans"}), segmented)


def configs_with(**changed):
    made = config()
    with made.unlocked():
        made.model.length = 0
    return configs.override(made, changed)


def test_a_trained_model_is_exported_and_read_back(tmp_path):
    tied = {"head_scale": True, "head_size": 4}
    made = config()
    with made.unlocked():
        made.model.seq2seq.update(tied)
    method = build_method(made, spec())
    params, _ = drawn(method)
    export.write("huggingface", tmp_path, made, spec(), params)
    model = encoder_decoder.read(tmp_path)
    assert (model.kind, model.start, model.vocabulary_size) == ("t5", END, V)
    assert tied.items() <= model.options.items()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), model.params, params["seq2seq"]
    )
    tokenizer = tokenizers.read(tmp_path)
    assert tokenizer.decode(tokenizer.encode("fade")) == "fade"
    made.model.seq2seq.width = 16  # as if these were another network's
    with pytest.raises(ConfigError, match="the parameters do not fit the options"):
        export.write("huggingface", tmp_path / "other", made, spec(), params)
