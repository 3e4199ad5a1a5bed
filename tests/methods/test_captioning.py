"""Captions of images: the loss by optax, decoding by the whole network, what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax import config as configs
from genjax.config import ConfigError
from genjax.data import catalogue
from genjax.data.alphabets import Characters
from genjax.method import DataSpec, Field
from genjax.method import build as build_method
from genjax.networks import image_to_text
from genjax.nn.functional import functional

END, V, T = 6, 7, 4
SHAPE = (4, 6, 3)
KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, *SHAPE)), jnp.uint8)
BATCH = {"image": IMAGES, "text": jnp.array([[3, 1, END, END], [5, 5, 4, 3], [END, 0, 1, 2]])}
COUNTED = [3, 4, 1]


def spec(target="text", fields=("image", "text")):
    special = {"start": END, "eos": END}
    facts = {"vocabulary_size": V, "special": special, "tokenizer": Characters("abcdef", special)}
    known = {
        "image": Field("image", SHAPE, np.dtype(np.uint8)),
        "text": Field("text", (T,), np.dtype(np.int32), facts),
        "label": Field("label", (), np.dtype(np.int32), {"num_classes": 2}),
    }
    return DataSpec("toy", {name: known[name] for name in fields}, target, {"train": 8})


def config(network="image_to_text", **changed):
    made = configs.base()
    made.method = "seq2seq"
    with made.unlocked():
        made.seq2seq = {"label_smoothing": 0.0, "corruption": ""}
        made.model = {"network": network, "seq2seq": {}}
        made.model.seq2seq = {"width": 8, "depth": 1, "heads": 2}
        if network == "image_to_text":
            made.model.seq2seq.patch_size = 2
    return configs.override(made, changed)


@pytest.fixture(scope="module")
def made():
    method = build_method(config(), spec(fields=("image", "text", "label")))
    shapes, mutable = jax.eval_shape(lambda key: method.init(key, {}), KEY)
    rng = np.random.default_rng(3)

    def drawn(path, p):
        fixed = {"scale": 1.0, "bias": 0.0}.get(path[-1].key)  # norms stay as they are
        array = rng.normal(size=p.shape) if fixed is None else fixed * np.ones(p.shape)
        return jnp.asarray(array, p.dtype)

    params = jax.tree_util.tree_map_with_path(drawn, shapes)
    model = method.phases[0].loss.args[0]

    @jax.jit
    def logits(images, text):
        """Of the tokens after each of `text`, without a cache, for images in [-1, 1]."""
        return model.network.apply(params["seq2seq"], {}, text, source=images)[0][0]

    return method, params, mutable, logits


def scaled(images):
    return images.astype(jnp.float32) / 127.5 - 1


def test_the_loss_is_that_of_optax_up_to_the_end_of_each_caption(made):
    method, params, mutable, logits = made
    before = jnp.pad(BATCH["text"], ((0, 0), (1, 0)), constant_values=END)[:, :-1]
    each = optax.softmax_cross_entropy_with_integer_labels(
        logits(scaled(IMAGES), before), BATCH["text"]
    )
    nll = [row[:count].sum() for row, count in zip(each, COUNTED, strict=True)]
    found = method.evaluate(params, mutable, BATCH, KEY)["loss"]
    np.testing.assert_allclose(found.total, nll, rtol=1e-4)
    np.testing.assert_array_equal(found.weight, COUNTED)
    value, aux = method.phases[0].loss(params, mutable, BATCH, KEY, 0)
    np.testing.assert_allclose(value, sum(nll) / sum(COUNTED), rtol=1e-4)
    assert aux.weight == sum(COUNTED)


def test_samples_are_the_most_probable_tokens_of_each_image(made):
    method, params, mutable, logits = made
    assert list(method.conditions) == ["image"]
    tokens = np.full((3, T + 1), END)
    for t in range(T):
        tokens[:, t + 1] = logits(scaled(IMAGES), jnp.asarray(tokens[:, :-1]))[:, t].argmax(-1)
    for row in tokens:
        ends = np.flatnonzero(row[1:] == END)
        row[2 + ends[0] if len(ends) else T + 1 :] = -1
    found = method.sample(params, mutable, KEY, 3, {"image": IMAGES})
    np.testing.assert_array_equal(found, tokens)
    assert len(np.unique(tokens, axis=0)) > 1  # the image matters
    beams = method.sample(params, mutable, KEY, 3, {"image": IMAGES}, beams=1)
    np.testing.assert_array_equal(beams, tokens)
    with pytest.raises(ConfigError, match="--image is missing"):
        method.sample(params, mutable, KEY, 3)


def test_the_encoder_reads_patches_row_by_row():
    """A pixel moves the vector of its own patch alone, before attention; by hand for one patch."""
    net = functional(
        lambda rngs: image_to_text.Network(V, T, SHAPE, patch_size=2, width=8, heads=2, rngs=rngs)
    )
    params, _ = net.init(KEY)
    assert params["positions_source"].shape == (6, 8)
    x = scaled(IMAGES[:1])
    kernel, bias = params["patch"]["kernel"], params["patch"]["bias"]
    patch = x[0, 2:4, 4:6].reshape(-1)  # the last: row 1, column 2
    inner = params["positions_source"][5] + patch @ kernel + bias

    class Embedded(image_to_text.Network):
        def __call__(self, x, *, key=None, train=False):
            return self.embedded_source(x)

    same = functional(lambda rngs: Embedded(V, T, SHAPE, patch_size=2, width=8, heads=2, rngs=rngs))
    found, _ = same.apply(params, {}, x)
    assert found.shape == (1, 6, 8)
    np.testing.assert_allclose(found[0, 5], inner, atol=1e-5)


def test_what_is_refused_of_captioning():
    with pytest.raises(ConfigError, match="images with captions, such as avatars"):
        build_method(config(), spec(target="image"))
    with pytest.raises(ConfigError, match="a network that reads images, such as image_to_text"):
        build_method(config("encoder_decoder"), spec())
    with pytest.raises(ConfigError, match="whose examples are images with captions"):
        build_method(config(**{"seq2seq.corruption": "spans"}), spec())
    with pytest.raises(ConfigError, match="a divisor of the image's sides 4, 6"):
        build_method(config(**{"model.seq2seq.patch_size": 4}), spec()).init(KEY, {})


def test_any_field_of_the_data_may_be_the_target():
    c = configs.base()
    c.dataset.name, c.dataset.target = "digits", "label"
    assert catalogue.spec(c.dataset).target == "label"
    c.dataset.target = "lable"
    with pytest.raises(ConfigError, match=r"config\.dataset\.target='lable'.*Nearest: label"):
        catalogue.spec(c.dataset)
