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
    """The picture in a file, resized and cropped to the field's height and width.

    Raises:
      ConfigError: the file is missing or is not a picture.
    """
    height, width, _ = field.shape
    try:
        return read_picture(given, partial(pixels, channels=channels, size=(height, width)))
    except Exception as error:  # Pillow does not specify what it raises for damaged files
        raise ConfigError(
            f"{given!r}: expected the file of a picture, such as a.png ({error})."
        ) from error


def parse(given: str, field: Field) -> np.ndarray:
    """The picture in the file `given`, with the field's shape and dtype."""
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
    """A PNG of each sample."""
    if samples.dtype != np.uint8:
        samples = np.clip(samples * 256, 0, 255).astype(np.uint8)
    return {f"{i:05d}.png": png(sample) for i, sample in enumerate(samples)}


def transforms(dataset: ConfigDict, spec: DataSpec, train: bool) -> list[Transform]:
    """Crop and flip in training, masks with their images; derived fields; dequantisation."""
    later = {entry[0] for entry in dataset.derived}  # computed from the flipped and cropped fields
    spatial = [n for n, f in spec.fields.items() if f.kind in SPATIAL and n not in later]
    steps: list[Transform] = []
    if train and dataset.crop_padding and spatial:
        steps.append(crop(dataset.crop_padding, *spatial))
    if train and dataset.flip and spatial:
        steps.append(flip(*spatial))
    if (derive := derived.transform(dataset, spec)) is not None:
        steps.append(derive)
    if dataset.dequantize:
        images = [name for name, field in spec.fields.items() if field.kind == "image"]
        steps.append(dequantize(*images))
    return steps


def image_shape(spec: DataSpec, method: str, square: bool = False) -> tuple[int, ...]:
    """The shape of the 8-bit images that a method generates.

    Args:
      spec: the spec of the data.
      method: the method's name, for the error.
      square: whether the method needs square images.

    Raises:
      ConfigError: the data are not images, not 8-bit, or not square.
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
