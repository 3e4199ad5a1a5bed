"""Codes and real numbers, as Python writes them."""

import numpy as np
import pytest

from genjax import modalities
from genjax.config import ConfigError
from genjax.method import Field
from genjax.modalities import code, real

TOKENS = Field("code", (2, 2), np.dtype(np.int32), {"vocabulary_size": 8})
LATENT = Field("code", (3,), np.dtype(np.float32), {"vocabulary_size": 0})
DEPTH = Field("real", (), np.dtype(np.float32))
SHARE = DEPTH._replace(facts={"range": (0.0, 1.0)})


def test_codes_are_given_as_python_writes_them():
    found = code.parse("((1, 2), (0, 7))", TOKENS)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [[1, 2], [0, 7]])
    found = code.parse("[1, 2.5, -3]", LATENT)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1, 2.5, -3])
    found = real.parse("0.5", DEPTH)
    assert found.dtype == np.float32
    assert found == 0.5
    assert real.parse("2", DEPTH) == 2
    assert real.parse("1", SHARE) == 1


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ("((1, 2), (0, 8))", TOKENS, "expected tokens from 0 to 7"),
        ("((1, 2), (0, -1))", TOKENS, "expected tokens from 0 to 7"),
        ("((1, 2), (0, 1.5))", TOKENS, "expected numbers of int32"),
        ("(1, 2)", TOKENS, r"has shape \(2,\): expected \(2, 2\)"),
        ("((1, 2), (0,))", TOKENS, "expected numbers of int32"),
        ("a, b", LATENT, "expected numbers of float32"),
        ("('a', 'b', 'c')", LATENT, "expected numbers of float32"),
        ("__import__('os')", LATENT, "expected numbers of float32"),
        ("", LATENT, "expected numbers of float32"),
        ("(1, 2, 3, 4)", LATENT, r"has shape \(4,\): expected \(3,\)"),
        ("1.01", SHARE, "expected numbers from 0 to 1"),
        ("-0.01", SHARE, "expected numbers from 0 to 1"),
    ],
)
def test_other_codes_are_one_clear_error(given, field, said):
    with pytest.raises(ConfigError, match=said):
        modalities.find(field).parse(given, field)


def test_codes_are_in_the_npz_alone():
    samples = np.full((3, 4, 4, 3), 7, np.uint8)
    for field in (TOKENS, DEPTH):
        assert modalities.find(field).files(samples, field) == {}
        assert modalities.picture_of(samples, field) is None
        assert modalities.text_of(samples, field) is None
