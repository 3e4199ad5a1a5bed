"""Reads what `torch.save` wrote of a state dict, without torch and without running its code.

The file is a pickle, which could call anything; this reader lets it name only ordered
dictionaries, the types of storages and the functions that put a tensor together, all of them
replaced by our own. Both formats are read: the zip archive (PyTorch 1.6 and later) and the stream
of pickles before it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from genjax.config import ConfigError
from genjax.files import shown

ZIP = b"PK\x03\x04"  # how a file in the new format begins
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of one in the old format
LONGEST = 2**26  # bytes of a pickle, which has names and shapes and no numbers
COPIES = 4  # of what the file holds: a tensor that is no plain part of its storage is copied
LAYERS = 8  # of tuples in tuples that are named again
TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
MEMO = ("PUT", "BINPUT", "LONG_BINPUT")  # write a place in a table that grows up to it

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
    numbers = (offset, *shape, *strides)
    whole = all(type(number) is int and 0 <= number < 2**48 for number in numbers)
    if not isinstance(storage, _Storage) or not whole or len(shape) != len(strides):
        raise pickle.UnpicklingError(f"a tensor of {shown((offset, shape, strides))}")
    flat = storage.data
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if count > flat.size or (count and last >= flat.size):
        raise pickle.UnpicklingError(
            f"a tensor of {list(shape)}, strides {list(strides)} and offset {offset} does not fit "
            f"its storage of {flat.size} elements"
        )
    in_bytes = tuple(s * flat.itemsize for s in strides) if count else None
    start = flat[offset:] if count else flat[:0]
    return np.ndarray(shape, flat.dtype, start, strides=in_bytes)


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

    def __init__(self, file: BinaryIO, read: Callable[[str], bytes]):
        super().__init__(file)
        self._read, self._storages = read, {}

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage ("storage", type, key, location, number of elements)."""
        _, dtype, key, _, count = pid
        _check_storage(dtype, key, count)
        if key not in self._storages:
            self._storages[key] = _Storage(np.frombuffer(self._read(f"data/{key}"), dtype, count))
        return self._storages[key]


class _StreamUnpickler(_Unpickler):
    """Makes empty storages, which are filled from the end of the file later."""

    def __init__(self, file: BinaryIO, size: int):
        super().__init__(file)
        self._room, self.storages = size, {}

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage ("storage", type, key, location, number of elements, view)."""
        _, dtype, key, _, count, view = pid
        _check_storage(dtype, key, count)
        if key not in self.storages:
            self._room -= count * dtype.itemsize
            if self._room < 0:
                raise pickle.UnpicklingError(
                    f"a storage of {count} elements is larger than what the file has left"
                )
            self.storages[key] = _Storage(np.zeros(count, dtype))
        if view is None:
            return self.storages[key]
        _, offset, length = view
        if not 0 <= offset <= offset + length <= count:
            raise pickle.UnpicklingError(f"a view from {offset} of {length} of {count} elements")
        return _Storage(self.storages[key].data[offset : offset + length])


def _check_storage(dtype: Any, key: Any, count: Any) -> None:
    if not isinstance(dtype, np.dtype) or type(key) is not str or type(count) is not int:
        raise pickle.UnpicklingError(f"a storage {shown((dtype, key, count))}")
    if not 0 <= count < 2**48:
        raise pickle.UnpicklingError(f"a storage of {count} elements")


def _plain(content: bytes) -> io.BytesIO:
    """A pickle at the start of `content`, once it is known that reading it takes little memory.

    The unpickler would make a table as long as the largest index that it is told, and to hash
    tuples that hold each other twice, in many layers, takes for ever.

    Raises:
      ValueError: it is cut short, contradicts itself, names too large an index or nests tuples.
    """
    end, layers, depth, last = 0, {}, 0, ""
    for number, (code, argument, position) in enumerate(pickletools.genops(content)):
        end, name = position + 1, code.name
        place = argument
        if name == "MEMOIZE":
            name, place = "PUT", len(layers)
        if name in MEMO:
            if place > 2 * number + 16:
                raise ValueError(f"its pickle names the place {place} after {number} operations")
            layers[place] = depth + 1 if last in TUPLES else 0
            if layers[place] > LAYERS:
                raise ValueError(f"its pickle nests tuples in more than {LAYERS} layers")
            depth = 0
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            depth = max(depth, layers.get(argument, 0))
        elif name == "DUP":
            raise ValueError("its pickle duplicates a value, which no state dict needs")
        last = name
        if position > LONGEST:
            raise ValueError(f"its pickle is longer than {LONGEST} bytes")
    return io.BytesIO(content[:end])


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(f"the archive has {len(pickles)} members data.pkl, not 1")
        root = pickles[0].removesuffix("data.pkl")

        def member(name: str) -> bytes:
            info = archive.getinfo(f"{root}{name}")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise pickle.UnpicklingError(
                    f"its member {info.filename} is compressed, which PyTorch does not do"
                )
            if info.file_size > path.stat().st_size:
                raise pickle.UnpicklingError(f"its member {info.filename} is longer than the file")
            return archive.read(info)

        if f"{root}byteorder" in archive.namelist() and (order := member("byteorder")) != b"little":
            raise pickle.UnpicklingError(f"its byte order is {order[:20]!r}, not little")
        return _ZipUnpickler(_plain(member("data.pkl")), member).load()


def _read_stream(path: Path) -> Any:
    size = path.stat().st_size
    with path.open("rb") as file:

        def following() -> io.BytesIO:
            """The next pickle, behind which the file is read on."""
            begin = file.tell()
            found = _plain(file.read(LONGEST))
            file.seek(begin + len(found.getbuffer()))
            return found

        if _Unpickler(following()).load() != MAGIC:
            raise pickle.UnpicklingError("it does not begin with PyTorch's mark")
        _Unpickler(following()).load()  # the protocol's version
        if not _Unpickler(following()).load()["little_endian"]:
            raise pickle.UnpicklingError("its byte order is big")
        unpickler = _StreamUnpickler(following(), size)
        found = unpickler.load()
        for key in _Unpickler(following()).load():
            data = unpickler.storages[key].data
            count = int.from_bytes(file.read(8), "little", signed=True)
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
    except Exception as error:  # what damaged pickles and archives raise is not specified
        reason = "there is not enough memory for it" if isinstance(error, MemoryError) else error
        told = " ".join(str(reason).split())[:300]
        raise ConfigError(
            f"{path} cannot be read as a state dict of PyTorch: {told}. "
            "Fetch it again, or write it with torch.save(module.state_dict(), path)."
        ) from error
    others = {}
    if isinstance(found, dict):
        others = {k: v for k, v in found.items() if type(k) is not str or type(v) is not np.ndarray}
    if not isinstance(found, dict) or others:
        what = f"a {type(found).__name__}"
        if others:
            what = "a dictionary in which " + ", ".join(
                f"{shown(k)} is a {type(v).__name__}" for k, v in list(others.items())[:4]
            )
        raise ConfigError(
            f"{path} holds {what}: expected a dictionary of tensors. Write it with "
            "torch.save(module.state_dict(), path)."
        )
    copied = sum(tensor.nbytes for tensor in found.values() if not tensor.flags.c_contiguous)
    if copied > (most := COPIES * path.stat().st_size):
        raise ConfigError(
            f"{path} holds tensors that take {copied} bytes, more than a file of this size can "
            f"hold ({most}): it contradicts itself. Fetch it again."
        )
    return {name: np.asarray(tensor, order="C") for name, tensor in found.items()}
