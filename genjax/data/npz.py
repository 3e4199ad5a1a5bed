"""Reads untrusted .npz files: the size in a header is checked before memory is allocated."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from genjax.config import ConfigError

FORMS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
DENSEST = 1032  # the highest compression ratio of deflate
ROOM = 2**10  # bytes that a member may have beyond that ratio, for small members
BLOCK = 2**24  # bytes read at a time
KINDS = "biufcSU"  # numbers and strings; no objects or records
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of an .npz file by name, each read on access.

    Nothing is unpickled. Members that are not .npy files are ignored.
    """

    def __init__(self, path: str | Path):
        """Reads the directory of the archive.

        Raises:
          ConfigError: no such file, or not an .npz.
        """
        self._path = str(path)
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such file. Expected an .npz of plain arrays.")
        with _errors_explained(self._path), open(path, "rb") as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("it holds one array: expected an .npz of named arrays")
            with zipfile.ZipFile(file) as archive:
                self._members = {
                    info.filename.removesuffix(".npy"): info
                    for info in archive.infolist()
                    if info.filename.endswith(".npy")
                }

    def __getitem__(self, name: str) -> np.ndarray:
        """An array.

        Raises:
          KeyError: there is no array of this name.
          ConfigError: it is damaged or inconsistent, holds objects, or does not fit into memory.
        """
        info = self._members[name]
        with _errors_explained(self._path, name), zipfile.ZipFile(self._path) as archive:
            _check_size(info)
            with archive.open(info) as member:
                return _array(member, info.file_size)

    def __iter__(self) -> Iterator[str]:
        """The names, in the file's order."""
        return iter(self._members)

    def __len__(self) -> int:
        """The number of arrays."""
        return len(self._members)


class _errors_explained:
    """Turns errors inside the block into a ConfigError that names the file and the array."""

    def __init__(self, path: str, name: str = ""):
        self._where = f"the array {name!r} in {path}" if name else path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # Which errors damaged archives and headers raise is not specified: ValueError, OSError,
        # BadZipFile, zlib.error, SyntaxError, RecursionError, NotImplementedError ...
        if not isinstance(error, Exception) or isinstance(error, ConfigError):
            return
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MemoryError):
            reason = "there is not enough memory for it"
        raise ConfigError(
            f"{self._where} cannot be read: {reason[:300]}. Expected an .npz of plain arrays "
            "(numpy.savez)."
        ) from error


def _check_size(info: zipfile.ZipInfo) -> None:
    """Raises ValueError if a member cannot be as large as the archive's directory says."""
    if info.compress_type not in FORMS:
        raise ValueError(f"its compression method is {info.compress_type}, expected deflate")
    max_ratio = DENSEST if info.compress_type == zipfile.ZIP_DEFLATED else 1
    if info.file_size > max_ratio * info.compress_size + ROOM:
        raise ValueError(
            f"{info.compress_size} compressed bytes cannot hold the {info.file_size} bytes that it "
            "claims"
        )


def _array(member: BinaryIO, size: int) -> np.ndarray:
    """The array in an .npy file of `size` bytes."""
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
        raise ValueError(
            f"its version is {version}, expected one of {', '.join(map(str, _HEADERS))}"
        )
    shape, by_columns, dtype = _HEADERS[version](member)
    if dtype.kind not in KINDS or dtype.subdtype:
        raise ValueError(f"it holds {dtype}: expected numbers")
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    count, begin = math.prod(shape), member.tell()
    if count * dtype.itemsize != size - begin or (count and not dtype.itemsize):
        raise ValueError(
            f"its header claims the shape {list(shape)} of {dtype}, {count * dtype.itemsize} "
            f"bytes, but it has {size - begin}"
        )
    content = np.empty(size - begin, np.uint8)
    for start in range(0, len(content), BLOCK):
        part = member.read(min(BLOCK, len(content) - start))
        if len(part) != min(BLOCK, len(content) - start):
            raise ValueError("it is cut short")
        content[start : start + len(part)] = np.frombuffer(part, np.uint8)
    if member.read(1):  # reading to the end also makes zipfile compare the checksum
        raise ValueError("it is longer than it says")
    array = content.view(dtype) if dtype.itemsize else np.empty(0, dtype)
    return array.reshape(shape[::-1]).T if by_columns else array.reshape(shape)
