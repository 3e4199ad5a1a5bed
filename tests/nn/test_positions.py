"""Rotary positions against transformers, sinusoidal ones against their formula."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.nn import positions

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "sequence_networks.npz")
SCALINGS = {"default": (), "linear": ("linear", 4.0), "llama3": ("llama3", 8.0, 1.0, 4.0, 64)}


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_positions_are_those_of_llama(name):
    frequencies = positions.frequencies(16, 500.0, SCALINGS[name])
    np.testing.assert_allclose(frequencies, GOLDEN[f"rope/{name}/frequencies"], rtol=2e-6)
    by = positions.rotation(jnp.asarray(GOLDEN["rope/place"]), frequencies)
    found = positions.rotate(jnp.asarray(GOLDEN["rope/x"]), by)
    np.testing.assert_allclose(found, GOLDEN[f"rope/{name}/y"], atol=1e-4)


def test_a_product_of_rotated_vectors_knows_their_distance_alone():
    q, k = (jnp.asarray(np.random.default_rng(s).normal(size=(1, 1, 1, 8))) for s in (0, 1))
    frequencies = positions.frequencies(8)

    def product(i, j):
        a, b = (
            positions.rotate(x, positions.rotation(jnp.array([[at]]), frequencies))
            for x, at in ((q, i), (k, j))
        )
        return float((a * b).sum())

    assert product(5, 2) == pytest.approx(product(40, 37), abs=1e-4)
    assert abs(product(5, 2) - product(5, 3)) > 1e-2


def test_sinusoidal_positions():
    """Vaswani et al. 2017: PE(pos, 2i) = sin(pos / 10000^(2i / d)), PE(pos, 2i + 1) its cosine."""
    expected = np.empty((7, 6))
    for pos in range(7):
        for i in range(3):
            angle = pos / 10000 ** (2 * i / 6)
            expected[pos, 2 * i : 2 * i + 2] = np.sin(angle), np.cos(angle)
    found = positions.sinusoidal(jnp.arange(7), 6)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "scaling", "words"),
    [
        (5, (), "head_size=5: expected an even number"),
        (4, ("yarn", 2.0), r"\('linear', factor\)"),
        (4, ("llama3", 8.0, 4.0, 1.0, 64), "high > low"),
        (4, ("linear",), r"\('linear', factor\)"),
    ],
)
def test_rotary_positions_that_cannot_be(size, scaling, words):
    with pytest.raises(ConfigError, match=words):
        positions.frequencies(size, scaling=scaling)
