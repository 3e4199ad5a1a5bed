"""Keeps compiled programs on disk for later processes."""

from __future__ import annotations

import logging
import os
import pwd
from pathlib import Path

import filelock
import jax

logger = logging.getLogger("genjax")

LARGEST = 2 * 2**30  # bytes of all programs; jax removes the least recently used
SHORTEST = 0.1  # seconds; programs that compile faster are not kept
WAIT = 10.0  # seconds to wait for the lock, as in jax


def keep(folder: Path) -> None:
    """Lets jax keep compiled programs in `folder`, which other processes may use too.

    If the folder cannot be written, a warning is logged and nothing is kept. Environment variables
    take precedence: JAX_COMPILATION_CACHE_DIR is the user's own folder, without a size limit, and
    JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.
    """
    settings = {"jax_persistent_cache_min_compile_time_secs": SHORTEST}
    bounded = _has_name(os.getuid())
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Without a size limit jax does not store times of last use.
            if bounded and os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE", "") != "-1":
                mend(folder)
        except OSError as error:
            logger.warning("compiled programs are not kept: cannot write to %s: %s", folder, error)
            return
        settings["jax_compilation_cache_dir"] = str(folder)
        settings["jax_compilation_cache_max_size"] = LARGEST if bounded else -1
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _has_name(user: int) -> bool:
    """Whether the system knows the name of a user id.

    In a container it may not; jax then fails when it looks for the oldest program.
    """
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def mend(folder: Path) -> None:
    """Removes programs without a time of last use, left by a process that was killed.

    jax writes this time after the program, and cannot add programs to a folder where one is
    missing.

    Raises:
      OSError: the folder cannot be written, or another process holds its lock for too long.
    """
    with filelock.FileLock(folder / ".lockfile", timeout=WAIT):  # jax's own
        names = {path.name for path in folder.iterdir()}
        for name in names:
            if name.endswith("-cache") and f"{name.removesuffix('-cache')}-atime" not in names:
                (folder / name).unlink()
