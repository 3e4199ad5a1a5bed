"""Reads GGUF files: a header, metadata, a table of tensors, and the tensors' bytes.

Files come from strangers, so every size is compared with the file before it is used. Tensors are
views of the mapped file, and `dequantised` makes float32 of one. The format is specified in
https://github.com/ggml-org/ggml, `docs/gguf.md`, its blocks in `src/ggml-quants.c`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from genjax.config import ConfigError
from genjax.files import LONGEST, damaged, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
MOST_AXES = 4
PIECE = 2**22  # values that are dequantised at a time

_NUMBERS = {
    **{0: np.dtype("u1"), 1: np.dtype("i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2")},
    **{4: np.dtype("<u4"), 5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("?")},
    **{10: np.dtype("<u8"), 11: np.dtype("<i8"), 12: np.dtype("<f8")},
}
_STRING, _ARRAY = 8, 9

Blocks = UInt8[np.ndarray, "n bytes"]
Values = Float32[np.ndarray, "n values"]


class Tensor(NamedTuple):
    """A tensor as the file has it.

    Attributes:
      kind: its type, such as "Q4_K".
      shape: from the slowest axis to the fastest; the file lists them the other way round.
      data: its bytes, a view of the mapped file.
    """

    kind: str
    shape: tuple[int, ...]
    data: UInt8[np.ndarray, "bytes"]


class File(NamedTuple):
    """The content of a file.

    Attributes:
      metadata: by key: a number, a string, a list of strings, or an array of numbers.
      tensors: by name, in the file's order.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


# ---- blocks ------------------------------------------------------------------------------------


def _halves(blocks: Blocks, start: int) -> Float[np.ndarray, "n 1"]:
    """The float16 at byte `start` of each block, as float32."""
    return blocks[:, start : start + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: UInt8[np.ndarray, "*n bytes"]) -> UInt8[np.ndarray, "*n twice"]:
    """The low four bits of all bytes, then the high four bits of all bytes."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _bits(packed: UInt8[np.ndarray, "n bytes"]) -> UInt8[np.ndarray, "n bits"]:
    """Every bit, from the lowest of the first byte on."""
    return np.unpackbits(packed, axis=-1, bitorder="little")


def _q4_0(blocks: Blocks) -> Values:
    return _halves(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Blocks) -> Values:
    return _halves(blocks, 0) * _nibbles(blocks[:, 4:]) + _halves(blocks, 2)


def _q5_0(blocks: Blocks) -> Values:
    whole = _nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4
    return _halves(blocks, 0) * (whole.astype(np.float32) - 16)


def _q5_1(blocks: Blocks) -> Values:
    whole = _nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4
    return _halves(blocks, 0) * whole + _halves(blocks, 2)


def _q8_0(blocks: Blocks) -> Values:
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8)


def _scales(blocks: Blocks) -> tuple[Float[np.ndarray, "n 8 1"], Float[np.ndarray, "n 8 1"]]:
    """Scale and offset of each of the eight groups of 32 in a block of Q4_K or Q5_K.

    Twelve bytes hold sixteen numbers of six bits: bytes 0 to 3 the first four scales, bytes 4 to 7
    the first four offsets, and bytes 8 to 11 the low four bits of the others, whose high two bits
    are those of bytes 0 to 7.
    """
    first, second, third = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    offset = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return (
        (_halves(blocks, 0) * scale)[..., None],
        (_halves(blocks, 2) * offset)[..., None],
    )


def _q4_k(blocks: Blocks) -> Values:
    scale, offset = _scales(blocks)
    whole = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (scale * whole - offset).reshape(-1, 256)


def _q5_k(blocks: Blocks) -> Values:
    scale, offset = _scales(blocks)
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    high = _bits(blocks[:, 16:48]).reshape(-1, 32, 8).swapaxes(1, 2)  # bit i is of group i
    return (scale * (low | high << 4) - offset).reshape(-1, 256)


def _q6_k(blocks: Blocks) -> Values:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    whole = (low | high.reshape(-1, 2, 128) << 4).reshape(-1, 16, 16).astype(np.float32) - 32
    scale = _halves(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return (scale[..., None] * whole).reshape(-1, 256)


def _floats(dtype: Any) -> Callable[[Blocks], Values]:
    return lambda blocks: blocks.view(dtype).astype(np.float32)


class _Kind(NamedTuple):
    """A type of tensors: values and bytes of a block, and how a block becomes float32."""

    values: int
    bytes: int
    decode: Callable[[Blocks], Values]


KINDS = {
    "F32": _Kind(1, 4, _floats("<f4")),
    "F16": _Kind(1, 2, _floats("<f2")),
    "BF16": _Kind(1, 2, _floats(ml_dtypes.bfloat16)),
    "Q8_0": _Kind(32, 34, _q8_0),
    "Q4_0": _Kind(32, 18, _q4_0),
    "Q4_1": _Kind(32, 20, _q4_1),
    "Q5_0": _Kind(32, 22, _q5_0),
    "Q5_1": _Kind(32, 24, _q5_1),
    "Q4_K": _Kind(256, 144, _q4_k),
    "Q5_K": _Kind(256, 176, _q5_k),
    "Q6_K": _Kind(256, 210, _q6_k),
}

# The names of all types, also of those that are not read, for the message.
_NAMES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS"},
    **{17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M"},
    **{30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}


def dequantised(tensor: Tensor) -> Float32[np.ndarray, "..."]:
    """The tensor in float32, computed as ggml does."""
    kind = KINDS[tensor.kind]
    blocks = tensor.data.reshape(-1, kind.bytes)
    values = np.empty((len(blocks), kind.values), np.float32)
    with np.errstate(all="ignore"):  # the scales of a damaged file may be infinite
        step = PIECE // kind.values
        for start in range(0, len(blocks), step):
            piece = slice(start, start + step)
            values[piece] = kind.decode(blocks[piece])
    return values.reshape(tensor.shape)


class _OtherKind(ValueError):
    """A tensor of a type that is not read; the file may be sound."""


# ---- the file ----------------------------------------------------------------------------------


class _Cursor:
    """Reads the header from front to back, and nothing beyond its end."""

    def __init__(self, content: UInt8[np.ndarray, "bytes"]):
        self.content, self.at = content[:LONGEST], 0

    def take(self, count: int) -> UInt8[np.ndarray, "count"]:
        """The next bytes."""
        if count > len(self.content) - self.at:
            raise ValueError(
                f"it says that {count} bytes follow byte {self.at}, but its header has "
                f"{len(self.content) - self.at} left"
            )
        self.at += count
        return self.content[self.at - count : self.at]

    def number(self, kind: int) -> Any:
        """The next number, as a Python number."""
        dtype = _NUMBERS[kind]
        return self.take(dtype.itemsize).view(dtype)[0].item()

    def numbers(self, kind: int, count: int) -> Shaped[np.ndarray, "count"]:
        """The next numbers, copied."""
        dtype = _NUMBERS[kind]
        return self.take(count * dtype.itemsize).view(dtype).copy()

    def count(self, least: int, what: str) -> int:
        """The next count, of things that take at least so many bytes each."""
        count = self.number(10)
        if count > (len(self.content) - self.at) // least:
            raise ValueError(
                f"it says that it has {count} {what}, but its header has only "
                f"{len(self.content) - self.at} bytes left"
            )
        return count

    def string(self) -> str:
        """The next string."""
        return self.take(self.number(10)).tobytes().decode()


def _value(cursor: _Cursor, key: str) -> Any:
    """The next value of the metadata."""
    kind = cursor.number(4)
    if kind in _NUMBERS:
        return cursor.number(kind)
    if kind == _STRING:
        return cursor.string()
    if kind != _ARRAY:
        raise ValueError(f"the value of {shown(key)} is of type {kind}, which does not exist")
    kind = cursor.number(4)
    if kind in _NUMBERS:
        return cursor.numbers(kind, cursor.count(_NUMBERS[kind].itemsize, f"values of {key!r}"))
    if kind != _STRING:
        raise ValueError(f"the values of {shown(key)} are of type {kind}: expected numbers or text")
    return [cursor.string() for _ in range(cursor.count(8, f"values of {shown(key)}"))]


class _Entry(NamedTuple):
    """Where a tensor lies, in bytes from the first tensor on."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _entry(cursor: _Cursor, name: str, alignment: int) -> _Entry:
    """The next entry of the table of tensors, after its name."""
    axes = cursor.number(4)
    if axes > MOST_AXES:
        raise ValueError(f"tensor {shown(name)} has {axes} axes: expected at most {MOST_AXES}")
    shape = tuple(cursor.numbers(10, axes)[::-1].tolist())
    number, begin = cursor.number(4), cursor.number(10)
    kind = _NAMES.get(number, "unknown")
    if kind not in KINDS:
        raise _OtherKind(
            f"tensor {shown(name)} is of type {number} ({kind}): expected {', '.join(KINDS)}"
        )
    values, size, _ = KINDS[kind]
    if (shape or (1,))[-1] % values:
        raise ValueError(
            f"tensor {shown(name)}, {kind} of shape {list(shape)}: expected rows of a multiple of "
            f"{values} values"
        )
    if begin % alignment:
        raise ValueError(
            f"tensor {shown(name)} begins at {begin}: expected a multiple of {alignment}"
        )
    return _Entry(kind, shape, begin, begin + math.prod(shape) // values * size)


def _check_places(entries: dict[str, _Entry], size: int) -> None:
    """Raises ValueError unless the tensors lie one after the other in `size` bytes."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if 0 in entry.shape:
            raise ValueError(f"tensor {shown(name)} of shape {list(entry.shape)} is empty")
        if entry.begin < end:
            raise ValueError(f"tensor {shown(name)} overlaps the one before it")
        end = entry.end
        if end > size:
            raise ValueError(
                f"tensor {shown(name)}, {entry.kind} of shape {list(entry.shape)}, ends at {end}, "
                f"but the file has {size} bytes of tensors: it is cut short"
            )


def _read(content: UInt8[np.ndarray, "bytes"]) -> File:
    if content[:4].tobytes() != MAGIC:
        raise ValueError(f"it begins with {content[:4].tobytes()!r}, not with {MAGIC!r}")
    cursor = _Cursor(content)
    cursor.take(4)
    version = cursor.number(4)
    if version not in VERSIONS:
        raise ValueError(
            f"its version is {version}: expected 2 or 3, with the low bytes of numbers first"
        )
    entries_count = cursor.count(24, "tensors")
    metadata: dict[str, Any] = {}
    for _ in range(cursor.count(13, "values of metadata")):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"the key {shown(key)} comes twice")
        metadata[key] = _value(cursor, key)
    alignment = metadata.get(ALIGNMENT, 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20:
        raise ValueError(f"{ALIGNMENT} is {shown(alignment)}: expected a number from 1 to 2^20")
    entries: dict[str, _Entry] = {}
    for _ in range(entries_count):
        name = cursor.string()
        if name in entries:
            raise ValueError(f"the tensor {shown(name)} comes twice")
        entries[name] = _entry(cursor, name, alignment)
    start = -(-cursor.at // alignment) * alignment
    _check_places(entries, max(len(content) - start, 0))
    return File(
        metadata,
        {
            name: Tensor(entry.kind, entry.shape, content[start + entry.begin : start + entry.end])
            for name, entry in entries.items()
        },
    )


def read(path: str | Path) -> File:
    """The metadata and tensors of a file of version 2 or 3.

    Raises:
      ConfigError: the file is missing, cut short or inconsistent, or has a tensor of a type that
        is not in `KINDS`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}: expected one of GGUF.")
    try:
        return _read(np.asarray(np.memmap(path, np.uint8, "r")))
    except _OtherKind as error:
        raise ConfigError(f"{path}: {error}. Fetch the model in one of these types.") from None
    except (ValueError, OSError) as error:
        raise damaged(path, error, "as GGUF") from error
