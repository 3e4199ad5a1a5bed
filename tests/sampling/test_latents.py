"""Pictures of a code, through a decoder that shows its code."""

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.sampling import latents


def decode(z, like):
    """The first coordinates of z as pixels, then the row that z belongs to."""
    return jnp.concatenate([z, like[:, None]], -1)[:, None, :, None]


CODE = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)) * [1.0, 3.0, 0.1], jnp.float32)


def test_reconstructions_are_below_their_images():
    images = jnp.arange(20, dtype=jnp.uint8)[:, None, None, None]
    shown = latents.reconstructions(images, images + 100)[..., 0, 0, 0]
    expected = [range(8), range(100, 108), range(8, 16), range(108, 116)]
    np.testing.assert_array_equal(shown, [list(row) for row in expected])
    assert latents.reconstructions(images[:3], images[:3]).shape == (2, 3, 1, 1, 1)


def test_interpolations_go_from_one_code_to_the_next():
    shown = latents.interpolations(CODE, decode, columns=5, rows=4)[:, :, 0, :, 0]
    np.testing.assert_allclose(shown[:, 0, :3], CODE[0:8:2], rtol=1e-6)
    np.testing.assert_allclose(shown[:, -1, :3], CODE[1:8:2], rtol=1e-6)
    np.testing.assert_allclose(shown[:, 2, :3], (CODE[0:8:2] + CODE[1:8:2]) / 2, rtol=1e-5)
    np.testing.assert_array_equal(shown[:, :, 3], np.repeat([[0], [2], [4], [6]], 5, 1))


def test_traversals_move_one_dimension_the_most_varied_first():
    shown = np.asarray(latents.traversals(CODE, decode, columns=3)[:, :, 0, :, 0])
    assert shown.shape == (3, 3, 4)
    for row, moved in zip(shown, (1, 0, 2), strict=True):
        np.testing.assert_allclose(row[:, moved], [-3, 0, 3], atol=1e-6)
        for kept in {0, 1, 2} - {moved}:
            np.testing.assert_allclose(row[:, kept], CODE[0, kept], rtol=1e-6)


def test_a_manifold_has_equal_shares_of_the_prior_between_its_codes():
    shown = np.asarray(latents.manifold(decode, steps=4)[:, :, 0, :2, 0])
    expected = [-1.15035, -0.31864, 0.31864, 1.15035]
    np.testing.assert_allclose(shown[0, :, 0], expected, atol=1e-4)
    np.testing.assert_allclose(shown[:, 0, 1], expected[::-1], atol=1e-4)


@pytest.mark.parametrize("label", [None, jnp.array([0, 3, 13])])
def test_a_map_has_a_dot_where_each_code_is(label):
    """x to the right, y upwards; what is outside is left out and does not come in elsewhere."""
    code = jnp.array([[0.0, 0.0], [4.0, 2.0], [-9.0, -1.0]])
    whole = np.asarray(latents.scatter(code, label, size=9, dot=0))[0, 0]
    top, left = latents.MARGIN, latents.LEFT
    shown = whole[top : top + 9, left : left + 9]
    marked = {tuple(at) for at in np.argwhere(shown.any(-1))}
    assert marked == {(4, 4), (2, 8)}
    colour = [255] * 3 if label is None else latents.COLOURS[3]
    np.testing.assert_array_equal(shown[2, 8], colour)


def test_a_map_names_the_classes_beside_their_colours():
    code, label = jnp.zeros((1, 2)), jnp.array([0])
    names = ("boot", "\u9774", *map(str, range(30)))
    shown = np.asarray(latents.scatter(code, label, names))[0, 0]
    legend = shown[:, latents.LEFT + 256 :]
    there = {tuple(colour) for colour in legend.reshape(-1, 3)}
    assert {tuple(colour) for colour in latents.COLOURS} < there
    assert legend[:, 20:].min(-1).max() > 200  # letters
    alone = np.asarray(latents.scatter(code, None, names))[0, 0]
    assert alone.shape[1] < shown.shape[1]  # no colours, no legend


def test_bars_are_as_tall_as_the_shares():
    shares = jnp.array([[0.1, 0.5, 0.0, 0.4]])
    shown = np.asarray(latents.bars(shares, height=10, width=8))
    assert shown.shape == (1, 1, 10, 8, 3)
    np.testing.assert_array_equal((shown[0, 0, :, ::2, 0] > 0).sum(0), [10, 8, 2, 0])
    assert (shown[0, 0, -1, :6] > 0).all()
    many = np.asarray(latents.bars(jnp.linspace(0, 1, 1000)[None], height=10, width=8))
    assert many.shape == (1, 1, 10, 8, 3)
