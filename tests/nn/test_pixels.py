"""8-bit images to floats and back."""

import jax.numpy as jnp
import numpy as np

from genjax.nn import pixels


def test_pixels_survive_the_round_trip():
    levels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
    x = pixels.to_float(levels)
    assert float(x.min()) == -1
    assert float(x.max()) == 1
    np.testing.assert_array_equal(pixels.to_uint8(x), levels)
    np.testing.assert_array_equal(pixels.to_uint8(jnp.array([-3.0, 3.0])), [0, 255])
