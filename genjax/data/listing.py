"""The files of a data set in a folder."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from genjax.config import ConfigError

log = logging.getLogger(__name__)


def visible(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden, sorted.

    Raises:
      ConfigError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(
            f"the folder {folder} cannot be read: {error.strerror}. Make it readable, or remove it "
            "from the data."
        ) from error


def files_below(folder: Path) -> list[Path]:
    """All files below a folder that are not hidden, sorted by path.

    Symbolic links to files and folders are followed. Links to a folder that contains them and
    broken links are skipped, with a warning.

    Raises:
      ConfigError: a folder cannot be read.
    """
    files: list[Path] = []
    broken: list[Path] = []
    loops: list[Path] = []

    def visit(directory: Path, ancestors: tuple[str, ...]) -> None:
        for path in visible(directory):
            if path.is_dir():
                real = os.path.realpath(path)
                if real in ancestors:
                    loops.append(path)
                else:
                    visit(path, (*ancestors, real))
            elif path.is_file():
                files.append(path)
            elif path.is_symlink():
                broken.append(path)

    # A link to a folder that contains `folder` is a loop too, and would merge all classes into one.
    real = [Path(os.path.realpath(path)) for path in (folder, folder.parent)]
    visit(folder, tuple(str(above) for path in real for above in (path, *path.parents)))
    if broken:
        log.warning("%s: %d links lead to no file; the first is %s", folder, len(broken), broken[0])
    if loops:
        log.warning(
            "%s: %d links lead back to a folder that contains them and are not followed; the first "
            "is %s",
            *(folder, len(loops), loops[0]),
        )
    return sorted(files)


def kinds_of(files: Iterable[Path]) -> str:
    """The number of files by suffix, the most frequent first, for a message."""
    counts = Counter(path.suffix.lower() or "no ending" for path in files)
    return ", ".join(f"{count} of {ending}" for ending, count in counts.most_common(4))
