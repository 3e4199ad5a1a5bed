"""The classifier: its loss and evaluation against their formulas, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from specs import images

from genjax import config as configs
from genjax.config import ConfigError
from genjax.method import Field
from genjax.methods import classifier
from genjax.networks.cnn import fold
from genjax.parallel import rules
from genjax.parallel.mesh import make_mesh

B, CLASSES = 16, 3
MODEL = {"channels": (8, 16), "features": 12, "patch_size": 2, "dropout": 0.0}
RNG = np.random.default_rng(0)


def spec(num_classes=CLASSES, dtype=np.uint8, side=9):
    return images((side, side, 1), dtype, num_classes, train=100, name="shapes")


def config(**model):
    made = configs.base()
    made.method = "classifier"
    with made.unlocked():
        made.model = ConfigDict({**MODEL, **model})
    return made


BATCH = {
    "image": RNG.integers(0, 256, (B, 9, 9, 1), dtype=np.uint8),
    "label": RNG.integers(0, CLASSES, B).astype(np.int32),
}


@pytest.fixture(scope="module")
def model():
    method = classifier.build(config(), spec())
    return method, *method.init(jax.random.key(0), BATCH)


@pytest.fixture(scope="module")
def outputs(model):
    """Features and logits of the batch, from the network itself."""
    _, params, mutable = model
    net = classifier.network(config(), spec())
    x = jnp.asarray(BATCH["image"], jnp.float32) / 127.5 - 1.0
    (features, logits), _ = jax.jit(net.apply)(params["classifier"], mutable["classifier"], x)
    return np.asarray(features), np.asarray(logits, np.float64)


def test_loss_and_evaluation_are_the_cross_entropy(model, outputs):
    method, params, mutable = model
    features, logits = outputs
    assert features.shape == (B, 12)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    nll = -np.log(probability[np.arange(B), BATCH["label"]])
    right = logits.argmax(1) == BATCH["label"]
    found = jax.jit(method.evaluate)(params, mutable, BATCH, jax.random.key(1))
    np.testing.assert_allclose(found["nll"], nll, rtol=1e-5)
    np.testing.assert_array_equal(found["accuracy"], right)
    (phase,) = method.phases
    value, aux = jax.jit(phase.loss)(params, mutable, BATCH, jax.random.key(1), 0)
    np.testing.assert_allclose(value, nll.mean(), rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["accuracy"], right.mean(), rtol=1e-6)
    assert aux.weight == B


def test_several_labels_have_a_head_each():
    """Columns of logits belong to the labels in the order of the fields."""
    heads = {"form": 3, "shade": 4, "mark": 2}
    fields = {"image": spec().fields["image"]}
    for name, classes in heads.items():
        fields[name] = Field("label", (), np.dtype(np.int32), {"num_classes": classes})
    several = spec()._replace(fields=fields)
    assert classifier.labels(several) == heads
    method = classifier.build(config(), several)
    head = jax.eval_shape(method.init, jax.random.key(0), {})[0]["classifier"]["head"]
    assert head["kernel"].shape == (12, 9)

    logits = RNG.normal(size=(B, 9))
    batch = {name: RNG.integers(0, n, B).astype(np.int32) for name, n in heads.items()}
    found = jax.jit(lambda *given: classifier.scores(given[0], heads, given[1]))(logits, batch)
    nll, right = np.zeros(B), {}
    for name, part in (("form", logits[:, :3]), ("shade", logits[:, 3:7]), ("mark", logits[:, 7:])):
        own = part[np.arange(B), batch[name]]
        nll += np.log(np.exp(part).sum(1)) - own
        right[name] = own == part.max(1)
        np.testing.assert_array_equal(found[f"{name}_accuracy"], right[name])
    np.testing.assert_allclose(found["nll"], nll, rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], np.mean([*right.values()], 0), rtol=1e-6)


def test_a_field_named_label_is_the_only_one_predicted(model):
    data = spec()
    other = data.fields["label"]._replace(facts={"num_classes": 7})
    both = data._replace(fields={**data.fields, "other": other})
    assert classifier.labels(both) == classifier.labels(data) == {"label": CLASSES}
    method, params, mutable = model
    found = jax.eval_shape(method.evaluate, params, mutable, BATCH, jax.random.key(0))
    assert set(found) == {"accuracy", "nll"}


def test_logits_are_linear_in_the_features(model, outputs):
    _, params, _ = model
    features, logits = outputs
    head = params["classifier"]["head"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, atol=1e-5)


def test_every_parameter_matters(model):
    method, params, mutable = model
    gradient = jax.jit(jax.grad(lambda p: method.phases[0].loss(p, mutable, BATCH, None, 0)[0]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_dropout_acts_in_training_only_and_by_key(model):
    _, params, mutable = model
    method = classifier.build(config(dropout=0.5), spec())
    loss = jax.jit(method.phases[0].loss)
    a, b, c = (
        float(loss(params, mutable, BATCH, jax.random.key(seed), 0)[0]) for seed in (0, 0, 1)
    )
    assert a == b != c
    x = jnp.asarray(BATCH["image"], jnp.float32)
    net = classifier.network(config(dropout=0.5), spec())
    plain = classifier.network(config(), spec())
    found, expected = (
        n.apply(params["classifier"], mutable["classifier"], x)[0][1] for n in (net, plain)
    )
    np.testing.assert_array_equal(found, expected)


def test_folding_fills_up_the_last_rows_and_columns():
    x = jnp.asarray(RNG.normal(size=(1, 3, 4, 2)), jnp.float32)
    folded = fold(x, 2)
    assert folded.shape == (1, 2, 2, 8)
    np.testing.assert_array_equal(folded[0, 1, 0, :4], x[0, 2, 0:2].reshape(-1))
    np.testing.assert_array_equal(folded[0, 1, :, 4:], 0.0)


def test_its_leaves_have_a_sharding(model):
    method, params, mutable = model
    mesh = make_mesh(configs.override(config(), {"mesh.data": 1, "mesh.fsdp": 8}))
    placed = rules.shardings({"params": params, "mutable": mutable}, method.rules, mesh)
    assert jax.tree.structure(placed["params"]) == jax.tree.structure(params)


def test_it_needs_labelled_8_bit_images_and_does_not_sample(model):
    method, params, mutable = model
    with pytest.raises(ConfigError, match=r"shapes has no labels.*with labels"):
        classifier.build(config(), spec(num_classes=0))
    with pytest.raises(ConfigError, match=r"8-bit images.*float32.*dequantize=False"):
        classifier.build(config(), spec(dtype=np.float32))
    with pytest.raises(ConfigError, match=r"does not sample.*evals\.samples=0"):
        method.sample(params, mutable, jax.random.key(0), 4, {})
    with pytest.raises(ConfigError, match=r"model\.channels=\(\).*at least one width"):
        jax.eval_shape(classifier.build(config(channels=()), spec()).init, jax.random.key(0), {})
