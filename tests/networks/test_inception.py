"""Inception against torch-fidelity's, both with the same drawn weights (make_inception.py)."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.evals import features
from genjax.interop import torch_file
from genjax.networks import inception
from genjax.nn.functional import functional

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "inception.npz")
SHAPES = json.loads(str(GOLDEN["shapes"]))


def draw():
    """The weights that the peer had: the same draws, in the same order, as in its script."""
    rng = np.random.default_rng(int(GOLDEN["seed"]))
    state = {}
    for name, shape in SHAPES.items():
        if len(shape) > 1:
            scale = np.sqrt(2.0 / np.prod(shape[1:]))
            state[name] = rng.standard_normal(shape, np.float32) * np.float32(scale)
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            state[name] = rng.normal(0.0, 0.1, shape).astype(np.float32)
    return state


def test_features_and_logits_are_torch_fidelitys(monkeypatch, tmp_path, caplog):
    path = tmp_path / "drawn.pth"
    path.write_bytes(b"")
    monkeypatch.setattr(torch_file, "read", lambda _: draw())
    extractor = features.inception(str(path))
    assert (extractor.name, extractor.dim) == ("inception", inception.FEATURES)
    assert "drawn.pth is not the official Inception" in caplog.text
    net = functional(inception.Inception)

    @jax.jit
    def apply(params, images):
        x = inception.normalize(inception.resize(images))
        return *extractor.apply(params, images), net.apply(params, {}, x)[0].logits

    found = apply(extractor.params, GOLDEN["images"])
    for ours, name in zip(found, ("2048", "logits_unbiased", "logits"), strict=True):
        theirs = GOLDEN[name]
        assert ours.shape == theirs.shape
        gap = np.abs(np.asarray(ours, np.float64) - theirs).max() / np.abs(theirs).max()
        assert gap < 1e-5, f"{name}: off by {gap} of the largest"


@pytest.mark.parametrize("size", [(28, 28), (64, 48), (299, 299), (400, 310)])
def test_resize_is_tensorflow_1s(size):
    picture = np.random.default_rng(size).integers(0, 256, (1, *size, 1))
    ours = inception.resize(jnp.asarray(picture))
    theirs = GOLDEN[f"resize/{size[0]}x{size[1]}"]
    assert ours.shape == (1, 299, 299, 1)
    np.testing.assert_allclose(ours[0, ::13, ::13, 0], theirs, atol=1e-4)


def test_resize_starts_at_the_corner_and_not_at_half_a_pixel():
    """Two pixels to four: positions 0, 1/2, 1 and 3/2, the last beyond the edge and so repeated."""
    row = inception.resize(jnp.array([0.0, 8.0]).reshape(1, 1, 2, 1), 4)
    np.testing.assert_array_equal(row[0, 0, :, 0], [0.0, 4.0, 8.0, 8.0])


def test_normalize_maps_128_to_zero():
    np.testing.assert_array_equal(
        inception.normalize(jnp.array([0.0, 128.0, 255.0])), [-1.0, 0.0, 127 / 128]
    )


def test_average_pooling_leaves_the_padding_out():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    pooled = inception._pool("average", x)[0, :, :, 0]
    assert pooled[0, 0] == (0 + 1 + 3 + 4) / 4
    assert pooled[0, 1] == (0 + 1 + 2 + 3 + 4 + 5) / 6
    assert pooled[1, 1] == 4.0


def test_a_file_of_another_network_is_refused():
    with pytest.raises(ConfigError, match=r"lack 'fc\.weight'.*torch-fidelity"):
        inception.from_torch({})
    with pytest.raises(ConfigError, match=r"lack 'Conv2d_1a_3x3\.bn\.weight'"):
        inception.from_torch({"Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 3, 3))})
