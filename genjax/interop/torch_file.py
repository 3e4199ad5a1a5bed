"""Reads what `torch.save` wrote of a state dict, without torch and without running its code.

The file is a pickle, which could call anything; this reader lets it name only ordered
dictionaries, the types of storages and the functions that put a tensor together, all of them
replaced by our own. Both formats are read: the zip archive (PyTorch 1.6 and later) and the stream
of pickles before it.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from genjax.config import ConfigError

ZIP = b"PK\x03\x04"  # how a file in the new format begins
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of one in the old format

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Dict(dict):
    """Stands in for `collections.OrderedDict`, whose pickles carry attributes as well."""


class _Storage(NamedTuple):
    data: np.ndarray  # flat


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> np.ndarray:
    """The view of a storage that a tensor is; it may not reach beyond the storage."""
    flat = storage.data
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if min((offset, *shape, *strides)) < 0 or count > flat.size or (count and last >= flat.size):
        raise pickle.UnpicklingError(
            f"a tensor of {list(shape)}, strides {list(strides)} and offset {offset} does not fit "
            f"its storage of {flat.size} elements"
        )
    in_bytes = tuple(s * flat.itemsize for s in strides)
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, in_bytes, writeable=False)


def _rebuild_parameter(tensor: np.ndarray, *_: Any) -> np.ndarray:
    return tensor


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Makes the objects in `_ALLOWED` and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands in for `module.name`."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state dict needs")
        return _ALLOWED[module, name]


class _ZipUnpickler(_Unpickler):
    """Reads storages out of the archive as they are named."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive, self._root, self._storages = archive, root, {}

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage ("storage", type, key, location, number of elements)."""
        _, dtype, key, _, count = pid
        if key not in self._storages:
            content = self._archive.read(f"{self._root}data/{key}")
            self._storages[key] = _Storage(np.frombuffer(content, dtype, count))
        return self._storages[key]


class _StreamUnpickler(_Unpickler):
    """Makes empty storages, which are filled from the end of the file later."""

    def __init__(self, file: BinaryIO, size: int):
        super().__init__(file)
        self._size, self.storages = size, {}

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage ("storage", type, key, location, number of elements, view)."""
        _, dtype, key, _, count, view = pid
        if count * dtype.itemsize > self._size:
            raise pickle.UnpicklingError(f"a storage of {count} elements is larger than the file")
        if key not in self.storages:
            self.storages[key] = _Storage(np.zeros(count, dtype))
        if view is None:
            return self.storages[key]
        _, offset, length = view
        return _Storage(self.storages[key].data[offset : offset + length])


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(f"the archive has {len(pickles)} members data.pkl, not 1")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist():
            order = archive.read(f"{root}byteorder")
            if order != b"little":
                raise pickle.UnpicklingError(f"its byte order is {order!r}, not little")
        with archive.open(pickles[0]) as file:
            return _ZipUnpickler(file, archive, root).load()


def _read_stream(path: Path) -> Any:
    with path.open("rb") as file:
        if _Unpickler(file).load() != MAGIC:
            raise pickle.UnpicklingError("it does not begin with PyTorch's mark")
        _Unpickler(file).load()  # the protocol's version
        if not _Unpickler(file).load()["little_endian"]:
            raise pickle.UnpicklingError("its byte order is big")
        unpickler = _StreamUnpickler(file, path.stat().st_size)
        found = unpickler.load()
        for key in _Unpickler(file).load():
            data = unpickler.storages[key].data
            (count,) = struct.unpack("<q", file.read(8))
            content = file.read(data.nbytes)
            if count != data.size or len(content) != data.nbytes:
                raise pickle.UnpicklingError(f"storage {key} is cut short")
            data[:] = np.frombuffer(content, data.dtype)
        return found


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict, by name, in the file's order.

    Args:
      path: a file written by `torch.save(module.state_dict(), path)`, in either format.

    Raises:
      ConfigError: no such file, a damaged one, or one that holds more than a flat dictionary of
        dense tensors (a whole pickled module, TorchScript, the tar files before PyTorch 0.2).
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: expected a state dict of PyTorch.")
    try:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP)) == ZIP
        found = _read_zip(path) if zipped else _read_stream(path)
    except (
        *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, struct.error),
        *(ValueError, TypeError, KeyError, IndexError, AttributeError),
    ) as error:
        raise ConfigError(
            f"{path} cannot be read as a state dict of PyTorch: {' '.join(str(error).split())}. "
            "Fetch it again, or write it with torch.save(module.state_dict(), path)."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(v, np.ndarray) for v in found.values()):
        what = type(found).__name__
        if isinstance(found, dict):
            what = "a dictionary in which " + ", ".join(
                f"{k!r} is a {type(v).__name__}"
                for k, v in list(found.items())
                if not isinstance(v, np.ndarray)
            )
        raise ConfigError(
            f"{path} holds {what[:200]}: expected a dictionary of tensors. Write it with "
            "torch.save(module.state_dict(), path)."
        )
    return {str(name): np.array(tensor, order="C") for name, tensor in found.items()}
