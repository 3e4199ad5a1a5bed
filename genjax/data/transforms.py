"""What happens to one example: decoding and resizing at load, seeded augmentation after it.

A transform is `(example, rng) -> example` on dicts of numpy arrays. It draws only from `rng`, which
the loader seeds with the run's seed and the example's position in the stream, and it never writes
into its input, which may be a view of cached data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from genjax.data.corpora import TEXTS

Example = Mapping[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]

_GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def native_channels(image: Image.Image) -> int:
    """1 for a grey image, 3 for any other; needs the file's header only."""
    return 1 if image.mode in _GREY_MODES else 3


def pixels(image: Image.Image, channels: int, image_size: int) -> UInt8[np.ndarray, "H W C"]:
    """Decodes `image`, upright by its EXIF tag, to `channels` (1 or 3) and `image_size`.

    Transparency is laid over white, 16-bit grey is scaled to 8, colour becomes grey by ITU-R 601
    luma. With `image_size` > 0 the shorter side is resized to it (bicubic with antialiasing) and
    the longer one is cropped around its centre; with 0 the size stays.

    Raises:
      OSError, ValueError, SyntaxError: the file is not an image that can be decoded.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("32-bit floating point pixels; expected 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.rint(np.asarray(image).astype(np.float64).clip(0, 65535) / 257)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image_size and image.size != (image_size, image_size):
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def fit(image: UInt8[np.ndarray, "H W C"], channels: int, image_size: int) -> np.ndarray:
    """An array's channels and size changed as in `pixels`; 0 keeps either."""
    height, width, native = image.shape
    if channels in (0, native) and image_size in (0, height) and image_size in (0, width):
        return image
    picture = Image.fromarray(image[..., 0] if native == 1 else image)
    return pixels(picture, channels or native, image_size)


def flip(example: Example, rng: np.random.Generator) -> Example:
    """Mirrors `image` [H, W, C] left to right with probability 1/2."""
    if rng.random() < 0.5:
        return example
    return {**example, "image": example["image"][:, ::-1]}


def crop(padding: int) -> Transform:
    """Shifts `image` by up to `padding` pixels a side: pads with zeros, crops the old size."""

    def apply(example: Example, rng: np.random.Generator) -> Example:
        image = example["image"]
        height, width, depth = image.shape
        top, left = rng.integers(0, 2 * padding + 1, size=2)
        padded = np.zeros((height + 2 * padding, width + 2 * padding, depth), image.dtype)
        padded[padding : padding + height, padding : padding + width] = image
        return {**example, "image": padded[top : top + height, left : left + width]}

    return apply


def dequantize(example: Example, rng: np.random.Generator) -> Example:
    """uint8 x -> float32 (x + u) / 256 in [0, 1), u uniform on [0, 1).

    Theis et al. 2016, "A note on the evaluation of generative models", section 3.1. u is a
    multiple of 2^-16, so that every sum is exact in float32: the result is below 1 and
    `floor(256 * y)` gives the byte back, always.
    """
    image = example["image"]
    noise: Float32[np.ndarray, "H W C"] = np.float32(2**-16) * rng.integers(
        0, 2**16, size=image.shape, dtype=np.uint16
    ).astype(np.float32)
    return {**example, "image": (image.astype(np.float32) + noise) * np.float32(2**-8)}


def shift(example: Example, rng: np.random.Generator) -> Example:
    """A window of a stream (`windows.Window`) 0 ... T - 1 tokens later, each as likely."""
    return example.shifted(int(rng.integers(example.steps)))


def build(dataset: ConfigDict, train: bool) -> Transform | None:
    """The seeded transforms that `config.dataset` asks for, composed; None if there are none.

    Crop and flip, and the shift of a stream of text, are for training only. Dequantisation is part
    of what the data is (it makes `image` float32), so evaluation has it too.
    """
    steps: list[Transform] = []
    if train and dataset.name in TEXTS and dataset.text.documents == "stream":
        steps.append(shift)
    if train and dataset.crop_padding:
        steps.append(crop(dataset.crop_padding))
    if train and dataset.flip:
        steps.append(flip)
    if dataset.dequantize:
        steps.append(dequantize)
    if not steps:
        return None

    def apply(example: Example, rng: np.random.Generator) -> Example:
        for step in steps:
            example = step(example, rng)
        return example

    return apply
