"""Samples as files."""

from __future__ import annotations

import io

import numpy as np
from etils import epath

from genjax import modalities
from genjax.files import write_atomic
from genjax.method import Field


def save(base: epath.Path, samples: np.ndarray, field: Field) -> list[epath.Path]:
    """Writes samples, each file whole or not at all: `base` with the endings of their modality.

    Args:
      base: the path without an ending.
      samples: [N, ...].
      field: what they are.

    Returns:
      The files; last the .npz, whose array `samples` they are.

    Raises:
      ValueError: samples that are not of the modality.
      OSError: the disk is full or the folder cannot be written.
    """
    contents = modalities.find(field).files(samples, field)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, samples=samples)
    contents = {**contents, ".npz": buffer.getvalue()}
    paths = [epath.Path(f"{base}{ending}") for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomic(path, content)
    return paths
