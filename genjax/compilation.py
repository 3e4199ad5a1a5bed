"""Compiled programs, kept on disk from one process to the next."""

from __future__ import annotations

import logging
import os
import pwd
from pathlib import Path

import filelock
import jax

logger = logging.getLogger("genjax")

LARGEST = 2 * 2**30  # bytes of all programs; jax drops those that were not used for longest
SHORTEST = 0.1  # seconds of compilation; what takes less is not worth a file
WAIT = 10.0  # seconds for the lock, as jax waits for it


def keep(folder: Path) -> None:
    """Lets jax keep compiled programs in `folder`, which other processes may use as well.

    If the folder cannot be written nothing is kept, and the log says so. The environment goes
    before: JAX_COMPILATION_CACHE_DIR is a folder of the user's own, of any size, and
    JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.
    """
    settings = {"jax_persistent_cache_min_compile_time_secs": SHORTEST}
    bounded = _has_name(os.getuid())
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Without a bound no program has a time.
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
    """Whether the system has a name for a user's number.

    In a container there may be none, and then jax fails where it looks for the oldest program.
    """
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def mend(folder: Path) -> None:
    """Removes programs that a process was killed at writing.

    The time of the last use is written after the program; jax could add nothing more to a folder
    in which one is missing.

    Raises:
      OSError: the folder cannot be written, or another process holds its lock for too long.
    """
    with filelock.FileLock(folder / ".lockfile", timeout=WAIT):  # jax's own
        names = {path.name for path in folder.iterdir()}
        for name in names:
            if name.endswith("-cache") and f"{name.removesuffix('-cache')}-atime" not in names:
                (folder / name).unlink()
