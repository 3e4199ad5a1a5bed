"""Masks: 0 or 1 for each pixel [H, W, 1], or for each position of a sequence."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from genjax.method import Field
from genjax.modalities import image
from genjax.pictures import grid, png


def parse(given: str, field: Field) -> np.ndarray:
    """The mask in a picture: 1 where it is brighter than half."""
    return (image.open_image(given, field, 1) >= 128).astype(field.dtype)


def picture(samples: np.ndarray, field: Field) -> UInt8[np.ndarray, "H W 3"]:
    """A grid of the masks, white where they are 1."""
    return grid(np.where(samples > 0, 255, 0).astype(np.uint8))


def files(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    """The grid as a PNG."""
    return {".png": png(picture(samples, field))}


def each(samples: np.ndarray, field: Field) -> dict[str, bytes]:
    """A PNG of each mask."""
    return image.each(np.where(samples > 0, 255, 0).astype(np.uint8), field)
