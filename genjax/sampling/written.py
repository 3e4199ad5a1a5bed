"""Samples as files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath

from genjax import modalities
from genjax.files import write_atomic
from genjax.method import Field

MOST_FILES = 1000  # the most samples of one command with a file each


def save(base: epath.Path, samples: np.ndarray, field: Field) -> list[epath.Path]:
    """Writes samples to files, each atomically: `base` with the file endings of their modality.

    If the modality has a file format for single samples, the first `MOST_FILES` are also written to
    the folder `base`, one file each.

    Args:
      base: the path without an ending.
      samples: [N, ...].
      field: the field of the samples.

    Returns:
      The folder, if there is one, and the files; the last is the .npz with the array `samples`.

    Raises:
      ValueError: the samples do not fit the modality.
      OSError: the disk is full or the folder cannot be written.
    """
    module, folders = modalities.find(field), []
    if each := getattr(module, "each", None):
        folders.append(base)
        _save_each(base, each(samples[:MOST_FILES], field))
    contents = module.files(samples, field)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, samples=samples)
    contents = {**contents, ".npz": buffer.getvalue()}
    paths = [epath.Path(f"{base}{ending}") for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomic(path, content)
    return [*folders, *paths]


def _save_each(folder: epath.Path, contents: Mapping[str, bytes]) -> None:
    """Writes these files, and removes additional ones that an earlier command left."""
    kinds = {Path(name).suffix for name in contents}
    existing = folder.iterdir() if folder.exists() else ()
    for path in [p for p in existing if p.suffix in kinds and p.name not in contents]:
        path.unlink()
    for name, content in contents.items():
        write_atomic(folder / name, content)
