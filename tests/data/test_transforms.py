from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.stats
from datasets import dataset
from PIL import Image

from genjax import modalities
from genjax.config import ConfigError
from genjax.data import sources, transforms
from genjax.method import DataSpec, Field

IMAGE = DataSpec("made", sources.image_fields((8, 8, 3), 10), "image", {})


def picture(array, mode=None, **save):
    """`array` through a PNG file, as it would come from disk."""
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG", **save)
    return Image.open(buffer)


def test_dequantize_is_uniform_exact_and_below_one():
    levels = np.repeat(np.arange(256, dtype=np.uint8), 4096).reshape(256, 4096, 1)
    out = transforms.dequantize("image")({"image": levels, "label": 3}, np.random.default_rng(0))
    assert out["label"] == 3
    assert out["image"].dtype == np.float32
    assert out["image"].min() >= 0
    assert out["image"].max() < 1
    np.testing.assert_array_equal(np.floor(out["image"] * 256), levels)
    noise = out["image"].astype(np.float64) * 256 - levels
    assert scipy.stats.kstest(noise.ravel(), "uniform").statistic < 1.63 / 1024  # 1% level, 2^20


def test_flip_mirrors_half_of_the_images():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    rng, flip = np.random.default_rng(0), transforms.flip("image")
    outs = [flip({"image": image}, rng)["image"] for _ in range(2000)]
    same = sum(np.array_equal(out, image) for out in outs)
    mirrored = sum(np.array_equal(out, np.flip(image, 1)) for out in outs)
    assert same + mirrored == 2000
    assert abs(same - 1000) < 4 * np.sqrt(500)


def test_crop_draws_every_shift_of_the_padded_image_equally_often():
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    rng, crop = np.random.default_rng(0), transforms.crop(1, "image")
    counts = np.zeros(9)
    for _ in range(4500):
        out = crop({"image": image}, rng)["image"]
        (hit,) = [k for k, window in enumerate(windows) if np.array_equal(out, window)]
        counts[hit] += 1
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_inputs_are_not_written_to():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image.flags.writeable = False
    on = dataset(flip=True, crop_padding=2, dequantize=True)
    apply = modalities.transforms(on, IMAGE, train=True)
    out = apply({"image": image, "label": np.int32(1)}, np.random.default_rng(0))
    assert out["image"].shape == (8, 8, 3)


def test_build_augments_in_training_only_and_dequantizes_always():
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    assert modalities.transforms(dataset(), IMAGE, train=True) is None
    on = dataset(flip=True, crop_padding=2, dequantize=True)
    evaluate, train = (modalities.transforms(on, IMAGE, train=train) for train in (False, True))
    for _ in range(8):
        out = evaluate({"image": image}, rng)["image"]
        np.testing.assert_array_equal(np.floor(out * 256), image)
    drawn = [np.floor(train({"image": image}, rng)["image"] * 256) for _ in range(8)]
    assert not all(np.array_equal(out, image) for out in drawn)
    on.dequantize = False
    assert modalities.transforms(on, IMAGE, train=False) is None


MASKED = IMAGE._replace(
    fields={
        **IMAGE.fields,
        "mask": Field("mask", (8, 8, 1), np.dtype(np.uint8)),
        "half": Field("mask", (4, 4, 1), np.dtype(np.uint8)),
    }
)


@pytest.mark.parametrize(
    ("keys", "moves"), [({"flip": True}, 2), ({"crop_padding": 2}, 25), ({}, 1)]
)
def test_masks_move_with_their_images(keys, moves):
    """One draw for all: what lies on a mask before does so after, in full size and in half."""
    half = np.random.default_rng(0).integers(0, 2, (4, 4, 1), np.uint8)
    half[0, 0], half[0, 3], half[3, 0] = 1, 0, 1  # no move gives the same again
    mask = np.repeat(np.repeat(half, 2, 0), 2, 1)
    column = np.arange(1, 9, dtype=np.uint8)
    image = (10 * column[:, None] + column)[..., None] * np.ones(3, np.uint8) * mask
    example = {"image": image, "mask": mask, "half": half, "label": np.int32(3)}
    on = dataset(dequantize=True, **keys)
    train = modalities.transforms(on, MASKED, train=True)
    evaluate = modalities.transforms(on, MASKED, train=False)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        out = train(example, rng)
        assert out["label"] == 3
        assert out["image"].dtype == np.float32
        assert out["mask"].dtype == out["half"].dtype == np.uint8  # not dequantised
        pixels = np.floor(out["image"] * 256)
        np.testing.assert_array_equal(pixels[..., :1] > 0, out["mask"] > 0)
        shown = np.repeat(np.repeat(out["half"], 2, 0), 2, 1)
        if not keys.get("crop_padding"):
            np.testing.assert_array_equal(shown, out["mask"])
        seen.add(pixels.tobytes())
        same = evaluate(example, rng)
        np.testing.assert_array_equal(same["mask"], mask)
        np.testing.assert_array_equal(same["half"], half)
    assert len(seen) == moves


def test_a_mask_of_half_the_size_is_shifted_by_half():
    image = np.zeros((8, 8, 1), np.uint8)
    image[4:6, 2:4] = 1
    example, crop = {"image": image, "half": image[::2, ::2]}, transforms.crop(2, "image", "half")
    rng, even = np.random.default_rng(0), 0
    for _ in range(100):
        out = crop(example, rng)
        (rows, columns, _), (halves, sides, _) = (np.nonzero(out[n]) for n in ("image", "half"))
        assert len(halves) == 1
        assert abs(rows.min() / 2 - halves[0]) <= 0.5
        assert abs(columns.min() / 2 - sides[0]) <= 0.5
        even += rows.min() / 2 == halves[0]
    assert 30 < even < 90


def test_what_has_no_picture_is_not_flipped():
    fields = {"code": Field("code", (4,), np.dtype(np.int32))}
    spec = DataSpec("made", fields, "code", {})
    assert modalities.transforms(dataset(flip=True, crop_padding=2), spec, train=True) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [((), (0, 0)), (0, (0, 0)), (32, (32, 32)), ((32,), (32, 32)), ((24, 48), (24, 48))],
)
def test_image_sizes(given, expected):
    assert transforms.height_and_width(given) == expected
    assert transforms.height_and_width(dataset(image_size=given).image_size) == expected


@pytest.mark.parametrize("given", [-1, (8, 0), (0, 8), (8, 8, 8), (8.0, 8), ("8", "8")])
def test_image_sizes_that_are_none(given):
    with pytest.raises(ConfigError, match=r"image_size=.*expected a side such as 32, a height"):
        transforms.height_and_width(given)


def test_pixels_of_another_shape_than_square_cover_it():
    image = np.zeros((8, 32, 3), np.uint8)
    image[:, 8:24] = 200  # twice as wide as high, in the middle
    wide = transforms.pixels(picture(image), 3, (8, 16))
    np.testing.assert_array_equal(wide, image[:, 8:24])
    tall = transforms.pixels(picture(image.transpose(1, 0, 2)), 3, (16, 8))
    np.testing.assert_array_equal(tall, wide.transpose(1, 0, 2))
    assert transforms.pixels(picture(image), 3, (24, 48)).shape == (24, 48, 3)
    assert (transforms.pixels(picture(image), 3, (24, 48))[2:-2, 2:-2] > 190).all()
    np.testing.assert_array_equal(
        transforms.fit(image, 1, (24, 48)), transforms.pixels(picture(image), 1, (24, 48))
    )


def test_pixels_convert_modes():
    colour = np.array([[[200, 100, 50]]], np.uint8)
    grey = transforms.pixels(picture(colour), 1)
    assert grey.shape == (1, 1, 1)
    assert abs(int(grey[0, 0, 0]) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1  # ITU-R 601
    half = np.array([[[200, 100, 50, 51]]], np.uint8)  # opacity 0.2 over white
    over = transforms.pixels(picture(half), 3)[0, 0]
    np.testing.assert_allclose(over, 0.2 * np.array([200, 100, 50]) + 0.8 * 255, atol=1)
    deep = np.array([[0, 257 * 77, 65535]], np.uint16)
    np.testing.assert_array_equal(transforms.pixels(picture(deep), 1)[0, :, 0], [0, 77, 255])
    tripled = transforms.pixels(picture(np.array([[7]], np.uint8)), 3)
    np.testing.assert_array_equal(tripled, [[[7, 7, 7]]])
    with pytest.raises(ValueError, match="floating point"):
        transforms.pixels(Image.fromarray(np.ones((2, 2), np.float32)), 1)


def test_pixels_turn_upright_by_exif():
    stored = np.array([[10, 20, 30]], np.uint8)  # one row, to be turned by 90 degrees
    exif = Image.Exif()
    exif[0x0112] = 6
    out = transforms.pixels(picture(stored, exif=exif), 1)
    np.testing.assert_array_equal(out[..., 0], [[10], [20], [30]])


def test_pixels_resize_the_short_side_and_crop_the_centre():
    image = np.zeros((8, 32, 3), np.uint8)
    image[:, 12:20] = 200  # the centre square of the wide picture
    np.testing.assert_array_equal(transforms.pixels(picture(image), 3, (8, 8)), image[:, 12:20])
    stripes = np.tile(np.array([0, 100], np.uint8), (16, 8))  # mean 50 at half the size
    small = transforms.pixels(picture(stripes), 1, (8, 8))
    assert small.shape == (8, 8, 1)
    np.testing.assert_allclose(small[2:-2, 2:-2], 50, atol=8)
    assert transforms.pixels(picture(image), 3, (64, 64)).shape == (64, 64, 3)


def test_fit_agrees_with_pixels_and_leaves_a_fitting_array_alone():
    image = np.random.default_rng(0).integers(0, 256, (10, 6, 3), dtype=np.uint8)
    assert transforms.fit(image, 0, (0, 0)) is image
    assert transforms.fit(image[:6], 3, (6, 6)).base is not None
    np.testing.assert_array_equal(
        transforms.fit(image, 1, (4, 4)), transforms.pixels(picture(image), 1, (4, 4))
    )
