"""Reads state dicts written by `torch.save`, without torch and without running the file's code.

The file is a pickle, which could call anything. This reader only allows ordered dictionaries,
storage types and the functions that rebuild a tensor, and replaces all of them with its own. It
reads both formats: the zip archive (PyTorch 1.6 and later) and the older stream of pickles.
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

ZIP = b"PK\x03\x04"  # the first bytes of a file in the new format
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file in the old format
LONGEST = 2**26  # most bytes of a pickle; it has names and shapes but no numbers
COPIES = 4  # times the file's size: the most that copies of non-contiguous tensors may take
LAYERS = 8  # most levels of nested tuples in the memo
TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
MEMO = ("PUT", "BINPUT", "LONG_BINPUT")  # write into the memo, a table as long as the index

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
    """Replaces `collections.OrderedDict`, whose pickles also carry attributes."""


class _Storage(NamedTuple):
    data: np.ndarray  # flat


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> np.ndarray:
    """A tensor, as a view of its storage; it may not reach beyond the storage."""
    numbers = (offset, *shape, *strides)
    valid = all(type(number) is int and 0 <= number < 2**48 for number in numbers)
    if not isinstance(storage, _Storage) or not valid or len(shape) != len(strides):
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
    """Creates the objects in `_ALLOWED` and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """The replacement for `module.name`."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state dict needs")
        return _ALLOWED[module, name]


class _ZipUnpickler(_Unpickler):
    """Reads each storage from the archive when it is first named."""

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
    """Creates empty storages, which are later filled from the end of the file."""

    def __init__(self, file: BinaryIO, size: int):
        super().__init__(file)
        self._bytes_left, self.storages = size, {}

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage ("storage", type, key, location, number of elements, view)."""
        _, dtype, key, _, count, view = pid
        _check_storage(dtype, key, count)
        if key not in self.storages:
            self._bytes_left -= count * dtype.itemsize
            if self._bytes_left < 0:
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
    """The pickle at the start of `content`, checked to take little memory and time to read.

    The unpickler allocates a table as long as the largest index in the pickle, and hashing tuples
    that hold each other twice, in many layers, takes forever.

    Raises:
      ValueError: it is cut short or inconsistent, or has too large an index or nested tuples.
    """
    end, layers, depth, last = 0, {}, 0, ""
    for number, (code, argument, position) in enumerate(pickletools.genops(content)):
        end, name = position + 1, code.name
        index = argument
        if name == "MEMOIZE":
            name, index = "PUT", len(layers)
        if name in MEMO:
            if index > 2 * number + 16:
                raise ValueError(
                    f"its pickle uses the memo index {index} after {number} operations"
                )
            layers[index] = depth + 1 if last in TUPLES else 0
            if layers[index] > LAYERS:
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
            """The next pickle; the file is left at its end."""
            begin = file.tell()
            content = _plain(file.read(LONGEST))
            file.seek(begin + len(content.getbuffer()))
            return content

        if _Unpickler(following()).load() != MAGIC:
            raise pickle.UnpicklingError("it does not begin with PyTorch's magic number")
        _Unpickler(following()).load()  # the protocol's version
        if not _Unpickler(following()).load()["little_endian"]:
            raise pickle.UnpicklingError("its byte order is big")
        unpickler = _StreamUnpickler(following(), size)
        state = unpickler.load()
        for key in _Unpickler(following()).load():
            data = unpickler.storages[key].data
            count = int.from_bytes(file.read(8), "little", signed=True)
            content = file.read(data.nbytes)
            if count != data.size or len(content) != data.nbytes:
                raise pickle.UnpicklingError(f"storage {key} is cut short")
            data[:] = np.frombuffer(content, data.dtype)
        return state


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict, by name, in the file's order.

    Args:
      path: a file written by `torch.save(module.state_dict(), path)`, in either format.

    Raises:
      ConfigError: the file is missing or damaged, or is not just a flat dictionary of dense tensors
        (but a pickled module, TorchScript, or a tar file from before PyTorch 0.2).
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: expected a state dict of PyTorch.")
    try:
        with path.open("rb") as file:
            zipped = file.read(len(ZIP)) == ZIP
        state = _read_zip(path) if zipped else _read_stream(path)
    except Exception as error:  # damaged pickles and archives may raise anything
        reason = "there is not enough memory for it" if isinstance(error, MemoryError) else error
        message = " ".join(str(reason).split())[:300]
        raise ConfigError(
            f"{path} cannot be read as a state dict of PyTorch: {message}. "
            "Fetch it again, or write it with torch.save(module.state_dict(), path)."
        ) from error
    wrong_entries = {}
    if isinstance(state, dict):
        wrong_entries = {
            k: v for k, v in state.items() if type(k) is not str or type(v) is not np.ndarray
        }
    if not isinstance(state, dict) or wrong_entries:
        content = f"a {type(state).__name__}"
        if wrong_entries:
            content = "a dictionary in which " + ", ".join(
                f"{shown(k)} is a {type(v).__name__}" for k, v in list(wrong_entries.items())[:4]
            )
        raise ConfigError(
            f"{path} holds {content}: expected a dictionary of tensors. Write it with "
            "torch.save(module.state_dict(), path)."
        )
    copied = sum(tensor.nbytes for tensor in state.values() if not tensor.flags.c_contiguous)
    if copied > (limit := COPIES * path.stat().st_size):
        raise ConfigError(
            f"{path} holds tensors that take {copied} bytes, more than a file of this size can "
            f"hold ({limit}): it contradicts itself. Fetch it again."
        )
    return {name: np.asarray(tensor, order="C") for name, tensor in state.items()}
