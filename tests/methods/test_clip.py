"""CLIP: losses against closed forms, recalls by hand, accumulated gradients against the batch's."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data.alphabets import Bytes
from genjax.method import DataSpec, Field, Method, Phase
from genjax.methods import clip
from genjax.nn.functional import Functional
from genjax.nn.layers import dropout
from genjax.training.accumulate import gradient
from genjax.training.assemble import assemble

B, T, SIDE, EOS = 12, 8, 8, 256
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SMALL = {
    "batch_size": B,
    "dataset.text.length": T,
    "model.vit.width": 16,
    "model.vit.dropout": 0.0,
    "model.text.width": 16,
    "model.text.dropout": 0.0,
    "model.cnn.channels": (8, 8),
    "model.cnn.features": 16,
    "model.cnn.dropout": 0.0,
    "clip.features": 8,
}
RECALLS = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def spec(captioned=True):
    fields = {"image": Field("image", (SIDE, SIDE, 3), np.dtype(np.uint8))}
    if captioned:
        tokenizer = Bytes({"eos": EOS})
        facts = {"vocabulary_size": EOS + 1, "special": tokenizer.special, "tokenizer": tokenizer}
        fields["text"] = Field("text", (T,), np.dtype(np.int32), facts)
    return DataSpec("toy", fields, "image", {"train": 64, "validation": 64})


def config(**keys):
    named = {key.replace("__", "."): value for key, value in keys.items()}
    return configs.load("configs/clip.py:tiny", SMALL | named)


def batch(count=B, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(97, 123, (count, T)).astype(np.int32)
    ends = rng.integers(2, T, count)
    text = np.where(np.arange(T) < ends[:, None], text, EOS).astype(np.int32)
    image = rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return {"image": jnp.asarray(image), "text": jnp.asarray(text)}


def started(**keys) -> tuple[Method, dict, dict]:
    method = clip.build(config(**keys), spec())
    return method, *method.init(KEY, batch())


def units(count, size, seed):
    x = np.random.default_rng(seed).normal(size=(count, size))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_infonce_of_orthonormal_vectors_is_its_closed_form(count, scale):
    losses = clip.infonce(jnp.eye(count), scale)
    np.testing.assert_allclose(losses, math.log1p((count - 1) * math.exp(-scale)), rtol=1e-5)


def test_infonce_is_the_mean_of_both_directions():
    s = 3.0 * units(5, 4, 1) @ units(5, 4, 2).T
    p = np.exp(s)
    rows, columns = (-np.log(np.diag(p) / p.sum(axis)) for axis in (1, 0))
    losses = clip.infonce(jnp.float32(s / 3), 3.0)
    np.testing.assert_allclose(losses, (rows + columns) / 2, rtol=1e-5)
    assert np.abs(rows - columns).max() > 0.05


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (1.5, 0.3)])
def test_siglip_is_the_formula_in_float64(scale, bias):
    x, y = units(6, 4, 1), units(6, 4, 2)
    total = 0.0
    for i in range(6):
        for j in range(6):
            z = 1 if i == j else -1
            total += math.log(1 / (1 + math.exp(-z * (scale * (x[i] @ y[j]) + bias))))
    losses = clip.siglip(jnp.float32(x @ y.T), scale, bias)
    np.testing.assert_allclose(losses.mean(), -total / 6, rtol=1e-5)


def test_what_is_no_candidate_does_not_count_for_others():
    s = jnp.float32(units(6, 4, 1) @ units(6, 4, 2).T)
    candidates = jnp.array([True, True, True, True, False, False])
    for few, all_of in (
        (clip.infonce(s, 5.0, candidates), clip.infonce(s[:4, :4], 5.0)),
        (clip.siglip(s, 5.0, -1.0, candidates), clip.siglip(s[:4, :4], 5.0, -1.0)),
        (clip.recall(s, candidates, 1), clip.recall(s[:4, :4], candidates[:4], 1)),
    ):
        np.testing.assert_allclose(few[:4], all_of, rtol=1e-5)


def test_recalls_by_hand():
    s = jnp.array([[3.0, 2, 1, 0], [3, 2, 1, 0], [3, 2, 2, 2], [9, 9, 9, 9]])
    everyone = jnp.ones(4, bool)
    np.testing.assert_allclose(clip.recall(s, everyone, 1), [1, 0, 0, 1 / 4])
    np.testing.assert_allclose(clip.recall(s, everyone, 2), [1, 1, 1 / 3, 2 / 4])
    np.testing.assert_allclose(clip.recall(s, everyone, 10), 1)


@pytest.mark.parametrize("loss", clip.LOSSES)
def test_repeated_rows_that_fill_a_batch_up_change_nothing(loss):
    method, params, mutable = started(clip__loss=loss)
    rows = batch(7)
    repeated = jax.tree.map(lambda x: jnp.concatenate([x, x[-1:], x[-1:]]), rows)
    alone, filled = (jax.jit(method.evaluate)(params, mutable, x, KEY) for x in (rows, repeated))
    assert alone["candidates"] == filled["candidates"] == 7
    for name in ("loss", *RECALLS):
        np.testing.assert_allclose(filled[name][:7], alone[name], atol=1e-5, err_msg=name)


def test_vectors_have_length_one_and_each_field_has_its_own():
    method, params, mutable = started()
    rows = batch()
    both = method.apply(params, mutable, rows)
    for name in ("image", "text"):
        np.testing.assert_allclose(jnp.square(both[name]).sum(1), 1, rtol=1e-5)
        one = method.apply(params, mutable, {name: rows[name]})
        assert one.keys() == {name}
        np.testing.assert_allclose(one[name], both[name], atol=1e-5)
    expected = clip.infonce(both["image"] @ both["text"].T, 1 / 0.07)
    found = method.evaluate(params, mutable, rows, KEY)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    trained, aux = method.phases[0].loss(params, mutable, rows, KEY, 0)
    np.testing.assert_allclose(trained, expected.mean(), rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["scale"], 1 / 0.07, rtol=1e-5)


def linear_towers(parts, rate=0.0, **options):
    """Towers of one matrix each, and their parameters."""

    def network(rows):
        def apply(params, mutable, x, *, key=None, train=False):
            x = x.reshape(len(x), -1).astype(jnp.float32) / 100
            return dropout(x @ params["kernel"], rate, key, train), mutable

        def init(key):
            return {"kernel": jax.random.normal(key, (rows, 6))}, {}

        return Functional(init, apply)

    o = clip.Options(**{"scale": 3.0, "bias": -1.0} | options)
    towers = clip.Towers(network(SIDE * SIDE * 3), network(T), o, parts)
    return towers, *clip.init(towers, KEY, {})


@pytest.mark.parametrize("loss", clip.LOSSES)
def test_the_accumulated_gradient_is_that_of_the_whole_batch(loss):
    towers, params, mutable = linear_towers(4, loss=loss)

    def whole(params):  # no step, no phase, no parts
        vectors = clip.embed(towers, params, mutable, batch())
        s = vectors["image"] @ vectors["text"].T
        scale = jnp.exp(params["similarity"]["scale"])
        if loss == "infonce":
            return clip.infonce(s, scale).mean()
        return clip.siglip(s, scale, params["similarity"]["bias"]).mean()

    value, expected = jax.jit(jax.value_and_grad(whole))(params)
    rows = clip.cached(towers, params, mutable, batch(), KEY, 0)
    phase = Phase(clip.NETWORKS, partial(clip.loss, towers))
    grads, metrics, _ = gradient(phase, params, mutable, rows, KEY, jnp.int32(0), 4)
    chex.assert_trees_all_close(grads, expected, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], value, rtol=1e-5)
    assert all(float(jnp.abs(g).max()) > 1e-3 for g in jax.tree.leaves(expected))


def test_microbatches_are_embedded_twice_with_the_same_dropout():
    """Logits are products of the factor and a vector: its logarithm has the vector's derivative."""
    towers, params, mutable = linear_towers(3, rate=0.5)
    rows = clip.cached(towers, params, mutable, batch(), KEY, 0)
    totals = []
    for dropped in (True, False):
        vectors = []
        for i in range(3):
            key = jax.random.wrap_key_data(rows["draws"][i])
            part = {name: batch()[name][i::3] for name in ("image", "text")}
            vectors.append(clip.embed(towers, params, mutable, part, key, dropped)["image"])
        vectors = jnp.stack(vectors, axis=1).reshape(B, -1)
        totals.append((rows["gradient/image"] * vectors).sum() / B)
    np.testing.assert_allclose(totals[0], rows["gradient/scale"][0], rtol=1e-4)
    assert abs(totals[1] - totals[0]) > 0.01


def test_the_factor_is_kept_at_or_below_its_bound():
    method, params, _ = started()
    project = method.project["similarity"]
    np.testing.assert_allclose(
        jnp.exp(project({"scale": jnp.float32(9.0)})["scale"]), 100, rtol=1e-5
    )
    chex.assert_trees_all_equal(project(params["similarity"]), params["similarity"])
    assert not started(clip__loss="siglip")[0].project


def test_it_learns_which_caption_belongs_to_which_image():
    """Twelve pairs of noise and letters: chance is 1 of 12."""
    keys = {"schedule__warmup": "", "optimizer__learning_rate": 3e-3, "duration": "60_steps"}
    run = assemble(config(**keys), spec(), devices=jax.devices()[:1])
    state, rows = run.init(), batch()
    assert method_recall(run, state, rows) < 0.5
    for _ in range(30):
        state, _ = run.step(state, rows)
    assert method_recall(run, state, rows) > 0.9


def method_recall(run, state, rows):
    return run.method.evaluate(state.params, state.mutable, rows, KEY)["image_to_text_r1"].mean()


def test_the_paper_size_has_as_many_parameters_as_the_published_weights():
    """151,277,313 of openai/clip-vit-base-patch32, with its 49,408 tokens."""
    data = spec()
    text = data.fields["text"]
    image = data.fields["image"]._replace(shape=(224, 224, 3))
    text = text._replace(shape=(77,), facts=text.facts | {"vocabulary_size": 49408})
    data = data._replace(fields={"image": image, "text": text})
    method = clip.build(configs.load("configs/clip.py:vit_b32"), data)
    params, _ = jax.eval_shape(method.init, KEY, {})
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 151_277_313


def test_what_it_refuses():
    with pytest.raises(ConfigError, match=r"captions.*toy has the fields image.*'emoji'"):
        clip.build(config(), spec(captioned=False))
    for keys, message in (
        ({"clip__loss": "infonse"}, r"clip\.loss='infonse'.*infonce, siglip"),
        ({"model__network": "resnet"}, r"model\.network='resnet'.*vit, cnn"),
        ({"clip__scale": 300.0}, r"clip\.scale=300\.0.*at most clip\.largest_scale=100"),
        ({"accumulation": B}, r"batch_size / accumulation=1.*at least 2 pairs"),
        ({"model__vit__patch_size": 3}, r"patch_size=3.*divisor of the image's sides 8, 8"),
        ({"model__vit__pool": "last"}, r"pool='last'.*token, mean"),
        ({"model__text__pool": "first"}, r"pool='first'.*end, mean"),
    ):
        with pytest.raises(ConfigError, match=message):
            clip.build(config(**keys), spec())
    method, params, mutable = started()
    with pytest.raises(ConfigError, match=r"does not sample.*evals\.samples=0"):
        method.sample(params, mutable, KEY, 4, {})
    with pytest.raises(ConfigError, match=r"tokens=9: expected at most 8"):
        method.apply(params, mutable, {"text": jnp.full((1, T + 1), 97)})
