"""Images: uint8 [H, W, C], or float32 in [0, 1) if they are dequantised; C is 1 or 3."""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import derived
from genjax.data.transforms import Transform, crop, dequantize, flip, pixels, read_picture
from genjax.method import DataSpec, Field
from genjax.pictures import grid, png

SPATIAL = ("image", "mask")  # kinds that are flipped and cropped together


def open_image(given: str, field: Field, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """A picture in a file, resized and cropped to a field's height and width.

    Raises:
      ConfigError: there is no such file, or it is no picture.
    """
    height, width, _ = field.shape
    try:
        return read_picture(given, partial(pixels, channels=channels, size=(height, width)))
    except Exception as error:  # what a damaged file makes Pillow raise is not specified
        raise ConfigError(
            f"{given!r}: expected the file of a picture, such as a.png ({error})."
        ) from error


def parse(given: str, field: Field) -> np.ndarray:
    """The picture in the file `given`, as the field has it."""
    image = open_image(given, field, field.shape[-1])
    if field.dtype == np.uint8:
        return image
    return ((image.astype(np.float32) + 0.5) / 256).astype(field.dtype)


def picture(samples: np.ndarray, field: Field) -> UInt8[np.ndarray, "H W 3"]:
    """A grid of the samples, row by row."""
    if samples.dtype != np.uint8:
        samples = np.clip(samples * 256, 0, 255).astype(np.uint8)
    return grid(samples)


def files(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    """The grid as a PNG."""
    return {".png": png(picture(samples, field))}


def each(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    """Every sample as a PNG of its own."""
    if samples.dtype != np.uint8:
        samples = np.clip(samples * 256, 0, 255).astype(np.uint8)
    return {f"{i:05d}.png": png(sample) for i, sample in enumerate(samples)}


def transforms(dataset: ConfigDict, spec: DataSpec, train: bool) -> list[Transform]:
    """Crop and flip in training, masks with their images; derived fields; dequantisation."""
    later = {entry[0] for entry in dataset.derived}  # made of what is flipped and cropped
    spatial = [n for n, f in spec.fields.items() if f.kind in SPATIAL and n not in later]
    found: list[Transform] = []
    if train and dataset.crop_padding and spatial:
        found.append(crop(dataset.crop_padding, *spatial))
    if train and dataset.flip and spatial:
        found.append(flip(*spatial))
    if (derive := derived.transform(dataset, spec)) is not None:
        found.append(derive)
    if dataset.dequantize:
        images = [name for name, field in spec.fields.items() if field.kind == "image"]
        found.append(dequantize(*images))
    return found


def image_shape(spec: DataSpec, method: str, square: bool = False) -> tuple[int, ...]:
    """The shape of the 8-bit images that a method generates.

    Args:
      spec: of its data.
      method: its name, for the error.
      square: whether it takes square ones only.

    Raises:
      ConfigError: the data are no images, no bytes, or not square.
    """
    field = spec.generated
    if field.kind != "image":
        raise ConfigError(
            f"method {method} needs images; the target of {spec.name}, {spec.target!r}, is of kind "
            f"{field.kind!r}."
        )
    if field.dtype != np.uint8:
        raise ConfigError(
            f"method {method} needs 8-bit images, which it scales itself, and these are "
            f"{np.dtype(field.dtype)}: set dataset.dequantize=False."
        )
    if len(field.shape) != 3:
        raise ConfigError(
            f"method {method} needs 8-bit images [H, W, C]; those of {spec.name} have shape "
            f"{field.shape}."
        )
    if square and field.shape[0] != field.shape[1]:
        raise ConfigError(
            f"method {method} needs square images; {spec.name} has {field.shape[0]} x "
            f"{field.shape[1]}. Set dataset.image_size."
        )
    return field.shape
