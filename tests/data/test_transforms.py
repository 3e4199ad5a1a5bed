from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.stats
from datasets import dataset
from PIL import Image

from genjax.data import transforms


def picture(array, mode=None, **save):
    """`array` through a PNG file, as it would come from disk."""
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "PNG", **save)
    return Image.open(buffer)


def test_dequantize_is_uniform_exact_and_below_one():
    levels = np.repeat(np.arange(256, dtype=np.uint8), 4096).reshape(256, 4096, 1)
    out = transforms.dequantize({"image": levels, "label": 3}, np.random.default_rng(0))
    assert out["label"] == 3
    assert out["image"].dtype == np.float32
    assert out["image"].min() >= 0
    assert out["image"].max() < 1
    np.testing.assert_array_equal(np.floor(out["image"] * 256), levels)
    noise = out["image"].astype(np.float64) * 256 - levels
    assert scipy.stats.kstest(noise.ravel(), "uniform").statistic < 1.63 / 1024  # 1% level, 2^20


def test_flip_mirrors_half_of_the_images():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    rng = np.random.default_rng(0)
    outs = [transforms.flip({"image": image}, rng)["image"] for _ in range(2000)]
    same = sum(np.array_equal(out, image) for out in outs)
    mirrored = sum(np.array_equal(out, np.flip(image, 1)) for out in outs)
    assert same + mirrored == 2000
    assert abs(same - 1000) < 4 * np.sqrt(500)


def test_crop_draws_every_shift_of_the_padded_image_equally_often():
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    rng, crop = np.random.default_rng(0), transforms.crop(1)
    counts = np.zeros(9)
    for _ in range(4500):
        out = crop({"image": image}, rng)["image"]
        (hit,) = [k for k, window in enumerate(windows) if np.array_equal(out, window)]
        counts[hit] += 1
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_inputs_are_not_written_to():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image.flags.writeable = False
    apply = transforms.build(dataset(flip=True, crop_padding=2, dequantize=True), train=True)
    out = apply({"image": image, "label": np.int32(1)}, np.random.default_rng(0))
    assert out["image"].shape == (8, 8, 3)


def test_build_augments_in_training_only_and_dequantizes_always():
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    assert transforms.build(dataset(), train=True) is None
    on = dataset(flip=True, crop_padding=2, dequantize=True)
    evaluate, train = transforms.build(on, train=False), transforms.build(on, train=True)
    for _ in range(8):
        out = evaluate({"image": image}, rng)["image"]
        np.testing.assert_array_equal(np.floor(out * 256), image)
    drawn = [np.floor(train({"image": image}, rng)["image"] * 256) for _ in range(8)]
    assert not all(np.array_equal(out, image) for out in drawn)
    on.dequantize = False
    assert transforms.build(on, train=False) is None


def test_pixels_convert_modes():
    colour = np.array([[[200, 100, 50]]], np.uint8)
    grey = transforms.pixels(picture(colour), 1, 0)
    assert grey.shape == (1, 1, 1)
    assert abs(int(grey[0, 0, 0]) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1  # ITU-R 601
    half = np.array([[[200, 100, 50, 51]]], np.uint8)  # opacity 0.2 over white
    over = transforms.pixels(picture(half), 3, 0)[0, 0]
    np.testing.assert_allclose(over, 0.2 * np.array([200, 100, 50]) + 0.8 * 255, atol=1)
    deep = np.array([[0, 257 * 77, 65535]], np.uint16)
    np.testing.assert_array_equal(transforms.pixels(picture(deep), 1, 0)[0, :, 0], [0, 77, 255])
    tripled = transforms.pixels(picture(np.array([[7]], np.uint8)), 3, 0)
    np.testing.assert_array_equal(tripled, [[[7, 7, 7]]])
    with pytest.raises(ValueError, match="floating point"):
        transforms.pixels(Image.fromarray(np.ones((2, 2), np.float32)), 1, 0)


def test_pixels_turn_upright_by_exif():
    stored = np.array([[10, 20, 30]], np.uint8)  # one row, to be turned by 90 degrees
    exif = Image.Exif()
    exif[0x0112] = 6
    out = transforms.pixels(picture(stored, exif=exif), 1, 0)
    np.testing.assert_array_equal(out[..., 0], [[10], [20], [30]])


def test_pixels_resize_the_short_side_and_crop_the_centre():
    image = np.zeros((8, 32, 3), np.uint8)
    image[:, 12:20] = 200  # the centre square of the wide picture
    np.testing.assert_array_equal(transforms.pixels(picture(image), 3, 8), image[:, 12:20])
    stripes = np.tile(np.array([0, 100], np.uint8), (16, 8))  # mean 50 at half the size
    small = transforms.pixels(picture(stripes), 1, 8)
    assert small.shape == (8, 8, 1)
    np.testing.assert_allclose(small[2:-2, 2:-2], 50, atol=8)
    assert transforms.pixels(picture(image), 3, 64).shape == (64, 64, 3)


def test_fit_agrees_with_pixels_and_leaves_a_fitting_array_alone():
    image = np.random.default_rng(0).integers(0, 256, (10, 6, 3), dtype=np.uint8)
    assert transforms.fit(image, 0, 0) is image
    assert transforms.fit(image[:6], 3, 6).base is not None
    np.testing.assert_array_equal(
        transforms.fit(image, 1, 4), transforms.pixels(picture(image), 1, 4)
    )
