"""Fields that are made of the image: what they are, where they stand, what is refused."""

import numpy as np
import pytest

from genjax import config as configs
from genjax import modalities
from genjax.config import ConfigError
from genjax.data import catalogue, sources
from genjax.method import DataSpec, Field

SPEC = DataSpec("toy", sources.image_fields((8, 12, 3), 0), "image", {"train": 1})
THREE = (("small", "smaller", 4), ("mask", "box", 0.5), ("known", "outside", "mask"))


def dataset(*derived, **options):
    config = configs.base().dataset
    with config.unlocked():
        config.update({"name": "digits", "derived": derived, **options})
    return config


def example():
    return {"image": np.random.default_rng(0).integers(0, 256, (8, 12, 3)).astype(np.uint8)}


def test_they_are_made_of_the_image_that_training_sees():
    """After flips and crops, and before dequantisation, from the example's own draws."""
    options = {"flip": True, "crop_padding": 1}
    spec = catalogue.derived.added(dataset(*THREE), SPEC)
    assert spec.fields["small"] == SPEC.generated._replace(shape=(2, 3, 3))
    assert spec.fields["mask"] == Field("mask", (8, 12, 1), np.dtype(np.uint8))
    assert spec.fields["known"] == SPEC.generated
    make = modalities.transforms(dataset(*THREE, **options), spec, train=True)
    plain = modalities.transforms(dataset(**options), SPEC, train=True)
    corners = set()
    for seed in range(50):
        made = make(example(), np.random.default_rng(seed))
        assert {n: (v.shape, v.dtype) for n, v in made.items()} == {
            n: (f.shape, f.dtype) for n, f in spec.fields.items()
        }
        image, mask = made["image"], made["mask"][..., 0]
        np.testing.assert_array_equal(image, plain(example(), np.random.default_rng(seed))["image"])
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        assert mask.sum() == len(rows) * len(columns)
        assert 2 <= len(rows) <= 4
        assert 3 <= len(columns) <= 6
        corners.add((rows[0], columns[0]))
        np.testing.assert_array_equal(made["known"], np.where(mask[..., None], 0, image))
        # Bicubic interpolation, antialiased, keeps the mean but for its edges and rounding.
        blocks = image.reshape(2, 4, 3, 4, 3).mean((1, 3))
        assert np.abs(made["small"] - blocks).max() < 60
    assert len(corners) > 10
    again = [make(example(), np.random.default_rng(7)) for _ in range(2)]
    for name in spec.fields:
        np.testing.assert_array_equal(again[0][name], again[1][name])
    floats = modalities.transforms(dataset(*THREE, dequantize=True), spec, train=False)
    dequantised = floats(example(), np.random.default_rng(0))
    for name in ("image", "small", "known"):
        assert dequantised[name].dtype == np.float32
    np.testing.assert_array_equal(np.floor(dequantised["image"] * 256), example()["image"])


def test_the_catalogue_has_them():
    config = dataset(("small", "smaller", 4), image_size=(16,), channels=3, test="10_percent")
    spec, loaded = catalogue.spec(config), catalogue.load(config)
    assert spec == loaded.spec
    assert spec.fields["small"].shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("small", "'small' is not a valid entry"),
        (("small", "smaller"), "is not a valid entry"),
        (("small", "smallest", 4), "Nearest: smaller"),
        (("small", "smaller", 3), "divides the image's 8 x 8"),
        (("small", "smaller", 1), "a whole number above 1"),
        (("mask", "box", 0.0), "above 0 and at most 1"),
        (("known", "outside", "mask"), "There is no mask yet"),
        (("label", "smaller", 4), "already have a field 'label'"),
    ],
)
def test_what_is_refused(entry, message):
    with pytest.raises(ConfigError, match=message):
        catalogue.spec(dataset(entry))


def test_data_without_images_have_none():
    with pytest.raises(ConfigError, match="the codes of a stage"):
        catalogue.spec(dataset(("small", "smaller", 4), codes="autoencoder"))
    with pytest.raises(ConfigError, match=r"derived=.* is for images; tiny_shakespeare is text"):
        catalogue.spec(dataset(("small", "smaller", 4), name="tiny_shakespeare"))
