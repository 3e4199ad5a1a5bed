"""The tensors in a folder of a model of Hugging Face, whichever files hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genjax.config import ConfigError
from genjax.interop import flax_file, safetensors

SAFETENSORS = "model.safetensors"
# Files that are read, the first that is there, and what reads them.
READERS = {
    SAFETENSORS: safetensors.read,
    f"{SAFETENSORS}.index.json": safetensors.read,
    "flax_model.msgpack": flax_file.read,
    "flax_model.msgpack.index.json": flax_file.read,
}


def read(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The file that was read, and its tensors by the names of transformers' modules for PyTorch.

    Raises:
      ConfigError: there is none of `READERS`, or the file is damaged.
    """
    for name, reader in READERS.items():
        if (folder / name).is_file():
            return folder / name, reader(folder / name)
    raise ConfigError(
        f"there is no {SAFETENSORS} and no {', '.join([*READERS][1:])} in {folder}. Other formats "
        "are pickles, which are not read: save the model again with its save_pretrained()."
    )
