"""Reads matrices and cell arrays of matrices from MATLAB 5 files (.mat), safely if damaged.

The format is MathWorks, "MAT-file format", chapter 1: a header of 128 bytes, then elements, each
with a tag that has its type and length. Lengths are checked against the size of the file, and
elements are not read recursively. (A damaged file can crash the process in scipy's reader.)
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

HEADER = 128  # bytes
DENSEST = 1032  # the highest compression ratio of deflate
ORDERS = {b"IM": "<", b"MI": ">"}
MATRIX, COMPRESSED = 14, 15
CELL, NUMBERS = 1, range(6, 16)  # classes of arrays: cells; double, single and the integers
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}


class _Element(NamedTuple):
    kind: int
    content: memoryview


class _Array(NamedTuple):
    """A matrix element whose content has not been read yet."""

    kind: int
    shape: tuple[int, ...]
    name: str
    parts: Iterator[_Element]


def _elements(content: memoryview, order: str) -> Iterator[_Element]:
    """The consecutive elements in `content`.

    Raises:
      ValueError: an element is longer than the rest of the content.
    """
    offset = 0
    while offset < len(content):
        if offset + 8 > len(content):
            raise ValueError("it is cut short")
        kind, length = struct.unpack_from(f"{order}II", content, offset)
        begin = offset + 8
        if kind >> 16:  # small element: up to four bytes of data in the tag itself
            kind, length, begin = kind & 0xFFFF, kind >> 16, offset + 4
            offset += 8
            if length > 4:
                raise ValueError(f"an element of {length} bytes in a tag of 4")
        else:
            offset = begin + length + (0 if kind == COMPRESSED else -length % 8)
        if begin + length > len(content):
            raise ValueError(f"an element of {length} bytes is longer than the file")
        yield _Element(kind, content[begin : begin + length])


def _array(content: memoryview, order: str) -> _Array:
    """The header of a matrix."""
    parts = _elements(content, order)
    flags, dimensions, name = (_next(parts) for _ in range(3))
    if len(flags.content) < 4 or len(dimensions.content) % 4:
        raise ValueError("a matrix without flags or dimensions")
    kind = struct.unpack_from(f"{order}I", flags.content)[0] & 0xFF
    shape = tuple(np.frombuffer(dimensions.content, f"{order}i4").tolist())
    if min(shape, default=0) < 0 or len(shape) > 32:
        raise ValueError(f"a matrix of shape {shape[:8]}")
    return _Array(kind, shape, bytes(name.content).decode("latin-1"), parts)


def _next(parts: Iterator[_Element]) -> _Element:
    if (part := next(parts, None)) is None:
        raise ValueError("a matrix is cut short")
    return part


def _numbers(array: _Array, order: str) -> np.ndarray:
    """The numbers of a matrix, in the dtype in which they are stored."""
    if array.kind not in NUMBERS:
        raise ValueError(f"a matrix of class {array.kind}: expected numbers")
    part = _next(array.parts)
    if part.kind not in TYPES:
        raise ValueError(f"numbers of type {part.kind}")
    dtype = np.dtype(f"{order}{TYPES[part.kind]}")
    if math.prod(array.shape) * dtype.itemsize != len(part.content):
        raise ValueError(f"{len(part.content)} bytes of {dtype} for the shape {array.shape}")
    return np.frombuffer(part.content, dtype).reshape(array.shape, order="F")


def _cells(array: _Array, order: str) -> list[np.ndarray]:
    """The matrices of a cell array, column by column."""
    matrices = []
    for part in array.parts:
        if part.kind != MATRIX:
            raise ValueError(f"a cell of type {part.kind}: expected a matrix")
        if len(part.content):
            matrices.append(_numbers(_array(part.content, order), order))
        else:  # an empty cell
            matrices.append(np.zeros((0, 0)))
    if len(matrices) != math.prod(array.shape):
        raise ValueError(f"{len(matrices)} cells for the shape {array.shape}")
    return matrices


def read(path: Path, choose: Callable[[list[str]], list[str]]) -> dict[str, object]:
    """The chosen variables of a file: each a matrix, or the list of a cell array's matrices.

    Args:
      path: the file.
      choose: takes the names of all variables, returns the names of those to read.

    Raises:
      ValueError: it is not a MATLAB 5 file, it is inconsistent, or a chosen variable does not hold
        numbers.
      zlib.error: the compressed data are damaged.
    """
    content = memoryview(path.read_bytes())
    order = ORDERS.get(bytes(content[126:HEADER]), "")
    if not order:
        raise ValueError("it does not begin as a MATLAB 5 file does")
    arrays = {}
    for element in _elements(content[HEADER:], order):
        if element.kind == COMPRESSED:
            packed = zlib.decompressobj()
            plain = packed.decompress(element.content, DENSEST * len(element.content) + 64)
            element = _next(_elements(memoryview(plain), order))
        if element.kind == MATRIX:
            array = _array(element.content, order)
            arrays[array.name] = array
    chosen = choose(list(arrays))
    return {
        name: (_cells if arrays[name].kind == CELL else _numbers)(arrays[name], order)
        for name in chosen
    }
