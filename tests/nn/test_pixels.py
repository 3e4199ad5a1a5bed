"""8-bit images to floats and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn import pixels


def test_pixels_survive_the_round_trip():
    levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    x = pixels.to_float(levels)
    assert float(x.min()) == -1
    assert float(x.max()) == 1
    np.testing.assert_array_equal(pixels.to_uint8(x), levels)
    np.testing.assert_array_equal(pixels.to_uint8(jnp.array([-3.0, 3.0])), [0, 255])


def test_the_share_of_ones_is_the_brightness(monkeypatch):
    """Over all 2^16 values of a half, for each of the 256 levels."""

    def every(key, shape, dtype):
        low = jnp.arange(2**16, dtype=dtype)
        return jnp.broadcast_to((low[::-1] << 16 | low)[:, None], shape)

    monkeypatch.setattr(jax.random, "bits", every)
    image = jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8), (2**16, 256))
    drawn = pixels.binarised(jax.random.key(0), image)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    share = np.asarray(drawn, np.float64).mean(0)
    np.testing.assert_allclose(share, np.arange(256) / 255, rtol=0, atol=2.0**-16)
    assert share[0] == 0
    assert share[255] == 1


@pytest.mark.parametrize("shape", [(4000, 1, 1, 1), (1000, 3, 3, 1), (500, 2, 2, 3)])
def test_pixels_are_drawn_independently_of_each_other(shape):
    """Also those that share a number, and of an odd count of them."""
    drawn = pixels.binarised(jax.random.key(1), jnp.full(shape, 102, jnp.uint8))
    assert drawn.shape == shape
    flat = np.asarray(drawn).reshape(shape[0], -1)
    np.testing.assert_allclose(flat.mean(), 0.4, atol=4 * np.sqrt(0.24 / flat.size))
    if flat.shape[1] > 1:
        correlation = np.corrcoef(flat.T)[np.triu_indices(flat.shape[1], 1)]
        assert np.abs(correlation).max() < 5 / np.sqrt(shape[0])
