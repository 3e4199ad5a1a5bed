"""Random-access sources: arrays, subsets and combinations of other sources, in-memory caches.

A source has `len(source)` and `source[i]`, a dict with an array for each field, of the same shape
for all examples. It may have `take(indices)`, which returns stacked examples, and `content()`,
which identifies its data without reading all examples. `content()` yields bytes, and other sources
whose content belongs to it and may be shared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt64

from genjax.data import transforms
from genjax.data.transforms import Example
from genjax.method import Field

SPLITS = ("train", "validation", "test")
# Decoded splits up to this many bytes are kept in memory, because on a small machine decoding
# again would slow training down.
MEMORY_LIMIT = 2**30
SAMPLED = 2048  # examples that represent a source if reading all would cost too much
BLOCK = 2**20  # bytes of an array that are read at a time
BLOCKS = 1024  # the blocks that represent a larger array

# An item of a source's `content()`: bytes, or another source.
Content = Any


class Raw(NamedTuple):
    """A data set with only its official splits.

    Attributes:
      splits: official split -> source.
      fields: the fields of one example.
      target: the field that is generated.
      route: where it came from.
      texts: split -> the caption of each example, or its captions, equally many in all examples;
        None if there are no captions.
      groups: what each example of train belongs to, if no group may be in two splits.
    """

    splits: dict[str, Any]
    fields: dict[str, Field]
    target: str
    route: str
    texts: dict[str, Sequence[str] | Sequence[Sequence[str]]] | None = None
    groups: Sequence[str] | None = None


def image_fields(
    shape: tuple[int, int, int], num_classes: int, classes: Sequence[str] = ()
) -> dict[str, Field]:
    """The fields of 8-bit images, with labels unless `num_classes` is 0."""
    fields = {"image": Field("image", tuple(shape), np.dtype(np.uint8))}
    if num_classes:
        facts = {"num_classes": num_classes, "classes": tuple(classes)}
        fields["label"] = Field("label", (), np.dtype(np.int32), facts)
    return fields


class Fitted:
    """`source` with the images `names` converted to other channels or another size."""

    def __init__(
        self,
        source: Any,
        names: Sequence[str],
        channels: int,
        size: tuple[int, int],
        masks: Sequence[str] = (),
    ):
        """If `channels` or `size` is 0, it is not changed; `masks` are resized like the images."""
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
        """The content of the source, and the conversion of its images."""
        yield f"{self._names} {self._masks} {self._channels} {self._size}\n".encode()
        yield from content(self._source)


class Columns:
    """Examples from one array per field, all of the same length."""

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
        """The content of all arrays."""
        for name, rows in sorted(self._fields.items()):
            yield from array_content(name, rows)


def stack(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Stacks examples into one batch."""
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def take(source: Any, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
    """The examples of `source` at `indices`, stacked, by its `take` if it has one."""
    if hasattr(source, "take"):
        return source.take(indices)
    return stack([source[int(i)] for i in indices])


def content(source: Any) -> Iterator[Content]:
    """What identifies a source: its `content()`, or else some of its examples."""
    if hasattr(source, "content"):
        yield from source.content()
        return
    for index in order(len(source))[:SAMPLED]:
        for name, value in sorted(source[int(index)].items()):
            yield from array_content(name, np.asarray(value))


def array_content(name: str, array: np.ndarray) -> Iterator[bytes | memoryview]:
    """Bytes that identify a named array, which may be memory-mapped.

    If it has more than `BLOCKS` blocks, only `BLOCKS` are read, evenly spread up to the last one.
    """
    yield f"{name} {array.dtype} {array.shape}\n".encode()
    rows = array.reshape(1) if array.ndim == 0 else array
    rows_per_block = max(1, BLOCK // max(rows[:1].nbytes, 1))
    count = -(-len(rows) // rows_per_block)
    chosen = range(count)
    if count > BLOCKS:
        chosen = [i * (count - 1) // (BLOCKS - 1) for i in range(BLOCKS)]
    for start in (number * rows_per_block for number in chosen):
        yield (
            np.ascontiguousarray(rows[start : start + rows_per_block])
            .reshape(-1)
            .view(np.uint8)
            .data
        )


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
        """The indices, and the whole source."""
        yield from array_content("indices", np.asarray(self._indices, np.int64))
        yield self._source


class Memory:
    """`source` with each example decoded once and cached. Thread-safe."""

    def __init__(self, source: Any, fields: Mapping[str, Field]):
        """`fields` are the fields of every example."""
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
            self._filled[index] = True  # last, so that a thread that sees it sees the example too
        return {name: rows[index] for name, rows in self._rows.items()}

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked."""
        for index in np.unique(indices[~self._filled[indices]]):
            self[int(index)]
        return {name: rows[indices] for name, rows in self._rows.items()}

    def content(self) -> Iterator[Content]:
        """The content of the source."""
        yield from content(self._source)


class Chosen:
    """Some of the fields of `source`, renamed."""

    def __init__(self, source: Any, fields: Mapping[str, str]):
        """`fields`: new name -> name in `source`."""
        self._source, self._fields = source, fields

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        example = self._source[index]
        return {name: example[source_name] for name, source_name in self._fields.items()}

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked."""
        rows = take(self._source, indices)
        return {name: rows[source_name] for name, source_name in self._fields.items()}

    def content(self) -> Iterator[Content]:
        """The names of the fields, and the content of the whole source."""
        yield f"{sorted(self._fields.items())}\n".encode()
        yield from content(self._source)


class Joined:
    """The fields of several sources of the same length, merged."""

    def __init__(self, *sources: Any):
        """No two sources may have a field of the same name."""
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
        """The content of each source."""
        for source in self._sources:
            yield from content(source)


def splitmix64(numbers: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """The outputs number n, from 0, of the generator SplitMix64 with seed 0.

    Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators". As it is not a
    library's generator, no seed or release can change what depends on it.
    """
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def order(count: int) -> Int[np.ndarray, " N"]:
    """A fixed permutation of range(count), by which examples are held out or sampled."""
    return np.argsort(splitmix64(np.arange(count, dtype=np.uint64)), kind="stable")


def fits(count: int, fields: Mapping[str, Field]) -> bool:
    """Whether `count` examples with these fields fit into `MEMORY_LIMIT`."""
    example_bytes = sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in fields.values())
    return count * example_bytes <= MEMORY_LIMIT


def wrong_shape(what: str, image: np.ndarray, expected: tuple[int, ...]) -> str:
    """The message for an image that cannot be batched with the others."""
    return (
        f"{what} has shape {image.shape}, expected {expected}. "
        "Set dataset.image_size to resize and crop every image to one size."
    )
