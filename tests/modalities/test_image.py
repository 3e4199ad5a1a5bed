"""Images: out of files, as a grid, and what is asked of those of a method."""

import io

import numpy as np
import pytest
from PIL import Image

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import sources, transforms
from genjax.method import DataSpec, Field
from genjax.modalities import image
from genjax.pictures import grid

COLOUR = Field("image", (4, 6, 3), np.dtype(np.uint8))
RNG = np.random.default_rng(0)


def spec(shape=(4, 4, 1), kind="image", dtype=np.uint8):
    return DataSpec("made", {"image": Field(kind, shape, np.dtype(dtype))}, "image", {})


def test_a_picture_is_given_as_its_file(tmp_path):
    stored = RNG.integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png")
    np.testing.assert_array_equal(image.parse(str(tmp_path / "a.png"), COLOUR), stored)
    large = Image.fromarray(RNG.integers(0, 256, (30, 20, 3), np.uint8))
    large.save(tmp_path / "b.png")
    for shape in ((4, 6, 3), (6, 4, 1)):  # as the data's own pictures are made
        expected = transforms.pixels(large, shape[2], shape[:2])
        assert expected.shape == shape
        given = image.parse(str(tmp_path / "b.png"), COLOUR._replace(shape=shape))
        assert given.dtype == np.uint8
        np.testing.assert_array_equal(given, expected)


def test_a_picture_of_real_numbers_is_in_the_middle_of_its_levels(tmp_path):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    field = Field("image", (16, 16, 1), np.dtype(np.float32))
    given = image.parse(str(tmp_path / "a.png"), field)
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given[..., 0] * 256, levels + np.float32(0.5))


def test_what_is_no_picture_is_one_clear_error(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    for name in ("a.png", "gone.png", ""):
        with pytest.raises(ConfigError, match=rf"{name}'?.*expected the file of a picture"):
            image.parse(str(tmp_path / name), COLOUR)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_a_grid(channels):
    samples = RNG.integers(0, 256, (5, 4, 6, channels), np.uint8)
    shown = modalities.picture_of(samples, COLOUR)
    np.testing.assert_array_equal(shown, grid(samples))
    files = image.files(samples, COLOUR)
    assert list(files) == [".png"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(files[".png"]))), shown)


def test_real_samples_are_shown_in_the_levels_that_they_lie_in():
    samples = RNG.integers(0, 256, (5, 4, 6, 3), np.uint8)
    real = (samples + RNG.random(samples.shape)).astype(np.float32) / 256
    np.testing.assert_array_equal(image.picture(real, COLOUR), grid(samples))
    beyond = np.array([-0.5, 0.0, 1.0, 7.0], np.float32).reshape(1, 1, 4, 1)
    np.testing.assert_array_equal(image.picture(beyond, COLOUR)[0, :, 0], [0, 0, 255, 255])


def test_images_have_no_text_and_no_sound():
    samples = np.zeros((1, 4, 6, 3), np.uint8)
    assert modalities.text_of(samples, COLOUR) is None
    assert modalities.player_of(samples, COLOUR) is None


def test_methods_are_told_the_shape_of_their_images():
    assert image.image_shape(spec((4, 6, 3)), "made") == (4, 6, 3)
    assert image.image_shape(spec((4, 4, 1)), "made", square=True) == (4, 4, 1)
    for bad, square, said in (
        (spec(kind="roll"), False, "method made needs images.*'image', is of kind 'roll'"),
        (spec(dtype=np.float32), False, "8-bit images.*float32: set dataset.dequantize=False"),
        (spec((4, 6, 3)), True, "square images; made has 4 x 6"),
    ):
        with pytest.raises(ConfigError, match=said):
            image.image_shape(bad, "made", square)


def test_a_kind_that_is_no_module_is_named():
    with pytest.raises(ConfigError, match=r"'imgae': no module.*Nearest: image"):
        modalities.find(Field("imgae", (2,), np.dtype(np.uint8)))
    with pytest.raises(ConfigError, match="json has no parse and no files"):
        modalities.find(Field("json", (2,), np.dtype(np.uint8)))
    assert modalities.find(sources.image_fields((2, 2, 1), 0)["image"]) is image
