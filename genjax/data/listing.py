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
            f"the folder {folder} cannot be read: {error.strerror}. Make it readable, or take it "
            "out of the data."
        ) from error


def files_below(folder: Path) -> list[Path]:
    """All files below a folder that are not hidden, sorted by path.

    Symbolic links are followed, also to folders. A link to a folder that contains it is not, and a
    link to nothing is no file; both are reported.

    Raises:
      ConfigError: a folder cannot be read.
    """
    files: list[Path] = []
    broken: list[Path] = []
    loops: list[Path] = []

    def visit(place: Path, above: tuple[str, ...]) -> None:
        for path in visible(place):
            if path.is_dir():
                real = os.path.realpath(path)
                if real in above:
                    loops.append(path)
                else:
                    visit(path, (*above, real))
            elif path.is_file():
                files.append(path)
            elif path.is_symlink():
                broken.append(path)

    # A link to what contains the folder is a loop as well, and would make all classes one.
    real = [Path(os.path.realpath(place)) for place in (folder, folder.parent)]
    visit(folder, tuple(str(above) for place in real for above in (place, *place.parents)))
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
    """How many files end how, the most frequent first, for a message."""
    counts = Counter(path.suffix.lower() or "no ending" for path in files)
    return ", ".join(f"{count} of {ending}" for ending, count in counts.most_common(4))
