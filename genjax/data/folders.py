"""Folders of pictures as random-access sources."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from genjax.config import ConfigError
from genjax.data import json_lines, listing, packages, sources, transforms
from genjax.data.documents import decode
from genjax.data.splits import by_split
from genjax.data.transforms import Example
from genjax.files import building
from genjax.method import Field

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv")  # of captions
_DECODE_THREADS = 8
SHOWN = 20  # class names in the log

log = logging.getLogger(__name__)


class _Pictures:
    """Files decoded as they are read."""

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int] | None,
        shape: tuple[int, int, int],
        size: tuple[int, int],
        max_pixels: int,
    ):
        self.files, self.labels = files, labels
        self._shape, self._size, self._max_pixels = shape, size, max_pixels

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        """Example `index`."""
        path = self.files[index]
        decode = partial(transforms.pixels, channels=self._shape[2], size=self._size)
        try:
            image = transforms.read_picture(path, decode, self._max_pixels)
        except Exception as error:  # what a damaged file makes Pillow raise is not specified
            raise ConfigError(_corrupt(path, error)) from error
        if image.shape != self._shape:
            raise ConfigError(sources.wrong_shape(str(path), image, self._shape))
        if self.labels is None:
            return {"image": image}
        return {"image": image, "label": np.int32(self.labels[index])}

    def content(self) -> Iterator[bytes]:
        """What tells the pictures from others: names, sizes and labels of all, bytes of some."""
        for number, file in enumerate(self.files):
            label = "" if self.labels is None else self.labels[number]
            yield f"{file.name} {file.stat().st_size} {label}\n".encode()
        for number in sources.order(len(self.files))[: sources.SAMPLED]:
            yield self.files[number].read_bytes()


class _InMemory(sources.Columns):
    """Decoded pictures; what tells them from others is their files.

    Another release of Pillow may decode the same file to other pixels.
    """

    def __init__(self, fields: Mapping[str, np.ndarray], pictures: _Pictures | sources.Subset):
        """The arrays, and what they were decoded from."""
        super().__init__(fields)
        self._pictures = pictures

    def content(self) -> Iterator[sources.Content]:
        """That of the files."""
        yield from sources.content(self._pictures)


def _corrupt(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be decoded: {error}. Replace or delete it, or set "
        'dataset.on_corrupt="skip" to leave such files out.'
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


class _Listing(NamedTuple):
    """The pictures of one split.

    Attributes:
      files: sorted, by class if there are class folders.
      classes: the class of each; None if there are no class folders.
      names: of all class folders, those without any file included.
      aside: what lies beside the pictures and is not read.
    """

    files: list[Path]
    classes: list[str] | None
    names: list[str]
    aside: list[Path]


def _listing(folders: Sequence[Path]) -> _Listing:
    """The pictures of one split, which may lie in several folders, its numbered parts."""
    loose: list[Path] = []
    by_class: dict[str, list[Path]] = {}
    aside: list[Path] = []
    for folder in folders:
        for path in listing.visible(folder):
            if not path.is_dir():
                (loose if _is_picture(path) and path.is_file() else aside).append(path)
                continue
            files = listing.files_below(path)
            pictures = [file for file in files if _is_picture(file)]
            aside += [file for file in files if not _is_picture(file)]
            if pictures or not files:  # a class without any picture keeps its number
                by_class.setdefault(path.name, []).extend(pictures)
    full = next((name for name, files in by_class.items() if files), None)
    if loose and full:
        raise ConfigError(
            f"{folders[0]} holds both pictures (such as {loose[0].name}) and folders of pictures "
            f"(such as {full}/). Expected one or the other: put every picture into a class "
            "folder, or all of them side by side."
        )
    if not loose and not full:
        ends = f"; what is there: {listing.kinds_of(aside)}" if aside else ""
        raise ConfigError(
            f"{folders[0]} holds no pictures. Expected files ending in {', '.join(SUFFIXES)}, side "
            f"by side or in one folder for each class{ends}."
        )
    if loose:
        return _Listing(loose, None, [], aside)
    pairs = [(file, name) for name, files in sorted(by_class.items()) for file in files]
    classes = [name for _, name in pairs]
    return _Listing([file for file, _ in pairs], classes, sorted(by_class), aside)


def read(dataset: ConfigDict) -> sources.Raw:
    """Splits out of the folder of pictures `dataset.path`.

    It, or an archive of it, holds pictures side by side (no labels), or one folder of pictures for
    each class (labels are the sorted names' positions), or folders that do for each split, called
    as in `splits.SPELLINGS`. Hidden files are left alone, and so are other kinds of file, which
    are counted in the log. Links are followed. Every file's header is read at once; pixels are
    decoded at once if they fit into `sources.MEMORY_LIMIT`, else as needed
    (`dataset.on_corrupt="skip"` then reads all of them once to know which to leave out).

    Raises:
      ConfigError: no such folder, no pictures, a file that cannot be decoded (unless skipped), or
        one of another shape than the first while `dataset.image_size` is ().
    """
    path, on_corrupt, max_pixels = dataset.path, dataset.on_corrupt, dataset.max_pixels
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
    named = _split_folders(root)
    listed = {split: _listing(where) for split, where in named.items()}
    names = listed["train"].names
    for split, found in listed.items():
        unknown = sorted(set(found.classes or ()) - set(names))
        if unknown or (found.classes is None) != (listed["train"].classes is None):
            raise ConfigError(
                f"{named[split][0]}: expected the same class folders as in {named['train'][0]} "
                f"({', '.join(names) or 'none'}), got {', '.join(unknown) or 'none'} beside them."
            )
    skipped: list[Path] = []
    every = [file for found in listed.values() for file in found.files]
    headers = _scan(every, on_corrupt, skipped, max_pixels)
    native = next(iter(headers.values()))
    size = transforms.height_and_width(dataset.image_size)
    depth = dataset.channels or max(header.channels for header in headers.values())
    shape = (size[0] or native.height, size[1] or native.width, depth)
    index = {name: position for position, name in enumerate(names)}
    splits, texts = {}, {}
    fields = sources.image_fields(shape, len(names), names)
    for split, found in listed.items():
        keep = [i for i, file in enumerate(found.files) if file in headers]
        labels = [index[found.classes[i]] for i in keep] if found.classes is not None else None
        files = [found.files[i] for i in keep]
        pictures = _Pictures(files, labels, shape, size, max_pixels)
        splits[split], good = _decoded(pictures, fields, on_corrupt, skipped)
        captions = _captions(named[split], [pictures.files[i] for i in good])
        texts |= {split: captions} if captions else {}
    if skipped:
        log.warning(
            "%s: %d of %d pictures cannot be decoded and are left out; the first is %s",
            *(root, len(skipped), len(every), skipped[0]),
        )
    if not len(splits["train"]):
        raise ConfigError(f"{root}: none of the {len(skipped)} pictures can be decoded.")
    if texts and texts.keys() != splits.keys():
        without = ", ".join(splits.keys() - texts.keys())
        raise ConfigError(f"{root}: the pictures of {without} have no captions, and others have.")
    _tell(root, named, listed, headers, shape, bool(texts))
    return sources.Raw(splits, fields, "image", f"the folder {root}", texts or None)


def _split_folders(root: Path) -> dict[str, list[Path]]:
    """The folders of each split; the root is train if it has no folders that are called splits.

    Raises:
      ConfigError: there is another split and no train.
    """
    folders = [path for path in listing.visible(root) if path.is_dir()]
    named = by_split((path.name for path in folders), str(root))
    if not named:
        return {"train": [root]}
    if "train" not in named:
        raise ConfigError(
            f"{root} has {', '.join(n for found in named.values() for n in found)} but no train "
            "folder. Add one, or give the folder in it as dataset.path."
        )
    read = {name for found in named.values() for name in found}
    aside = [path for path in listing.visible(root) if path.name not in read]
    unread = [path.name for path in aside if path.is_dir() or _is_picture(path)]
    if unread:
        log.warning(
            "%s is split into folders (%s): not read are %s beside them",
            *(root, ", ".join(sorted(read)), ", ".join(unread[:8])),
        )
    return {split: [root / name for name in found] for split, found in named.items()}


def _tell(
    root: Path,
    named: Mapping[str, Sequence[Path]],
    listed: Mapping[str, _Listing],
    headers: Mapping[Path, _Header],
    shape: tuple[int, int, int],
    captioned: bool,
) -> None:
    """Logs what a folder holds and what becomes of it."""
    for split, found in listed.items():
        called = ", ".join(sorted(path.name for path in named[split]))
        where = "" if named[split] == [root] or called == split else f" (from {called})"
        log.info("%s: %s%s has %d pictures", root, split, where, len(found.files))
    names, counts = listed["train"].names, Counter(listed["train"].classes or ())
    if names:
        told = ", ".join(f"{i} {n} ({counts[n]})" for i, n in enumerate(names[:SHOWN]))
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        log.info("%s: %d classes, with their pictures in train: %s%s", root, len(names), told, more)
    else:
        log.info("%s: no class folders, so the pictures have no labels", root)
    if empty := [name for name in names if not counts[name]]:
        log.warning(
            "%s: the class folders %s hold no pictures in train; they keep their numbers, and the "
            "model learns nothing of them. Fill or remove them",
            *(root, ", ".join(empty[:SHOWN])),
        )
    aside = [file for found in listed.values() for file in found.aside if not _belongs(file)]
    if aside:
        log.warning(
            "%s: %d other files are not read (%s); pictures end in %s",
            *(root, len(aside), listing.kinds_of(aside), ", ".join(SUFFIXES)),
        )
    sizes = Counter((header.height, header.width) for header in headers.values())
    (height, width), _ = min(sizes.items(), key=lambda item: item[0][0] * item[0][1])
    (tall, wide), _ = max(sizes.items(), key=lambda item: item[0][0] * item[0][1])
    native = f"{height} x {width}" if len(sizes) == 1 else f"{height} x {width} to {tall} x {wide}"
    target = f"{shape[0]} x {shape[1]}"
    same = len(sizes) == 1 and (height, width) == shape[:2]
    change = "kept" if same else f"resized and cropped around the centre to {target}"
    alpha = sum(header.alpha for header in headers.values())
    log.info(
        "%s: height x width %s, %s; %s%s%s",
        *(root, native, change, "grey" if shape[2] == 1 else "colour"),
        f"; {alpha} with transparency, laid over white" if alpha else "",
        "; with captions" if captioned else "",
    )


def _belongs(file: Path) -> bool:
    """Whether a file that is no picture is one of captions."""
    return file.suffix.lower() == ".txt" or file.name in TABLES


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
            safe = {} if archive.suffix == ".zip" else {"filter": "data"}
            with building(place) as partial:
                try:
                    shutil.unpack_archive(archive, partial, **safe)
                except Exception as error:  # what a damaged archive raises is not specified
                    raise ConfigError(
                        f"{archive} cannot be unpacked: {error}. Fetch it again, or give the "
                        "folder."
                    ) from error
                os.replace(partial, place)
    inside = listing.visible(place)
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else place


def _captions(folders: Sequence[Path], files: list[Path]) -> list[str] | None:
    """The caption of each picture of a split; None if there are none.

    Of `picture.png` it is in `picture.txt`, or in the row of `metadata.jsonl`, `captions.jsonl` or
    `metadata.csv` in the split's folder that has its path there as `file_name`, as `text`.

    Raises:
      ConfigError: some pictures have captions and others have not; a bad table.
    """
    table = {folder / name: text for folder in folders for name, text in _table(folder).items()}
    found = {}
    for file in files:
        beside = file.with_suffix(".txt")
        if file in table:
            found[file] = table[file]
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
            rows = json_lines.all_rows(text)
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


class _Header(NamedTuple):
    """What the header of a picture says of what decoding makes of it."""

    height: int
    width: int
    channels: int
    alpha: bool


def _header(picture: Image.Image) -> _Header:
    size, depth = transforms.upright_size(picture), transforms.native_channels(picture)
    return _Header(*size, depth, picture.has_transparency_data)


def _scan(
    files: list[Path], on_corrupt: str, skipped: list[Path], max_pixels: int
) -> dict[Path, _Header]:
    """The headers of the files that can be read, in their order."""

    def header(file: Path) -> _Header | Exception:
        try:
            return transforms.read_picture(file, _header, max_pixels)
        except Exception as error:  # as above
            return error

    with ThreadPoolExecutor(_DECODE_THREADS) as pool:
        headers = dict(zip(files, pool.map(header, files), strict=True))
    for file, found in headers.items():
        if isinstance(found, Exception):
            if on_corrupt != "skip":
                raise ConfigError(_corrupt(file, found)) from found
            skipped.append(file)
    good = {file: found for file, found in headers.items() if isinstance(found, _Header)}
    if not good:
        raise ConfigError(f"none of the {len(files)} pictures can be decoded; first: {files[0]}")
    return good


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
    rest = pictures if good.all() else sources.Subset(pictures, keep)
    rows = {"image": images if good.all() else images[keep]}
    if pictures.labels is not None:
        rows["label"] = np.asarray(pictures.labels, np.int32)[keep]
    return _InMemory(rows, rest), keep.tolist()
