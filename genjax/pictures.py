"""Grids of pictures, and PNG files."""

from __future__ import annotations

import io
import math
import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from genjax.files import write_atomic

GAP = 2  # pixels between the pictures of a grid
GAP_COLOUR = 128


def grid(
    images: UInt8[np.ndarray, "N H W C"], columns: int | None = None
) -> UInt8[np.ndarray, "gH gW 3"]:
    """Lays pictures out row by row in one RGB picture, `GAP` grey pixels apart.

    Args:
      images: grey (C = 1) or RGB (C = 3) pictures.
      columns: pictures per row; default: the least that makes the grid no taller than wide.

    Returns:
      The picture; unused cells in the last row are grey.

    Raises:
      ValueError: the array is not uint8, holds no picture, or has another number of channels.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"expected uint8 pictures [N, H, W, 1 or 3], got {images.dtype} {list(images.shape)}"
        )
    count, height, width, _ = images.shape
    if not count:
        raise ValueError("expected at least one picture for a grid, got none")
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    canvas = np.full(shape, GAP_COLOUR, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        canvas[top : top + height, left : left + width] = image  # grey broadcasts to RGB
    return canvas


def png(picture: UInt8[np.ndarray, "H W C"]) -> bytes:
    """Encodes a picture as PNG.

    Args:
      picture: uint8 grey (C = 1 or no last axis) or RGB (C = 3).

    Returns:
      The content of the file.
    """
    picture = np.asarray(picture)
    buffer = io.BytesIO()
    grey = picture.ndim == 3 and picture.shape[-1] == 1
    Image.fromarray(picture[..., 0] if grey else picture).save(buffer, "PNG")
    return buffer.getvalue()


def save_png(path: str | os.PathLike, picture: UInt8[np.ndarray, "H W C"]) -> None:
    """Writes a picture as PNG, atomically; its folder is created if missing.

    Args:
      path: the file.
      picture: as for `png`.

    Raises:
      OSError: the disk is full or the folder cannot be written.
    """
    write_atomic(path, png(picture))
