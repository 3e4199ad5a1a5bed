"""The prior: its loss and samples in closed form, what its network is told, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stub_stages import (
    CLIP,
    KEY,
    E,
    N,
    T,
    decoder,
    images,
    params,
    spec_of,
    texts,
    vectors,
)

from genjax import config as configs
from genjax.config import ConfigError
from genjax.methods import embedding_prior
from genjax.methods.denoiser import Chosen
from genjax.nn.functional import Functional
from genjax.sampling import draw
from genjax.sampling.embeddings import unit

TINY = {
    "precision": "float32",
    "diffusion.num_timesteps": 8,
    "diffusion.eval_timesteps": 4,
    "diffusion.steps": 4,
}
TINY |= {"diffusion.context_width": 6}


def built(monkeypatch, predict, stages=CLIP, **keys):
    """The family with the network `predict`(x, vector, context), and what that was told."""
    seen = []

    def apply(
        params, mutable, x, t, label, *, vector, context, context_mask, key=None, train=False
    ):
        seen.append({"x": x, "vector": vector, "context": context, "mask": context_mask})
        return predict(x, vector), {}

    net = Functional(lambda key: ({}, {}), apply)
    monkeypatch.setattr(embedding_prior, "network", lambda *_, **__: Chosen(net, (), {}))
    named = {key.replace("__", "."): value for key, value in keys.items()}
    config = configs.load("configs/dalle2_prior.py:tiny", TINY | named)
    method = embedding_prior.build(config, spec_of(8), stages)
    weights, mutable = method.init(KEY, {})
    return method, {**params("clip"), **weights}, {**params("clip"), **mutable}, seen


def batch():
    return {"image": jnp.asarray(images()), "text": jnp.asarray(texts("a", "bc", "def"))}


def test_the_loss_is_the_squared_error_of_the_vector_of_mean_square_one(monkeypatch):
    """Ramesh et al. 2022, eq. 2: of zeros it is 1, since vectors of length 1 are scaled."""
    method, weights, mutable, seen = built(
        monkeypatch, lambda x, vector: jnp.zeros_like(x), diffusion__label_dropout=0.0
    )
    made = method.prepare(weights, mutable, batch(), KEY, 0)
    value, _ = method.phases[0].loss(weights, mutable, made, KEY, 0)
    np.testing.assert_allclose(value, 1.0, rtol=1e-5)
    captions = vectors(batch()["text"]) * E**0.5
    np.testing.assert_allclose(seen[0]["vector"], captions, rtol=1e-5)
    np.testing.assert_array_equal(seen[0]["mask"].sum(1), [2, 3, 4])  # with the end of the text
    assert seen[0]["x"].shape == (N, 1, 1, E)
    assert seen[0]["context"].shape == (N, T, 6)


def test_samples_are_what_an_exact_network_knows(monkeypatch):
    def predict(x, vector):  # of the caption's vector, turned by a quarter in two planes
        return jnp.stack([-vector[:, 1], vector[:, 0], -vector[:, 3], vector[:, 2]], 1)[
            :, None, None
        ]

    method, weights, mutable, seen = built(monkeypatch, predict)
    fixed, arrays = draw.planned(method, {})
    text = batch()["text"]
    found = method.sample(weights, mutable, KEY, N, {"text": text}, **fixed, **arrays)
    v = vectors(text)
    expected = jnp.stack([-v[:, 1], v[:, 0], -v[:, 3], v[:, 2]], 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert seen[0]["x"].shape == (2 * N, 1, 1, E)  # two candidates a caption
    metrics = method.evaluate(weights, mutable, batch(), KEY)
    image = vectors(batch()["image"])
    np.testing.assert_allclose(metrics["cosine"], (image * expected).sum(1), atol=1e-5)
    np.testing.assert_allclose(metrics["caption_cosine"], (image * v).sum(1), atol=1e-5)


def test_the_sample_is_the_candidate_nearest_to_the_caption(monkeypatch):
    def predict(x, vector):  # keeps the direction of the noise, so that candidates differ
        return x

    text, found = batch()["text"], {}
    for candidates in (1, 40):
        method, weights, mutable, _ = built(
            monkeypatch, predict, embedding_prior__candidates=candidates
        )
        fixed, arrays = draw.planned(method, {})
        found[candidates] = method.sample(
            weights, mutable, KEY, N, {"text": text}, **fixed, **arrays
        )
        np.testing.assert_allclose(jnp.linalg.norm(found[candidates], axis=1), 1, atol=1e-5)
    products = {n: (x * vectors(text)).sum(1) for n, x in found.items()}
    assert (products[40] > 0.75).all()
    assert (products[40] > products[1]).all()
    x = unit(jax.random.normal(KEY, (N, 5, E)))
    best = np.asarray(embedding_prior.nearest(x, x[:, 3]))
    np.testing.assert_array_equal(best, x[:, 3])


@pytest.mark.parametrize(
    ("keys", "stages", "words"),
    [
        ({}, {}, "embedding_prior.clip='clip': no such stage"),
        ({}, {"clip": decoder()}, "gives no vectors of images and captions"),
        ({"diffusion__conditions": ()}, CLIP, "a prior is told captions"),
        ({"diffusion__label_dropout": 0.0, "diffusion__guidance": 2.0}, CLIP, "label_dropout > 0"),
        ({"diffusion__low_resolution": 4}, CLIP, "a prior has no such condition"),
        ({"embedding_prior__candidates": 0}, CLIP, "candidates"),
    ],
)
def test_what_it_refuses(monkeypatch, keys, stages, words):
    with pytest.raises(ConfigError, match=words):
        built(monkeypatch, lambda x, vector: x, stages, **keys)
