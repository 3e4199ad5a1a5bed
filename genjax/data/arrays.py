"""An .npz file of named arrays as random-access sources."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import npz, sources, splits
from genjax.data.transforms import height_and_width
from genjax.method import Field

NAMES = ("npz",)

# Other names that the arrays of a field may have, the most usual first.
_ALIASES = {
    "image": ("x", "image", "images", "arr_0"),
    "label": ("y", "label", "labels", "arr_1"),
}
# Models have one table row per class number. From this number on, class numbers must be dense.
MANY = 2**16

log = logging.getLogger(__name__)


def load(dataset: ConfigDict) -> sources.Raw:
    """The splits in the .npz file `dataset.path`; nothing in it is ever unpickled.

    The arrays of a field `NAME` are called `NAME_train` or `train_NAME`, and likewise for the other
    splits, by the rule of `splits.by_split`; numbered parts are joined. An array whose name has no
    split is for training.
    The fields are `image` (or images, x), uint8 [N, H, W] or [N, H, W, C]; `label` (or labels, y),
    whole numbers [N] or [N, 1]; and each (name, kind) of `dataset.fields`. `dataset.target` is the
    field that is generated, by default the images. `dataset.channels` and `dataset.image_size`
    convert images.

    Raises:
      ConfigError: no such file, not an .npz, no array of the target, or a wrong shape or dtype.
    """
    path, target = dataset.path, dataset.target or "image"
    kinds = {"image": "image", "label": "label", **dict(dataset.fields)}
    if target not in kinds:
        raise ConfigError(
            f"config.dataset.target={target!r}: expected one of {', '.join(kinds)}. Name the kind "
            f'of another array in dataset.fields, as in (("{target}", "real"),).'
        )
    if not path:
        raise ConfigError('dataset.name="npz" needs dataset.path: the .npz file.')
    if not Path(path).is_file():
        raise ConfigError(f"dataset.path={path!r}: no such file. Give the path of an .npz file.")
    rows = _read(npz.Arrays(path), path, kinds, target, [name for name, _ in dataset.fields])
    return _raw(rows, kinds, target, path, dataset.channels, height_and_width(dataset.image_size))


def _names_by_split(
    names: Sequence[str], field: str, kinds: Mapping[str, str], path: str
) -> dict[str, list[str]]:
    """Split -> the name of the field's array, or the names of its numbered parts in order.

    Raises:
      ConfigError: several arrays could be the field's array in one split.
    """
    aliases = [n for n in _ALIASES.get(field, (field,)) if n == field or n not in kinds]
    by_split = splits.by_split(names, path, field=aliases)
    without_split = [name for n in aliases for name in names if name.lower() == n.lower()][:1]
    return {"train": without_split, **by_split} if without_split else by_split


def _rows(
    file: npz.Arrays, keys: Sequence[str], kind: str, path: str, count: int | None = None
) -> np.ndarray:
    """The checked rows of a field in one split, its parts joined."""
    parts = [file[key] for key in keys]
    where = f"array {keys[0]!r} in {path}"
    if len(parts) > 1:
        where = f"arrays {keys[0]!r} ... {keys[-1]!r} in {path}"
        if len({(part.shape[1:], part.dtype, part.ndim > 0) for part in parts}) > 1:
            listed = ", ".join(f"{list(part.shape)} {part.dtype}" for part in parts)
            raise ConfigError(f"{where}: expected parts that differ only in length, got {listed}.")
        if not parts[0].ndim:
            raise ConfigError(f"{where}: expected arrays of examples, got single numbers.")
    return _checked(kind, np.concatenate(parts) if len(parts) > 1 else parts[0], where, count)


def _read(
    file: npz.Arrays, path: str, kinds: dict[str, str], target: str, required: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Split -> field -> checked rows."""
    rows_of: dict[str, dict[str, np.ndarray]] = {}
    names, unread = list(file), set(file)
    keys_of = {name: _names_by_split(names, name, kinds, path) for name in kinds}
    for split in sources.SPLITS:
        if not (keys := keys_of[target].get(split)):
            continue
        unread -= set(keys)
        target_rows = _rows(file, keys, kinds[target], path)
        rows = {target: target_rows}
        for name, kind in kinds.items():
            keys = keys_of[name].get(split, [])
            unread -= set(keys)
            if name != target and keys:
                rows[name] = _rows(file, keys, kind, path, len(target_rows))
            elif name != target and name in required:
                raise ConfigError(
                    f"{path} has no array of the field {name!r} in the split {split}; it holds "
                    f"{', '.join(names)}. Expected an array called {name}_{split}."
                )
        rows_of[split] = rows
    if "train" not in rows_of:
        expected = "images" if target == "image" else f"an array of the field {target!r}"
        usual_names = "'image', 'x_train' or 'train_images' (and labels 'label', 'y_train' or "
        usual_names += "'train_labels')"
        raise ConfigError(
            f"{path} holds the arrays {', '.join(names) or '(none)'}; expected {expected} for "
            f"training named {usual_names if target == 'image' else repr(target + '_train')}."
        )
    if unread:
        log.warning(
            "%s: read: %s; not read: %s",
            path,
            ", ".join(f"{split} ({', '.join(rows)})" for split, rows in rows_of.items()),
            ", ".join(name for name in names if name in unread),
        )
    return rows_of


def _checked(kind: str, array: np.ndarray, where: str, count: int | None = None) -> np.ndarray:
    """The rows of a field of this kind.

    Raises:
      ConfigError: the kind cannot have this shape or dtype, or there are not `count` rows.
    """
    got = f"{where} has shape {list(array.shape)} and dtype {array.dtype}"
    expected_count = "N" if count is None else str(count)
    if kind == "image":
        expected = "expected uint8 of shape [N, H, W], or [N, H, W, C] with C = 1 or 3"
        if array.dtype != np.uint8:
            raise ConfigError(f"{got}; {expected}. Scale the pixels to 0..255 and save as uint8.")
        array = array[..., None] if array.ndim == 3 else array
        if array.ndim != 4 or 0 in array.shape[1:] or array.shape[3] not in (1, 3):
            hint = (
                " Move the channels last." if array.ndim == 4 and array.shape[1] in (1, 3) else ""
            )
            raise ConfigError(f"{got}; {expected}.{hint}")
    elif kind == "label":
        flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        valid = flat.ndim == 1 and flat.dtype.kind in "iu" and not (len(flat) and flat.min() < 0)
        if not valid or (count is not None and len(flat) != count):
            raise ConfigError(
                f"{got}; expected whole numbers from 0 on, of shape [{expected_count}], one for "
                "each example."
            )
        _check_dense(flat, got)
        array = flat.astype(np.int32)
    elif kind == "mask":
        array = array[..., None] if array.ndim == 3 else array
        if array.ndim != 4 or array.shape[-1] != 1 or not np.isin(array, (0, 1)).all():
            raise ConfigError(f"{got}; expected zeros and ones of shape [N, H, W] or [N, H, W, 1].")
        array = array.astype(np.uint8)
    elif kind == "code" and array.dtype.kind in "iu":
        if array.size and array.min() < 0:
            raise ConfigError(f"{got}; its smallest number is {array.min()}, expected 0 or more.")
        _check_dense(array, got)
        array = array.astype(np.int32)
    elif kind == "real" or array.dtype.kind == "f":
        if array.dtype.kind not in "iufb":
            raise ConfigError(f"{got}; expected numbers of shape [{expected_count}, ...].")
        with np.errstate(over="ignore"):  # reported below
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ConfigError(
                f"{got}; {int((~np.isfinite(array)).sum())} of its numbers are not finite in "
                "float32. Replace NaN and infinity, and scale numbers beyond 3e38."
            )
    if array.dtype.kind not in "iufb" or array.ndim < 1 or len(array) != (count or len(array)):
        raise ConfigError(f"{got}; expected numbers of shape [{expected_count}, ...].")
    return array


def _check_dense(numbers: np.ndarray, got: str) -> None:
    """Raises ConfigError if `numbers` go beyond `MANY` and leave out over half of the range."""
    largest = int(numbers.max()) if numbers.size else 0
    if largest >= MANY and largest >= 2 * (count := len(np.unique(numbers))):
        raise ConfigError(
            f"{got}; its largest number is {largest}, and it has {count} different numbers. "
            "Expected classes numbered 0, 1, 2 ...: save "
            "numpy.unique(labels, return_inverse=True)[1]."
        )


def _raw(
    rows_of: dict[str, dict[str, np.ndarray]],
    kinds: dict[str, str],
    target: str,
    path: str,
    channels: int,
    size: tuple[int, int],
) -> sources.Raw:
    """The data set of these rows, with images converted to `channels` and `size`."""
    names = [name for name in kinds if all(name in rows for rows in rows_of.values())]
    for name in rows_of["train"]:
        if splits_without := [split for split, rows in rows_of.items() if name not in rows]:
            log.warning(
                "%s: the field %r is left out, also of train: there is none in %s. Add it, or "
                "remove %s from the file",
                *(
                    path,
                    name,
                    " and ".join(splits_without),
                    "this split" if len(splits_without) == 1 else "them",
                ),
            )
    fields, resized = {}, False
    for name in names:
        shapes = {split: rows[name].shape[1:] for split, rows in rows_of.items()}
        shape, images = next(iter(shapes.values())), kinds[name] == "image"
        spatial = images or kinds[name] == "mask"
        if len(set(shapes.values())) > 1 and not (spatial and any(size)):
            listed = ", ".join(
                f"{split} {list(rows[name].shape)}" for split, rows in rows_of.items()
            )
            raise ConfigError(
                f"the splits in {path} differ in shape: {listed}. Set dataset.image_size."
            )
        if images and not channels and len({s[-1] for s in shapes.values()}) > 1:
            raise ConfigError(f"the splits in {path} differ in colour. Set dataset.channels.")
        if images:
            height, width, native_channels = shape
            new_shape = (size[0] or height, size[1] or width, channels or native_channels)
            resized |= any(s != new_shape for s in shapes.values())
            shape = new_shape
        elif spatial and any(size):
            resized |= any(s != (*size, 1) for s in shapes.values())
            shape = (*size, 1)
        facts = {}
        if kinds[name] in ("label", "code"):
            tokens = all(rows[name].dtype.kind == "i" for rows in rows_of.values())
            count_name = "num_classes" if kinds[name] == "label" else "vocabulary_size"
            if tokens:
                counts = [int(rows[name].max()) + 1 for rows in rows_of.values() if rows[name].size]
                facts = {count_name: max(counts, default=0)}
        fields[name] = Field(kinds[name], tuple(shape), rows_of["train"][name].dtype, facts)
    images, masks = ([n for n in names if kinds[n] == kind] for kind in ("image", "mask"))
    splits = {}
    for split, rows in rows_of.items():
        source: Any = sources.Columns({name: rows[name] for name in names})
        if resized:
            source = sources.Fitted(source, images, channels, size, masks)
            source = sources.Memory(source, fields) if sources.fits(len(source), fields) else source
        splits[split] = source
    return sources.Raw(splits, fields, target, f"the file {path}")
