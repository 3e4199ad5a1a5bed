"""Archives of data: found by their names, and unpacked into the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from genjax.config import ConfigError
from genjax.data import listing, packages
from genjax.files import building

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MOST = 100_000  # names of one pattern

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{},]*(?:,[^{},]*)+)\}")


def expanded(pattern: str) -> list[str]:
    """The names that a pattern stands for: {000..012} or {a,b}, as in a shell.

    The numbers of a range have as many digits as its first one.

    Raises:
      ConfigError: a range goes down, or the pattern stands for more than `MOST` names.
    """
    names = [pattern]
    for braces in (_RANGE, _CHOICE):
        while match := braces.search(names[0]):
            parts = match[1].split(",")
            if braces is _RANGE:
                first, last = int(match[1]), int(match[2])
                if not 0 <= last - first < MOST:
                    raise ConfigError(
                        f"{match[0]} in {pattern!r}: expected two numbers, the smaller first, such "
                        f"as {{00000..00009}}, and at most {MOST} names."
                    )
                parts = [f"{n:0{len(match[1])}d}" for n in range(first, last + 1)]
            if len(names) * len(parts) > MOST:
                raise ConfigError(f"{pattern!r} stands for more than {MOST} names. Give fewer.")
            names = [name.replace(match[0], part, 1) for name in names for part in parts]
    return names


def stem(archive: Path) -> str:
    """The name of an archive, or of a folder, without the suffix of an archive."""
    suffix = next((s for s in sorted(SUFFIXES, key=len)[::-1] if archive.name.endswith(s)), "")
    return archive.name.removesuffix(suffix)


def unpacked(archive: Path) -> Path:
    """Unpacks an archive into the cache, again if the file has changed. Returns the folder.

    Raises:
      ConfigError: it is not an archive, or it is damaged.
    """
    if not archive.name.endswith(SUFFIXES):
        raise ConfigError(
            f"dataset.path={str(archive)!r}: expected a folder, or an archive that ends in "
            f"{', '.join(SUFFIXES)}."
        )
    stat = archive.stat()
    state = f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    key = hashlib.sha256(state.encode()).hexdigest()[:24]
    folder = packages.cache_root() / "archives" / f"{stem(archive)}-{key}"
    with packages.lock(f"archive-{key}"):
        if not folder.exists():
            options = {} if archive.suffix == ".zip" else {"filter": "data"}
            with building(folder) as partial:
                try:
                    shutil.unpack_archive(archive, partial, **options)
                except Exception as error:  # what a damaged archive raises is not specified
                    raise ConfigError(
                        f"{archive} cannot be unpacked: {error}. Fetch it again, or give the "
                        "folder."
                    ) from error
                os.replace(partial, folder)
    inside = listing.visible(folder)
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
