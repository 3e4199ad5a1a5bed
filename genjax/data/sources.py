"""Random-access sources: whole arrays, parts of other sources, what is kept in memory.

A source has `len(source)` and `source[i]`, a dict with an array for each field, of the same shape
for all examples. It may have `take(indices)`, examples stacked, and `content()`, which tells what
it holds from other data for less than it costs to read all examples: bytes, and sources whose
content is part of its own and may be shared with others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from genjax.data import transforms
from genjax.data.transforms import Example
from genjax.method import Field

SPLITS = ("train", "validation", "test")
# Decoded splits up to this many bytes are kept in memory: decoding costs more than training can
# spare on a small machine.
MEMORY_LIMIT = 2**30
SAMPLED = 2048  # examples of a source that stand for all where reading all would cost too much
BLOCK = 2**20  # bytes of an array that are looked at at a time
BLOCKS = 1024  # of them that stand for a larger array

# What a source tells of its content: bytes, or another source.
Content = Any


class Raw(NamedTuple):
    """A data set before it is split up.

    Attributes:
      splits: official split -> source.
      fields: of one example.
      target: the field that is generated.
      route: where it came from.
      texts: split -> the caption of each example; None if there are none.
    """

    splits: dict[str, Any]
    fields: dict[str, Field]
    target: str
    route: str
    texts: dict[str, Sequence[str]] | None = None


def image_fields(
    shape: tuple[int, int, int], num_classes: int, classes: Sequence[str] = ()
) -> dict[str, Field]:
    """The fields of 8-bit images with labels of so many classes, or without if there are none."""
    fields = {"image": Field("image", tuple(shape), np.dtype(np.uint8))}
    if num_classes:
        facts = {"num_classes": num_classes, "classes": tuple(classes)}
        fields["label"] = Field("label", (), np.dtype(np.int32), facts)
    return fields


class Fitted:
    """`source` with images, of these names, in other channels or of another size."""

    def __init__(
        self,
        source: Any,
        names: Sequence[str],
        channels: int,
        size: tuple[int, int],
        masks: Sequence[str] = (),
    ):
        """0 for `channels` or `size` keeps that of the images; `masks` are resized like them."""
        self._source, self._names, self._masks = source, names, masks
        self._channels, self._size = channels, size

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        example = self._source[index]
        fitted = {
            name: transforms.fit(example[name], self._channels, self._size) for name in self._names
        }
        masks = {
            name: transforms.fit(example[name] * np.uint8(255), 1, self._size) // np.uint8(128)
            for name in self._masks
        }
        return {**example, **fitted, **masks}

    def content(self) -> Iterator[Content]:
        """That of the source, and what is made of its images."""
        yield f"{self._names} {self._masks} {self._channels} {self._size}\n".encode()
        yield from content(self._source)


class Columns:
    """Examples out of arrays of one length, one for each field."""

    def __init__(self, fields: Mapping[str, np.ndarray]):
        """Keeps the arrays, which may be memory-mapped."""
        self._fields = fields

    def __len__(self) -> int:
        """The number of examples."""
        return len(next(iter(self._fields.values())))

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        return {name: rows[index] for name, rows in self._fields.items()}

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked."""
        return {name: rows[indices] for name, rows in self._fields.items()}

    def content(self) -> Iterator[Content]:
        """All of the arrays."""
        for name, rows in sorted(self._fields.items()):
            yield from array_content(name, rows)


def stack(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Examples as one batch."""
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def take(source: Any, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
    """The examples of `source` at `indices`, stacked: by its own `take`, or one by one."""
    if hasattr(source, "take"):
        return source.take(indices)
    return stack([source[int(i)] for i in indices])


def content(source: Any) -> Iterator[Content]:
    """What tells a source from others: its `content`, or some of its examples."""
    if hasattr(source, "content"):
        yield from source.content()
        return
    for index in order(len(source))[:SAMPLED]:
        for name, value in sorted(source[int(index)].items()):
            yield from array_content(name, np.asarray(value))


def array_content(name: str, array: np.ndarray) -> Iterator[bytes | memoryview]:
    """Bytes that tell a named array from others; it may be memory-mapped.

    Of an array beyond `BLOCKS` blocks so many are read, spread over it, the last among them.
    """
    yield f"{name} {array.dtype} {array.shape}\n".encode()
    rows = array.reshape(1) if array.ndim == 0 else array
    each = max(1, BLOCK // max(rows[:1].nbytes, 1))
    count = -(-len(rows) // each)
    chosen = range(count)
    if count > BLOCKS:
        chosen = [i * (count - 1) // (BLOCKS - 1) for i in range(BLOCKS)]
    for start in (number * each for number in chosen):
        yield np.ascontiguousarray(rows[start : start + each]).reshape(-1).view(np.uint8).data


class Subset:
    """The examples of `source` at `indices`."""

    def __init__(self, source: Any, indices: Int[np.ndarray, " N"]):
        """`indices` may come in any order."""
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        return self._source[int(self._indices[index])]

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked."""
        return take(self._source, self._indices[indices])

    def content(self) -> Iterator[Content]:
        """The whole source, and which examples of it these are."""
        yield from array_content("indices", np.asarray(self._indices, np.int64))
        yield self._source


class Memory:
    """`source`, each example decoded once and kept. Threads may read it at the same time."""

    def __init__(self, source: Any, fields: Mapping[str, Field]):
        """`fields` are those of every example."""
        count = len(source)
        self._source = source
        self._rows = {n: np.zeros((count, *f.shape), f.dtype) for n, f in fields.items()}
        self._filled = np.zeros(count, bool)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._filled)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        if not self._filled[index]:
            example = self._source[index]
            for name, rows in self._rows.items():
                rows[index] = example[name]
            self._filled[index] = True  # last: a thread that sees it sees the example too
        return {name: rows[index] for name, rows in self._rows.items()}

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked."""
        for index in np.unique(indices[~self._filled[indices]]):
            self[int(index)]
        return {name: rows[indices] for name, rows in self._rows.items()}

    def content(self) -> Iterator[Content]:
        """That of the source."""
        yield from content(self._source)


class Chosen:
    """Some of the fields of `source`, by the names that they are to have."""

    def __init__(self, source: Any, fields: Mapping[str, str]):
        """`fields`: name -> the name that it has in `source`."""
        self._source, self._fields = source, fields

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        example = self._source[index]
        return {name: example[own] for name, own in self._fields.items()}

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked."""
        rows = take(self._source, indices)
        return {name: rows[own] for name, own in self._fields.items()}

    def content(self) -> Iterator[Content]:
        """That of the whole source, and the fields."""
        yield f"{sorted(self._fields.items())}\n".encode()
        yield from content(self._source)


class Joined:
    """The fields of several sources of one length side by side."""

    def __init__(self, *sources: Any):
        """No two have a field of the same name."""
        self._sources = sources

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._sources[0])

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        return {name: value for source in self._sources for name, value in source[index].items()}

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked."""
        parts = [take(source, indices) for source in self._sources]
        return {name: rows for part in parts for name, rows in part.items()}

    def content(self) -> Iterator[Content]:
        """That of each source."""
        for source in self._sources:
            yield from content(source)


def order(count: int) -> Int[np.ndarray, " N"]:
    """A fixed permutation of range(count): positions sorted by their SplitMix64 hash.

    Written out, and not drawn from a library's generator, so that no seed and no release can
    change which examples are held out, or looked at.
    """
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable")


def fits(count: int, fields: Mapping[str, Field]) -> bool:
    """Whether `count` examples with these fields are to be kept in memory."""
    each = sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in fields.values())
    return count * each <= MEMORY_LIMIT


def wrong_shape(what: str, image: np.ndarray, expected: tuple[int, ...]) -> str:
    """The message for an image that cannot be batched with the others."""
    return (
        f"{what} has shape {image.shape}, expected {expected}. "
        "Set dataset.image_size to resize and crop every image to one size."
    )
