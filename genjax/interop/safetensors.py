"""Reads and writes safetensors files: a length of 8 bytes, a JSON header, the tensors' bytes.

Files come from strangers, so the header is checked completely before it is used. Nothing is copied:
arrays are views of the mapped file, and the system only reads the pages that are accessed. The
format is specified in https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from genjax.config import ConfigError
from genjax.files import LONGEST, damaged, parse_json, read_json, shown

LENGTH = 8  # bytes of the header's length
METADATA = "__metadata__"  # the only key of a header that is not a tensor

# From the loosest alignment to the strictest; the official library sorts tensors in this order.
_DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "C64": np.dtype("<c8"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ORDER = list(_DTYPES)


class _Entry(NamedTuple):
    begin: int  # in bytes after the header
    end: int
    dtype: np.dtype
    shape: tuple[int, ...]


def _strings(value: Any, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError(f"{name} is {shown(value)}: expected an object of strings")
    return value


def _numbers(value: Any, name: str) -> list[int]:
    """A list of at most 64 integers (as for a shape), each at least 0 and of at most 63 bits."""
    is_list = isinstance(value, list) and len(value) <= 64
    if not is_list or any(type(n) is not int or not 0 <= n < 2**63 for n in value):
        raise ValueError(f"{name} is {shown(value)}: expected integers from 0 on")
    return value


def _entry(name: str, info: Any) -> _Entry:
    """The header's entry of a tensor, checked: its number of bytes fits its shape."""
    name.encode()  # raises for half of a surrogate pair
    tensor = f"tensor {shown(name)}"
    fields = ("dtype", "shape", "data_offsets")
    if not isinstance(info, dict) or any(field not in info for field in fields):
        raise ValueError(f"{tensor} is {shown(info)}: expected {', '.join(fields)}")
    dtype, shape, offsets = (info[field] for field in fields)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise ValueError(f"{tensor} is of dtype {shown(dtype)}: expected {known}")
    shape = tuple(_numbers(shape, f"the shape of {tensor}"))
    offsets = _numbers(offsets, f"data_offsets of {tensor}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"data_offsets of {tensor} are {offsets}: expected [begin, end]")
    size = _DTYPES[dtype].itemsize
    if math.prod(n for n in shape if n) * size >= 2**63:  # numpy has no such shape, even if empty
        raise ValueError(f"{tensor} of shape {shown(list(shape))} is too large")
    if (taken := offsets[1] - offsets[0]) != (needed := math.prod(shape) * size):
        raise ValueError(
            f"{tensor}, {dtype} of shape {list(shape)}, has {taken} bytes: expected {needed}"
        )
    return _Entry(*offsets, _DTYPES[dtype], shape)


def _header(content: np.ndarray) -> tuple[int, dict[str, _Entry]]:
    """Where the tensors' bytes begin, and the tensors' entries, which cover these bytes exactly."""
    if content.size < LENGTH:
        raise ValueError(f"it has {content.size} bytes, and the length of the header takes 8")
    length = int.from_bytes(content[:LENGTH].tobytes(), "little")
    start = LENGTH + length
    if length > LONGEST or start > content.size:
        raise ValueError(
            f"its header of {length} bytes is too long: the file has {content.size} bytes, and a "
            f"header at most {LONGEST}"
        )
    text = content[LENGTH:start].tobytes()
    if not text.startswith(b"{"):
        raise ValueError(f"its header begins with {text[:16]!r}, not with '{{'")
    header = parse_json(text)
    _strings(header.pop(METADATA, {}), METADATA)
    entries = {name: _entry(name, info) for name, info in header.items()}
    offset = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][:2]):
        if entry.begin != offset:
            fault = (
                "overlaps the one before it" if entry.begin < offset else "leaves a hole before it"
            )
            raise ValueError(
                f"tensor {shown(name)} begins at {entry.begin}, not {offset}: it {fault}"
            )
        offset = entry.end
    if offset != content.size - start:
        raise ValueError(
            f"its tensors take {offset} bytes, and it has {content.size - start} for them"
        )
    return start, entries


def _read_index(path: Path) -> dict[str, np.ndarray]:
    """The tensors that an index lists, from the files that it names in the same folder."""
    index = read_json(path)
    try:
        files = _strings(index.get("weight_map"), "weight_map")
        for file in set(files.values()):
            if file != Path(file).name or not file.endswith(".safetensors"):
                raise ValueError(
                    f"it names {shown(file)}: expected a .safetensors file in its folder"
                )
        shards = {file: read(path.with_name(file)) for file in sorted(set(files.values()))}
        for name, file in files.items():
            if name not in shards[file]:
                raise ValueError(f"tensor {shown(name)} is not in {file}, where it should be")
    except ConfigError:
        raise
    except ValueError as error:
        raise damaged(path, error) from error
    return {name: shards[file][name] for name, file in files.items()}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file, by name, as read-only views of the mapped file.

    Args:
      path: a .safetensors file, or the index .safetensors.index.json of several.

    Raises:
      ConfigError: the file is missing, cut short or inconsistent, or has a dtype that NumPy and
        ml_dtypes do not have (the packed ones of 4 and 6 bits).
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: expected safetensors.")
    if path.suffix == ".json":
        return _read_index(path)
    try:
        content = np.asarray(np.memmap(path, np.uint8, "r"))
        start, entries = _header(content)
    except (ValueError, OSError) as error:
        raise damaged(path, error) from error
    return {
        name: content[start + entry.begin : start + entry.end]
        .view(entry.dtype)
        .reshape(entry.shape)
        for name, entry in entries.items()
    }


def write(
    path: str | Path,
    arrays: Mapping[str, np.ndarray | jax.Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file, whole or not at all, byte for byte as the official library does.

    Args:
      path: the file; its folder must exist.
      arrays: by name; at most one is copied at a time.
      metadata: strings to store in the header.

    Raises:
      ConfigError: a dtype that the format does not have.
      OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    names = {}
    for name, array in arrays.items():
        names[name] = _NAMES.get(np.dtype(array.dtype).newbyteorder("<"))
        if names[name] is None or name == METADATA:
            known = ", ".join(str(dtype) for dtype in _NAMES)
            raise ConfigError(
                f"tensor {shown(name)} of dtype {array.dtype} cannot be written as safetensors: "
                f"expected a name other than {METADATA}, and one of {known}."
            )
    header: dict[str, Any] = {} if metadata is None else {METADATA: dict(metadata)}
    offset = 0
    ordered = sorted(names, key=lambda name: (-_ORDER.index(names[name]), name))
    for name in ordered:
        shape = [int(n) for n in arrays[name].shape]
        end = offset + math.prod(shape) * _DTYPES[names[name]].itemsize
        header[name] = {"dtype": names[name], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(LENGTH, "little") + text)
            for name in ordered:
                flat = np.ascontiguousarray(arrays[name], _DTYPES[names[name]]).reshape(-1)
                file.write(flat.view(np.uint8))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
