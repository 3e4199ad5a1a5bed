"""Transforms of one example: decoding and resizing at load, then seeded augmentation.

A transform is `(example, rng) -> example` on dicts of numpy arrays. It draws only from `rng`, which
the loader seeds with the run's seed and the example's position in the stream. It never writes into
its input, which may be a view of cached data.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from genjax.config import ConfigError

Example = Mapping[str, Any]
T = TypeVar("T")
Transform = Callable[[Example, np.random.Generator], Example]

# The default of dataset.max_pixels, the most pixels of a picture: 512 MB in colour.
MAX_PIXELS = 178_956_970
LARGE = 2**24  # above this number of pixels after resizing, only the cropped part is resized
Image.MAX_IMAGE_PIXELS = None  # `read_picture` checks dataset.max_pixels instead

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
_SIDEWAYS = (*_TURNS[5], *_TURNS[6], *_TURNS[7], *_TURNS[8])
_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that affect its pixels. The others are texts, times, profiles.
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
_GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_picture(
    file: str | os.PathLike | bytes, use: Callable[[Image.Image], T], max_pixels: int = MAX_PIXELS
) -> T:
    """Returns `use(picture)` for the picture in a file, given by path or as bytes.

    If Pillow rejects a PNG because of its texts or profiles, they are removed.

    Raises:
      ValueError: more pixels than `max_pixels`; the message names the key that sets the limit.
      OSError, SyntaxError and others from Pillow: the picture cannot be decoded.
    """
    try:
        return _read(io.BytesIO(file) if isinstance(file, bytes) else file, use, max_pixels)
    except (OSError, ValueError, SyntaxError):
        if (plain := _pixels_of_png(file)) is None:
            raise
    return _read(io.BytesIO(plain), use, max_pixels)


def _read(file: Any, use: Callable[[Image.Image], T], max_pixels: int) -> T:
    with Image.open(file) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise ValueError(
                f"{width} x {height} are {width * height} pixels, more than dataset.max_pixels="
                f"{max_pixels}, a limit against small files that fill the memory. Raise it if the "
                "picture is really that large"
            )
        return use(picture)


def _pixels_of_png(file: str | os.PathLike | bytes) -> bytes | None:
    """The PNG with only its pixel chunks; None if it has no other chunks, or is not a PNG."""
    if not isinstance(file, bytes):
        with open(file, "rb") as opened:
            if opened.read(len(_PNG)) != _PNG:
                return None
            file = _PNG + opened.read()
    if not file.startswith(_PNG):
        return None
    parts, position = [_PNG], len(_PNG)
    while position + 12 <= len(file):
        end = position + 12 + int.from_bytes(file[position : position + 4], "big")
        if file[position + 4 : position + 8] in _PIXEL_CHUNKS:
            parts.append(file[position:end])
        position = end
    plain = b"".join(parts)
    return plain if len(plain) < len(file) else None


def _turns(image: Image.Image) -> tuple[Image.Transpose, ...]:
    """The transposes that make a picture upright, by its EXIF tag; empty without a valid tag."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's errors for damaged EXIF are not specified; pixels need no EXIF
        return ()
    return _TURNS.get(value, ()) if isinstance(value, int) else ()


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of a picture as `pixels` decodes it; reads only the file's header."""
    width, height = image.size
    sideways = any(turn in _SIDEWAYS for turn in _turns(image))
    return (width, height) if sideways else (height, width)


def native_channels(image: Image.Image) -> int:
    """1 for a grey image, 3 for any other; reads only the file's header."""
    return 1 if image.mode in _GREY_MODES else 3


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from `config.dataset.image_size`, such as 32, (32,) or (24, 48).

    (0, 0) means that the size is kept.

    Raises:
      ConfigError: `image_size` is anything else.
    """
    sizes = (image_size,) if isinstance(image_size, int) else tuple(image_size) or (0,)
    valid = all(isinstance(side, int) and side >= 0 for side in sizes)
    if len(sizes) > 2 or not valid or (len(sizes) == 2 and (0 in sizes)):
        raise ConfigError(
            f"config.dataset.image_size={image_size!r}: expected a side such as 32, a height and a "
            "width such as (24, 48), or () to keep the size."
        )
    return sizes[0], sizes[-1]


def pixels(
    image: Image.Image, channels: int, size: tuple[int, int] = (0, 0)
) -> UInt8[np.ndarray, "H W C"]:
    """Decodes `image`, upright by its EXIF tag, to `channels` (1 or 3) and (height, width).

    Transparency is laid over white, 16-bit grey is scaled to 8 bits, colour becomes grey by ITU-R
    601 luma. The picture is resized until it covers the size (bicubic with antialiasing) and
    cropped around its centre; with (0, 0) the size is kept.

    Raises:
      OSError, ValueError, SyntaxError: the file cannot be decoded as an image.
    """
    image.load()
    for turn in _turns(image):
        image = image.transpose(turn)
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
    if any(size) and image.size != size[::-1]:
        height, width = size
        scale = max(width / image.width, height / image.height)
        covering = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
        right, bottom = left + width, top + height
        if covering[0] * covering[1] <= LARGE:
            image = image.resize(covering, Image.Resampling.BICUBIC)
            image = image.crop((left, top, right, bottom))
        else:  # 1 x 8000 would become 64 x 512000: resize only the crop, equal up to rounding
            across, down = image.width / covering[0], image.height / covering[1]
            part = (left * across, top * down, right * across, bottom * down)
            image = image.resize((width, height), Image.Resampling.BICUBIC, part)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def fit(
    image: UInt8[np.ndarray, "H W C"], channels: int, size: tuple[int, int]
) -> UInt8[np.ndarray, "h w c"]:
    """Converts an image array to `channels` and `size` as in `pixels`; 0 keeps either."""
    height, width, native = image.shape
    if channels in (0, native) and size in ((0, 0), (height, width)):
        return image
    picture = Image.fromarray(image[..., 0] if native == 1 else image)
    return pixels(picture, channels or native, size)


def flip(*names: str) -> Transform:
    """Mirrors all fields `names` [H, W, C] left to right, together, with probability 1/2."""

    def apply(example: Example, rng: np.random.Generator) -> Example:
        if rng.random() < 0.5:
            return example
        return {**example, **{name: example[name][:, ::-1] for name in names}}

    return apply


def crop(padding: int, *names: str) -> Transform:
    """Shifts the fields `names` [H, W, C] together, by up to `padding` pixels in each direction.

    Pads with zeros and crops to the old size. `padding` is in pixels of the first field; fields of
    another size move in proportion.
    """

    def apply(example: Example, rng: np.random.Generator) -> Example:
        offsets = rng.integers(0, 2 * padding + 1, size=2)
        first = example[names[0]].shape[0]
        shifted_example = dict(example)
        for name in names:
            image = example[name]
            height, width, depth = image.shape
            margin = padding * height // first
            top, left = (int(m) * height // first for m in offsets)
            padded = np.zeros((height + 2 * margin, width + 2 * margin, depth), image.dtype)
            padded[margin : margin + height, margin : margin + width] = image
            shifted_example[name] = padded[top : top + height, left : left + width]
        return shifted_example

    return apply


def one_of(random: bool, *names: str) -> Transform:
    """One of the K rows of each of the fields `names` [K, ...]: a random one, or else the first."""

    def apply(example: Example, rng: np.random.Generator) -> Example:
        chosen = {
            name: example[name][rng.integers(len(example[name])) if random else 0] for name in names
        }
        return {**example, **chosen}

    return apply


def dequantize(*names: str) -> Transform:
    """uint8 x -> float32 (x + u) / 256 in [0, 1), u uniform on [0, 1), for the fields `names`.

    Theis et al. 2016, "A note on the evaluation of generative models", section 3.1. u is a
    multiple of 2^-16, so that every sum is exact in float32: the result is below 1 and
    `floor(256 * y)` gives the byte back, always.
    """

    def apply(example: Example, rng: np.random.Generator) -> Example:
        dequantized = dict(example)
        for name in names:
            noise: Float32[np.ndarray, "H W C"] = np.float32(2**-16) * rng.integers(
                0, 2**16, size=example[name].shape, dtype=np.uint16
            ).astype(np.float32)
            dequantized[name] = (example[name].astype(np.float32) + noise) * np.float32(2**-8)
        return dequantized

    return apply


def shift(example: Example, rng: np.random.Generator) -> Example:
    """Shifts a window of a stream (`windows.Window`) by 0 ... T - 1 tokens, uniformly at random."""
    return example.shifted(int(rng.integers(example.steps)))
