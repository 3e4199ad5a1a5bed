"""An .npz file of named arrays as random-access sources."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from genjax.config import ConfigError
from genjax.data import sources
from genjax.data.transforms import height_and_width
from genjax.method import Field

NAMES = ("npz",)

_SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
# What arrays of a field may be called beside the field's own name.
_ALIASES = {
    "image": ("images", "x", "arr_0"),
    "label": ("labels", "y", "arr_1"),
}


def load(dataset: ConfigDict) -> sources.Raw:
    """Splits out of the file `dataset.path`; nothing in it is ever unpickled.

    The arrays of a field `NAME` are called `NAME_train` or `train_NAME`, and the like for
    validation and test; one that says no split is for training. Read are `image` (or images, x),
    uint8 [N, H, W] or [N, H, W, C]; `label` (or labels, y), whole numbers [N] or [N, 1]; and each
    (name, kind) of `dataset.fields`. `dataset.target` says which of them is generated, the images
    if it does not. `dataset.channels` and `dataset.image_size` convert images.

    Raises:
      ConfigError: no such file, not an .npz, no array of the target, a wrong shape or dtype.
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
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ConfigError(f"{path} holds one array. Expected an .npz of named arrays.")
        with file:
            found = _read(file, path, kinds, target, [name for name, _ in dataset.fields])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path} cannot be read: {error}. Expected an .npz of plain arrays (numpy.savez)."
        ) from error
    return _raw(found, kinds, target, path, dataset.channels, height_and_width(dataset.image_size))


def _find(names: Sequence[str], field: str, split: str) -> str:
    """The array of a field in a split; "" if there is none."""
    own = (field, *_ALIASES.get(field, ()))
    patterns = (
        ("x_{}", "{}_x") if field == "image" else ("y_{}", "{}_y") if field == "label" else ()
    )
    patterns = (*patterns, *(p for n in own for p in (f"{{}}_{n}", f"{n}_{{}}")))
    wanted = [p.format(alias) for alias in _SPLIT_NAMES[split] for p in patterns]
    wanted += own if split == "train" else ()
    return next((name for name in wanted if name in names), "")


def _read(
    file: Any, path: str, kinds: dict[str, str], target: str, asked: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Split -> field -> rows, checked."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for split in sources.SPLITS:
        if not (key := _find(file.files, target, split)):
            continue
        first = _checked(kinds[target], file[key], f"array {key!r} in {path}")
        rows = {target: first}
        for name, kind in kinds.items():
            key = _find(file.files, name, split)
            if name != target and key:
                rows[name] = _checked(kind, file[key], f"array {key!r} in {path}", len(first))
            elif name != target and name in asked:
                raise ConfigError(
                    f"{path} has no array of the field {name!r} in the split {split}; it holds "
                    f"{', '.join(file.files)}. Expected one that is called {name}_{split}."
                )
        found[split] = rows
    if "train" not in found:
        what = "images" if target == "image" else f"an array of the field {target!r}"
        names = "'image', 'x_train' or 'train_images' (and labels 'label', 'y_train' or "
        names += "'train_labels')" if target == "image" else ""
        raise ConfigError(
            f"{path} holds the arrays {', '.join(file.files) or '(none)'}; expected {what} for "
            f"training named {names if target == 'image' else repr(target + '_train')}."
        )
    return found


def _checked(kind: str, array: np.ndarray, where: str, count: int | None = None) -> np.ndarray:
    """The rows of a field of this kind.

    Raises:
      ConfigError: a shape or dtype that it cannot have, or not `count` rows.
    """
    got = f"{where} has shape {list(array.shape)} and dtype {array.dtype}"
    many = "N" if count is None else str(count)
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
        whole = flat.ndim == 1 and flat.dtype.kind in "iu" and not (len(flat) and flat.min() < 0)
        if not whole or (count is not None and len(flat) != count):
            raise ConfigError(
                f"{got}; expected whole numbers from 0 on, of shape [{many}], one for each example."
            )
        array = flat.astype(np.int32)
    elif kind == "mask":
        array = array[..., None] if array.ndim == 3 else array
        if array.ndim != 4 or array.shape[-1] != 1 or not np.isin(array, (0, 1)).all():
            raise ConfigError(f"{got}; expected zeros and ones of shape [N, H, W] or [N, H, W, 1].")
        array = array.astype(np.uint8)
    elif kind == "code" and array.dtype.kind in "iu":
        array = array.astype(np.int32)
    elif kind == "real" and array.dtype.kind == "f":
        array = array.astype(np.float32)
    if array.dtype.kind not in "iufb" or array.ndim < 1 or len(array) != (count or len(array)):
        raise ConfigError(f"{got}; expected numbers of shape [{many}, ...].")
    return array


def _raw(
    found: dict[str, dict[str, np.ndarray]],
    kinds: dict[str, str],
    target: str,
    path: str,
    channels: int,
    size: tuple[int, int],
) -> sources.Raw:
    """The data set of these rows, its images in the channels and size that are asked for."""
    # A field counts if every split has it.
    names = [name for name in kinds if all(name in rows for rows in found.values())]
    fields, fitted = {}, False
    for name in names:
        shapes = {split: rows[name].shape[1:] for split, rows in found.items()}
        shape, images = next(iter(shapes.values())), kinds[name] == "image"
        spatial = images or kinds[name] == "mask"
        if len(set(shapes.values())) > 1 and not (spatial and any(size)):
            listed = ", ".join(f"{split} {list(rows[name].shape)}" for split, rows in found.items())
            raise ConfigError(
                f"the splits in {path} differ in shape: {listed}. Set dataset.image_size."
            )
        if images and not channels and len({s[-1] for s in shapes.values()}) > 1:
            raise ConfigError(f"the splits in {path} differ in colour. Set dataset.channels.")
        if images:
            height, width, native = shape
            wanted = (size[0] or height, size[1] or width, channels or native)
            fitted |= any(s != wanted for s in shapes.values())
            shape = wanted
        elif spatial and any(size):
            fitted |= any(s != (*size, 1) for s in shapes.values())
            shape = (*size, 1)
        facts = {}
        if kinds[name] in ("label", "code"):
            tokens = all(rows[name].dtype.kind == "i" for rows in found.values())
            known = "num_classes" if kinds[name] == "label" else "vocabulary_size"
            if tokens:
                counts = [int(rows[name].max()) + 1 for rows in found.values() if rows[name].size]
                facts = {known: max(counts, default=0)}
        fields[name] = Field(kinds[name], tuple(shape), found["train"][name].dtype, facts)
    images, masks = ([n for n in names if kinds[n] == kind] for kind in ("image", "mask"))
    splits = {}
    for split, rows in found.items():
        source: Any = sources.Columns({name: rows[name] for name in names})
        if fitted:
            source = sources.Fitted(source, images, channels, size, masks)
            source = sources.Memory(source, fields) if sources.fits(len(source), fields) else source
        splits[split] = source
    return sources.Raw(splits, fields, target, f"the file {path}")
