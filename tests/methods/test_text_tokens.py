"""Texts before images: likelihoods by enumeration, decoding, guidance, padding and reranking."""

import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.methods import masked_diffusion, token_prior
from genjax.networks import masked_transformer
from genjax.nn.functional import Functional, functional
from genjax.sampling import logits as processors

KEY = jax.random.key(0)
SHAPE, K, T, V, END = (2, 2, 1), 2, 3, 4, 3
IMAGES = jnp.array(list(itertools.product(range(K), repeat=4)))
TEXTS = jnp.array([[0, END, END], [2, 1, END], [1, 1, 1], [END, END, END]])


def spec(captions=True, pad=None):
    special = {"start": END, "eos": END} | ({} if pad is None else {"pad": pad})
    facts = {"vocabulary_size": V, "special": special, "tokenizer": Characters("abc", {"eos": END})}
    fields = {"code": Field("code", SHAPE, np.dtype(np.int32), {"vocabulary_size": K})}
    if captions:
        fields["text"] = Field("text", (T,), np.dtype(np.int32), facts)
    fields["label"] = Field("label", (), np.dtype(np.int32), {"num_classes": 2})
    return DataSpec("toy", fields, "code", {"train": 64})


def config(network="token_transformer", **section):
    c = configs.base()
    c.method = "token_prior"
    section = {"conditions": ("text",), "label_dropout": 0.2} | section
    with c.unlocked():
        c.token_prior = ConfigDict(token_prior.Options()._asdict() | section)
        c.model = ConfigDict({"network": network, "prior": {"width": 8, "depth": 2, "heads": 2}})
    return c


def noisy(method):
    """Parameters large enough that all matters; norms stay as they are."""
    shapes, _ = jax.eval_shape(lambda key: method.init(key, {}), KEY)
    rng = np.random.default_rng(2)

    def drawn(path, p):
        fixed = {"scale": 1.0, "bias": 0.0}.get(path[-1].key)
        return jnp.asarray(rng.normal(size=p.shape) if fixed is None else fixed * np.ones(p.shape))

    return jax.tree_util.tree_map_with_path(lambda *x: drawn(*x).astype(jnp.float32), shapes)


@pytest.fixture(scope="module")
def prior():
    """(method, its parameters, the jitted network)."""
    method = token_prior.build(config(), spec())
    params = noisy(method)
    model = method.phases[0].loss.args[0]
    apply = jax.jit(lambda *a, **k: model.network.apply(params["prior"], {}, *a, **k)[0])
    return method, params, model, apply


def batch_of(texts, images):
    pairs = list(itertools.product(texts.tolist(), images.tolist()))
    text, code = (jnp.array(part) for part in zip(*pairs, strict=True))
    return {"text": text, "code": code.reshape(-1, *SHAPE)}


def test_the_probabilities_of_all_images_of_a_text_add_up_to_one(prior):
    method, params, *_ = prior
    batch = batch_of(TEXTS, IMAGES)
    found = jax.jit(method.evaluate)(params, {"prior": {}}, batch, KEY)
    p = np.exp(-np.asarray(found["nll"])).reshape(len(TEXTS), len(IMAGES))
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    assert np.abs(p[0] - p[1]).max() > 0.01  # and it matters which text it is


def test_the_probabilities_of_all_texts_add_up_to_one(prior):
    """Those that end, and those that are cut; the image comes after, and changes nothing.

    The first token never ends a text: some tokenizers begin with the token that ends it.
    """
    method, params, *_ = prior
    ended = [[a, END, END] for a in range(V)]
    cut = [[a, b, c] for a in range(V) for b in range(END) for c in range(V)]
    texts = ended + cut
    batch = batch_of(jnp.array(texts), IMAGES[:1])
    found = jax.jit(method.evaluate)(params, {"prior": {}}, batch, KEY)["text_loss"]
    lengths = [2] * len(ended) + [3] * len(cut)
    np.testing.assert_array_equal(found.weight, lengths)
    assert float(jnp.exp(-found.total).sum()) == pytest.approx(1, abs=1e-5)
    other = batch_of(jnp.array(texts), IMAGES[-1:])
    again = jax.jit(method.evaluate)(params, {"prior": {}}, other, KEY)["text_loss"]
    np.testing.assert_allclose(again.total, found.total, atol=1e-6)


def test_token_by_token_is_all_at_once_also_where_a_text_is_padded_or_hidden(prior):
    _, _, model, apply = prior
    code = IMAGES[jnp.array([3, 6, 9, 14])]
    told = model.conditioning({"text": TEXTS}, jnp.array([False, False, True, False]))
    assert told["seen"].sum(1).tolist() == [2, 3, 0, 2]
    whole, _ = apply(code, **told)
    logits, cache = apply(code[:, 0], **told, position=0)
    np.testing.assert_allclose(logits, whole[:, 0], atol=1e-5)
    for position in range(1, 4):
        at = jnp.int32(position)
        logits, cache = apply(code[:, position - 1], position=at, cache=cache)
        np.testing.assert_allclose(logits, whole[:, position], atol=1e-5)


def test_what_follows_a_texts_end_changes_nothing_and_a_hidden_text_neither(prior):
    _, _, model, apply = prior
    code = jnp.tile(IMAGES[5], (3, 1))
    ended = jnp.array([[2, END, END], [2, END, 0], [2, END, 1]])
    logits, of_text = apply(code, **model.conditioning({"text": ended}))
    np.testing.assert_array_equal(logits, jnp.tile(logits[:1], (3, 1, 1)))
    np.testing.assert_array_equal(of_text[:, :2], jnp.tile(of_text[:1, :2], (3, 1, 1)))
    hidden = model.conditioning({"text": TEXTS[:3]}, jnp.ones(3, bool))
    logits, _ = apply(code, **hidden)
    np.testing.assert_array_equal(logits, jnp.tile(logits[:1], (3, 1, 1)))
    # A token of its own pads in other tokenizers.
    padded = token_prior.Prior(model.network, model.options, spec(pad=0))
    assert padded.conditioning({"text": jnp.array([[2, END, 0]])})["seen"].tolist() == [
        [True, True, False]
    ]


def test_the_loss_weighs_image_and_text_and_counts_no_padding(prior):
    method, params, model, _ = prior
    still = model._replace(options=model.options._replace(label_dropout=0.0))
    batch = batch_of(TEXTS, IMAGES[7:8])
    found = method.evaluate(params, {"prior": {}}, batch, KEY)
    value, aux = token_prior.loss(still, params, {"prior": {}}, batch, KEY, 0)
    of_text = (found["text_loss"].total / found["text_loss"].weight).mean()
    of_image = found["nll"].mean() / 4
    assert float(value) == pytest.approx(float(7 / 8 * of_image + of_text / 8), rel=1e-5)
    # All hidden: texts do not count, and the image is that of no text.
    hidden = model._replace(options=model.options._replace(label_dropout=1 - 1e-7))
    value, aux = token_prior.loss(hidden, params, {"prior": {}}, batch, KEY, 0)
    assert float(aux.metrics["text_loss"]) == 0
    mean = float(aux.metrics["bits_per_token"]) * np.log(2)
    assert float(value) == pytest.approx(7 / 8 * mean, rel=1e-5)
    assert mean != pytest.approx(float(of_image), rel=1e-3)


def test_samples_are_those_of_the_guided_distribution(prior):
    """Token by token p(x | text)^w p(x)^(1 - w), normalised."""
    _, params, model, apply = prior
    w, num, text = 2.0, 4000, TEXTS[1:2]
    tables = []
    for hidden in (False, True):
        told = model.conditioning({"text": jnp.tile(text, (16, 1))}, jnp.full(16, hidden))
        tables.append(jax.nn.log_softmax(apply(IMAGES, **told)[0]))
    table = jax.nn.log_softmax(tables[1] + w * (tables[0] - tables[1]))
    each = jnp.take_along_axis(table, IMAGES[..., None], -1)[..., 0].sum(1)
    expected = np.exp(np.asarray(each))
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    draw = jax.jit(partial(token_prior.sample, model, num=num, guidance=w))
    condition = {"text": jnp.tile(text, (num, 1))}
    code = np.asarray(draw(params, {"prior": {}}, KEY, condition=condition)).reshape(num, 4)
    counts = np.bincount(code @ np.array([8, 4, 2, 1]), minlength=16)
    spread = np.sqrt(num * expected * (1 - expected))
    assert (np.abs(counts - num * expected) < 4.5 * spread + 1).all()
    plain = np.exp(np.take_along_axis(np.asarray(tables[0]), IMAGES[..., None], -1).sum((1, 2)))
    assert np.abs(plain - expected).max() > 0.02


def test_the_candidate_with_the_highest_cosine_is_kept():
    images = jnp.array(
        [[[3.0, 4.0], [1.0, 0.0], [0.0, 9.0]], [[1.0, 1.0], [-1.0, 0.0], [2.0, 2.0]]]
    )
    texts = jnp.array([[5.0, 0.0], [1.0, 1.0]])
    assert token_prior.most_similar(images, texts).tolist() == [1, 0]  # the first of equal ones


def test_reranking_takes_of_each_texts_candidates_the_one_the_judge_prefers(prior):
    """The judge prefers images of many ones for the text 'b', and of few for others."""
    _, params, model, _ = prior
    fields = {"image": Field("image", SHAPE, np.uint8), "text": spec().fields["text"]}
    stage = SimpleNamespace(
        decode=lambda params, mutable, codes: codes, spec=DataSpec("toy", fields, "image", {})
    )

    def apply(params, mutable, batch):
        share = batch["image"].reshape(len(batch["image"]), -1).mean(1)
        many = jnp.where(batch["text"][:, 0] == 1, 1.0, 0.0)
        return {
            "image": jnp.stack([share, 1 - share], 1),
            "text": jnp.stack([many, 1 - many], 1),
        }

    judge = SimpleNamespace(
        spec=DataSpec("toy", fields, "image", {}),
        method=SimpleNamespace(apply=apply),
        apply=apply,
        config=SimpleNamespace(method="clip"),
    )
    c = config()
    with c.unlocked():
        c.dataset.codes, c.stages = "vq", ConfigDict({"vq": "a", "clip": "b"})
    best = token_prior.reranker(c, model.options, {"vq": stage, "clip": judge})
    text = jnp.tile(TEXTS[jnp.array([0, 2])], (50, 1))
    draw = partial(token_prior.sample, model._replace(best=best), params, {"prior": {}}, KEY)
    kept = np.asarray(jax.jit(lambda: draw(100, {"text": text}, rerank=8))())
    plain = np.asarray(jax.jit(lambda: draw(800, {"text": jnp.repeat(text, 8, 0)}))())
    share = plain.reshape(100, 8, 4).mean(-1)
    expected = np.where(np.arange(100) % 2 == 1, share.max(1), share.min(1))
    np.testing.assert_allclose(kept.reshape(100, 4).mean(-1), expected)
    short = fields["text"]._replace(shape=(1,))
    for changed, says in (
        ({"image": Field("image", (8, 8, 3), np.uint8)}, r"method clip on images \(2, 2, 1\)"),
        ({"text": short}, "captions of at least . tokens; it knows 1"),
    ):
        other = vars(judge) | {"spec": judge.spec._replace(fields=fields | changed)}
        with pytest.raises(ConfigError, match=says):
            token_prior.reranker(c, model.options, {"vq": stage, "clip": SimpleNamespace(**other)})


def test_what_is_refused_of_texts_and_guidance(prior):
    method, params, *_ = prior
    draw = partial(method.sample, params, {"prior": {}}, KEY, 2)
    with pytest.raises(ConfigError, match="--text is missing"):
        draw()
    with pytest.raises(ConfigError, match=r"--rerank=4: the run has no stage 'clip'.*clip\.py"):
        draw({"text": TEXTS[:2]}, rerank=4)
    with pytest.raises(ConfigError, match="expected an array of"):
        draw({"text": TEXTS[:2, :2]})
    with pytest.raises(ConfigError, match=r"toy has the texts none.*avatars"):
        token_prior.build(config(), spec(captions=False))
    with pytest.raises(ConfigError, match="expected a network that reads texts"):
        token_prior.build(config("pixelcnn"), spec())
    with pytest.raises(ConfigError, match=r"guidance=2.*label_dropout > 0"):
        token_prior.build(config(label_dropout=0.0, guidance=2.0), spec())
    plain = token_prior.build(config(label_dropout=0.0), spec())
    with pytest.raises(ConfigError, match=r"guidance=3.*Use guidance=1"):
        plain.sample(params, {"prior": {}}, KEY, 2, {"text": TEXTS[:2]}, guidance=3)


@pytest.mark.parametrize("network", ["token_transformer", "pixelcnn"])
def test_hidden_labels_are_a_class_of_their_own(network):
    c = config(network, conditions=(), class_conditional=True)
    c.model.prior = {"width": 8, "depth": 2}
    method = token_prior.build(c, spec(captions=False))
    model = method.phases[0].loss.args[0]
    told = model.conditioning({"label": jnp.array([0, 1])}, jnp.array([False, True]))
    assert told["label"].tolist() == [0, 2]
    table = [p.shape for p in jax.tree.leaves(noisy(method)) if p.shape == (3, 8)]
    assert table


def test_guided_logits_at_one_are_the_conditions_and_at_zero_the_others():
    a, b = jax.random.normal(KEY, (2, 5, 7))
    for scale, expected in ((1.0, a), (0.0, b)):
        found = jax.nn.softmax(processors.guided(a, b, scale))
        np.testing.assert_allclose(found, jax.nn.softmax(expected), atol=1e-6)


# ---- masked diffusion ----------------------------------------------------------------------------

TABLE = jnp.array([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.5, 0.5]])  # p(token | first of the text)
EMPTY = ({"denoiser": {}}, {"denoiser": {}})


def known(**options):
    """The masked model whose network knows the table, and the mean of it without a text."""
    seen_by_it = []

    def apply(params, mutable, x, label, time, *, text, seen, key=None, train=False):
        seen_by_it.append(seen)
        row = jnp.where(seen.any(1, keepdims=True), TABLE[text[:, 0]], TABLE.mean(0))
        return jnp.log(jnp.broadcast_to(row[:, None], (*x.shape, K))), mutable

    options = masked_diffusion.Options(conditions=("text",), decoding="first_hitting", **options)
    network = Functional(lambda key: ({}, {}), apply)
    return masked_diffusion.Denoiser(network, options, spec()), seen_by_it


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_masked_tokens_of_a_text_come_as_often_as_the_guided_network_says(w):
    model, _ = known()
    num = 4000
    text = jnp.tile(TEXTS[:2], (num // 2, 1))
    draw = partial(masked_diffusion.sample, model, *EMPTY, KEY, num, guidance=w)
    code = np.asarray(jax.jit(lambda: draw({"text": text}))()).reshape(num, -1)
    for row, first in enumerate((0, 2)):
        p = TABLE.mean(0) * (TABLE[first] / TABLE.mean(0)) ** w
        p = float(p[1] / p.sum())
        share = code[row::2].mean()
        assert abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / (num // 2 * 4))


def test_as_many_texts_are_hidden_as_asked_for_and_none_in_evaluations():
    model, seen = known(label_dropout=0.3)
    count = 5000
    batch = {"text": jnp.tile(TEXTS[:1], (count, 1)), "code": jnp.zeros((count, *SHAPE), jnp.int32)}
    masked_diffusion.loss(model, *EMPTY, batch, KEY, 0)
    hidden = ~np.asarray(seen[0]).any(1)
    assert abs(hidden.mean() - 0.3) < 4.5 * np.sqrt(0.21 / count)
    np.testing.assert_array_equal(
        np.asarray(seen[0])[~hidden], [[True, True, False]] * (~hidden).sum()
    )
    found = masked_diffusion.evaluate(model, *EMPTY, batch, KEY)
    assert float(found["nll"].mean()) == pytest.approx(-4 * np.log(0.8), rel=0.05)


def test_all_masked_tokens_see_the_text_and_none_its_padding():
    net = functional(
        lambda rngs: masked_transformer.Network(
            K, 4, text_length=T, text_vocabulary_size=V, width=8, heads=2, depth=1, rngs=rngs
        )
    )
    shapes = jax.eval_shape(net.init, KEY)[0]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), shapes)
    x = jnp.tile(jnp.array([0, K, 1, K]), (5, 1))
    text = jnp.array([[2, 1, END], [2, 1, 0], [1, 1, END], [2, 1, END], [0, 0, END]])
    seen = jnp.array([[1, 1, 0]] * 3 + [[0, 0, 0]] * 2, bool)
    logits, _ = net.apply(params, {}, x, text=text, seen=seen)
    assert logits.shape == (5, 4, K)
    np.testing.assert_array_equal(logits[0], logits[1])  # they differ where nothing is seen
    np.testing.assert_array_equal(logits[3], logits[4])
    assert (np.abs(logits[0] - logits[2]).max(-1) > 1e-6).all()
    assert (np.abs(logits[0] - logits[3]).max(-1) > 1e-6).all()
    whole, _ = net.apply(params, {}, x, text=text)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3
    with pytest.raises(ConfigError, match="'learned' with a text"):
        masked_transformer.Network(
            K, 4, text_length=T, text_vocabulary_size=V, positions="rotary", rngs=nnx.Rngs(0)
        )


def test_what_is_refused_of_masked_tokens_with_texts():
    c = config()
    c.method = "masked_diffusion"
    with c.unlocked():
        c.masked_diffusion = ConfigDict({"conditions": ("text",), "label_dropout": 0.0})
        c.model = ConfigDict({"network": "masked_transformer", "denoiser": {"width": 8}})
    with pytest.raises(ConfigError, match="toy has the texts none"):
        masked_diffusion.build(c, spec(captions=False))
    model, _ = known(label_dropout=0.0)
    with pytest.raises(
        ConfigError, match=r"masked_diffusion\.conditions, and with.*Use guidance=1"
    ):
        masked_diffusion.sample(model, *EMPTY, KEY, 2, {"text": TEXTS[:2]}, guidance=2.0)
    with pytest.raises(ConfigError, match="--text is missing"):
        masked_diffusion.sample(model, *EMPTY, KEY, 2)
