"""Moves on the sphere of vectors, against angles in a plane."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.sampling.embeddings import slerp, text_diff, unit


def at(*angles):
    """Vectors of length 1 in the plane of the second and third axis, at these angles."""
    angles = np.asarray(angles)
    return jnp.asarray(np.stack([0 * angles, np.cos(angles), np.sin(angles)], axis=1), jnp.float32)


@pytest.mark.parametrize("span", [0.01, 0.8, 2.5])
def test_slerp_moves_at_constant_speed_along_the_great_circle(span):
    share = jnp.array([0.0, 0.25, 0.5, 1.0])
    found = slerp(at(*[0.3] * 4), at(*[0.3 + span] * 4), share)
    np.testing.assert_allclose(found, at(*(0.3 + span * np.asarray(share))), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_slerp_between_equal_vectors_is_the_vector():
    np.testing.assert_allclose(slerp(at(0.7), at(0.7), 0.4), at(0.7), atol=1e-6)


def test_a_text_diff_ends_at_the_direction_between_the_captions():
    before, after = at(0.2), at(0.2 + math.pi / 3)
    direction = 0.2 + math.pi / 6 + math.pi / 2  # a chord is orthogonal to its middle
    np.testing.assert_allclose(unit(after - before), at(direction), atol=1e-6)
    found = text_diff(at(0.1), before, after, 0.5)
    np.testing.assert_allclose(found, at((0.1 + direction) / 2), atol=1e-6)
    np.testing.assert_allclose(text_diff(at(0.1), before, after, 0.0), at(0.1), atol=1e-6)
