"""Folders of pictures as random-access sources."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genjax.config import ConfigError
from genjax.data import packages, sources, transforms
from genjax.data.documents import decode
from genjax.data.transforms import Example
from genjax.method import Field

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
BROKEN = (OSError, ValueError, EOFError, zlib.error)  # what a damaged archive raises
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv")  # of captions
_DECODE_THREADS = 8

log = logging.getLogger(__name__)


class _Pictures:
    """Files decoded as they are read."""

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int] | None,
        shape: tuple[int, int, int],
        size: tuple[int, int],
    ):
        self.files, self.labels = files, labels
        self._shape, self._size = shape, size

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        path = self.files[index]
        try:
            with Image.open(path) as picture:
                image = transforms.pixels(picture, self._shape[2], self._size)
        except Exception as error:  # what a damaged file makes Pillow raise is not specified
            raise ConfigError(_corrupt(path, error)) from error
        if image.shape != self._shape:
            raise ConfigError(sources.wrong_shape(str(path), image, self._shape))
        if self.labels is None:
            return {"image": image}
        return {"image": image, "label": np.int32(self.labels[index])}


def _corrupt(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be decoded: {error}. Replace or delete it, or set "
        'dataset.on_corrupt="skip" to leave such files out.'
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _listing(folder: Path) -> tuple[list[Path], list[str] | None]:
    """Sorted image files of one split and, if it has class folders, each file's class name."""
    loose = [p for p in _visible(folder) if p.is_file() and p.suffix.lower() in SUFFIXES]
    by_class = {p.name: _images_below(p) for p in _visible(folder) if p.is_dir()}
    by_class = {name: files for name, files in by_class.items() if files}
    if loose and by_class:
        raise ConfigError(
            f"{folder} holds both pictures (such as {loose[0].name}) and folders of pictures "
            f"(such as {next(iter(by_class))}/). Expected one or the other: put every picture "
            "into a class folder, or all of them side by side."
        )
    if not loose and not by_class:
        raise ConfigError(
            f"{folder} holds no pictures. Expected files ending in {', '.join(SUFFIXES)}, side by "
            "side or in one folder for each class."
        )
    if loose:
        return loose, None
    pairs = [(file, name) for name, files in by_class.items() for file in files]
    return [file for file, _ in pairs], [name for _, name in pairs]


def read(path: str, channels: int, image_size: int | Sequence[int], on_corrupt: str) -> sources.Raw:
    """Splits out of a folder of pictures.

    `path`, or an archive of it, holds pictures side by side (no labels), or one folder of pictures
    for each class (labels are the sorted names' positions), or `train`, and optionally `validation`
    and `test`, folders that do. Hidden files and other kinds of file are left alone. Every file's
    header is read at once; pixels are decoded at once if they fit into `sources.MEMORY_LIMIT`, else
    as needed (`on_corrupt="skip"` then reads all of them once to know which to leave out).

    Raises:
      ConfigError: no such folder, no pictures, a file that cannot be decoded (unless skipped), or
        one of another shape than the first while `image_size` is 0.
    """
    if not path:
        raise ConfigError('dataset.name="folder" needs dataset.path: the folder of pictures.')
    root = Path(path)
    if root.is_file():
        root = unpacked(root)
    if not root.is_dir():
        raise ConfigError(
            f"dataset.path={path!r}: no such folder. Give a folder of pictures, or an archive of "
            f"one ({', '.join(ARCHIVES)})."
        )
    named = {split: root / split for split in sources.SPLITS if (root / split).is_dir()}
    if named and "train" not in named:
        raise ConfigError(f"{root} has {', '.join(named)} but no train folder. Add one.")
    listed = {split: _listing(where) for split, where in (named or {"train": root}).items()}
    names = sorted(set(listed["train"][1] or ()))
    for split, (_, classes) in listed.items():
        unknown = sorted(set(classes or ()) - set(names))
        if unknown or (classes is None) != (listed["train"][1] is None):
            raise ConfigError(
                f"{named[split]}: expected the same class folders as in {named['train']} "
                f"({', '.join(names) or 'none'}), got {', '.join(unknown) or 'none'} beside them."
            )
    skipped: list[Path] = []
    native = _scan([f for files, _ in listed.values() for f in files], on_corrupt, skipped)
    size = transforms.height_and_width(image_size)
    shape = (size[0] or native[0], size[1] or native[1], channels or native[2])
    unreadable = set(skipped)
    index = {name: position for position, name in enumerate(names)}
    splits, texts = {}, {}
    fields = sources.image_fields(shape, len(names), names)
    for split, (files, classes) in listed.items():
        keep = [i for i, file in enumerate(files) if file not in unreadable]
        labels = [index[classes[i]] for i in keep] if classes is not None else None
        pictures = _Pictures([files[i] for i in keep], labels, shape, size)
        splits[split], good = _decoded(pictures, fields, on_corrupt, skipped)
        found = _captions(named.get(split, root), [pictures.files[i] for i in good])
        texts |= {split: found} if found else {}
    if skipped:
        log.warning(
            "%s: %d of %d pictures cannot be decoded and are left out; the first is %s",
            root,
            len(skipped),
            sum(len(files) for files, _ in listed.values()),
            skipped[0],
        )
    if not len(splits["train"]):
        raise ConfigError(f"{root}: none of the {len(skipped)} pictures can be decoded.")
    if texts and texts.keys() != splits.keys():
        without = ", ".join(splits.keys() - texts.keys())
        raise ConfigError(f"{root}: the pictures of {without} have no captions, and others have.")
    return sources.Raw(splits, fields, "image", f"the folder {root}", texts or None)


def unpacked(archive: Path) -> Path:
    """The folder in the cache that an archive is unpacked to, once for each state of the file.

    Raises:
      ConfigError: it is no archive, or a damaged one.
    """
    if not archive.name.endswith(ARCHIVES):
        raise ConfigError(
            f"dataset.path={str(archive)!r}: expected a folder, or an archive that ends in "
            f"{', '.join(ARCHIVES)}."
        )
    stat = archive.stat()
    state = f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    key = hashlib.sha256(state.encode()).hexdigest()[:24]
    place = packages.cache_root() / "archives" / key
    with packages.lock(f"archive-{key}"):
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=place.parent))
            safe = {} if archive.suffix == ".zip" else {"filter": "data"}
            try:
                shutil.unpack_archive(archive, partial, **safe)
                os.replace(partial, place)
            except (shutil.ReadError, tarfile.TarError, *BROKEN) as error:
                raise ConfigError(f"{archive} cannot be unpacked: {error}.") from error
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    inside = _visible(place)
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else place


def _captions(folder: Path, files: list[Path]) -> list[str] | None:
    """The caption of each picture of a split; None if there are none.

    Of `picture.png` it is in `picture.txt`, or in the row of `metadata.jsonl`, `captions.jsonl` or
    `metadata.csv` in the split's folder that has its path there as `file_name`, as `text`.

    Raises:
      ConfigError: some pictures have captions and others have not; a bad table.
    """
    table = _table(folder)
    found = {}
    for file in files:
        name, beside = file.relative_to(folder).as_posix(), file.with_suffix(".txt")
        if name in table:
            found[file] = table[name]
        elif beside.is_file():
            found[file] = decode(beside.read_bytes(), str(beside)).strip()
    found = {file: text for file, text in found.items() if text}
    if found and len(found) < len(files):
        first = next(file for file in files if file not in found)
        raise ConfigError(
            f"{first} has no caption, and {len(found)} of {len(files)} pictures beside it have. "
            f"Put its text into {first.with_suffix('.txt').name}, or take the captions away."
        )
    return [found[file] for file in files] if found else None


def _table(folder: Path) -> dict[str, str]:
    """`file_name` -> `text` of the table of captions in a folder; empty if it has none."""
    place = next((p for name in TABLES if (p := folder / name).is_file()), None)
    if place is None:
        return {}
    try:
        text = decode(place.read_bytes(), str(place))
        if place.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError("a row is no object")
        if not any("text" in row for row in rows):  # a table of something else
            return {}
        return {row["file_name"]: _said(row["text"]) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{place} cannot be read ({type(error).__name__}: {error}). Expected rows with "
            "file_name and text."
        ) from error


def _said(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the text {text!r}")
    return text.strip()


def _scan(files: list[Path], on_corrupt: str, skipped: list[Path]) -> tuple[int, int, int]:
    """Reads every header: (H, W) of the first good file, and 1 channel if all are grey, else 3."""

    def header(file: Path) -> tuple[int, int, int] | Exception:
        try:
            with Image.open(file) as picture:
                turned = picture.getexif().get(0x0112, 1) >= 5
                width, height = picture.size[::-1] if turned else picture.size
                return height, width, transforms.native_channels(picture)
        except Exception as error:  # as above
            return error

    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        headers = list(pool.map(header, files))
    good = []
    for file, found in zip(files, headers, strict=True):
        if not isinstance(found, Exception):
            good.append(found)
        elif on_corrupt == "skip":
            skipped.append(file)
        else:
            raise ConfigError(_corrupt(file, found)) from found
    if not good:
        raise ConfigError(f"none of the {len(files)} pictures can be decoded; first: {files[0]}")
    return good[0][0], good[0][1], max(channels for _, _, channels in good)


def _decoded(
    pictures: _Pictures, fields: dict[str, Field], on_corrupt: str, skipped: list[Path]
) -> tuple[Any, list[int]]:
    """`pictures` in memory if they fit, and which of them: without those that cannot be decoded."""
    kept = sources.fits(len(pictures), fields)
    if not kept and on_corrupt == "error":
        return pictures, list(range(len(pictures)))
    images = np.zeros((len(pictures) if kept else 0, *fields["image"].shape), np.uint8)
    good = np.ones(len(pictures), bool)

    def decode(index: int) -> None:
        try:
            image = pictures[index]["image"]
        except ConfigError as error:
            if on_corrupt == "error" or error.__cause__ is None:  # None: decoded, wrong shape
                raise
            good[index] = False
        else:
            if kept:
                images[index] = image

    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        for _ in pool.map(decode, range(len(pictures))):
            pass
    skipped.extend(file for file, ok in zip(pictures.files, good, strict=True) if not ok)
    keep = np.flatnonzero(good)
    if not kept:
        return sources.Subset(pictures, keep), keep.tolist()
    rows = {"image": images if good.all() else images[keep]}
    if pictures.labels is not None:
        rows["label"] = np.asarray(pictures.labels, np.int32)[keep]
    return sources.Columns(rows), keep.tolist()
