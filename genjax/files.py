"""Files, also in object storage: written whole or not at all; JSON of strangers, checked.

A folder of object storage is an `etils.epath.Path` such as gs://bucket/folder, which has the
methods of a `pathlib.Path`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from genjax.checks import ConfigError, shown

# What the system says where a disk is full, or where a folder cannot be written.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG)
LONGEST = 100_000_000  # bytes of a JSON document, as in the official library of safetensors
STORES = {"gs": "gcs", "s3": "s3"}  # kind of object storage -> the extra that it needs
PARTIAL = ".partial"  # at the end of the name of a file that is not whole
OLD = 86400.0  # seconds after which nobody is writing it
NEXT_TO_NOTHING = 2**20  # bytes that are free on a full disk
PAUSE = 10.0  # seconds between two uploads of an object that grows


def place(given: str | os.PathLike, flag: str) -> epath.Path:
    """The path of a run's folder, local or in object storage; `~` is the user's home.

    Raises:
      ConfigError: a kind of storage that is not known, or whose package is not installed; says
        what was given to `flag`.
    """
    text = at_home(os.fspath(given), flag)
    found = re.match(r"([A-Za-z][\w+.-]+):/(/?)([^/]*)", text)
    if not found:
        return epath.Path(text)
    scheme, slash, bucket = found.groups()
    if scheme not in STORES or not slash or not bucket:
        raise ConfigError(
            f"{flag}={text}: expected a local folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER."
        )
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ConfigError(
            f"{flag}={text} needs a package that is not installed ({error}). Run "
            f"GENJAX_EXTRAS={STORES[scheme]} launch/local.sh with the same arguments."
        ) from error
    return epath.Path(text)


def at_home(text: str, flag: str) -> str:
    """A path whose `~` or `~user` is a home folder; any other text as it is.

    Raises:
      ConfigError: the home is not known.
    """
    if not re.match(r"~[\w.-]*(/|$)", text):
        return text
    found = os.path.expanduser(text)
    if found == text:
        name = text.partition("/")[0]
        raise ConfigError(
            f"{flag}={text}: the home folder {name} is not known here. Give the whole path, or ./"
            f"{text} for a folder that is called so."
        )
    return found


def is_local(path: str | os.PathLike) -> bool:
    """Whether it is a path of this machine's file system."""
    return "://" not in os.fspath(path)


def absolute(path: str | os.PathLike) -> epath.Path:
    """`path` with all of its folders, links followed."""
    return epath.Path(os.path.realpath(path) if is_local(path) else path)


def size(path: epath.Path) -> int:
    """The bytes of a file."""
    return os.path.getsize(path) if is_local(path) else path.stat().length


def create_exclusively(path: str | os.PathLike, content: bytes) -> bool:
    """Makes an object in object storage unless it is there; whether it did.

    Of several that try at once one succeeds.
    """
    system, name = fsspec.url_to_fs(os.fspath(path))
    try:
        system.pipe_file(name, content, mode="create")
    except FileExistsError:
        return False
    return True


class Growing:
    """A text file that is appended to, in UTF-8; its folder is made if missing.

    What is written is on the disk at once. Object storage cannot append: there the object is
    written anew, at most every `PAUSE` seconds, at `sync` and at `close`.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens the file at its end.

        Raises:
          OSError: it cannot be opened for writing.
        """
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A file's name in a message may be in another encoding than UTF-8.
        options = {"encoding": "utf-8", "errors": "backslashreplace"}
        self._file = open(path, "a", **options) if is_local(path) else None  # noqa: SIM115
        if self._file is None:
            self._content = self._path.read_bytes().decode() if self._path.exists() else ""
            self._uploaded, self._late = time.monotonic(), False

    def write(self, text: str) -> None:
        """Appends `text`."""
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
            return
        self._content, self._late = self._content + text, True
        if time.monotonic() - self._uploaded >= PAUSE:
            self.sync()

    def sync(self) -> None:
        """Brings what was written to object storage, if that is where the file is."""
        if self._file is None and self._late:
            write_atomic(self._path, self._content.encode(errors="backslashreplace"))
            self._uploaded, self._late = time.monotonic(), False

    def close(self) -> None:
        """Ends it; the file is not written to again."""
        self.sync()
        if self._file is not None:
            self._file.close()


def write_atomic(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new and no mixture.

    Args:
      path: the file; its folder is made if missing.
      content: all of its new content.

    Raises:
      OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    if not is_local(path):
        epath.Path(path).write_bytes(content)  # an object appears when it is whole
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        for left in _left(path.parent):
            if left.name.startswith(f".{path.name}."):
                left.unlink(missing_ok=True)
    except OSError as error:
        if error.errno and error.filename is None:  # the disk that is full, for the message
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@functools.cache  # a folder may have many files, and is listed once
def _left(folder: Path) -> list[Path]:
    """What killed processes have left in a folder, and nobody can be writing any more."""
    return [path for path in folder.glob(f".*{PARTIAL}") if _is_old(path)]


def _is_old(path: Path) -> bool:
    """Whether a file was last written long ago; not if another process has removed it."""
    try:
        return time.time() - path.stat().st_mtime > OLD
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def building(place: Path) -> Iterator[Path]:
    """A folder beside `place` to build it in; the caller moves it there when it is whole.

    What killed processes have left of it is removed: the caller holds a lock against others.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{glob.escape(place.name)}.*"):
        shutil.rmtree(left)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: epath.Path) -> None:
    """Removes what `write_atomic` has left in a folder and below where processes were killed.

    Others may write there meanwhile: what is young stays.
    """
    if not is_local(folder):
        return
    for path in Path(folder).rglob(f".*{PARTIAL}"):
        if _is_old(path):
            path.unlink(missing_ok=True)


def any_encoding() -> None:
    """Lets text be printed that the terminal cannot show: such characters as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def trouble(error: OSError, folders: Mapping[str, str | os.PathLike]) -> str:
    """What to do about a disk that is full or cannot be written; "" where that is not the matter.

    Args:
      error: of the system.
      folders: what a user sets -> the folder that it names, such as {"--workdir": ...}.
    """
    if error.errno not in DISK:
        return ""
    local = {flag: os.path.abspath(path) for flag, path in folders.items() if is_local(path)}
    at = os.path.abspath(error.filename) if isinstance(error.filename, str) else None
    inside = [flag for flag, path in local.items() if at and f"{at}/".startswith(f"{path}/")]
    if not inside and error.errno == errno.ENOSPC:
        inside = [flag for flag, path in local.items() if _free(path) < NEXT_TO_NOTHING]
    places = " and ".join(f"{local[flag]} ({flag})" for flag in inside) or at or "a folder"
    others = " or ".join(inside or local)
    if error.errno not in FULL:
        return f" {places} cannot be written: look at its permissions, or set another {others}."
    free = f", {_free(local[inside[0]]):,} bytes are free there" if inside else ""
    return f" The disk of {places} is full{free}: free space, or set another {others}."


def _free(path: str) -> int:
    """The free bytes of the disk that a folder is on, or will be."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no key comes twice: readers would differ in which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)} comes twice")
    return found


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8.

    Raises:
      ValueError: it is something else, is nested too deeply, or has a key twice.
    """
    try:
        found = json.loads(content.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"the JSON is {shown(found)}, not an object")
    return found


def damaged(path: Path, error: Exception, form: str = "as safetensors") -> ConfigError:
    """The error of a file that cannot be read in a `form`, and why."""
    reason = " ".join(str(error).split())
    return ConfigError(f"{path} cannot be read {form}: {reason}. Fetch it again.")


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      ConfigError: no such file, or it holds something else, or an object that has a key twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: expected a JSON object.")
    try:
        if (size := path.stat().st_size) > LONGEST:
            raise ValueError(f"it has {size} bytes: expected at most {LONGEST}")
        return parse_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise damaged(path, error, "as JSON") from error
