"""Random-access sources of image examples: whole arrays and parts of other sources.

A source has `len(source)` and `source[i]`, a dict with `image` uint8 [H, W, C] of one shape for
all examples and, where there are labels, `label` int32.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from genjax.config import ConfigError
from genjax.data import transforms
from genjax.data.transforms import Example

SPLITS = ("train", "validation", "test")
# Decoded splits up to this many bytes are kept in memory: decoding costs more than training can
# spare on a small machine.
MEMORY_LIMIT = 2**30


class Raw(NamedTuple):
    """A data set before it is split up.

    Attributes:
      splits: official split -> source.
      shape: (H, W, C) of every image.
      num_classes: number of labels, 0 if there are none.
      route: where it came from.
    """

    splits: dict[str, Any]
    shape: tuple[int, int, int]
    num_classes: int
    route: str


class Arrays:
    """Examples out of whole arrays, resized as they are read."""

    def __init__(
        self,
        images: UInt8[np.ndarray, "N H W C"],
        labels: Int[np.ndarray, " N"] | None,
        channels: int = 0,
        image_size: int = 0,
    ):
        """0 for `channels` or `image_size` keeps that of the images."""
        self._images, self._labels = images, labels
        self._channels, self._image_size = channels, image_size

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        image = transforms.fit(self._images[index], self._channels, self._image_size)
        if self._labels is None:
            return {"image": image}
        return {"image": image, "label": np.int32(self._labels[index])}

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked."""
        _, height, width, channels = self._images.shape
        size = self._image_size
        if self._channels not in (0, channels) or size not in (0, height) or size not in (0, width):
            return stack([self[i] for i in indices])
        batch = {"image": self._images[indices]}
        if self._labels is not None:
            batch["label"] = self._labels[indices].astype(np.int32)
        return batch


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


def stack(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Examples as one batch."""
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def take(source: Any, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
    """The examples of `source` at `indices`, stacked: by its own `take`, or one by one."""
    if hasattr(source, "take"):
        return source.take(indices)
    return stack([source[int(i)] for i in indices])


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


class Memory:
    """`source`, each example decoded once and kept. Threads may read it at the same time."""

    def __init__(self, source: Any, shape: tuple[int, int, int], labelled: bool):
        """`shape` is that of every image; `labelled` says whether there are labels."""
        count = len(source)
        self._source = source
        self._images = np.zeros((count, *shape), np.uint8)
        self._labels = np.zeros(count, np.int32) if labelled else None
        self._filled = np.zeros(count, bool)

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        if not self._filled[index]:
            example = self._source[index]
            self._images[index] = example["image"]
            if self._labels is not None:
                self._labels[index] = example["label"]
            self._filled[index] = True  # last: a thread that sees it sees the example too
        if self._labels is None:
            return {"image": self._images[index]}
        return {"image": self._images[index], "label": self._labels[index]}

    def take(self, indices: Int[np.ndarray, " B"]) -> dict[str, np.ndarray]:
        """The examples at `indices`, stacked."""
        for index in np.unique(indices[~self._filled[indices]]):
            self[int(index)]
        batch = {"image": self._images[indices]}
        if self._labels is not None:
            batch["label"] = self._labels[indices]
        return batch


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


def fits(count: int, shape: tuple[int, int, int]) -> bool:
    """Whether `count` images of `shape` are to be kept in memory."""
    return count * math.prod(shape) <= MEMORY_LIMIT


def wrong_shape(what: str, image: np.ndarray, expected: tuple[int, ...]) -> str:
    """The message for an image that cannot be batched with the others."""
    return (
        f"{what} has shape {image.shape}, expected {expected}. "
        "Set dataset.image_size to resize and crop every image to one size."
    )


_SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
_IMAGE_NAMES = ("x_{}", "{}_x", "{}_image", "{}_images", "image_{}", "images_{}")
_LABEL_NAMES = ("y_{}", "{}_y", "{}_label", "{}_labels", "label_{}", "labels_{}")
_PLAIN_IMAGE = ("image", "images", "x", "arr_0")
_PLAIN_LABEL = ("label", "labels", "y", "arr_1")


def _find(names: Sequence[str], split: str, patterns: Sequence[str], plain: Sequence[str]) -> str:
    wanted = [p.format(alias) for alias in _SPLIT_NAMES[split] for p in patterns]
    wanted += plain if split == "train" else ()
    return next((name for name in wanted if name in names), "")


def _checked_images(array: np.ndarray, where: str) -> np.ndarray:
    expected = "expected uint8 of shape [N, H, W], or [N, H, W, C] with C = 1 or 3"
    got = f"{where} has shape {list(array.shape)} and dtype {array.dtype}"
    if array.dtype != np.uint8:
        raise ConfigError(f"{got}; {expected}. Scale the pixels to 0..255 and save them as uint8.")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or 0 in array.shape[1:] or array.shape[3] not in (1, 3):
        hint = " Move the channels last." if array.ndim == 4 and array.shape[1] in (1, 3) else ""
        raise ConfigError(f"{got}; {expected}.{hint}")
    return array


def _checked_labels(array: np.ndarray, count: int, where: str) -> np.ndarray:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.shape != (count,) or flat.dtype.kind not in "iu" or (count and flat.min() < 0):
        raise ConfigError(
            f"{where} has shape {list(array.shape)} and dtype {array.dtype}; expected whole "
            f"numbers from 0 on, of shape [{count}], one for each image."
        )
    return flat.astype(np.int32)


def npz(path: str, channels: int, image_size: int) -> Raw:
    """Splits out of an .npz file of arrays; nothing in it is ever unpickled.

    Images are `x_train`, `train_images`, `image` ... and the like for validation and test; labels
    `y_train`, `train_labels`, `label` ... Images are uint8 [N, H, W] or [N, H, W, C], labels whole
    numbers [N] or [N, 1]. `channels` and `image_size` convert; 0 keeps what the file has.

    Raises:
      ConfigError: no such file, not an .npz, no array of images, a wrong shape or dtype.
    """
    if not path:
        raise ConfigError('dataset.name="npz" needs dataset.path: the .npz file.')
    if not Path(path).is_file():
        raise ConfigError(f"dataset.path={path!r}: no such file. Give the path of an .npz file.")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ConfigError(f"{path} holds one array. Expected an .npz of named arrays.")
        with file:
            arrays = _npz_arrays(file, path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} cannot be read: {error}. Expected an .npz of plain arrays (numpy.savez)."
        ) from error
    images = {split: pair[0] for split, pair in arrays.items()}
    shapes = {tuple(array.shape[1:]) for array in images.values()}
    if len(shapes) > 1 and not image_size:
        listed = ", ".join(f"{split} {list(a.shape)}" for split, a in images.items())
        raise ConfigError(
            f"the splits in {path} differ in shape: {listed}. Set dataset.image_size."
        )
    labelled = all(pair[1] is not None for pair in arrays.values())
    classes = [int(labels.max()) + 1 for _, labels in arrays.values() if labelled and len(labels)]
    height, width, native = next(iter(shapes))
    shape = (image_size or height, image_size or width, channels or native)
    splits = {
        split: Arrays(x, y if labelled else None, shape[2], image_size)
        for split, (x, y) in arrays.items()
    }
    if shape != (height, width, native) or len(shapes) > 1:
        splits = {
            split: Memory(source, shape, labelled) if fits(len(source), shape) else source
            for split, source in splits.items()
        }
    return Raw(splits, shape, max(classes, default=0), f"the file {path}")


def _npz_arrays(file: Any, path: str) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    arrays = {}
    for split in SPLITS:
        key = _find(file.files, split, _IMAGE_NAMES, _PLAIN_IMAGE)
        if not key:
            continue
        images = _checked_images(file[key], f"array {key!r} in {path}")
        label_key = _find(file.files, split, _LABEL_NAMES, _PLAIN_LABEL)
        labels = None
        if label_key:
            where = f"array {label_key!r} in {path}"
            labels = _checked_labels(file[label_key], len(images), where)
        arrays[split] = (images, labels)
    if "train" not in arrays:
        raise ConfigError(
            f"{path} holds the arrays {', '.join(file.files) or '(none)'}; expected images for "
            "training named 'image', 'x_train' or 'train_images' (and labels 'label', 'y_train' "
            "or 'train_labels')."
        )
    return arrays
