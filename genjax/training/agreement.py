"""What the processes of one run must have in common, by name, for an error to say what differs.

Processes that start from different configs or data would wait for each other for ever, or train on
a mixture in silence.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import platform
import re
from pathlib import Path

import jax
from etils import epath
from ml_collections import ConfigDict

import genjax
from genjax.config import flatten
from genjax.training.checkpoint import FOLDER, numbered

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# The same data may lie elsewhere on another machine.
OWN_KEYS = r"dataset\.(threads|path)"
OWN_FLAGS = ("config", "workdir", "output", "overrides", "command")


def of_command(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> dict[str, str]:
    """Of a command: its config, its other flags, the versions, and the checkpoint it finds."""
    keys = {f"config.{key}": repr(value) for key, value in flatten(config).items()}
    found = {
        key: text for key, text in keys.items() if not re.fullmatch(rf"config\.{OWN_KEYS}", key)
    }
    given = {name: value for name, value in vars(flags).items() if name not in OWN_FLAGS}
    found |= {f"--{name}": repr(value) for name, value in given.items()}
    newest = max(numbered(folder / FOLDER), default=None)
    return found | versions() | {"the newest checkpoint in --workdir": str(newest)}


@functools.cache
def versions() -> dict[str, str]:
    """Of Python, of the packages that compute, and of genjax's own files."""
    found = {"the version of python": platform.python_version()}
    for package in PACKAGES:
        found[f"the version of {package}"] = importlib.metadata.version(package)
    root, total = Path(genjax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    found["genjax's files (sha256)"] = total.hexdigest()[:16]
    return found | {"the devices": jax.local_devices()[0].device_kind}
