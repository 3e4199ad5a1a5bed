"""Facts that all processes of a run must share, by name, so that an error can say what differs.

Processes with different configs or data would wait for each other forever, or silently train on a
mixture.
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
from genjax.training.checkpoint import FOLDER
from genjax.training.checkpoint_files import numbered

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Keys that may differ: the same data may have another path on another machine.
OWN_KEYS = r"dataset\.(threads|path)"
OWN_FLAGS = ("config", "workdir", "output", "overrides", "command", "began")


def of_command(config: ConfigDict, folder: epath.Path, flags: argparse.Namespace) -> dict[str, str]:
    """Returns a command's config, other flags, versions and newest checkpoint, as text by name."""
    keys = {f"config.{key}": repr(value) for key, value in flatten(config).items()}
    facts = {
        key: text for key, text in keys.items() if not re.fullmatch(rf"config\.{OWN_KEYS}", key)
    }
    other_flags = {name: value for name, value in vars(flags).items() if name not in OWN_FLAGS}
    facts |= {f"--{name}": repr(value) for name, value in other_flags.items()}
    newest = max(numbered(folder / FOLDER), default=None)
    return facts | versions() | {"the newest checkpoint in --workdir": str(newest)}


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions of Python, the packages and genjax's files, and the kind of device."""
    facts = {"the version of python": platform.python_version()}
    for package in PACKAGES:
        facts[f"the version of {package}"] = importlib.metadata.version(package)
    root, total = Path(genjax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    facts["genjax's files (sha256)"] = total.hexdigest()[:16]
    return facts | {"the devices": jax.local_devices()[0].device_kind}
