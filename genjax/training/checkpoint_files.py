"""The files of a checkpoint: their folders, what is written beside the state, and the disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from genjax.checks import ConfigError, first_line
from genjax.files import DISK, absolute, is_local, parse_json

Tree = Any
logger = logging.getLogger("genjax")


def check_path(workdir: epath.Path) -> None:
    """Refuses a folder in which checkpoints cannot be written.

    Raises:
      ConfigError: the path has a character that makes it a pattern, or is not UTF-8.
    """
    text = str(absolute(workdir))
    advice = "Rename that folder (genjax can then read the run in it)"
    if glob.has_magic(text):
        characters = "".join(dict.fromkeys(re.findall(r"[][*?]", text)))
        raise ConfigError(
            f"the path {text} contains {' '.join(characters)}, which the library that writes "
            f"checkpoints takes for a pattern. {advice}, or give another --workdir."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the path {text!r} is not UTF-8, which the library that writes checkpoints needs. "
            f"{advice}, or give another --workdir."
        ) from error


def numbered(folder: epath.Path) -> set[int]:
    """Returns the steps in the names of the folders of checkpoints."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return {int(name) for name in names if re.fullmatch(r"[0-9]{1,18}", name)}


def on_host(state: epath.Path) -> Tree:
    """Reads all arrays of a saved state to the host."""
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(state).item_metadata.tree
    to_host = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        tree,
        is_leaf=lambda leaf: hasattr(leaf, "shape"),
    )
    return reader.restore(state, args=ocp.args.PyTreeRestore(restore_args=to_host))


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON object next to a state; {} if the file is missing."""
    return parse_json(path.read_bytes()) if path.exists() else {}


def digest_of_notes(notes: Mapping[str, Any]) -> str:
    """Returns the sha256 of notes as JSON, independent of the order of their keys."""
    plain = json.loads(json.dumps(notes))  # as they are read back
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def merge(state: epath.Path) -> None:
    """Finishes a checkpoint whose parts were not merged.

    Each process writes a part, and the list of all parts is written last. If the folder's name is a
    pattern, the library finds no parts; after the folder is renamed, they can be merged.
    """
    merges = jax.process_index() == 0 and state.exists() and not (state / "manifest.ocdbt").exists()
    if merges and any(path.name.startswith("ocdbt.process_") for path in state.iterdir()):
        merge = ocp.type_handlers.merge_ocdbt_per_process_files
        context = tensorstore.Context({"cache_pool#ocdbt": {"total_bytes_limit": 10**8}})
        asyncio.run(merge(state, context, use_zarr3=False))
        logger.info("%s was not merged: merged it now", state)


def check_space(folder: epath.Path, needed: int) -> None:
    """Raises OSError, before anything is written, if fewer than `needed` bytes are free."""
    if not is_local(folder):
        return
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"a checkpoint needs {needed:,} bytes, {free:,} are free", str(folder)
        )


@contextlib.contextmanager
def disk_errors(folder: epath.Path) -> Iterator[None]:
    """Turns any error from writing a checkpoint into one OSError."""
    try:
        yield
    except (ConfigError, jax.errors.JaxRuntimeError):  # an error of a device or of another process
        raise
    except (ValueError, RuntimeError, OSError, KeyError, AttributeError, TypeError) as error:
        number = getattr(error, "errno", None) or next(
            (number for number in DISK if os.strerror(number) in str(error)), None
        )
        message = f"a checkpoint cannot be written: {first_line(error)}"
        raise OSError(*((number, message, str(folder)) if number else (message,))) from error
