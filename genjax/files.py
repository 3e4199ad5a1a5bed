"""Atomic writes to disk and object storage; checked reading of untrusted JSON.

A folder in object storage is an `etils.epath.Path` such as gs://bucket/folder, which has the
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

# Error numbers of the system if a disk is full, or if a folder cannot be written.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG)
LONGEST = 100_000_000  # bytes of a JSON document, as in the official library of safetensors
STORES = {"gs": "gcs", "s3": "s3"}  # kind of object storage -> the extra that it needs
PARTIAL = ".partial"  # suffix of incomplete files
OLD = 86400.0  # seconds after which no process can still be writing an incomplete file
NEXT_TO_NOTHING = 2**20  # a disk with fewer free bytes counts as full
PAUSE = 10.0  # seconds between uploads of a growing object


def place(given: str | os.PathLike, flag: str) -> epath.Path:
    """Parses a path, local or in object storage; `~` is the user's home folder.

    Raises:
      ConfigError: the kind of storage is unknown, or its package is not installed; the message
        quotes `flag` and its value.
    """
    text = at_home(os.fspath(given), flag)
    match = re.match(r"([A-Za-z][\w+.-]+):/(/?)([^/]*)", text)
    if not match:
        return epath.Path(text)
    scheme, slash, bucket = match.groups()
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
    """Replaces a leading `~` or `~user` by the home folder; returns other texts unchanged.

    Raises:
      ConfigError: the home folder is unknown.
    """
    if not re.match(r"~[\w.-]*(/|$)", text):
        return text
    expanded = os.path.expanduser(text)
    if expanded == text:
        name = text.partition("/")[0]
        raise ConfigError(
            f"{flag}={text}: the home folder {name} is unknown on this machine. Give the full "
            f"path, or ./{text} for a folder with this name."
        )
    return expanded


def is_local(path: str | os.PathLike) -> bool:
    """Whether `path` is in this machine's file system."""
    return "://" not in os.fspath(path)


def absolute(path: str | os.PathLike) -> epath.Path:
    """The absolute path, with links resolved."""
    return epath.Path(os.path.realpath(path) if is_local(path) else path)


def size(path: epath.Path) -> int:
    """The size of a file in bytes."""
    return os.path.getsize(path) if is_local(path) else path.stat().length


def create_exclusively(path: str | os.PathLike, content: bytes) -> bool:
    """Creates an object in object storage unless it exists; returns whether it was created.

    If several processes try at once, exactly one succeeds.
    """
    system, name = fsspec.url_to_fs(os.fspath(path))
    try:
        system.pipe_file(name, content, mode="create")
    except FileExistsError:
        return False
    return True


class Growing:
    """A UTF-8 text file to append to; its folder is created if missing.

    On a disk, text is written at once. Object storage cannot append, so the whole object is
    uploaded again, at most every `PAUSE` seconds, and at `sync` and `close`.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens the file for appending.

        Raises:
          OSError: it cannot be opened for writing.
        """
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # File names in messages may not be valid UTF-8.
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
        """Uploads pending text if the file is in object storage."""
        if self._file is None and self._late:
            write_atomic(self._path, self._content.encode(errors="backslashreplace"))
            self._uploaded, self._late = time.monotonic(), False

    def close(self) -> None:
        """Closes the file, after uploading pending text."""
        self.sync()
        if self._file is not None:
            self._file.close()


def write_atomic(path: str | os.PathLike, content: bytes) -> None:
    """Replaces a file atomically: readers see the old or the new content, even after a crash.

    Args:
      path: the file; its folder is created if missing.
      content: the new content.

    Raises:
      OSError: the disk is full or the folder cannot be written; the old file is unchanged.
    """
    if not is_local(path):
        epath.Path(path).write_bytes(content)  # an object appears only when it is complete
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
        for leftover in _left(path.parent):
            if leftover.name.startswith(f".{path.name}."):
                leftover.unlink(missing_ok=True)
    except OSError as error:
        if error.errno and error.filename is None:  # adds the path, for example of a full disk
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@functools.cache  # lists each folder once, because it may have many files
def _left(folder: Path) -> list[Path]:
    """Old partial files in a folder, left by killed processes."""
    return [path for path in folder.glob(f".*{PARTIAL}") if _is_old(path)]


def _is_old(path: Path) -> bool:
    """Whether a file was last written long ago; False if another process has removed it."""
    try:
        return time.time() - path.stat().st_mtime > OLD
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def building(place: Path) -> Iterator[Path]:
    """Yields a temporary folder next to `place`; the caller moves it there when it is complete.

    Leftovers of killed processes are removed, because the caller holds a lock on `place`.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for leftover in place.parent.glob(f".{glob.escape(place.name)}.*"):
        shutil.rmtree(leftover)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial(folder: epath.Path) -> None:
    """Removes partial files that killed processes left in a folder and below.

    Recent ones are kept, because other processes may still be writing them.
    """
    if not is_local(folder):
        return
    for path in Path(folder).rglob(f".*{PARTIAL}"):
        if _is_old(path):
            path.unlink(missing_ok=True)


def any_encoding() -> None:
    """Prints characters that the terminal's encoding lacks as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def trouble(error: OSError, folders: Mapping[str, str | os.PathLike]) -> str:
    """Advice about a disk that is full or cannot be written; "" for other errors.

    Args:
      error: the system's error.
      folders: setting -> the folder it names, such as {"--workdir": ...}.
    """
    if error.errno not in DISK:
        return ""
    local = {flag: os.path.abspath(path) for flag, path in folders.items() if is_local(path)}
    failed_path = os.path.abspath(error.filename) if isinstance(error.filename, str) else None
    inside = [
        flag
        for flag, path in local.items()
        if failed_path and f"{failed_path}/".startswith(f"{path}/")
    ]
    if not inside and error.errno == errno.ENOSPC:
        inside = [flag for flag, path in local.items() if _free(path) < NEXT_TO_NOTHING]
    places = " and ".join(f"{local[flag]} ({flag})" for flag in inside) or failed_path or "a folder"
    settings = " or ".join(inside or local)
    if error.errno not in FULL:
        return f" {places} cannot be written: check its permissions, or set another {settings}."
    free = f", {_free(local[inside[0]]):,} bytes are free there" if inside else ""
    return f" The disk of {places} is full{free}: free space, or set another {settings}."


def _free(path: str) -> int:
    """The free bytes on the disk of a folder, which need not exist yet."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object; refuses repeated keys, because readers disagree on their value."""
    values = dict(pairs)
    if len(values) < len(pairs):
        ((repeated_key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(repeated_key)} appears twice")
    return values


def parse_json(content: bytes) -> dict[str, Any]:
    """Parses a JSON object in UTF-8.

    Raises:
      ValueError: the content is not one, is nested too deeply, or has a repeated key.
    """
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"the JSON is {shown(parsed)}, not an object")
    return parsed


def damaged(path: Path, error: Exception, form: str = "as safetensors") -> ConfigError:
    """Makes the error for a file that cannot be read in a `form`."""
    reason = " ".join(str(error).split())
    return ConfigError(f"{path} cannot be read {form}: {reason}. Fetch it again.")


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
      ConfigError: there is no such file, or it does not hold a valid JSON object.
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
