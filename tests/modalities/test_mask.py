"""Masks: out of pictures, and as pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from genjax import modalities
from genjax.config import ConfigError
from genjax.method import Field
from genjax.modalities import mask
from genjax.pictures import grid

MASK = Field("mask", (4, 6, 1), np.dtype(np.uint8))
RNG = np.random.default_rng(0)


def test_a_mask_is_where_its_picture_is_bright(tmp_path):
    levels = RNG.integers(0, 256, (4, 6), np.uint8)
    levels[0, :2] = (127, 128)
    Image.fromarray(levels).save(tmp_path / "a.png")
    given = mask.parse(str(tmp_path / "a.png"), MASK)
    assert given.dtype == np.uint8
    np.testing.assert_array_equal(given[..., 0], levels > 127)
    Image.fromarray(np.repeat(levels[..., None], 3, 2)).save(tmp_path / "colour.png")
    assert mask.parse(str(tmp_path / "colour.png"), MASK).shape == (4, 6, 1)
    Image.fromarray(np.repeat(np.repeat(levels, 3, 0), 3, 1)).save(tmp_path / "large.png")
    assert mask.parse(str(tmp_path / "large.png"), MASK).shape == (4, 6, 1)
    with pytest.raises(ConfigError, match="expected the file of a picture"):
        mask.parse(str(tmp_path / "gone.png"), MASK)


def test_masks_are_shown_in_black_and_white():
    samples = RNG.integers(0, 2, (5, 4, 6, 1), np.uint8)
    shown = modalities.picture_of(samples, MASK)
    np.testing.assert_array_equal(shown, grid(samples * np.uint8(255)))
    assert modalities.text_of(samples, MASK) is None
    files = mask.files(samples, MASK)
    assert list(files) == [".png"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(files[".png"]))), shown)
