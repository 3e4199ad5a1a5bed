"""Reads `flax_model.msgpack`, as transformers wrote it before version 5, by PyTorch's names.

A file is a tree in MessagePack whose arrays are extensions of flax. Files come from strangers, so
lengths are bounded before anything is allocated. Names are those of the same model's safetensors:
https://github.com/huggingface/transformers, version 4, `modeling_flax_pytorch_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from genjax.config import ConfigError
from genjax.files import damaged, read_json, shown

SUFFIX = ".msgpack"
ARRAY, SCALAR = 1, 3  # types of extensions, of `flax.serialization`
CHUNKED = "__msgpack_chunked_array__"  # in the place of an array of 1 GB or more
MOST_AXES = 64  # as NumPy's; lists are used for shapes alone
DEEPEST = 64  # levels of the tree
STATES = {"params", "batch_stats"}  # names above those of the network, if it has a state

_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
_RENAMED = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_RENAMED |= {"mean": "running_mean", "var": "running_var"}


def _damaged(path: Path, error: Exception) -> ConfigError:
    return damaged(path, error, "as a model of flax")


def _sizes(value: Any) -> tuple[int, ...]:
    valid = isinstance(value, list | tuple) and len(value) <= MOST_AXES
    if not valid or any(type(n) is not int or not 0 <= n < 2**48 for n in value):
        raise ValueError(f"an array has the shape {shown(value)}: expected integers from 0 on")
    return tuple(value)


def _extension(kind: int, content: bytes) -> np.ndarray:
    """An array of its shape, its dtype's name and its bytes, as a view of them."""
    if kind not in (ARRAY, SCALAR):
        raise ValueError(f"it has an extension of type {kind}: expected only arrays")
    entries = msgpack.unpackb(content, raw=False, max_array_len=MOST_AXES, max_map_len=0)
    if not isinstance(entries, list) or len(entries) != 3 or type(entries[2]) is not bytes:
        raise ValueError("an array is not a shape, a dtype and bytes")
    shape, name, values = _sizes(entries[0]), *entries[1:]
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"an array is of dtype {shown(name)}: expected {', '.join(_DTYPES)}")
    if (needed := math.prod(shape) * _DTYPES[name].itemsize) != len(values):
        raise ValueError(
            f"an array, {name} of shape {list(shape)}, has {len(values)} bytes: expected {needed}"
        )
    return np.frombuffer(values, _DTYPES[name]).reshape(shape)


def _ordered(numbered: Any) -> list[Any]:
    """The values of a tuple, which flax stores as a dictionary of "0", "1" and so on."""
    if not isinstance(numbered, dict) or {*numbered} != {str(i) for i in range(len(numbered))}:
        raise ValueError(f"a list is {shown(numbered)}: expected a dictionary of its indices")
    return [numbered[str(i)] for i in range(len(numbered))]


def _joined(tree: Mapping[str, Any]) -> np.ndarray:
    """An array that was cut into flat pieces."""
    chunks, shape = _ordered(tree.get("chunks")), _sizes(_ordered(tree.get("shape")))
    if not chunks or any(not isinstance(x, np.ndarray) or x.ndim != 1 for x in chunks):
        raise ValueError("an array in pieces has a piece that is not flat")
    if len({x.dtype for x in chunks}) > 1 or sum(x.size for x in chunks) != math.prod(shape):
        raise ValueError(f"the pieces of an array of shape {list(shape)} do not fit it")
    return np.concatenate(chunks).reshape(shape)


def _flat(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """The arrays of a tree, each with the keys that lead to it."""
    if isinstance(tree, np.ndarray):
        yield path, tree
    elif not isinstance(tree, dict) or len(path) > DEEPEST:
        raise ValueError(f"{shown('/'.join(path)[:99])} is {shown(tree)}: expected arrays")
    elif CHUNKED in tree:
        yield path, _joined(tree)
    else:
        for name, inside in tree.items():
            yield from _flat(inside, (*path, name))


def _arrays(path: Path) -> dict[tuple[str, ...], np.ndarray]:
    """The arrays of one file, by their keys."""
    try:
        content = np.asarray(np.memmap(path, np.uint8, "r"))
        limits = {"max_array_len": MOST_AXES, "strict_map_key": True}
        tree = msgpack.unpackb(memoryview(content), raw=False, ext_hook=_extension, **limits)
        if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
            raise ValueError(f"it has {shown(tree)}: expected a tree of arrays")
        return dict(_flat(tree))
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise _damaged(path, error) from error


def _of_index(path: Path) -> dict[tuple[str, ...], np.ndarray]:
    """The arrays that an index lists, from the files that it names in the same folder."""
    places = read_json(path).get("weight_map")
    named = isinstance(places, dict) and all(isinstance(file, str) for file in places.values())
    if not named or any(Path(f).name != f or not f.endswith(SUFFIX) for f in places.values()):
        raise _damaged(path, ValueError("it does not name a .msgpack file of its folder for each"))
    files = {}
    for file in sorted(set(places.values())):
        if not path.with_name(file).is_file():
            raise ConfigError(f"there is no file {file} in {path.parent}: {path.name} names it.")
        files[file] = _arrays(path.with_name(file))
    found = {}
    for name, file in places.items():
        keys = tuple(name.split("/"))
        if keys not in files[file]:
            error = ValueError(f"{shown(name)} is not in {file}, where it should be")
            raise _damaged(path, error)
        found[keys] = files[file][keys]
    return found


def _named(keys: tuple[str, ...], array: np.ndarray) -> tuple[str, np.ndarray]:
    """Name and array as in PyTorch: a kernel [in, out], of one axis or two in space, is turned."""
    *modules, last = keys
    if last == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return ".".join((*modules, _RENAMED.get(last, last))), array


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by the names that they have in safetensors, read-only.

    Args:
      path: `flax_model.msgpack`, or the index flax_model.msgpack.index.json of several files.

    Raises:
      ConfigError: the file is missing, cut short or inconsistent, or two arrays have one name.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: expected a model of flax.")
    arrays = _of_index(path) if path.suffix == ".json" else _arrays(path)
    found: dict[str, np.ndarray] = {}
    with_state = arrays and {keys[0] for keys in arrays if keys} <= STATES
    for keys, array in arrays.items():
        name, value = _named(keys[1:] if with_state else keys, array) if keys else ("", array)
        if not name or name in found:
            error = ValueError(f"two arrays have the name {shown(name)}, or one has none")
            raise _damaged(path, error)
        found[name] = value
    return found
