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

MOST_FILES = 1000  # samples of one command that have a file each


def save(base: epath.Path, samples: np.ndarray, field: Field) -> list[epath.Path]:
    """Writes samples, each file whole or not at all: `base` with the endings of their modality.

    Of a modality that can be looked at one by one, the first `MOST_FILES` are also in the folder
    `base`, a file each.

    Args:
      base: the path without an ending.
      samples: [N, ...].
      field: what they are.

    Returns:
      The folder, if there is one, and the files; last the .npz, whose array `samples` they are.

    Raises:
      ValueError: samples that are not of the modality.
      OSError: the disk is full or the folder cannot be written.
    """
    module, found = modalities.find(field), []
    if each := getattr(module, "each", None):
        found.append(base)
        _save_each(base, each(samples[:MOST_FILES], field))
    contents = module.files(samples, field)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, samples=samples)
    contents = {**contents, ".npz": buffer.getvalue()}
    paths = [epath.Path(f"{base}{ending}") for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_atomic(path, content)
    return [*found, *paths]


def _save_each(folder: epath.Path, contents: Mapping[str, bytes]) -> None:
    """Writes these files, and removes what an earlier command left of more of them."""
    kinds = {Path(name).suffix for name in contents}
    before = folder.iterdir() if folder.exists() else ()
    for path in [p for p in before if p.suffix in kinds and p.name not in contents]:
        path.unlink()
    for name, content in contents.items():
        write_atomic(folder / name, content)
